"""Where an affine edit moves to: the harmless prompts' component, measured where the edit acts.

That component is not the same at every token. Where the model is about to answer it can lie a
hundred times further out than in the answer, so a point measured there must not be used elsewhere.
"""

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sst_ui import cache
from sst_ui.data.prompt_sets import load as load_prompts
from sst_ui.jobs.directions.residual_cache import captured, encode
from sst_ui.lru import Memory
from sst_ui.maths.directions import Directions
from sst_ui.model.inference.replies import replies
from sst_ui.model.inference.written import written_means
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import KINDS, DirectionSpec, Position, digest

FORMULAS = 1  # raise it when what is measured changes: older cache files are then unused
PROMPTS, ANSWER = 64, 64  # of the harmless prompts, and tokens of the model's own answer to each
RECENT = 8  # means that a host keeps in memory
_recent: WeakKeyDictionary[Host, Memory] = WeakKeyDictionary()


def at_prompt_end(
    host: Host, spec: DirectionSpec, directions: Directions
) -> Generator[Progress, None, Directions]:
    """The directions with `neutral` at the last token of the prompt, where the edit acts.

    Directions that were measured there are returned as they are, those of a file that says nothing
    of its position too.

    Raises:
        UserError: prompts that are empty or too long.
    """
    if measured_at(spec, directions) == "template":
        return directions
    memory = _recent.setdefault(host, Memory(RECENT))
    prompts = load_prompts(spec.harmless, spec.samples)
    key = digest([directions.digest(), prompts.digest])
    found = memory.get(key)
    if found is None:
        (residuals,) = yield from captured(host, [encode(host, prompts, "template")])
        mean = residuals.mean(0, dtype=torch.float64)  # [L, d]
        neutral = (directions.vectors.double() @ mean[..., None])[..., 0].float()
        found = replace(directions, neutral=neutral)
        memory.put(key, found)
    return found


def measured_at(spec: DirectionSpec, directions: Directions) -> Position:
    """Where the directions were measured; a saved file tells it in its meta data."""
    if spec.file is None:
        return spec.position
    try:
        said = json.loads(directions.meta.get("settings", "{}"))["position"]
        return "instruction" if said == "instruction" else "template"
    except (ValueError, TypeError, KeyError):
        return "template"


def everywhere(
    host: Host, spec: DirectionSpec, directions: Directions
) -> Generator[Progress, None, Tensor]:
    """What each module writes along the directions for harmless prompts, averaged over all tokens
    of the prompts and of the model's own greedy answers.

    Returns:
        [L, len(KINDS), k] float32: for each writer R y of the mean output y, R being what an
        ablation reads there (see `Writer.sides`).

    Raises:
        UserError: prompts that are empty or too long.
    """
    mean = yield from _written(host, spec)  # [L, kinds, d]
    centre = torch.zeros(host.layers, len(KINDS), directions.k)
    for writer in host.architecture.writers:
        kind = KINDS.index(writer.role)
        read, _ = writer.sides(directions.vectors[writer.layer].double())
        centre[writer.layer, kind] = (read.cpu() @ mean[writer.layer, kind].double()).float()
    return centre


def _written(host: Host, spec: DirectionSpec) -> Generator[Progress, None, Tensor]:
    """[L, len(KINDS), d] the mean output of every writer, from memory or the cache if known. It
    depends on no direction, so that another estimator needs no further pass."""
    samples = min(spec.samples or PROMPTS, PROMPTS)
    prompts = load_prompts(spec.harmless, samples)
    memory = _recent.setdefault(host, Memory(RECENT))
    if (known := memory.get(prompts.digest)) is not None:
        return known
    asked = encode(host, prompts, "template").prompts
    key = digest(["written", FORMULAS, host.digest, asked, ANSWER])
    path = cache.place("residuals", f"{key}.safetensors") if host.digest else None
    found = _read(host, path)
    if found is None:
        room = host.context - max(map(len, asked))
        said = yield from replies(host, asked, None, max(1, min(ANSWER, room)), stage="answers")
        texts = [[*prompt, *reply.tokens] for prompt, reply in zip(asked, said, strict=True)]
        found = yield from written_means(host, texts)
        kept = found
        cache.keep(path, lambda part: save_file({"written": kept}, part))
    memory.put(prompts.digest, found)
    return found


def _read(host: Host, path: Path | None) -> Tensor | None:
    """What the cache holds; a damaged or foreign file counts as nothing."""
    with cache.used(path) as there:
        if path is None or not there:
            return None
        try:
            found = load_file(path)["written"]
        except (OSError, SafetensorError, KeyError):
            return None
    shape = (host.layers, len(KINDS), host.hidden)
    return found if found.shape == shape and found.dtype == torch.float32 else None
