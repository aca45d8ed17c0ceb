"""Metrics made of other metrics, with intervals from resampling the prompts behind them.

The base's and the edited model's score of a prompt stay together in every resample.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from sst_ui.maths.statistics import RESAMPLES, percentile_interval
from sst_ui.metrics.registry import Derived
from sst_ui.metrics.results import NOTHING, Goal, MetricResult, Value, direction, judge

Means = Mapping[str, np.ndarray]  # source -> [1 + RESAMPLES] means: of all prompts, then resampled


def derive(
    row: Derived, sources: Mapping[str, MetricResult], goal: Goal = "remove"
) -> MetricResult:
    """The derived metric; its change is measured from the base's value."""
    better = direction(row, goal)
    base, edited = row.combine(sources)
    apart = None
    if edited is not None:
        value, low, high = (x - base.value for x in (edited.value, edited.low, edited.high))
        apart = Value(value, low, high, edited.n)
    lengths = {result.tokens for result in sources.values()} - {None}
    return MetricResult(
        row.name, row.title, row.unit, better, base, edited, (),
        judge(apart, better, row.negligible), difference=apart, negligible=row.negligible,
        tokens=lengths.pop() if len(lengths) == 1 else None,
    )  # fmt: skip


def resampled(
    sources: Mapping[str, MetricResult], combine: Callable[[Means, Means], np.ndarray], n: int
) -> Value:
    """A function of the sources' means with its 95 % percentile interval.

    Args:
        sources: results with scores of both models.
        combine: (base means, edited means) -> [1 + RESAMPLES] values.
        n: number of prompts to report.
    """
    base = {name: _means(result, "base_score") for name, result in sources.items()}
    edited = {name: _means(result, "edited_score") for name, result in sources.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        values = combine(base, edited)
    spread = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(spread):
        return NOTHING
    return Value(float(values[0]), *percentile_interval(spread), n)


def _means(result: MetricResult, field: str) -> np.ndarray:
    """[1 + RESAMPLES] mean of all prompts, then of each resample; the same for both fields."""
    scores = np.array([getattr(item, field) for item in result.items], dtype=np.float64)
    if not len(scores):
        return np.full(1 + RESAMPLES, math.nan)
    draws = np.random.default_rng(0).integers(0, len(scores), size=(RESAMPLES, len(scores)))
    return np.concatenate([[scores.mean()], scores[draws].mean(axis=1)])
