"""Statistics for small samples: intervals, paired tests, separation of two groups.

Everything is deterministic: where chance is needed, a seed is an argument.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000  # draws with replacement behind an interval
Z95 = 1.959963984540054  # two-sided 95 % of the standard normal


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927).

    Unlike the textbook p ± 1.96 s it stays inside 0..1 and says something at 0 of n.

    Args:
        successes: 0..n.
        n: number of trials; with 0 nothing is known and the answer is (0, 1).

    Raises:
        ValueError: successes outside 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # at the ends the bound is exact in algebra but not in floating point
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    """Exact 95 % interval of a share (Clopper and Pearson 1934); (0, 1) for n = 0.

    It leaves out 1/2 exactly where the two-sided binomial test of 1/2 has p < .05.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    if n == 0:
        return 0.0, 1.0
    return _lower(successes, n), 1.0 - _lower(n - successes, n)


def _lower(k: int, n: int) -> float:
    """The share at which k or more successes of n have a chance of 2.5 %; 0 for k = 0."""
    if k == 0:
        return 0.0
    i = np.arange(k, n + 1)
    ways = [math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) for j in i]
    low, high = 0.0, 1.0
    for _ in range(60):  # halves the bracket each time: to the last bit of a float64
        middle = (low + high) / 2
        chance = np.exp(ways + i * math.log(middle) + (n - i) * math.log1p(-middle)).sum()
        low, high = (low, middle) if chance > 0.025 else (middle, high)
    return low


def paired_rates(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two rates over the same n things.

    Exact, given how many changed at all: of those, the share that changed for the one side has
    Clopper and Pearson's interval. It leaves out 0 exactly where McNemar's test has p < .05.

    Args:
        gained, lost: things that are only in the second rate, and only in the first.
    """
    changed = gained + lost
    if not changed:
        return 0.0, 0.0
    low, high = clopper_pearson(gained, changed)
    return (2 * low - 1) * changed / n, (2 * high - 1) * changed / n


def sign_test(first: int, second: int) -> float:
    """Two-sided p-value of so many preferences for the one and for the other, if both were as good
    (the exact sign test; Dixon and Mood 1946). Ties take no part. 1 where there are none.
    """
    n, most = first + second, max(first, second)
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * tail / 2**n)


def bootstrap(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979).

    Args:
        values: [n] numbers; without any the answer is (nan, nan).
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of draws with replacement.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    block = max(1, 1_000_000 // n)  # draws at a time: bounds the memory to 8 MB
    means = [
        values[rng.integers(0, n, size=(min(block, resamples - done), n))].mean(axis=1)
        for done in range(0, resamples, block)
    ]
    return percentile_interval(np.concatenate(means))


def percentile_interval(resampled: ArrayLike) -> tuple[float, float]:
    """The middle 95 % of the values of a statistic in resamples of its data."""
    low, high = np.percentile(np.asarray(resampled, dtype=np.float64), [2.5, 97.5])
    return float(low), float(high)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Chance that a random positive scores above a random negative, ties counting half.

    Args:
        positive, negative: [n] and [m] scores.

    Returns:
        0..1, .5 for no separation; nan if a group is empty. O((n + m) log(n + m)).
    """
    positive = np.asarray(positive, dtype=np.float64)
    negative = np.sort(np.asarray(negative, dtype=np.float64))
    if not len(positive) or not len(negative):
        return math.nan
    below = np.searchsorted(negative, positive, side="left")
    tied = np.searchsorted(negative, positive, side="right") - below
    return float((below + tied / 2).sum() / (len(positive) * len(negative)))


def cohens_d(positive: ArrayLike, negative: ArrayLike) -> float:
    """Difference of the means in units of the pooled standard deviation (Cohen 1988).

    Args:
        positive, negative: [n] and [m] values, n, m >= 2; otherwise the answer is nan.

    Returns:
        0 for equal constants, ±inf for different constants.
    """
    positive = np.asarray(positive, dtype=np.float64)
    negative = np.asarray(negative, dtype=np.float64)
    n, m = len(positive), len(negative)
    if min(n, m) < 2:
        return math.nan
    difference = float(positive.mean() - negative.mean())
    squares = (n - 1) * positive.var(ddof=1) + (m - 1) * negative.var(ddof=1)
    pooled = math.sqrt(squares / (n + m - 2))
    if pooled == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / pooled
