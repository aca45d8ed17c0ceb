"""A model's files and what they are by role, without a number of it in memory."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from sst_ui.model.architecture.discover import Architecture, discover
from sst_ui.model.load.source import Source
from sst_ui.model.weights.stored_tensors import DTYPES, Shard, Stored, locate, read_shard, skeleton
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A model as it lies in its files.

    Attributes:
        name: how the screen calls it.
        model: its skeleton: modules and parameters without numbers.
        located: parameter's name -> the stored tensors that it is made of.
    """

    spec: ModelSpec
    name: str
    folder: Path
    shards: Sequence[Shard]
    model: "PreTrainedModel"
    architecture: Architecture
    located: Mapping[str, Sequence[tuple[Shard, Stored]]]

    def read(self, parameter: str) -> Tensor | None:
        """The numbers of a parameter that is stored as one tensor, else None."""
        places = self.located.get(parameter, ())
        if len(places) != 1 or places[0][1].dtype not in DTYPES:
            return None
        shard, stored = places[0]
        return shard.read(stored)


def read_blueprint(source: Source) -> Generator[Progress, None, Blueprint]:
    """Find out what a model's files hold; they are fetched if need be.

    Raises:
        UserError: files that are damaged or missing; an architecture that is not understood.
    """
    folder = yield from source.download()
    shards = [read_shard(folder / name) for name in source.weights()]
    model = skeleton(source.spec, folder)
    return Blueprint(
        source.spec, source.name, folder, shards, model, discover(model), locate(model, shards)
    )
