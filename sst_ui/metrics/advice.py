"""What to try next: the rules of thumb of presets/advice.yaml, read off the results of a run.

Advice is where to look, not a finding: the next run shows whether it helped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from sst_ui import profiles
from sst_ui.metrics.results import Goal, Item, MetricResult, Value, edited_scores, measured
from sst_ui.paths import PRESETS
from sst_ui.recipe import Operation, WeightTable
from sst_ui.schema import setting

RATE, REMOVAL, QUALITY = "refusal_rate", "removal", "quality"
OVER_REFUSALS = ("over_refusal", "over_refusal_ordinary")


@dataclass(frozen=True)
class Advice:
    """One suggestion.

    Attributes:
        key: which rule it comes from; names its sentence (`advice.<key>`).
        values: the numbers and names that the sentence is filled with.
        settings: fields of the weight table and what to set them to; `profile: custom` alone asks
            for weights layer by layer, and nothing at all leaves the deed to the reader.
    """

    key: str
    values: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


def advise(
    results: Sequence[MetricResult],
    weights: WeightTable,
    goal: Goal = "remove",
    control: bool = False,
    operation: Operation = "ablate",
) -> list[Advice]:
    """Suggestions for these results of an edit with these weights; empty where all is well.

    A `control` along random directions gets none: the rules move a kernel to where refusal is, and
    what a control does to it, it does by chance.

    Quality comes first: what repairs removal by reaching further costs more of it.

    Args:
        operation: of the edit: a filter is advised on differently, and in place of an ablation.
    """
    if control:
        return []
    found = {r.name: r for r in results if r.edited is not None}
    rules = {
        "remove": (_quality_low, _filter_low)
        if operation == "filter"
        else (_quality_low, _topic_left, _removal_low, _filter),
        "reinforce": (_quality_low, _over_refusal),
        "measure": (),
    }[goal]
    advice = [rule(found, weights) for rule in rules]
    return [a for a in advice if a is not None]


def _quality_low(found: Mapping[str, MetricResult], weights: WeightTable) -> Advice | None:
    rule, result = _rules()["quality_low"], found.get(QUALITY)
    if result is None or result.edited is None or not result.edited.value < rule["below"]:
        return None
    settings = _kernel(rule) | {"threshold": rule["threshold"]}
    return Advice("quality_low", {"quality": result.edited.value, **settings}, settings)


def _removal_low(found: Mapping[str, MetricResult], weights: WeightTable) -> Advice | None:
    rule = _rules()["removal_low"]
    told = _removed(found, weights, rule["below"])
    if told is None:
        return None
    if not all(low <= getattr(weights, name) <= high for name, (low, high) in _ranges(rule)):
        return Advice("removal_low", told | _kernel(rule), _kernel(rule))
    most = setting("weights.strength").limits.high
    strength = round(min(weights.strength + rule["then_strength"], most), 2)
    if strength == weights.strength:
        return None
    return Advice("removal_still_low", told | {"strength": strength}, {"strength": strength})


def _filter(found: Mapping[str, MetricResult], weights: WeightTable) -> Advice | None:
    """A filter in place of an ablation that does not work."""
    rule, told = _rules()["filter"], _removed(found, weights, _rules()["filter"]["below"])
    if told is None:
        return None
    settings = {"operation": "filter", "profile": rule["profile"], "strength": rule["strength"]}
    return Advice("filter", told, settings)


def _filter_low(found: Mapping[str, MetricResult], weights: WeightTable) -> Advice | None:
    rule, told = _rules()["filter"], _removed(found, weights, _rules()["removal_low"]["below"])
    if told is None:
        return None
    _, width = weights.bell
    if width < profiles.named()[rule["profile"]]["width"] or weights.strength < rule["strength"]:
        settings = {"profile": rule["profile"], "strength": rule["strength"]}
        return Advice("filter_wide", told | settings, settings)
    return Advice("filter_rounds", told)


def _removed(
    found: Mapping[str, MetricResult], weights: WeightTable, below: float
) -> dict[str, float] | None:
    """What is said of the refusals that are gone; None where enough of them are."""
    result = found.get(REMOVAL)
    if weights.strength <= 0 or result is None or result.edited is None:
        return None
    if not result.edited.value < below:
        return None
    return {"removal": result.edited.value, "n": result.edited.n}


def _topic_left(found: Mapping[str, MetricResult], weights: WeightTable) -> Advice | None:
    """Topics whose refusals stand clear of all others', where the others' did fall."""
    result, least = found.get(RATE), _rules()["topic_left"]["prompts"]
    if weights.strength <= 0 or result is None:
        return None
    topics = {}
    for topic in {item.topic for item in result.items} - {""}:
        here = [item for item in result.items if item.topic == topic]
        others = [item for item in result.items if item.topic != topic]
        if len(here) >= least and len(others) >= least:
            base, edited = _rates(others)
            mine = _rates(here)[1]
            if edited.high < base.low and mine.low > edited.high:
                topics[topic] = mine
    if not topics:
        return None
    worst = max(topics, key=lambda t: topics[t].value)
    names = ", ".join(sorted(topics, key=lambda t: -topics[t].value))
    told = {"topics": names, "rate": topics[worst].value, "n": topics[worst].n}
    return Advice("topic_left", told, {"profile": "custom"})


def _over_refusal(found: Mapping[str, MetricResult], weights: WeightTable) -> Advice | None:
    worse = [found[n] for n in OVER_REFUSALS if n in found and found[n].verdict == "worse"]
    risen = [(r.base, r.edited) for r in worse if r.edited is not None]
    if weights.strength >= 0 or not risen:
        return None
    base, edited = max(risen, key=lambda values: values[1].value)
    strength = round(weights.strength * _rules()["over_refusal"]["strength_factor"], 2)
    told = {"base": base.value, "edited": edited.value, "n": edited.n}
    return Advice("over_refusal", told | {"strength": strength}, {"strength": strength})


def _rates(items: Sequence[Item]) -> tuple[Value, Value]:
    """Refusal rate of the base and of the edited model over some prompts."""
    return (
        measured([i.base_score for i in items], True),
        measured(edited_scores(items), True),
    )


def _ranges(rule: Mapping[str, Any]) -> list[tuple[str, tuple[float, float]]]:
    return [(name, tuple(rule[name])) for name in ("peak", "width")]


def _kernel(rule: Mapping[str, Any]) -> dict[str, float]:
    """The middle of the suggested ranges."""
    return {name: round(sum(ends) / 2, 3) for name, ends in _ranges(rule)}


@cache
def _rules() -> Mapping[str, Any]:
    return yaml.safe_load((PRESETS / "advice.yaml").read_text(encoding="utf-8"))
