"""What was done to one matrix: the simplest account that leaves no more than rounding behind.

Tried from the simplest on: nothing, another type, rounding, few levels, a low rank (an ablation if
it reads what W writes), an ablation with column norms restored, and anything else.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sst_ui.maths.audit.ablation_fit import MOST, Fit, fit, kept_norms, preserving
from sst_ui.maths.audit.levels import bits
from sst_ui.maths.audit.pair import Noise, Pair, Sizes, coarseness, noise, sizes
from sst_ui.maths.audit.spectrum import LEFT, SKETCHES, Account, account, ends, spectrum

Kind = Literal[
    "same", "retyped", "rounding", "quantised", "ablation", "low_rank", "dense", "broken"
]
FEW = 4  # directions of a norm-preserving ablation that are looked for
EXPLAINED = 1e-6  # of the change's squared norm: what an account may leave, beside the rounding
REFLECTS = 0.02  # |α (2 − α)| below which a plain ablation hardly moves norms
NOTHING = 0.05  # of the largest α: a direction that loses less is none of an ablation
KEPT = 0.5  # of `kept_norms`: nearer to kept than to a plain ablation


@dataclass(frozen=True, eq=False)
class Change:
    """What was done to a matrix.

    Attributes:
        kind: `same` numbers; `retyped`: W rounded to another type; `rounding`: no number moved by
            more than a step; `quantised`; `ablation`; `low_rank`; `dense`: none of these;
            `broken`: numbers that are not finite.
        size: ‖W' − W‖ / ‖W‖.
        rank: of the change (of W' − W diag(D) for a norm-preserving ablation) above the rounding;
            None where it is high.
        looked: up to which rank was looked.
        scaling: cosine between the change and W: ±1 is a change of scale.
        norms: largest relative deviation of a column norm.
        preserving: whether an ablation kept column norms; None where that cannot be told.
        fit: the nearest ablation, of a low rank or an ablation.
        cast: the type that it went through, for `retyped`.
        bits: of a quantisation.
    """

    kind: Kind
    size: float
    rank: int | None
    looked: int
    scaling: float
    norms: float
    preserving: bool | None = None
    fit: Fit | None = None
    cast: torch.dtype | None = None
    bits: int | None = None


def analyse(
    pair: Pair,
    gain: Tensor | None = None,
    writes: bool = True,
    widest: int = SKETCHES[-1],
) -> Change:
    """Find out what was done to a matrix.

    Args:
        gain: [out] of the norm between it and the residual stream, or None.
        writes: whether its output is the residual stream, so that it can be ablated.
        widest: the highest rank that is looked for.
    """
    sums = sizes(pair)
    told = (sums.relative, _cosine(sums), _norms(sums))
    if not sums.finite:
        return _plain("broken", told, None)
    if not sums.moved:
        kind: Kind = "same" if pair.types[0] == pair.types[1] else "retyped"
        return _plain(kind, told, 0, cast=pair.types[1] if kind == "retyped" else None)
    if sums.cast is not None:
        return _plain("retyped", told, None, cast=sums.cast)
    blur = noise(pair, sums)
    return _described(pair, sums, blur, told, gain, writes, widest)


def _described(
    pair: Pair,
    sums: Sizes,
    blur: Noise,
    told: tuple[float, float, float],
    gain: Tensor | None,
    writes: bool,
    widest: int,
) -> Change:
    """A change that is more than another type."""
    found = spectrum(pair, sums, blur, SKETCHES[0])
    for rank in ends(found, blur, min(MOST, found.rank or MOST)):
        if writes and (seen := account(pair, sums, found.left[:rank], blur)) is not None:
            return _few(pair, sums, blur, seen.left, told, gain, found.looked, seen)
    kept = writes and told[2] <= _tolerance(pair)
    if kept and (restored := _preserving(pair, sums, blur, told, gain)) is not None:
        return restored
    if found.rank is None and widest > SKETCHES[0]:
        found = spectrum(pair, sums, blur, widest)
    if found.rank and found.rank <= MOST and writes:
        return _few(pair, sums, blur, found.left[: found.rank], told, gain, found.looked)
    if found.rank:
        return _plain("low_rank", told, found.rank, looked=found.looked)
    if (number := bits(pair)) is not None:
        return _plain("quantised", told, None, looked=found.looked, bits=number)
    if not sums.beyond:
        return _plain("rounding", told, found.rank, looked=found.looked)
    return _plain("dense", told, None, looked=found.looked)


def _few(
    pair: Pair,
    sums: Sizes,
    blur: Noise,
    span: Tensor,
    told: tuple[float, float, float],
    gain: Tensor | None,
    looked: int,
    seen: Account | None = None,
) -> Change:
    """A change of a few directions: an ablation, or something that reads otherwise."""
    rank = len(span)
    if seen is None:
        found = fit(pair, blur, span, gain)
    else:
        found = fit(seen.view, Noise(seen.rest, blur.floor), span, gain)
    if not found.ablates:
        return _plain("low_rank", told, rank, looked, None, found)
    sure = int((found.alphas.abs() > NOTHING * found.alphas.abs().max()).sum())
    if seen is None and sure < rank:  # rounding, or what restores norms, has directions too
        fewer = fit(pair, blur, span[:sure], gain)
        if fewer.ablates:
            rank, span, found = sure, span[:sure], fewer
    return _plain("ablation", told, rank, looked, _held(pair, sums, blur, span, found), found)


def _preserving(
    pair: Pair,
    sums: Sizes,
    blur: Noise,
    told: tuple[float, float, float],
    gain: Tensor | None,
) -> Change | None:
    """An ablation with restored norms, of the fewest directions that explain the change."""
    for count in range(1, min(FEW, pair.out // 4) + 1):
        scale, span, rest = preserving(pair, sums, count)
        found = fit(pair, blur, span, gain, scale)
        if found.least <= blur.floor:  # what is left is no direction but rounding
            return None
        if rest <= LEFT * blur.energy + EXPLAINED * sums.change and found.ablates:
            held = _held(pair, sums, blur, span, found)
            return _plain("ablation", told, count, count, held, found)
    return None


def _held(pair: Pair, sums: Sizes, blur: Noise, span: Tensor, found: Fit) -> bool | None:
    """Whether an ablation kept column norms; None where a plain one keeps them as well."""
    alpha = found.alpha
    if abs(alpha * (2 - alpha)) < REFLECTS:
        return None
    kept = kept_norms(pair, sums, blur, span)
    return None if kept is None else kept > KEPT


def _plain(
    kind: Kind,
    told: tuple[float, float, float],
    rank: int | None,
    looked: int = 0,
    held: bool | None = None,
    found: Fit | None = None,
    cast: torch.dtype | None = None,
    bits: int | None = None,
) -> Change:
    size, scaling, norms = told
    return Change(kind, size, rank, looked, scaling, norms, held, found, cast, bits)


def _cosine(sums: Sizes) -> float:
    both = (sums.base * sums.change) ** 0.5
    return sums.inner / both if both else 0.0


def _norms(sums: Sizes) -> float:
    """The largest relative deviation of a column norm from the base's."""
    own, other = sums.columns[0].sqrt(), sums.columns[2].sqrt()
    return float(((other - own).abs() / own.clamp_min(1e-30))[own > 0].amax()) if own.any() else 0.0


def _tolerance(pair: Pair) -> float:
    """How far rounding alone moves a column norm."""
    step = max(coarseness(kind) for kind in pair.types)
    return 1e-5 + 2 * step / pair.out**0.5
