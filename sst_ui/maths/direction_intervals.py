"""95 % intervals of the statistics of each layer, from leaving out one prompt at a time.

The jackknife (Tukey 1958; Efron and Stein 1981) gives the standard error and the bias. A norm of a
difference of means is larger than the true one where prompts are few, and so is all that is made of
it: intervals are centred at the corrected value and may lie below the measured one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sst_ui.maths.statistics import Z95

Number = float | np.ndarray
RANGES = {"cosine": (-1.0, 1.0), "purity": (0.0, 1.0)}  # the others: from 0 on


def of_means(harmful: Tensor, harmless: Tensor) -> dict[str, np.ndarray]:
    """Intervals of what `direction_statistics.described` says of the means of [n, L, d] residuals.

    All of it follows from the means' three inner products. Without a prompt these are known from
    that prompt's own inner products, so that no vector is computed twice.

    Returns:
        Statistic -> [L, 2].
    """
    layers = [
        _layer(harmful[:, i].double(), harmless[:, i].double()) for i in range(len(harmful[0]))
    ]
    found = {name: np.stack([each[name] for each in layers]) for name in layers[0]}
    return {name: each.clip(*RANGES.get(name, (0.0, np.inf))) for name, each in found.items()}


def of_cohens_d(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """[L, 2] intervals of Cohen's d of projections [L, n] and [L, m]."""
    whole = [moments(x) for x in (harmful, harmless)]
    fewer = [_moments_without(x) for x in (harmful, harmless)]
    sizes = harmful.shape[1], harmless.shape[1]
    first = cohens_d(fewer[0], [each[:, None] for each in whole[1]], (sizes[0] - 1, sizes[1]))
    second = cohens_d([each[:, None] for each in whole[0]], fewer[1], (sizes[0], sizes[1] - 1))
    return _jackknife(cohens_d(whole[0], whole[1], sizes), first, second)


def of_auroc(harmful: np.ndarray, harmless: np.ndarray) -> np.ndarray:
    """[L, 2] intervals of the AUROC of projections [L, n] and [L, m].

    Wilson's interval for as many trials as give the variance of DeLong, DeLong and Clarke-Pearson
    (1988): it stays within 0 to 1 and is not empty where nothing overlaps.
    """
    found = []
    for high, low in zip(harmful, harmless, strict=True):
        n, m = len(high), len(low)
        above, below = _beaten(high, low) / m, 1 - _beaten(low, high) / n
        share = above.mean()
        variance = above.var(ddof=1) / n + below.var(ddof=1) / m
        perfect = variance <= 0 or not 0 < share < 1
        trials = min(n, m) if perfect else min(share * (1 - share) / variance, n + m)
        found.append(_wilson(share, trials))
    return np.array(found)


def cohens_d(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], sizes: tuple[int, int]
) -> np.ndarray:
    """Cohen's d of two groups, each as (mean, sum of squares about it)."""
    pooled = np.sqrt((first[1] + second[1]) / max(sum(sizes) - 2, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first[0] == second[0], 0.0, (first[0] - second[0]) / pooled)


def t95(freedom: int) -> float:
    """The 97.5 % point of Student's t, by its expansion about the normal's (Fisher 1925)."""
    z, n = Z95, max(freedom, 1)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + (z**3 + z) / 4 / n + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / n**2 + third / n**3


def _layer(harmful: Tensor, harmless: Tensor) -> dict[str, np.ndarray]:
    """Statistic -> interval of one layer's residuals [n, d] and [m, d]."""
    means = torch.stack([harmful.mean(0), harmless.mean(0)], 1)  # [d, 2]
    hh, hs, ss = (float(means[:, i] @ means[:, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
    fewer = []
    for x, own, both in ((harmful, hh, hs), (harmless, ss, hs)):
        n = len(x)
        along, size = (x @ means).numpy(), x.square().sum(1).numpy()
        at = 0 if x is harmful else 1
        square = (n * n * own - 2 * n * along[:, at] + size) / (n - 1) ** 2
        fewer.append((square.clip(min=0.0), (n * both - along[:, 1 - at]) / (n - 1)))
    whole = _described(hh, hs, ss)
    first = _described(fewer[0][0], fewer[0][1], ss)
    second = _described(hh, fewer[1][1], fewer[1][0])
    return {name: _jackknife(whole[name], first[name], second[name]) for name in whole}


def _described(hh: Number, hs: Number, ss: Number) -> dict[str, np.ndarray]:
    """The statistics of means with these inner products."""
    with np.errstate(divide="ignore", invalid="ignore"):
        square = np.maximum(hh + ss - 2 * hs, 0.0)
        norm = np.sqrt(square)
        snr = norm / np.sqrt(np.maximum(hh, ss))
        cosine = hs / np.sqrt(hh * ss)
        purity = np.sqrt(np.maximum(1 - (hs - ss) ** 2 / (ss * square), 0.0))
    quality = snr * (1 - cosine) * purity
    return {"norm": norm, "snr": snr, "cosine": cosine, "purity": purity, "quality": quality}


def _jackknife(whole: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[..., 2] intervals from a statistic of all prompts [...], and with each of the harmful ones
    [..., n] and of the harmless ones [..., m] left out; nan where any of these is not finite."""
    centre, variance = np.array(whole, dtype=np.float64), np.zeros(np.shape(whole))
    with np.errstate(invalid="ignore"):
        for fewer in (first, second):
            n, mean = fewer.shape[-1], fewer.mean(-1)
            variance += (n - 1) / n * np.square(fewer - mean[..., None]).sum(-1)
            centre -= (n - 1) * (mean - whole)
        half = t95(first.shape[-1] + second.shape[-1] - 2) * np.sqrt(variance)
        found = np.stack([centre - half, centre + half], -1)
    return np.where(np.isfinite(found).all(-1, keepdims=True), found, np.nan)


def moments(x: np.ndarray) -> list[np.ndarray]:
    """Mean and sum of squares about it, along the last dimension."""
    mean = x.mean(-1)
    return [mean, np.square(x - mean[..., None]).sum(-1)]


def _moments_without(x: np.ndarray) -> list[np.ndarray]:
    """The same of [L, n], with each in turn left out: [L, n]."""
    n, (mean, squares) = x.shape[-1], moments(x)
    away = x - mean[..., None]
    rest = squares[..., None] - np.square(away) * n / (n - 1)
    return [mean[..., None] - away / (n - 1), rest.clip(min=0.0)]


def _beaten(these: np.ndarray, those: np.ndarray) -> np.ndarray:
    """How many of those each of these exceeds; ties count half."""
    order = np.sort(those)
    return (np.searchsorted(order, these, "left") + np.searchsorted(order, these, "right")) / 2


def _wilson(share: float, trials: float) -> tuple[float, float]:
    z2 = Z95**2 / trials
    centre, half = share + z2 / 2, np.sqrt(z2 * share * (1 - share) + z2 * z2 / 4)
    return max((centre - half) / (1 + z2), 0.0), min((centre + half) / (1 + z2), 1.0)
