"""The results tables of a model: one of everything, then profiles and strengths in detail."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from sst_ui import recipe as recipes
from sst_ui.jobs.directions.measure import control, resolve
from sst_ui.jobs.evaluate.evaluate import MetricResult, Value, evaluate
from sst_ui.maths import kernel
from sst_ui.metrics.registry import METRICS
from sst_ui.model.runtime.host import Host
from sst_ui.paths import PRESETS
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, Evaluation, Operation, Recipe

STRENGTHS = (0.5, 1.0, 1.5, 2.0)
NEGATIVE = (-0.5, -1.0, -2.0)
# Metric -> heading; in the order of the columns.
COLUMNS = {
    "refusal_rate": "refuses harmful",
    "evaded": "evades",
    "delivered": "delivers",
    "over_refusal": "refuses look-alikes",
    "over_refusal_ordinary": "refuses ordinary",
    "jailbreak_resistance": "resists jailbreaks",
    "jailbreak_refusal": "refuses jailbreaks",
    "facts": "facts",
    "multiple_choice": "multiple choice",
    "reading": "reading, ROUGE-L",
    "kl_1": "KL, T = 1",
    "kl_16": "KL, T = 16",
}


@dataclass(frozen=True)
class Setting:
    """A recipe to measure, and where in the table it stands."""

    group: str
    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Row:
    """One row: metric -> value with interval and n; `tokens` is the length of the answers."""

    group: str
    name: str
    values: Mapping[str, Value]
    tokens: int | None = None

    def to_json(self) -> dict:
        """Plain data."""
        values = {name: value.to_json() for name, value in self.values.items()}
        data = {"group": self.group, "name": self.name, "values": values}
        return data | {"tokens": self.tokens}


def profiles() -> list[str]:
    """The profiles of the demo's recipes: `wide` is for models that nobody has prepared."""
    return [name for name in kernel.profiles() if name != "wide"]


def shipped(name: str) -> Recipe:
    """A recipe of presets/recipes."""
    return recipes.load(PRESETS / "recipes" / f"{name}.yaml")


def settings() -> list[Setting]:
    """The rows of the tables.

    `profiles` are those of the default recipe's edit, `plain` of an ablation along one direction.
    """
    start, plain = _edit(shipped("default")), Ablation()

    def recipe(edit: Ablation, profile: str, strength: float) -> Recipe:
        weights = replace(kernel.profile(profile), strength=strength)
        return Recipe(edits=(replace(edit, weights=weights),))

    rows = [Setting("base", "base", Recipe())]
    for group, edit, before in (("profiles", start, ""), ("plain", plain, "plain, ")):
        for profile in profiles():
            for strength in STRENGTHS:
                name = f"{before}{profile}, {strength:g}"
                rows.append(Setting(group, name, recipe(edit, profile, strength)))
    for operation in get_args(Operation):
        for strength in NEGATIVE:
            name = f"{operation}, default, {_signed(strength)}"
            edit = replace(plain, operation=operation)
            rows.append(Setting("negative", name, recipe(edit, "default", strength)))
    for strength in (1.0, 2.0):
        name = f"random directions, default, {strength:g}"
        rows.append(Setting("control", name, control(recipe(start, "default", strength))))
    return rows


def overview() -> list[Setting]:
    """Base, the recipes of the profiles, plain ablation, refusal reinforced, random directions."""
    rows = {"base": Recipe()}
    rows |= {_title(name): shipped(name) for name in (*profiles(), "plain")}
    reinforced = Ablation(weights=replace(kernel.profile("default"), strength=-1.0))
    rows["added, −1"] = Recipe(edits=(replace(reinforced, operation="add"),))
    default = shipped("default")
    rows[f"random directions, {_edit(default).weights.strength:g}"] = control(default)
    return [Setting("overview", name, recipe) for name, recipe in rows.items()]


def _edit(recipe: Recipe) -> Ablation:
    (edit,) = recipe.edits
    assert isinstance(edit, Ablation)
    return edit


def _title(name: str) -> str:
    return f"{name}, {_edit(shipped(name)).weights.strength:g}"


def sweep(
    host: Host,
    rows: Sequence[Setting] | None = None,
    evaluation: Evaluation | None = None,
    metrics: Sequence[str] = tuple(COLUMNS),
) -> Generator[Progress | MetricResult | Row, None, list[Row]]:
    """Measure every row on the held-out prompts.

    Args:
        rows: which (default: all of `settings()`).
        evaluation: samples and answer length.
        metrics: what to measure; those of `markdown` unless said.

    Yields:
        Progress, every MetricResult, and each Row when it is complete.
    """
    rows = settings() if rows is None else rows
    evaluation = replace(evaluation or Evaluation(), metrics=tuple(metrics))
    done = []
    for number, setting in enumerate(rows):
        yield Progress("table", number, len(rows), setting.name)
        edits = yield from resolve(host, setting.recipe)
        results = yield from evaluate(host, edits, evaluation)
        values = {r.name: r.base if r.edited is None else r.edited for r in results}
        tokens = max((r.tokens for r in results if r.tokens), default=None)
        done.append(Row(setting.group, setting.name, values, tokens))
        yield done[-1]
    yield Progress("table", len(rows), len(rows))
    return done


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown: value and 95 % interval in each cell, n under the headings."""
    lines = [f"| profile, strength | {' | '.join(COLUMNS.values())} |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    lines.append(f"| *n* | {' | '.join(_counts(rows))} |")
    for row in rows:
        cells = [_cell(name, row.values[name]) for name in COLUMNS]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_length(rows)])


def transposed(rows: Sequence[Row]) -> str:
    """The table with one line per metric; metrics that no row has are left out."""
    lines = [f"| metric | *n* | {' | '.join(row.name for row in rows)} |"]
    lines.append("|---" * (len(rows) + 2) + "|")
    for name in rows[0].values:
        values = [row.values[name] for row in rows]
        if any(value.n for value in values):
            arrow = "↑" if METRICS[name].better == "high" else "↓"
            cells = " | ".join(_cell(name, value) for value in values)
            title = METRICS[name].title
            lines.append(f"| {title} {arrow} | *{max(v.n for v in values)}* | {cells} |")
    return "\n".join([*lines, *_length(rows)])


def _length(rows: Sequence[Row]) -> list[str]:
    """How long the answers were, as lines below a table."""
    found = sorted({row.tokens for row in rows if row.tokens})
    return ["", f"Answers of at most {' or '.join(map(str, found))} tokens."] if found else []


def _counts(rows: Sequence[Row]) -> Iterator[str]:
    """Prompts behind each column; a range where rows differ."""
    for name in COLUMNS:
        counts = sorted({row.values[name].n for row in rows})
        yield f"*{counts[0]}*" if len(counts) == 1 else f"*{counts[0]}–{counts[-1]}*"


def _cell(name: str, value: Value) -> str:
    if not math.isfinite(value.value):
        return "–"
    digits = 3 if name.startswith("kl") else 2
    numbers = (f"{x:.{digits}f}" for x in (value.value, value.low, value.high))
    middle, low, high = (x.removeprefix("0") if x.startswith("0.") else x for x in numbers)
    return f"{middle} [{low}, {high}]"


def _signed(strength: float) -> str:
    return f"{strength:+g}".replace("-", "−")
