"""Singular values of a change above what rounding leaves, by a randomised range finder."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sst_ui.maths.audit.pair import GRID, INDEPENDENT, SHORT, Noise, Pair, Sizes

SKETCHES = (16, 64, 272)  # directions looked at, as many as it takes
SPARE = 8  # beyond those that are wanted (Halko, Martinsson and Tropp 2011)
ROUNDS = 2  # of power iteration
PRECISION = 3e-6  # of the largest singular value: what float32 products blur
STEEP = 0.5  # of a singular value to the one before: where a rank may end above the rounding
ROUNDED = 0.5  # times the rounding's energy: what remains where an account is rounded as well
REFINED = 3  # times that an account is made anew from what rounding hid
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


@dataclass(frozen=True, eq=False)
class Account:
    """M = W diag(D) + Rᵀ S, and what it leaves of W' when it is rounded as W' was.

    Attributes:
        view: W and what W' was before it was rounded, as far as M tells: W' + M − round(M).
        left: R [k, out] orthonormal.
        rest: ‖W' − round(M)‖².
    """

    view: Pair
    left: Tensor
    rest: float


def account(pair: Pair, sums: Sizes, left: Tensor, blur: Noise) -> Account | None:
    """The rank-k change that, rounded, is what is there; None where there is none.

    Rounding hides all of a change below half a step of a base on the same grid, so that what is
    seen of a direction is bent, and has further directions behind it. What an account hides when it
    is rounded is added to what is seen, and the account made anew.

    Args:
        left: [k, out] orthonormal rows to begin with.
        blur: of the pair.
    """
    if pair.types[1] not in SHORT:
        return None
    inner = pair.onto(left, pair.change())
    if remade(pair, left, inner) > LEFT * blur.energy:
        return None
    view = pair
    for _ in range(REFINED):
        view = unrounded(pair, left, inner)
        inner = view.onto(left, view.change())
        left = torch.linalg.qr(view.along(inner.mT, view.change())).Q.mT
        inner = view.onto(left, view.change())
    rest = remade(pair, left, inner)
    if rest > ROUNDED * min(blur.energy, sums.change):  # no change at all leaves less than that
        return None
    return Account(unrounded(pair, left, inner), left, rest)


def unrounded(pair: Pair, left: Tensor, inner: Tensor) -> Pair:
    """W, and W' + M − round(M) for M = W + Rᵀ S: what W' was before, as far as M tells."""

    def read(start: int, stop: int) -> tuple[Tensor, Tensor]:
        base, other = (part.to(pair.exact) for part in pair.read(start, stop))
        model = base + product(pair, left, inner, slice(start, stop))
        return base, other + (model - model.to(pair.types[1]).to(model))

    return Pair(pair.shape, read, (pair.exact, pair.exact), pair.last)


def remade(pair: Pair, left: Tensor, inner: Tensor) -> float:
    """‖W' − round(W + Rᵀ S)‖², rounded to the type that W' is stored in."""
    total = 0.0
    for some, base, other in pair.blocks():
        model = base + product(pair, left, inner, some)
        total += float((other - model.to(pair.types[1]).to(model)).double().square().sum())
    return total


def product(pair: Pair, left: Tensor, inner: Tensor, some: slice) -> Tensor:
    """Some stored rows of Rᵀ S, for R [k, out] and S [k, in]."""
    rows, parts = left.to(pair.exact), inner.to(pair.exact)
    return parts[:, some].mT @ rows if pair.last else rows[:, some].mT @ parts


def ends(found: Spectrum, blur: Noise, most: int) -> list[int]:
    """Ranks up to `most` behind which the singular values fall steeply, ascending; all of them
    above the rounding of a change that is independent of it."""
    values, least = found.values, blur.floor * INDEPENDENT / GRID
    return [
        k for k in range(1, min(most, len(values) - 1) + 1)
        if float(values[k]) < STEEP * float(values[k - 1]) and float(values[k - 1]) > least
    ]  # fmt: skip
