"""Two models' stored tensors side by side: which belongs to which, and their numbers, streamed.

A tensor of up to `HELD` bytes is read once; a larger one is read again, a few rows at a time, for
every pass over it, so that memory does not grow with it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.audit.pair import Pair
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.module_roles import is_conv1d
from sst_ui.model.weights.blueprint import Blueprint
from sst_ui.model.weights.stored_tensors import DTYPES, Shard, Stored, locate
from sst_ui.model.weights.tensor_edits import stored_gain
from sst_ui.recipe import KINDS

HELD = 1 << 26  # bytes of a tensor that is kept in memory while it is looked at
PIECE = 1 << 22  # bytes compared at a time


@dataclass(frozen=True, eq=False)
class Place:
    """What a stored tensor is in its model.

    Attributes:
        layer, role: of what writes to the residual stream; None and '' for all other tensors.
        last: whether the output features are its last axis.
        bias: whether it is the bias of what writes.
        gain: [out] of the norm between it and the stream, or None.
        module: name of the module.
    """

    layer: int | None = None
    role: str = ""
    last: bool = False
    bias: bool = False
    gain: Tensor | None = None
    module: str = ""


@dataclass(eq=False)
class Rows:
    """The numbers of a stored tensor, as rows along its last axis."""

    shard: Shard
    stored: Stored
    held: bool = False
    _whole: Tensor | None = field(default=None, init=False)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows [stop - start, shape[-1]] in the stored type."""
        width = self.stored.shape[-1] if self.stored.shape else 1
        if self.held:
            if self._whole is None:
                self._whole = self.shard.read(self.stored).reshape(-1, width)
            return self._whole[start:stop]
        kind = DTYPES[self.stored.dtype]
        line = width * kind.itemsize
        raw = self.bytes(start * line, (stop - start) * line)
        return torch.frombuffer(raw, dtype=kind).view(stop - start, width)

    def bytes(self, start: int, count: int) -> bytearray:
        """Some bytes of the tensor as they lie in the file."""
        with self.shard.path.open("rb") as file:
            file.seek(len(self.shard.header) + self.stored.start + start)
            return bytearray(file.read(count))


@dataclass(frozen=True, eq=False)
class TensorPair:
    """A stored tensor and what it became.

    Attributes:
        name, other_name: in the files.
        shape: of both.
        types: as safetensors calls them.
        delta: what an adapter adds, where the other model is one.
    """

    name: str
    other_name: str
    shape: tuple[int, ...]
    types: tuple[str, str]
    place: Place
    base: tuple[Shard, Stored]
    other: tuple[Shard, Stored]
    delta: Delta | None = None

    @property
    def bytes(self) -> int:
        return self.base[1].bytes + self.other[1].bytes

    @property
    def packed(self) -> bool:
        """Whether one of them holds no ordinary floating-point numbers."""
        return not all(kind in DTYPES for kind in self.types)

    def identical(self) -> bool:
        """Whether both are the same, byte for byte."""
        if self.delta is not None or self.types[0] != self.types[1]:
            return False
        one, two = Rows(*self.base), Rows(*self.other)
        size = self.base[1].bytes
        return all(
            one.bytes(at, min(PIECE, size - at)) == two.bytes(at, min(PIECE, size - at))
            for at in range(0, size, PIECE)
        )

    def matrices(self) -> Iterator[Pair]:
        """The pair as matrices: one, or one per expert; a vector is a single row."""
        if not self.shape or 0 in self.shape:
            return
        height = self.shape[-2] if len(self.shape) > 1 else 1
        shape = (height, self.shape[-1])
        held = self.bytes <= 2 * HELD
        one, two = Rows(*self.base, held), Rows(*self.other, held)
        first, second = (DTYPES[kind] for kind in self.types)
        if self.delta is not None:  # added to the base in float32, and not rounded
            first = second = torch.promote_types(first, torch.float32)
        kinds = (first, second)
        for start in range(0, int(torch.Size(self.shape[:-1]).numel()), height):
            yield Pair(shape, self._reader(one, two, start), kinds, self.place.last)

    def _reader(
        self, one: Rows, two: Rows, offset: int
    ) -> Callable[[int, int], tuple[Tensor, Tensor]]:
        def read(start: int, stop: int) -> tuple[Tensor, Tensor]:
            base = one.read(offset + start, offset + stop)
            if self.delta is None:
                return base, two.read(offset + start, offset + stop)
            exact = base.to(torch.promote_types(base.dtype, torch.float32))
            b, a = self.delta.b.to(exact), self.delta.a.to(exact)
            if self.place.last:
                return base, torch.addmm(exact, a.mT[start:stop], b.mT)
            return base, torch.addmm(exact, b[start:stop], a)

        return read

    @cached_property
    def vector(self) -> tuple[Tensor, Tensor]:
        """Both as float64 vectors, for tensors of one axis."""
        base = Rows(*self.base, True).read(0, 1)[0].double()
        return base, Rows(*self.other, True).read(0, 1)[0].double()


@dataclass(frozen=True, eq=False)
class Matching:
    """Which stored tensor of one model belongs to which of another.

    Attributes:
        pairs: in the base's order.
        missing, added: of the base only, of the other only.
        renamed: (base's name, other's) of pairs under two names.
        reshaped: (name, base's shape, other's); their numbers are not compared.
    """

    pairs: tuple[TensorPair, ...]
    missing: tuple[tuple[Shard, Stored], ...]
    added: tuple[tuple[Shard, Stored], ...]
    renamed: tuple[tuple[str, str], ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


def places(model: Blueprint) -> dict[str, Place]:
    """Stored tensor's name -> what it is, of everything that writes to the residual stream, and of
    other matrices which axis is the output."""
    found: dict[str, Place] = {}
    for path, module in model.architecture.matrices.items():
        for _, stored in model.located.get(f"{path}.weight", ()):
            found[stored.name] = Place(last=is_conv1d(module), module=path)
    for writer in model.architecture.writers:
        gain = stored_gain(writer, model.located)
        for written in writer.tensors:
            last = written.axis == model.model.get_parameter(written.name).dim() - 1
            owner = written.name.removesuffix(".weight")
            place = Place(writer.layer, writer.role, last, False, gain, owner)
            for _, stored in model.located.get(written.name, ()):
                found[stored.name] = place
            bias = Place(writer.layer, writer.role, True, True, gain, owner)
            for _, stored in model.located.get(written.bias or "", ()):
                found[stored.name] = bias
    assert all(place.role in ("", *KINDS) for place in found.values())
    return found


def match(base: Blueprint, other: Sequence[Shard]) -> Matching:
    """Pair the tensors of a model with those of another model's files.

    By name; then by the parameter that transformers reads them as; then by content.
    """
    known = places(base)
    mine = {stored.name: (shard, stored) for shard in base.shards for stored in shard.tensors}
    theirs = {stored.name: (shard, stored) for shard in other for stored in shard.tensors}
    names = {name: name for name in mine if name in theirs}
    names |= _by_parameter(base, other, mine.keys() - names, theirs.keys() - names)
    names |= _by_content(mine, theirs, names)
    pairs, reshaped = [], []
    for name, one in mine.items():
        if name not in names:
            continue
        two = theirs[names[name]]
        if one[1].shape != two[1].shape:
            reshaped.append((name, one[1].shape, two[1].shape))
            continue
        types, place = (one[1].dtype, two[1].dtype), known.get(name, Place())
        pairs.append(TensorPair(name, names[name], one[1].shape, types, place, one, two))
    taken = set(names.values())
    return Matching(
        tuple(pairs),
        tuple(place for name, place in mine.items() if name not in names),
        tuple(place for name, place in theirs.items() if name not in taken),
        tuple((name, new) for name, new in names.items() if name != new),
        tuple(reshaped),
    )


def _by_parameter(
    base: Blueprint, other: Sequence[Shard], mine: set[str], theirs: set[str]
) -> dict[str, str]:
    """Names that transformers reads as the same parameter, one tensor each."""
    if not mine or not theirs:
        return {}
    there = locate(base.model, other)
    found = {}
    for parameter, places in base.located.items():
        new = there.get(parameter, ())
        if len(places) == len(new) == 1:
            one, two = places[0][1].name, new[0][1].name
            if one in mine and two in theirs:
                found[one] = two
    return found


def _by_content(
    mine: Mapping[str, tuple[Shard, Stored]],
    theirs: Mapping[str, tuple[Shard, Stored]],
    names: Mapping[str, str],
) -> dict[str, str]:
    """Names of tensors that are the same, byte for byte; what occurs twice is not told apart."""
    taken = set(names.values())
    loose = [place for name, place in theirs.items() if name not in taken]
    shapes = {(stored.shape, stored.dtype) for _, stored in loose}
    left = [
        place for name, place in mine.items()
        if name not in names and (place[1].shape, place[1].dtype) in shapes
    ]  # fmt: skip
    if not left:
        return {}
    there: dict[str, list[str]] = {}
    for place in loose:
        there.setdefault(_digest(*place), []).append(place[1].name)
    found: dict[str, str] = {}
    for place in left:
        same = [name for name in there.get(_digest(*place), ()) if name not in found.values()]
        if len(same) == 1:
            found[place[1].name] = same[0]
    return found


def _digest(shard: Shard, stored: Stored) -> str:
    content = hashlib.sha256(f"{stored.shape} {stored.dtype}".encode())
    rows = Rows(shard, stored)
    for at in range(0, stored.bytes, PIECE):
        content.update(rows.bytes(at, min(PIECE, stored.bytes - at)))
    return content.hexdigest()


def with_adapter(base: Blueprint, deltas: Mapping[str, Delta]) -> Matching:
    """The model's tensors paired with themselves and an adapter's deltas.

    Raises:
        UserError: a module that the files do not hold as one tensor of ordinary numbers.
    """
    known = places(base)
    changes: dict[str, Delta] = {}
    for path, delta in deltas.items():
        found = base.located.get(f"{path}.weight", ())
        if len(found) != 1 or found[0][1].dtype not in DTYPES:
            raise UserError(
                f"the adapter changes {path}, which the files of {base.name} do not hold as one "
                "tensor of floating-point numbers; compare it with an unpacked copy of the base."
            )
        changes[found[0][1].name] = delta
    pairs = tuple(
        TensorPair(
            stored.name, stored.name, stored.shape, (stored.dtype, stored.dtype),
            known.get(stored.name, Place()), (shard, stored), (shard, stored),
            changes.get(stored.name),
        )
        for shard in base.shards for stored in shard.tensors
    )  # fmt: skip
    return Matching(pairs, (), (), (), ())
