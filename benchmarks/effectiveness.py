"""What edits do to refusals, and what they cost, on a model whose answers before it learned to
refuse are known: the rows and columns that benchmarks.real_model and benchmarks.organisms share.

A row is a recipe; everything is measured by the studio's own evaluation, so a way of editing that
recipes learn is measured like any other.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from sst_ui import recipe as recipes
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.evaluate.evaluate import evaluate_rows
from sst_ui.maths.statistics import wilson
from sst_ui.metrics.results import MetricResult, Value
from sst_ui.model.runtime.host import Host
from sst_ui.progress import finish
from sst_ui.recipe import Evaluation, Recipe

# Label of an answer -> the column that it counts in.
LABELS = {
    "refused": "refused",
    "evaded": "evaded",
    "empty": "degenerate",
    "looping": "degenerate",
    "degenerate": "degenerate",
    "delivered": "delivered",
    "complied": "delivered",
}
COLUMNS = tuple(dict.fromkeys(LABELS.values()))
PLAIN = [(profile, s) for profile in ("default", "late_focus", "broad") for s in (1.0, 1.5)]
FILTERED = [("default", mu, s) for mu in (1.0, 10.0) for s in (1.0, 2.0)]


@dataclass(frozen=True)
class Sets:
    """The prompt sets of a measurement.

    Attributes:
        harmful, harmless: what directions are measured on.
        truth: held-out harmful prompts, each with the answer from before refusing was learned.
        ordinary, lookalikes: held-out prompts that should be answered.
    """

    harmful: str
    harmless: str
    truth: str
    ordinary: str
    lookalikes: str


@dataclass(frozen=True)
class Row:
    """One row: shares of the labels of its answers, and the metrics with their intervals.

    Attributes:
        labels: column -> share of the answers to the harmful prompts.
        values: like_before, over_refusal, kl_1, kl_16 -> value; without an edit the last two are
            absent.
    """

    name: str
    labels: Mapping[str, Value]
    values: Mapping[str, Value]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        told = {"labels": self.labels, "values": self.values}
        return {"name": self.name} | {
            key: {name: value.to_json() for name, value in row.items()} for key, row in told.items()
        }


def rows(model: str, sets: Sets) -> dict[str, Recipe]:
    """The edits to compare, by name; filtered ones where recipes can say so."""

    def edit(profile: str, strength: float, **more: Any) -> Recipe:
        weights = {"profile": profile, "strength": strength}
        directions = {"harmful": sets.harmful, "harmless": sets.harmless}
        ablation = {"directions": directions, "weights": weights, **more}
        return recipes.from_data({"version": 1, "model": {"id": model}, "edits": [ablation]})

    found = {f"plain, {p}, {s:g}": edit(p, s) for p, s in PLAIN}
    if "filter" in get_args(recipes.Operation):
        for profile, mu, strength in FILTERED:
            name = f"filtered μ {mu:g}, {profile}, {strength:g}"
            more = {"operation": "filter", "filter": {"mu": mu}}
            found[name] = edit(profile, strength, **more)
    return found


def measure(
    host: Host,
    chosen: Mapping[str, Recipe],
    sets: Sets,
    samples: int | None,
    tokens: int,
    tell: Callable[[object], None] = lambda _: None,
) -> list[Row]:
    """The unedited model and every recipe, on prompts that took no part in making either.

    Args:
        samples: prompts of each set; None for all.
        tokens: length of an answer.
    """
    edits = [finish(resolve(host, recipe), tell) for recipe in chosen.values()]
    names = {
        "refused": f"refusal_rate@{sets.truth}",
        "like_before": f"reading@{sets.truth}",
        "over_refusal": f"over_refusal@{sets.lookalikes}",
        "kl_1": f"kl_1@{sets.ordinary}",
        "kl_16": f"kl_16@{sets.ordinary}",
    }
    evaluation = Evaluation(metrics=tuple(names.values()), samples=samples, max_new_tokens=tokens)
    results = finish(evaluate_rows(host, edits, evaluation), tell)
    by_row = [dict(zip(names, found, strict=True)) for found in results]
    base = by_row[0]
    table = [
        Row(
            "none",
            shares([item.base_label for item in base["refused"].items]),
            {name: base[name].base for name in ("like_before", "over_refusal")},
        )
    ]
    if not chosen:
        return table
    for name, found in zip(chosen, by_row, strict=True):
        labels = shares([item.edited_label for item in found["refused"].items])
        table.append(Row(name, labels, {key: _edited(found[key]) for key in [*names][1:]}))
    return table


def shares(labels: Sequence[str]) -> dict[str, Value]:
    """The share of each column among labels, with Wilson's interval."""
    counts = Counter(LABELS[label] for label in labels)
    n = len(labels)
    return {name: Value(counts[name] / n, *wilson(counts[name], n), n) for name in COLUMNS}


def markdown(table: Sequence[Row]) -> str:
    """Shares in per cent and everything else as it is, each with its 95 % interval."""
    told = [c for c in COLUMNS if c != "evaded" or any(row.labels[c].value for row in table)]
    heads = ["edit", *told, "like before", "over-refusal", "KL, first token", "KL, 16 tokens"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in table:
        cells = [_share(row.labels[name]) for name in told]
        cells.append(_number(row.values.get("like_before"), "{:.2f}"))
        cells.append(_share(row.values.get("over_refusal")))
        cells += [_number(row.values.get(name), "{:.2g}") for name in ("kl_1", "kl_16")]
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    return "\n".join(lines)


def _edited(result: MetricResult) -> Value:
    return result.base if result.edited is None else result.edited


def _share(value: Value | None) -> str:
    if value is None or not math.isfinite(value.value):
        return "–"
    middle, low, high = (f"{100 * x:.0f}" for x in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"


def _number(value: Value | None, form: str) -> str:
    if value is None or not math.isfinite(value.value):
        return "–"
    middle, low, high = (form.format(x) for x in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"
