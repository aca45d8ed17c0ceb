"""Rows of one prompt share the layers below their first edit: they fork from one trunk.

Of the rows with the same tokens one is the trunk: the one that is edited last, the base if it is
among them. The model is called with the trunks alone, and every other row comes into the batch at
the entry of the first layer that its edits change. The batch is ordered so that a layer sees its
first rows: row numbers stay, only how many there are grows.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sst_ui.model.architecture.discover import Architecture
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.hooks.row_plan import Plan, RowEdit, stream_of, with_stream


@dataclass(frozen=True, eq=False)
class Fork:
    """Which rows of a batch share what.

    Attributes:
        order: for each row of the forked batch the number that its caller gave it; trunks first,
            then the others by their first edited layer.
        parents: for each row of the forked batch the trunk it comes from; a trunk is its own.
        sizes: [L + 1] rows in each layer, and behind the last one.
        trunks: rows that the model is called with.
    """

    order: tuple[int, ...]
    parents: tuple[int, ...]
    sizes: tuple[int, ...]
    trunks: int
    _kept: dict = field(default_factory=dict, repr=False)  # what `pick` gave for the current size

    @property
    def places(self) -> list[int]:
        """For each row in the caller's order its place in the forked batch, behind the layers."""
        return sorted(range(len(self.order)), key=self.order.__getitem__)

    def holders(self, layer: int) -> list[int]:
        """For each row in the caller's order the place of the row that computed this layer for
        it."""
        size = self.sizes[layer]
        return [place if place < size else self.parents[place] for place in self.places]

    def grow(self, x: Tensor, layer: int) -> Tensor:
        """[rows before, ...] residual streams -> [sizes[layer], ...]: new rows begin as copies."""
        before = self.sizes[layer - 1] if layer else self.trunks
        if x.shape[0] != before:
            raise ValueError(f"the fork is for {before} rows; the batch is {list(x.shape)}")
        new = self.parents[before : self.sizes[layer]]
        if not new:
            return x
        return torch.cat([x, x.index_select(0, torch.tensor(new, device=x.device))])

    def pick(self, value: Any, layer: int) -> Any:
        """What goes with the residual streams of a layer (masks, positions), a row for each."""
        if isinstance(value, tuple | list):
            return type(value)(self.pick(one, layer) for one in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != self.trunks:
            return value
        size = self.sizes[layer]
        if self._kept.get("size") != size:
            self._kept.clear()
            self._kept["size"] = size
        if id(value) not in self._kept:  # the tensor stays beside, so that its id is not reused
            index = torch.tensor(self.parents[:size], device=value.device)
            self._kept[id(value)] = (value, value.index_select(0, index))
        return self._kept[id(value)][1]


def fork(keys: Sequence[Hashable], firsts: Sequence[int], layers: int) -> Fork | None:
    """How these rows fork, or None where they share no layer.

    Args:
        keys: of each row; rows with equal keys have the same tokens.
        firsts: the first edited layer of each row, 0 to `layers`, see `first_layer`.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    trunks = [max(members, key=lambda row: firsts[row]) for members in groups.values()]
    number = {row: n for n, members in enumerate(groups.values()) for row in members}
    others = sorted(number.keys() - set(trunks), key=lambda row: (firsts[row], row))
    if not any(firsts[row] for row in others):
        return None
    starts = [firsts[row] for row in others]
    order = (*trunks, *others)
    return Fork(
        order=order,
        parents=tuple(number[row] for row in order),
        sizes=tuple(len(trunks) + bisect_right(starts, layer) for layer in range(layers + 1)),
        trunks=len(trunks),
    )


def first_layer(architecture: Architecture, edits: Sequence[RowEdit | RowDelta]) -> int:
    """The first layer that some edits change: the number of layers where they change none, or the
    language-model head alone."""
    found = [len(architecture.layers)]
    for edit in edits:
        if isinstance(edit, RowDelta):
            found += [architecture.layer_of(path) for path in edit.active()]
        else:
            found += np.flatnonzero(edit.alpha.any(axis=1))[:1].tolist()
    return max(0, min(found))


class ForkHooks:
    """The hooks that let rows in; without a forked plan they do nothing.

    Args:
        architecture: of the model. Its layers' other hooks are registered before.
        plan: asked at every call for the plan that applies.
    """

    def __init__(self, architecture: Architecture, plan: Callable[[], Plan | None]) -> None:
        self._plan = plan
        self._layers = len(architecture.layers)
        self._handles = [
            layer.register_forward_pre_hook(self._before(number), with_kwargs=True)
            for number, layer in enumerate(architecture.layers)
        ]
        self._handles.append(architecture.layers[-1].register_forward_hook(self._behind))

    def close(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()

    def _before(self, layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
            plan = self._plan()
            if plan is None or (fork := plan.fork) is None or fork.sizes[layer] == fork.trunks:
                return None
            positional = bool(args)
            streams = args[0] if positional else kwargs["hidden_states"]
            beside = [fork.pick(value, layer) for value in args[1:]]
            named = {
                name: fork.pick(value, layer)
                for name, value in kwargs.items()
                if positional or name != "hidden_states"
            }
            streams = fork.grow(streams, layer)
            if positional:
                return (streams, *beside), named
            return (), {"hidden_states": streams, **named}

        return hook

    def _behind(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Rows whose layers are all the trunk's."""
        plan = self._plan()
        if plan is None or (fork := plan.fork) is None:
            return None
        return with_stream(output, fork.grow(stream_of(output), self._layers))
