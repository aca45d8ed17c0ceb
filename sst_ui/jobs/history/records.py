"""A remembered run: its recipe, its numbers, and what sets several runs apart.

The same records come from the user's own file (`store`) and from a visitor's browser.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, get_args

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.metrics.corrections import SIDES
from sst_ui.metrics.results import MetricResult, Value, Verdict
from sst_ui.recipe import Merge, Recipe

FIELDS = (
    "name", "title", "unit", "better", "base", "edited", "verdict", "negligible", "prompts", "note",
    "tokens",
)  # fmt: skip
LONG = 2_000_000  # letters of a remembered recipe and its numbers; more is no run of ours


@dataclass(frozen=True)
class Record:
    """One applied recipe.

    Attributes:
        id: its number in the history; never given twice.
        time: when it was last applied or measured, seconds since 1970.
        model: name of the model it ran on.
        name: the variant's name, may be empty.
        digest: of the recipe, as shown everywhere.
        text: the recipe as YAML, its evaluation included.
        metrics: one mapping per metric (see `FIELDS`), in order; empty while there are none.
        place: counts up with every run that is written, whatever the clock says.
    """

    id: int
    time: float
    model: str
    name: str
    digest: str
    text: str
    metrics: tuple[Mapping[str, Any], ...] = ()
    place: int = 0

    @property
    def recipe(self) -> Recipe:
        """The recipe; `UserError` where this version can no longer read it."""
        return recipes.from_yaml(self.text)

    @property
    def measured(self) -> str:
        """What the numbers depend on beside the recipe's digest: how it was evaluated."""
        try:
            return recipes.digest(recipes.to_dict(self.recipe.evaluation))
        except UserError:
            return ""

    @property
    def title(self) -> str:
        """What to call it: its name, or its digest."""
        return self.name or self.digest

    @property
    def when(self) -> str:
        """Local time to the minute."""
        return datetime.fromtimestamp(self.time).strftime("%Y-%m-%d %H:%M")

    def metric(self, name: str) -> Mapping[str, Any] | None:
        """The metric of that name, if it was measured."""
        return next((row for row in self.metrics if row["name"] == name), None)

    def results(self) -> tuple[MetricResult, ...]:
        """The metrics as results, without the prompts behind them: for a model card."""
        return tuple(
            MetricResult(
                row["name"], row["title"], row["unit"], row["better"], value(row["base"]),
                None if row["edited"] is None else value(row["edited"]), (), row["verdict"],
                row["prompts"], row["note"], negligible=row.get("negligible", 0.0),
                tokens=row.get("tokens"),
            )
            for row in self.metrics
        )  # fmt: skip

    def matches(self, search: str) -> bool:
        """Whether every word of the search occurs in name, model, digest, recipe or metrics."""
        words = words_of(self)
        return all(word in words for word in search.casefold().split())

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return {
            "id": self.id, "time": self.time, "model": self.model, "name": self.name,
            "digest": self.digest, "recipe": self.text, "metrics": list(self.metrics),
            "place": self.place,
        }  # fmt: skip

    @classmethod
    def from_json(cls, row: Any) -> "Record":
        """Read what `to_json` wrote; it may come from a visitor, so nothing is taken on trust.

        Raises:
            UserError: it is no such row, or its recipe cannot be read.
        """
        try:
            text, metrics = str(row["recipe"]), tuple(_metric(m) for m in row["metrics"])
            if len(text) + len(json.dumps(metrics)) > LONG:
                raise ValueError("too long")
            recipe = recipes.from_yaml(text)
            return cls(
                int(row["id"]), float(row["time"]), str(row["model"]), recipe.name,
                recipe.digest(), text, metrics, int(row.get("place", 0)),
            )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError("this is not a run of the studio's history.") from error


def record(recipe: Recipe, model: str, results: Sequence[MetricResult] = ()) -> Record:
    """A record of now, not numbered yet (its id is 0)."""
    text, metrics = recipes.to_yaml(recipe), tuple(plain(result) for result in results)
    return Record(0, time.time(), model, recipe.name, recipe.digest(), text, metrics)


def plain(result: MetricResult) -> dict[str, Any]:
    """A result as a row of a record: its numbers, not its prompts."""
    more = {n: getattr(result, n) for n in ("title", "verdict", "negligible", "prompts", "note")}
    row = result.to_json() | more
    return {name: row[name] for name in FIELDS}


def value(row: Mapping[str, Any]) -> Value:
    """A value back from its JSON form, where what does not exist is null."""
    keys = ("value", "low", "high")
    mean, low, high = (math.nan if row[k] is None else float(row[k]) for k in keys)
    return Value(mean, low, high, int(row["n"]))


def words_of(record: Record) -> str:
    """What a search looks through: rates too, in per cent."""
    measured = [
        f"{m['name']} {m['title']} {m['verdict'] or ''} {_shown(m['base'], m['unit'])} "
        f"{_shown(m['edited'], m['unit'])}"
        for m in record.metrics
    ]
    parts = (record.name, record.model, record.digest, record.when, record.text, *measured)
    return "\n".join(parts).casefold()


def _shown(data: Mapping[str, Any] | None, unit: str) -> str:
    """A rate as it is shown; the bare digits of other numbers would be found in every search."""
    if not data or unit != "rate" or not math.isfinite(number := value(data).value):
        return ""
    return f"{number * 100:.0f}%"


@dataclass(frozen=True)
class Comparison:
    """Several records beside one another; every tuple of values has one per record, in order.

    Attributes:
        metrics: (a row of that metric, the rows of all records; None where not measured).
        differences: (setting, its values as text; empty where a record has no such setting).
    """

    records: tuple[Record, ...]
    metrics: tuple[tuple[Mapping[str, Any], tuple[Mapping[str, Any] | None, ...]], ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for scripts."""
        return {
            "runs": [r.to_json() | {"when": r.when} for r in self.records],
            "metrics": {row["name"]: list(found) for row, found in self.metrics},
            "differences": {name: list(values) for name, values in self.differences},
        }


def compare(records: Sequence[Record]) -> Comparison:
    """Metrics side by side, and every setting in which the recipes differ.

    Raises:
        UserError: fewer than two records, or a recipe that cannot be read.
    """
    if len(records) < 2:
        raise UserError("a comparison needs two runs or more; choose another one.")
    named = {row["name"]: row for r in records for row in r.metrics}
    metrics = tuple((row, tuple(r.metric(n) for r in records)) for n, row in named.items())
    settings = [_settings(r) for r in records]
    edits = {name for known in settings for name in known if "." not in name}
    differences = []
    for name in dict.fromkeys(name for known in settings for name in known):
        whole = name.split(".")[0]
        if name != whole and whole in edits and not all(whole in known for known in settings):
            continue  # one line says that a recipe lacks this edit
        values = tuple(known.get(name, "") for known in settings)
        if len(set(values)) > 1:
            differences.append((name, values))
    return Comparison(tuple(records), metrics, tuple(differences))


def _settings(record: Record) -> dict[str, str]:
    """Dotted name -> value of every setting; edits are called by what they do."""
    recipe, found = record.recipe, {}
    data = recipes.to_dict(replace(recipe, edits=()))
    for name in ("name", "version", "edits"):
        del data[name]
    for edit in recipe.edits:
        kind = place = "merge" if isinstance(edit, Merge) else "ablation"
        while place in data:  # a second one of its kind
            place = f"{kind}_{int(place.removeprefix(kind).strip('_') or 1) + 1}"
        data[place] = recipes.to_dict(edit)
        found[place] = "✓"
    return found | dict(_flat(data))


def _flat(data: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    for name, item in data.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{before}{name}.")
        else:
            yield f"{before}{name}", "" if item is None else _word(item)


def _word(item: Any) -> str:
    if isinstance(item, list):
        return ", ".join(map(_word, item))
    if isinstance(item, bool):
        return "yes" if item else "no"
    return f"{item:g}" if isinstance(item, float) else str(item)


def _metric(row: Any) -> dict[str, Any]:
    """A metric's row with exactly its fields, each of its kind."""
    sides = {}
    for side in SIDES:
        found = row[side]
        if found is not None or side == "base":
            found = value(found).to_json()
        sides[side] = found
    texts = {n: str(row[n]) for n in ("name", "title", "unit", "better", "prompts", "note")}
    # "same", of earlier versions, may have been noise or negligible: it is no verdict any more
    verdict = row["verdict"] if row["verdict"] in get_args(Verdict) else None
    whole = {**texts, **sides, "verdict": verdict, "negligible": float(row.get("negligible", 0))}
    tokens = row.get("tokens")  # earlier versions did not say
    whole["tokens"] = None if tokens is None else int(tokens)
    return {name: whole[name] for name in FIELDS}
