"""Two matrices of one shape, base and other, read a few rows at a time and never held whole.

Everything is a pass over blocks of rows, so that memory does not grow with the matrix. W is
[out, in] throughout; a stored tensor may have the output features last (Conv1D, some experts).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 20  # numbers of a block: 4 MiB in float32
FRACTION = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}  # bits
LEAST = {torch.float16: -24}  # exponent of the step below which numbers are no finer
SHORT = (torch.bfloat16, torch.float16)
# E[step² / 12] of a number of size 1 and step 2^-bits: mantissas are spread evenly in the log.
ROUNDING = 0.75 / (2 * 0.6931) / 12
ARITHMETIC = 16.0  # energy of float32's own arithmetic, in units of its rounding
# Of the floor. Where the base lies on the same grid, a change below half a step vanishes and one
# above it is a whole step, so that the error follows the change and has a few directions itself.
INDEPENDENT, GRID = 1.2, 2.5
Pick = Callable[[Tensor, Tensor, slice], Tensor]


@dataclass(frozen=True, eq=False)
class Pair:
    """A base matrix and another.

    Attributes:
        shape: as they are stored.
        read: (start, stop) -> rows of both, in the types they are stored in.
        types: of both.
        last: whether the output features are the last axis.
    """

    shape: tuple[int, int]
    read: Callable[[int, int], tuple[Tensor, Tensor]]
    types: tuple[torch.dtype, torch.dtype]
    last: bool = False

    @property
    def out(self) -> int:
        return self.shape[1 if self.last else 0]

    @property
    def inp(self) -> int:
        return self.shape[0 if self.last else 1]

    @property
    def exact(self) -> torch.dtype:
        """What is computed in: float64 where either is stored so."""
        return torch.float64 if torch.float64 in self.types else torch.float32

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, base, other) [rows, shape[1]] in `exact`, from the first row to the last."""
        step = max(1, BLOCK // max(1, self.shape[1]))
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            base, other = self.read(rows.start, rows.stop)
            yield rows, base.to(self.exact), other.to(self.exact)

    def onto(self, rows: Tensor, pick: Pick) -> Tensor:
        """R X [k, in] float64, for rows R [k, out] and a matrix X made of the two by `pick`."""
        found = torch.zeros(len(rows), self.inp, dtype=torch.float64)
        used = rows.to(self.exact)
        for some, base, other in self.blocks():
            block = pick(base, other, some)
            if self.last:
                found[:, some] = (used @ block.mT).double()
            else:
                found += (used[:, some] @ block).double()
        return found

    def along(self, columns: Tensor, pick: Pick) -> Tensor:
        """X C [out, k] float64, for columns C [in, k] and a matrix X made of the two by `pick`."""
        found = torch.zeros(self.out, columns.shape[1], dtype=torch.float64)
        used = columns.to(self.exact)
        for some, base, other in self.blocks():
            block = pick(base, other, some)
            if self.last:
                found += (block.mT @ used[some]).double()
            else:
                found[some] = (block @ used).double()
        return found

    def change(self, scale: Tensor | None = None) -> Pick:
        """W' − W diag(D), for D [in] or None for ones."""
        if scale is None:
            return lambda base, other, _: other - base
        factor = scale.to(self.exact)
        if self.last:
            return lambda base, other, some: other - base * factor[some, None]
        return lambda base, other, _: other - base * factor


def first(base: Tensor, _: Tensor, __: slice) -> Tensor:
    """W: a `Pick`."""
    return base


def second(_: Tensor, other: Tensor, __: slice) -> Tensor:
    """W': a `Pick`."""
    return other


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sums over a pair.

    Attributes:
        base, change: squared Frobenius norms of W and of W' − W.
        inner: Σ W ∘ (W' − W): how much of the change is a change of scale.
        largest: of |W' − W|.
        beyond: how many numbers moved by more than a step of the coarser type.
        moved: how many numbers differ.
        columns: [3, in] float64: W·W, W·W' and W'·W' of each column.
        rows: [out] float64: W'·W' of each row.
        cast: the type that W was rounded to on the way to W' (or the other way), or None.
        finite: whether all numbers are.
    """

    base: float
    change: float
    inner: float
    largest: float
    beyond: int
    moved: int
    columns: Tensor
    rows: Tensor
    cast: torch.dtype | None
    finite: bool

    @property
    def relative(self) -> float:
        """‖W' − W‖ / ‖W‖; infinite where the base is zero and the other is not."""
        if not self.base:
            return float("inf") if self.change else 0.0
        return (self.change / self.base) ** 0.5


def sizes(pair: Pair) -> Sizes:
    """One pass over a pair for all sums that later steps need."""
    columns = torch.zeros(3, pair.inp, dtype=torch.float64)
    rows = torch.zeros(pair.out, dtype=torch.float64)
    sums = torch.zeros(3, dtype=torch.float64)
    largest, beyond, moved, finite = 0.0, 0, 0, True
    wide = pair.exact == torch.float64
    casts = dict.fromkeys((*SHORT, torch.float32) if wide else SHORT, True)
    step = max(coarseness(kind) for kind in pair.types)
    least = max(2.0 ** LEAST.get(kind, -126) for kind in pair.types)
    for some, base, other in pair.blocks():
        delta = other - base
        sums += torch.stack([(base * base).sum(), (delta * delta).sum(), (base * delta).sum()])
        size = delta.abs()
        largest = max(largest, float(size.max()))
        moved += int((size > 0).sum())
        bound = (torch.maximum(base.abs(), other.abs()) * (step * 1.0001)).clamp_min_(least)
        beyond += int((size > bound).sum())
        for kind, holds in casts.items():
            casts[kind] = holds and _rounded(base, other, kind)
        products = torch.stack([base * base, base * other, other * other])
        if pair.last:
            columns[:, some] = products.sum(2).double()
            rows += products[2].sum(0).double()
        else:
            columns += products.sum(1).double()
            rows[some] = products[2].sum(1).double()
        finite = finite and bool(size.isfinite().all())
    cast = next((kind for kind, holds in casts.items() if holds and moved), None)
    energy, change, inner = sums.tolist()
    return Sizes(energy, change, inner, largest, beyond, moved, columns, rows, cast, finite)


def _rounded(base: Tensor, other: Tensor, kind: torch.dtype) -> bool:
    """Whether one of the two is the other, rounded to a type."""
    return torch.equal(base.to(kind).to(base), other) or torch.equal(other.to(kind).to(base), base)


def coarseness(kind: torch.dtype) -> float:
    """The largest step of a type, relative to the number."""
    return 2.0 ** -FRACTION[kind]


@dataclass(frozen=True)
class Noise:
    """What rounding alone would leave in W' − W.

    Attributes:
        energy: its squared Frobenius norm, expected.
        floor: a singular value that it hardly exceeds.
    """

    energy: float
    floor: float


def noise(pair: Pair, sums: Sizes) -> Noise:
    """The rounding of a pair: of the other's type, of both where they are of two types.

    An independent error of variance s² in every number has a largest singular value of about
    s (√out + √in); where sizes differ, the largest row and the largest column bound it.
    """
    kinds = {pair.types[1]} if pair.types[0] == pair.types[1] else set(pair.types)
    share, least = 0.0, 0.0
    for kind in kinds:
        factor = 1.0 if kind in SHORT else ARITHMETIC
        share += factor * ROUNDING * coarseness(kind) ** 2
        least += (2.0 ** LEAST[kind]) ** 2 / 12 if kind in LEAST else 0.0
    # where both come from one short type, the work was still done in float32
    share += ARITHMETIC * ROUNDING * coarseness(pair.exact) ** 2
    energy = share * float(sums.rows.sum()) + least * pair.out * pair.inp
    widest = float(sums.rows.max()) ** 0.5 + float(sums.columns[2].max()) ** 0.5
    margin = GRID if pair.types[1] in SHORT else INDEPENDENT
    floor = margin * (share**0.5 * widest + least**0.5 * (pair.out**0.5 + pair.inp**0.5))
    return Noise(energy, floor)
