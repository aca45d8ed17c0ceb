"""How far the curves over the layers can be trusted: an interval per layer, two tests per curve.

A curve holds up if it passes both tests.

Chance: the labels "harmful" and "harmless" are shuffled, and the best layer must beat the best
layer of 95 % of the shuffles. Taking the maximum over the layers corrects for there being many
(Nichols and Holmes 2002), and every layer is shuffled alike, so that layers may be correlated.
Statistics of the means take the layer that stands out most of its own shuffles, up or down.

Halves: the prompts are split at random into two halves, everything is estimated again in each, and
the two curves are compared by their congruence, the correlation about the value that chance gives
in place of the curve's own mean (Tucker 1951). It is averaged over the splits, and the formula of
Spearman (1910) and Brown (1910) turns it into the reliability of all prompts together. A plain
correlation would fail a flat curve, whose layers all separate well, for its tiny differences; the
congruence weighs the noise against the level and the shape together.

The threshold is 0.8, the usual one of psychometrics for research (Nunnally 1978): at most a fifth
of the curve's mean square is noise. In an F test that is F = 5, so that even a curve whose layers
all move together, one degree of freedom, gets there by chance in 2.5 % of cases.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sst_ui.maths import direction_intervals as intervals
from sst_ui.maths.direction_statistics import described, neutrality
from sst_ui.maths.directions import Reliability

SPLITS = 50  # random halvings: a standard error from them is right within about a tenth
SHUFFLES = 99  # of the measuring prompts' labels: p in steps of 0.01
SHUFFLES_HELDOUT = 999  # of held-out labels: these cost next to nothing
BLOCK = 2**26  # numbers of one tensor at a time
HUGE = 1e6  # what an infinite statistic counts as

# (difference of the means, harmless means), [B, L, d] each -> unit directions [B, L, d]
Again = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]
Curves = dict[str, np.ndarray]


@dataclass(frozen=True)
class Assessment:
    """Statistic -> what `Directions` keeps of it; the evidence is one of them."""

    intervals: dict[str, Tensor]
    reliability: dict[str, Reliability]


def assess(
    measured: Pair, heldout: Pair | None, vectors: Tensor, again: Again, seed: int = 0
) -> Assessment:
    """Intervals and reliability of every statistic and of the evidence.

    Args:
        measured: harmful and harmless residuals [n, L, d] and [m, L, d] that were measured on.
        heldout: those of other prompts, or None.
        vectors: [L, d] the main directions.
        again: estimates directions anew from other means.
        seed: of splits and shuffles: the same prompts give the same answer.
    """
    rng = np.random.default_rng(seed)
    heldout = heldout if heldout is not None and min(map(len, heldout)) > 1 else None
    mu_harmful, mu_harmless = (x.mean(0, dtype=torch.float64) for x in measured)
    stats = {name: value.numpy() for name, value in described(mu_harmful, mu_harmless).items()}
    weight = _neutrality(vectors.double(), mu_harmful, mu_harmless).numpy()  # [L]
    chance, level = _shuffled(measured, stats, rng)
    ranges = intervals.of_means(*measured)
    if heldout is None:
        raw, chance["evidence"] = stats["quality"] * weight, chance["quality"]
        level["evidence"] = level["quality"] * weight
    else:
        high, low = (
            torch.einsum("nld,ld->ln", x.double(), vectors.double()).numpy() for x in heldout
        )
        raw = _finite(_cohens_d(high, low)) * weight
        chance |= _shuffled_heldout(high, low, weight, rng)
        ranges |= {
            "cohens_d": intervals.of_cohens_d(high, low), "auroc": intervals.of_auroc(high, low)
        }  # fmt: skip
        level |= {"auroc": np.array(0.5)}
    first, second = _halves(measured, heldout, again, rng)
    reliability = {
        name: Reliability(_agreement(first[name], second[name], level.get(name, 0.0)), p)
        for name, p in chance.items()
    }
    smallest = min(map(len, heldout or measured))
    ranges["evidence"] = _of_evidence(raw, first["evidence"] - second["evidence"], smallest)
    kept = {name: torch.from_numpy(value).float() for name, value in ranges.items()}
    return Assessment(kept, reliability)


def _of_evidence(raw: np.ndarray, apart: np.ndarray, smallest: int) -> np.ndarray:
    """[L, 2] intervals in the unit of `directions.signal`, from how far halves [S, L] lie apart.

    Half the root mean square of that is the standard error (half-samples; McCarthy 1969): the two
    errors of twice the variance add up. Nothing else reaches what depends on the direction itself.
    """
    error = np.sqrt(np.square(apart).mean(0)) / 2
    spread = intervals.t95(2 * smallest - 2) * error
    return np.stack([raw - spread, raw + spread], -1).clip(min=0.0) / max(raw.max(), 1e-12)


def _shuffled(
    measured: Pair, stats: Curves, rng: np.random.Generator
) -> tuple[dict[str, float], Curves]:
    """Of the statistics of the means: p against shuffled labels, and the level [L] that chance
    gives halves. Purity has p from the norm: of a difference that is real it may be any."""
    n, m = map(len, measured)
    drawn = _described_rows(measured, *_picked(rng, SHUFFLES, n + m, n, m))
    halves = _described_rows(measured, *_picked(rng, SPLITS, n + m, max(n // 2, 1), max(m // 2, 1)))
    chance = {}
    for name, own in stats.items():
        every = np.concatenate([_finite(own)[None], drawn[name]])  # [1 + B, L]
        spread = every.std(0)
        away = np.abs(every - every.mean(0)) / np.where(spread > 0, spread, 1.0)
        chance[name] = _p(away[0].max(), away[1:].max(1))
    chance["purity"] = chance["norm"]
    level = {name: values.mean(0) for name, values in halves.items() if name != "purity"}
    return chance, level


def _shuffled_heldout(
    harmful: np.ndarray, harmless: np.ndarray, weight: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """p of Cohen's d, AUROC and evidence of projections [L, n] and [L, m] on fixed directions."""
    n, m = harmful.shape[1], harmless.shape[1]
    both = np.concatenate([harmful, harmless], 1)
    both = both - both.mean(1, keepdims=True)
    order = np.sort(both, 1)
    ranks = (
        np.stack(
            [
                np.searchsorted(o, x, "left") + np.searchsorted(o, x, "right")
                for o, x in zip(order, both, strict=True)
            ]
        )
        / 2
    )  # [L, n + m], from 1/2 on
    labels = _picked(rng, SHUFFLES_HELDOUT, n + m, n)[0].numpy() * n
    labels = np.concatenate([np.r_[np.ones(n), np.zeros(m)][None], labels])  # the true ones first
    difference = labels @ both.T * (1 / n + 1 / m)  # [1 + B, L]: the sum of both is 0
    rest = np.square(both).sum(1) - np.square(difference) * n * m / (n + m)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = _finite(difference / np.sqrt(rest.clip(min=0.0) / max(n + m - 2, 1)))
    curves = {"cohens_d": d, "auroc": labels @ ranks.T, "evidence": d * weight}
    return {name: _p(each[0].max(), each[1:].max(1)) for name, each in curves.items()}


def _halves(
    measured: Pair, heldout: Pair | None, again: Again, rng: np.random.Generator
) -> tuple[Curves, Curves]:
    """Every statistic [S, L] in one half of the prompts and in the other, over random splits."""
    sizes = [len(x) for x in (*measured, *(heldout or ()))]
    orders = [_orders(rng, SPLITS, size) for size in sizes]
    found = []
    for half in (0, 1):
        picks = [
            order[:, half * (len(order[0]) // 2) :][:, : len(order[0]) // 2] for order in orders
        ]
        found.append(_half(measured, heldout, again, picks))
    return found[0], found[1]


def _half(measured: Pair, heldout: Pair | None, again: Again, picks: list[Tensor]) -> Curves:
    """The statistics [S, L] of these prompts alone."""
    parts: list[Curves] = []
    pairs = zip(measured, picks[:2], strict=True)
    high, low = (_means(x, _shares(pick, len(x))) for x, pick in pairs)
    done = 0
    for mu_harmful, mu_harmless in zip(high, low, strict=True):
        part = {name: v.numpy() for name, v in described(mu_harmful, mu_harmless).items()}
        vectors = again(mu_harmful - mu_harmless, mu_harmless)
        value = part["quality"]
        if heldout is not None:
            held = [pick[done : done + len(vectors)] for pick in picks[2:]]
            part |= _separation(heldout, vectors, held)
            value = part["cohens_d"]
        weight = _neutrality(vectors, mu_harmful, mu_harmless).numpy()
        part["evidence"] = value * weight
        parts.append({name: _finite(values) for name, values in part.items()})
        done += len(vectors)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _separation(heldout: Pair, vectors: Tensor, picks: list[Tensor]) -> Curves:
    """Cohen's d and AUROC [S, L] of [S, L, d] directions, on these prompts of each split."""
    projected = []
    for x, pick in zip(heldout, picks, strict=True):
        every = torch.einsum("nld,sld->sln", x.float(), vectors)
        projected.append(every.gather(2, pick[:, None].expand(-1, every.shape[1], -1)))
    high, low = projected[0].contiguous(), projected[1].sort(-1).values
    below, upto = (torch.searchsorted(low, high, side=side) for side in ("left", "right"))
    size = max(high.shape[-1] * low.shape[-1], 1)  # ties count half
    auroc = (below + upto).sum(-1).double().numpy() / 2 / size
    first, second = (x.double().numpy() for x in projected)
    return {"cohens_d": _cohens_d(first, second), "auroc": auroc}


def _agreement(first: np.ndarray, second: np.ndarray, level: np.ndarray | float) -> float:
    """The reliability of curves from all prompts, from those of two halves [S, L]; 0 to 1."""
    first, second = first - level, second - level
    sizes = np.sqrt(np.square(first).sum(1) * np.square(second).sum(1))
    congruence = ((first * second).sum(1) / np.maximum(sizes, 1e-30)).mean()
    congruence = max(float(congruence), 0.0)
    return 2 * congruence / (1 + congruence)


def _neutrality(vectors: Tensor, mu_harmful: Tensor, mu_harmless: Tensor) -> Tensor:
    """How neutral zero is along unit directions, [..., L]."""
    neutral, shift = ((vectors * x).sum(-1) for x in (mu_harmless, mu_harmful - mu_harmless))
    return neutrality(neutral, shift)


def _described_rows(measured: Pair, harmful: Tensor, harmless: Tensor) -> Curves:
    """Statistics [B, L] of means over shares [B, n + m] of all prompts."""
    n = len(measured[0])
    parts = [(0, harmful[:, :n]), (1, harmful[:, n:]), (0, harmless[:, :n]), (1, harmless[:, n:])]
    blocks = zip(*(_means(measured[which], rows) for which, rows in parts), strict=True)
    found = [described(a + b, c + d) for a, b, c, d in blocks]
    return {name: _finite(torch.cat([f[name] for f in found]).numpy()) for name in found[0]}


def _means(x: Tensor, shares: Tensor) -> Iterator[Tensor]:
    """Means of residuals [n, L, d] by shares [B, n]: [b, L, d], a block at a time."""
    flat = x.flatten(1).float()
    size = max(1, BLOCK // flat.shape[1])
    for rows in shares.split(size):
        yield (rows @ flat).unflatten(1, x.shape[1:])


def _orders(rng: np.random.Generator, rows: int, size: int) -> Tensor:
    """So many random orders of `size` things, [rows, size]."""
    return torch.from_numpy(rng.random((rows, size)).argsort(1))


def _picked(rng: np.random.Generator, rows: int, size: int, *groups: int) -> list[Tensor]:
    """Shares [rows, size] of random disjoint groups of these sizes."""
    order, ends = _orders(rng, rows, size), np.cumsum((0, *groups))
    return [_shares(order[:, a:b], size) for a, b in pairwise(ends)]


def _shares(picks: Tensor, size: int) -> Tensor:
    """[B, k] numbers of things to [B, size] weights of their mean."""
    return torch.zeros(len(picks), size).scatter(1, picks, 1 / max(picks.shape[1], 1))


def _cohens_d(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    sizes = harmful.shape[-1], harmless.shape[-1]
    if min(sizes) < 2:
        return np.zeros(harmful.shape[:-1])
    return intervals.cohens_d(intervals.moments(harmful), intervals.moments(harmless), sizes)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, nan=0.0, posinf=HUGE, neginf=-HUGE).clip(-HUGE, HUGE)


def _p(own: float, shuffled: np.ndarray) -> float:
    """Share of shuffles that reach the true labels' value, these among them."""
    return float((1 + (shuffled >= own - 1e-12 * abs(own)).sum()) / (1 + len(shuffled)))
