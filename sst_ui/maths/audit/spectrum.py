"""Singular values of a change above what rounding leaves, by a randomised range finder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sst_ui.maths.audit.pair import Noise, Pair, Sizes

SKETCHES = (16, 64, 272)  # directions looked at, as many as it takes
SPARE = 8  # beyond those that are wanted (Halko, Martinsson and Tropp 2011)
ROUNDS = 2  # of power iteration
PRECISION = 3e-6  # of the largest singular value: what float32 products blur
LEFT = 4.0  # times the rounding's energy: what may remain behind a low rank


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The largest singular values of a change.

    Attributes:
        rank: how many exceed the rounding; None where there are more than were looked for, or where
            what remains behind them is more than rounding.
        looked: how many were looked for.
        values: [looked] descending.
        left: [looked, out] orthonormal rows, output side.
        rest: share of the change's squared norm behind the singular values that count.
    """

    rank: int | None
    looked: int
    values: Tensor
    left: Tensor
    rest: float


def leading(pair: Pair, count: int, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest singular values of W' − W diag(D) and their output sides.

    Args:
        count: how many; fewer come back from a matrix that has fewer.
        scale: D [in], or None for ones.

    Returns:
        [k, out] orthonormal rows and [k] values, descending, float64.
    """
    pick = pair.change(scale)
    draw = torch.Generator().manual_seed(0)
    width = min(count + SPARE, pair.out, pair.inp)
    start = torch.randn(pair.inp, width, generator=draw, dtype=torch.float64)
    left = torch.linalg.qr(pair.along(start, pick)).Q
    for _ in range(ROUNDS):
        right = torch.linalg.qr(pair.onto(left.mT, pick).mT).Q
        left = torch.linalg.qr(pair.along(right, pick)).Q
    inner, values, _ = torch.linalg.svd(pair.onto(left.mT, pick), full_matrices=False)
    return (left @ inner).mT[:count], values[:count]


def spectrum(pair: Pair, sums: Sizes, blur: Noise, widest: int = SKETCHES[-1]) -> Spectrum:
    """The numerical rank of W' − W, with rounding as its floor.

    Args:
        widest: of the sketches that are tried; a change of higher rank has rank None.
    """
    largest = min(pair.out, pair.inp)
    for count in SKETCHES:
        left, values = leading(pair, count)
        floor = max(blur.floor, PRECISION * float(values[0]))
        above = int((values > floor).sum())
        held = float(values[:above].square().sum())
        rest = max(0.0, sums.change - held)
        allowed = LEFT * blur.energy + 1e-5 * sums.change
        if above < len(values) and rest <= allowed and 2 * above <= largest:
            return Spectrum(above, len(values), values, left, rest / sums.change)
        if above < len(values) or 2 * count >= largest or count >= widest:
            break
    return Spectrum(None, len(values), values, left, rest / sums.change)
