"""Statistics against published values and against brute force."""

import itertools
import math

import numpy as np
import pytest

from sst_ui.maths.statistics import (
    auroc,
    bootstrap,
    clopper_pearson,
    cohens_d,
    paired_rates,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0, 0.2775),
    ],
)
def test_wilson_matches_newcombes_table(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 5
        (81, 263, 0.2527, 0.3676),
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_clopper_pearson_matches_newcombes_table(successes, n, low, high):
    assert clopper_pearson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert clopper_pearson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_interval_of_paired_rates_excludes_0_where_mcnemars_test_is_significant():
    for gained, lost in itertools.product(range(16), repeat=2):
        low, high = paired_rates(gained, lost, 40)
        changed = gained + lost  # McNemar's exact test tosses a coin for each of them
        tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
        assert (low > 0 or high < 0) == (2 * tail < 0.05)
        assert low <= (gained - lost) / 40 <= high
        assert paired_rates(lost, gained, 40) == pytest.approx((-high, -low))
    assert paired_rates(0, 0, 9) == (0, 0)
    low, high = paired_rates(3000, 2000, 100_000)
    assert 0.0085 < low < 0.01 < high < 0.0115


def test_wilson_mirrors_and_stays_inside_0_to_1():
    for n in (1, 2, 7, 64, 5000):
        for successes in {0, 1, n // 2, n}:
            low, high = wilson(successes, n)
            other = wilson(n - successes, n)
            assert 0 <= low <= successes / n <= high <= 1
            assert (low, high) == pytest.approx((1 - other[1], 1 - other[0]))


def test_without_trials_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)
    assert all(math.isnan(bound) for bound in bootstrap([]))
    with pytest.raises(ValueError, match="not a share"):
        wilson(3, 2)


def test_the_bootstrap_agrees_with_the_central_limit_theorem():
    values = np.random.default_rng(1).exponential(size=400)
    half = 1.96 * values.std(ddof=1) / 20
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_the_bootstrap_covers_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(2)
    intervals = [bootstrap(rng.normal(size=50), resamples=500) for _ in range(300)]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_the_bootstrap_is_the_same_every_time_and_exact_for_constants():
    values = np.arange(30.0)
    assert bootstrap(values) == bootstrap(list(values)) != bootstrap(values, seed=1)
    assert bootstrap([2.5] * 9) == (2.5, 2.5)
    assert bootstrap([7.0]) == (7.0, 7.0)
    low, high = bootstrap(np.ones(3_000_000), resamples=5)  # more than one block holds
    assert (low, high) == (1.0, 1.0)


def test_auroc_equals_comparing_every_pair():
    rng = np.random.default_rng(3)
    positive, negative = rng.integers(0, 6, 40), rng.integers(0, 5, 30)  # many ties
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))
    assert auroc(negative, positive) == pytest.approx(1 - np.mean(pairs))


def test_auroc_at_its_ends():
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1, 2], [3, 4]) == 0.0
    assert auroc([1, 1], [1, 1]) == 0.5
    assert math.isnan(auroc([], [1]))


def test_cohens_d_of_a_worked_example():
    # means 5 and 3, variances 4 and 4, so d = 2 / 2
    assert cohens_d([3, 5, 7], [1, 3, 5]) == pytest.approx(1.0)
    assert cohens_d([1, 3, 5], [3, 5, 7]) == pytest.approx(-1.0)


def test_cohens_d_pools_groups_of_unequal_size():
    rng = np.random.default_rng(4)
    a, b = rng.normal(1, 2, 20_000), rng.normal(0, 2, 500)
    assert cohens_d(a, b) == pytest.approx(0.5, abs=0.1)


def test_cohens_d_without_spread():
    assert cohens_d([2, 2], [2, 2]) == 0.0
    assert cohens_d([3, 3], [2, 2]) == math.inf
    assert math.isnan(cohens_d([1], [2, 3]))
