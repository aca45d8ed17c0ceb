"""Harmful and harmless prompts as points, layer by layer: the residuals that directions are
measured from, in two components."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sst_ui.data.prompt_sets import PromptSet
from sst_ui.data.prompt_sets import load as load_prompts
from sst_ui.jobs.directions.neutral_points import measured_at
from sst_ui.jobs.directions.residual_cache import captured, check_fits, encode
from sst_ui.maths.directions import Directions
from sst_ui.maths.residual_plane import Plane, plane
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import DirectionSpec

MOST = 200  # points of each kind: more are a cloud, and a page draws them slowly


@dataclass(frozen=True, eq=False)
class ResidualMap:
    """The points of every layer, and the prompts that they belong to.

    Attributes:
        planes: one for each layer.
        harmful, harmless: the prompts, in the order of the points.
    """

    planes: tuple[Plane, ...]
    harmful: tuple[str, ...]
    harmless: tuple[str, ...]


def residual_map(
    host: Host, spec: DirectionSpec, directions: Directions
) -> Generator[Progress, None, ResidualMap]:
    """Project the prompts of a direction on it, and on what varies most beside it.

    No forward pass where the directions were measured on the same prompts before: their residuals
    are in the cache. Every prompt counts for the axes; the first of each kind are drawn.

    Raises:
        UserError: directions of another model, or prompt sets that cannot be read.
    """
    check_fits(host, directions, "the directions")
    sets = [load_prompts(name, spec.samples) for name in (spec.harmful, spec.harmless)]
    position = measured_at(spec, directions)
    harmful, harmless = yield from captured(host, [encode(host, each, position) for each in sets])
    found = []
    for layer, vectors in enumerate(directions.vectors):
        yield Progress("directions", layer, host.layers)
        axis = vectors[0].double().numpy()
        found.append(_drawn(plane(_numbers(harmful, layer), _numbers(harmless, layer), axis)))
    return ResidualMap(tuple(found), *(_prompts(each) for each in sets))


def _numbers(residuals: Tensor, layer: int) -> np.ndarray:
    return residuals[:, layer].double().numpy()


def _drawn(whole: Plane) -> Plane:
    return Plane(whole.harmful[:MOST], whole.harmless[:MOST], whole.means, whole.shown)


def _prompts(prompts: PromptSet) -> tuple[str, ...]:
    return tuple(prompt.user for prompt in prompts.prompts[:MOST])
