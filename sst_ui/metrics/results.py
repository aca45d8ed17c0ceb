"""From scores to numbers: value, interval, verdict, and the rows behind them.

The base and the edited score of a prompt belong together, so all comparisons are paired.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sst_ui.data.prompt_sets import Prompt
from sst_ui.maths.statistics import bootstrap, paired_rates, wilson
from sst_ui.metrics.registry import Derived, Metric, Score, find

Goal = Literal["remove", "reinforce", "measure"]
Good = Literal["high", "low", ""]  # neither: what is only measured is neither good nor bad
Verdict = Literal["noise", "negligible", "better", "worse", "changed"]  # the last three: it changed
Change = Literal["noise", "negligible", "changed"]
MEANING: dict[Change, str] = {
    "noise": "the 95 % interval of the change, in pairs where there are any, includes 0",
    "negligible": "it excludes 0 but lies within the metric's threshold",
    "changed": "it excludes 0 and exceeds the threshold",
}


@dataclass(frozen=True)
class Value:
    """A number over n prompts with its 95 % interval; all nan where n is 0."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Plain data; a number that does not exist is null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {k: v if math.isfinite(v) else None for k, v in numbers.items()} | {"n": self.n}


NOTHING = Value(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Item:
    """One prompt with both answers, what they were labelled and what they scored."""

    prompt: str
    base: str
    edited: str | None
    base_label: str
    edited_label: str
    base_score: float
    edited_score: float | None
    topic: str = ""
    expected: str = ""


@dataclass(frozen=True)
class MetricResult:
    """One metric of the base and the edited model, down to the prompts.

    Attributes:
        better: which way is good, given what the edit is for.
        edited, verdict: None where only the base was measured.
        prompts: the prompt set; empty for a derived metric.
        note: what a reader should know before trusting the number.
        difference: edited − base with its interval, which the verdict is read off; paired for a
            metric of prompts. Of a perplexity in nats/token. None as for `edited`.
        negligible: the threshold of the verdict, in the unit of `difference`.
        tokens: length of the answers it was read off, at most; None for a metric that reads none,
            for one made of answers of several lengths, and where an earlier version did not say.
    """

    name: str
    title: str
    unit: str
    better: Good
    base: Value
    edited: Value | None
    items: tuple[Item, ...]
    verdict: Verdict | None
    prompts: str = ""
    note: str = ""
    difference: Value | None = None
    negligible: float = 0.0
    tokens: int | None = None

    @property
    def change(self) -> Change | None:
        """The verdict without its direction: noise, negligible or changed."""
        return change(self.verdict)

    def judgement(self) -> dict[str, Any]:
        """The verdict and what it is read off, as plain data."""
        difference = None if self.difference is None else self.difference.to_json()
        return {
            "change": self.change,
            "verdict": self.verdict,
            "difference": difference,
            "negligible": self.negligible,
        }

    def to_json(self) -> dict[str, Any]:
        """The entry of metrics.json."""
        return {
            "name": self.name,
            "unit": self.unit,
            "better": self.better,
            "base": self.base.to_json(),
            "edited": None if self.edited is None else self.edited.to_json(),
            "tokens": self.tokens,
        }

    def topics(self) -> dict[str, tuple[Value, Value | None]]:
        """Base and edited value of every topic, in order of first appearance."""
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            groups.setdefault(item.topic, []).append(item)
        rate = self.unit == "rate"
        return {
            topic: (
                measured([i.base_score for i in rows], rate),
                None if self.edited is None else measured(edited_scores(rows), rate),
            )
            for topic, rows in groups.items()
        }


@dataclass(frozen=True)
class Shown:
    """An observation as text for the screen, and as what the metric's function gets.

    `tokens` are those of a generated answer.
    """

    text: str
    observation: Any
    tokens: tuple[int, ...] = ()


def edited_scores(items: Iterable[Item]) -> list[float]:
    """Those of the edited model, of items that have one."""
    return [item.edited_score for item in items if item.edited_score is not None]


def measured(
    scores: Sequence[float], rate: bool, transform: Callable[[Any], Any] | None = None
) -> Value:
    """Mean of the scores with its interval: Wilson for rates, bootstrap for anything else."""
    if not scores:
        return NOTHING
    n, mean = len(scores), math.fsum(scores) / len(scores)
    low, high = wilson(round(sum(scores)), n) if rate else bootstrap(scores)
    if transform:
        mean, low, high = (float(transform(x)) for x in (mean, low, high))
    return Value(mean, low, high, n)


def compare(
    metric: Metric,
    prompts: Sequence[Prompt],
    base: Sequence[Shown],
    edited: Sequence[Shown] | None,
    goal: Goal = "remove",
) -> MetricResult:
    """Score every prompt under both models.

    Args:
        prompts, base, edited: of equal length; `edited` None measures the base alone.
        goal: what the edit is for; it turns round what is better for refusal itself.
    """
    items = []
    for index, prompt in enumerate(prompts):
        one = _score(metric, prompt, base[index])
        two = _score(metric, prompt, edited[index]) if edited is not None else Score(one.value)
        if one.value is None or two.value is None:
            continue
        items.append(
            Item(
                prompt=prompt.user or prompt.text,
                base=base[index].text,
                edited=None if edited is None else edited[index].text,
                base_label=one.label,
                edited_label=two.label,
                base_score=one.value,
                edited_score=None if edited is None else two.value,
                topic=prompt.topic or prompt.subject,
                expected=_expected(prompt),
            )
        )
    rate, better = metric.unit == "rate", direction(metric, goal)
    before = [item.base_score for item in items]
    value, after, apart = measured(before, rate, metric.transform), None, None
    if edited is not None:
        scores = edited_scores(items)
        after = measured(scores, rate, metric.transform)
        apart = difference(before, scores, rate)
    return MetricResult(
        metric.name, metric.title, metric.unit, better, value, after, tuple(items),
        judge(apart, better, metric.negligible), metric.prompts,
        difference=apart, negligible=metric.negligible,
    )  # fmt: skip


def difference(base: Sequence[float], edited: Sequence[float], rate: bool) -> Value:
    """Mean of edited − base, prompt by prompt, with its 95 % interval.

    Exact for rates (it leaves out 0 where McNemar's test has p < .05), bootstrap for means; one
    prompt alone gives a mean no interval.
    """
    change = np.subtract(edited, base)
    n = len(change)
    if not n:
        return NOTHING
    if rate:
        low, high = paired_rates(int((change > 0).sum()), int((change < 0).sum()), n)
    elif n == 1 and change.any():
        low = high = math.nan
    else:
        low, high = bootstrap(change)
    return Value(float(change.mean()), low, high, n)


def judge(apart: Value | None, better: Good, negligible: float) -> Verdict | None:
    """What a change amounts to, by its interval and a threshold; MEANING says it in words.

    Returns:
        None where nothing was compared.
    """
    if apart is None or not apart.n:
        return None
    if not (apart.low > 0 or apart.high < 0):
        return "noise"
    if -negligible <= apart.low and apart.high <= negligible:
        return "negligible"
    if not better:
        return "changed"
    return "better" if (apart.value > 0) == (better == "high") else "worse"


def change(verdict: Verdict | None) -> Change | None:
    """A verdict without its direction."""
    return "changed" if verdict == "better" or verdict == "worse" else verdict


def judged(result: MetricResult, goal: Goal) -> MetricResult:
    """The same numbers, read with another goal."""
    better = direction(find(result.name), goal)
    verdict = judge(result.difference, better, result.negligible)
    return replace(result, better=better, verdict=verdict)


def direction(row: Metric | Derived, goal: Goal) -> Good:
    """Which way is good: metrics of refusal itself turn round where the edit reinforces it, and no
    way is where it is only looked at what an edit does."""
    if goal == "measure":
        return ""
    if row.follows_goal and goal == "reinforce":
        return "low" if row.better == "high" else "high"
    return row.better


def _score(metric: Metric, prompt: Prompt, shown: Shown) -> Score:
    score = metric.score(prompt, shown.observation)
    if not isinstance(score, Score):
        score = Score(score, ("no", "yes")[score] if isinstance(score, bool) else "")
    return score if score.value is None else Score(float(score.value), score.label)


def _expected(prompt: Prompt) -> str:
    if prompt.choices:
        return prompt.choices[int(prompt.answer)] if prompt.answer is not None else ""
    return "" if prompt.answer is None else str(prompt.answer)
