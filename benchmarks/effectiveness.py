"""What edits do to refusals, and what they cost: the columns that benchmarks.baselines,
benchmarks.real_model and benchmarks.organisms share, and the options that choose the rows.

A row is a recipe (benchmarks/ways.py); everything is measured by the studio's own evaluation, so a
way of editing that recipes learn is measured like any other.
"""

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.ways import PROFILES, STRENGTHS, WAYS, Choice, Sets, rows
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.directions.rounds import rounds
from sst_ui.jobs.evaluate.evaluate import evaluate_rows
from sst_ui.maths.statistics import wilson
from sst_ui.metrics.results import MetricResult, Value
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.runtime.host import Host
from sst_ui.options import RoundsOptions
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, Evaluation, Recipe

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
HEADS = {name: name for name in COLUMNS} | {
    "like_before": "like before",
    "over_refusal": "over-refusal",
    "kl_1": "KL, first token",
    "kl_16": "KL, 16 tokens",
}
NEARLY = 0.05  # of the most that a way delivers, where one of its settings is chosen
ROUNDS = "rounds: tokens"
FORMS = {"like_before": "{:.2f}", "kl_1": "{:.2g}", "kl_16": "{:.2g}"}  # of what is no share


@dataclass(frozen=True)
class Row:
    """One row: shares of the labels of its answers, and the metrics with their intervals.

    Attributes:
        labels: column -> share of the answers to the harmful prompts.
        values: like_before, over_refusal, kl_1, kl_16 -> value; the first is absent where it is
            not known what was answered before, the last two without an edit.
        note: why this model cannot be edited so; the row is then empty.
    """

    name: str
    labels: Mapping[str, Value] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        told = {"labels": self.labels, "values": self.values}
        about = {"name": self.name} | ({"note": self.note} if self.note else {})
        return about | {
            key: {name: value.to_json() for name, value in row.items()} for key, row in told.items()
        }


@dataclass(frozen=True)
class Measured:
    """What was measured of the base or of one edit.

    Attributes:
        labels, answers: of the answers to the harmful prompts, in their order.
        values: column -> value.
        note: why this model cannot be edited so; all else is then empty.
    """

    name: str
    labels: Sequence[str] = ()
    answers: Sequence[str] = ()
    values: Mapping[str, Value] = field(default_factory=dict)
    note: str = ""


def measured(
    host: Host,
    chosen: Mapping[str, Recipe],
    truth: str,
    metrics: Mapping[str, str],
    samples: int | None,
    tokens: int,
    tell: Callable[[object], None] = lambda _: None,
) -> list[Measured]:
    """The unedited model and every recipe.

    Args:
        truth: the harmful prompts.
        metrics: column -> metric; divergences are columns whose names begin with kl.
        samples: prompts of each set; None for all.
        tokens: length of an answer.

    Raises:
        UserError: prompts that cannot be had, or no recipe that this model can be edited by. Where
            only some cannot, their rows say why.
    """
    edits, refused = _resolved(host, chosen, tell)
    asked = (f"refusal_rate@{truth}", *metrics.values())
    evaluation = Evaluation(metrics=asked, samples=samples, max_new_tokens=tokens)
    results = finish(evaluate_rows(host, [*edits.values()], evaluation), tell)
    by_row = [(harmful.items, dict(zip(metrics, rest, strict=True))) for harmful, *rest in results]
    items, values = by_row[0]
    table = [
        Measured(
            "none",
            [item.base_label for item in items],
            [item.base for item in items],
            {key: result.base for key, result in values.items() if not key.startswith("kl")},
        )
    ]
    found = dict(zip(edits, by_row, strict=False))  # without an edit there is the base alone
    for name in chosen:
        if name in refused:
            table.append(Measured(name, note=refused[name]))
            continue
        items, values = found[name]
        labels = [item.edited_label for item in items]
        answers = [item.base if item.edited is None else item.edited for item in items]
        edited = {key: _edited(result) for key, result in values.items()}
        table.append(Measured(name, labels, answers, edited))
    return table


def measure(
    host: Host,
    chosen: Mapping[str, Recipe],
    sets: Sets,
    samples: int | None,
    tokens: int,
    tell: Callable[[object], None] = lambda _: None,
) -> list[Row]:
    """The unedited model and every recipe, on prompts that took no part in making either.

    Raises:
        UserError: as `measured`.
    """
    known = any(prompt.assistant for prompt in prompt_sets.load(sets.truth).prompts)
    metrics = {"like_before": f"reading@{sets.truth}"} if known else {}
    metrics |= {
        "over_refusal": f"over_refusal@{sets.lookalikes}",
        "kl_1": f"kl_1@{sets.ordinary}",
        "kl_16": f"kl_16@{sets.ordinary}",
    }
    rows = measured(host, chosen, sets.truth, metrics, samples, tokens, tell)
    return [Row(m.name, shares(m.labels) if m.labels else {}, m.values, m.note) for m in rows]


Measure = Callable[[Host, Mapping[str, Recipe], Sets, int | None, int], list[Row]]


def compare(
    host: Host,
    sets: Sets,
    wanted: Choice | None,
    samples: int | None,
    tokens: int,
    only: str = "",
    how: Measure = measure,
    choose: Sets | None = None,
) -> list[Row]:
    """The table of one model: the ways that were chosen, with one direction and in rounds.

    Args:
        only: leave out the edits whose names do not hold this.
        how: what is measured of each.
        choose: prompts to choose one setting of each way by, which take no part in the rest; None
            for rows of all settings.

    Raises:
        UserError: as `measure`.
    """
    wanted = wanted or Choice()
    known = rows(host.spec.id, sets, host.layers, wanted)
    chosen = {name: recipe for name, recipe in known.items() if only in name}
    with tempfile.TemporaryDirectory() as folder:
        found, refused = _in_rounds(host, chosen, sets, wanted.rounds, tokens, Path(folder))
        chosen = chosen | found
        if choose:
            chosen = _best(host, chosen, choose, samples, tokens)
        table = how(host, chosen, sets, samples, tokens)
    known = {_way(row.name) for row in table if row.note}  # one word of each is enough
    more = [Row(name, note=why) for name, why in refused.items() if _way(name) not in known]
    return [*table, *more]


def _way(name: str) -> str:
    """The way of a row by its name."""
    return name.partition(",")[0]


def _best(
    host: Host, chosen: Mapping[str, Recipe], sets: Sets, samples: int | None, tokens: int
) -> dict[str, Recipe]:
    """One setting of each way, with one direction and in rounds: of those that deliver most, give
    or take `NEARLY`, the one that costs least."""
    metrics = {"kl_16": f"kl_16@{sets.ordinary}"}
    found = measured(host, chosen, sets.truth, metrics, samples, tokens)
    groups: dict[tuple[str, bool], list[tuple[float, float, str]]] = {}
    # Of a way that is not possible one row says why.
    best = {*{_way(row.name): row.name for row in reversed(found) if row.note}.values()}
    for row in found[1:]:
        if not row.note:
            way = _way(row.name), ROUNDS in row.name
            told = shares(row.labels)["delivered"].value, row.values["kl_16"].value, row.name
            groups.setdefault(way, []).append(told)
    for each in groups.values():
        most = max(delivered for delivered, _, _ in each)
        best.add(min((kl, name) for delivered, kl, name in each if delivered >= most - NEARLY)[1])
    return {name: recipe for name, recipe in chosen.items() if name in best}


def _in_rounds(
    host: Host, chosen: Mapping[str, Recipe], sets: Sets, most: int, tokens: int, folder: Path
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """Every edit that measures its direction again along those found in rounds, by a name that says
    how many and at which token of the answer; and name -> why there are none."""
    found: dict[str, Recipe] = {}
    refused: dict[str, str] = {}
    for name, recipe in chosen.items() if most else ():
        (edit,) = recipe.edits
        if not isinstance(edit, Ablation) or edit.directions.file or edit.operation == "add":
            continue
        options = RoundsOptions(most, select=sets.select, max_new_tokens=tokens)
        try:
            directions = finish(rounds(host, edit, options)).directions
        except UserError as error:
            refused[f"{name}, in rounds"] = str(error)
            continue
        file = directions.save(folder / f"{len(found)}.safetensors")
        edit = replace(edit, directions=replace(edit.directions, file=str(file)))
        where = ", ".join(str(decision.position) for decision in directions.decisions)
        found[f"{name}, {ROUNDS} {where}"] = replace(recipe, edits=(edit,))
    return found, refused


def _resolved(
    host: Host, chosen: Mapping[str, Recipe], tell: Callable[[object], None]
) -> tuple[dict[str, tuple[Edit, ...]], dict[str, str]]:
    """Name -> edits, and name -> why this model cannot be edited so."""
    edits, refused = {}, {}
    for name, recipe in chosen.items():
        try:
            row = finish(resolve(host, recipe), tell)
            host.live.compile([row])
        except UserError as error:
            refused[name] = str(error)
            continue
        edits[name] = row
    if refused and not edits:
        raise UserError(next(iter(refused.values())))
    return edits, refused


def shares(labels: Sequence[str]) -> dict[str, Value]:
    """The share of each column among labels, with Wilson's interval."""
    counts = Counter(LABELS[label] for label in labels)
    n = len(labels)
    return {name: Value(counts[name] / n, *wilson(counts[name], n), n) for name in COLUMNS}


def markdown(table: Sequence[Row], heads: Mapping[str, str] = HEADS) -> str:
    """Shares in per cent and everything else as it is, each with its 95 % interval.

    Args:
        heads: label or value -> its heading, in order; what no row has is left out.
    """
    found: list[dict[str, Value]] = [{**row.labels, **row.values} for row in table]
    told = [key for key in heads if any(key in each for each in found)]
    if "evaded" in told and not any(each["evaded"].value for each in found if "evaded" in each):
        told.remove("evaded")
    lines = [f"| {' | '.join(['edit', *(heads[key] for key in told)])} |"]
    lines.append("|---" * (len(told) + 1) + "|")
    for row, each in zip(table, found, strict=True):
        cells = [_cell(each.get(key), FORMS.get(key, "")) for key in told]
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    return "\n".join(lines)


def footer(table: Sequence[Row], tokens: int) -> str:
    """How many prompts a table is made on, how long its answers are, and why rows are empty."""
    kinds = {"in wrappers": "wrapped", "look-alikes": "over_refusal", "ordinary ones": "kl_1"}
    counted = {
        what: [row.values[key].n for row in table if key in row.values]
        for what, key in kinds.items()
    }
    counts = [f"{next(iter(table[0].labels.values())).n} harmful prompts"]
    counts += [f"{found[0]} {what}" for what, found in counted.items() if found]
    said = f"{', '.join(counts)}; answers of at most {tokens} tokens; 95 % intervals."
    empty = [f"{row.name}: not possible here. {row.note}" for row in table if row.note]
    return "\n".join([said, *empty])


def options(parser: argparse.ArgumentParser) -> None:
    """The options that `choice` reads."""
    add = parser.add_argument
    add("--ways", nargs="+", default=[*WAYS], metavar="WAY", help=f"of {', '.join(WAYS)}")
    add("--profiles", nargs="+", default=PROFILES, metavar="NAME",
        help="weight kernels, by name or as peak/width, such as 0.7/0.4")  # fmt: skip
    add("--strengths", nargs="+", default=STRENGTHS, type=float, metavar="NUMBER")
    add("--directions", nargs="+", default=(), metavar="FILE",
        help="saved directions, such as `measure --rounds` finds: a row more for each way that "
        "estimates as they were estimated")  # fmt: skip
    add("--rounds", type=int, default=0, metavar="N",
        help="a row more for each edit, along up to N directions that rounds find")  # fmt: skip


def choice(given: argparse.Namespace) -> Choice:
    """The rows that the options ask for.

    Raises:
        UserError: an unknown way or profile.
    """
    return Choice(given.ways, given.profiles, given.strengths, given.directions, given.rounds)


def _edited(result: MetricResult) -> Value:
    return result.base if result.edited is None else result.edited


def _cell(value: Value | None, form: str) -> str:
    """A number in a form of its own; in per cent where it has none."""
    if value is None or not math.isfinite(value.value):
        return "–"
    numbers = (value.value, value.low, value.high)
    middle, low, high = (form.format(x) if form else f"{100 * x:.0f}" for x in numbers)
    return f"{middle} [{low}, {high}]"
