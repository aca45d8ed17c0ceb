"""What a search optimises: objectives, constraints, a target, and its budget.

It also decides on which prompts a search may measure them: never on the held-out sets.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import yaml

import sst_ui.metrics  # noqa: F401  registers the metrics
from sst_ui.errors import UserError, shown
from sst_ui.jobs.purpose import goal_of, purpose
from sst_ui.metrics.registry import SUMMARY, Derived, find
from sst_ui.metrics.results import direction
from sst_ui.options import SearchOptions
from sst_ui.paths import PRESETS
from sst_ui.recipe import Ablation, Evaluation, Merge, Recipe, digest, to_dict


@dataclass(frozen=True)
class Limit:
    """A constraint: a metric on the right side of a number, such as `quality >= 0.7`."""

    metric: str
    at_least: bool
    value: float

    @classmethod
    def read(cls, text: str) -> "Limit":
        """From words such as `quality >= 0.7` or `kl_16<=.05`.

        Raises:
            UserError: another form, or a metric that there is not.
        """
        found = re.fullmatch(r"\s*(\S+?)\s*(>=|<=)\s*(\S+)\s*", text)
        try:
            metric, sign, number = found.groups() if found else ("", "", "")
            value = float(number)
        except ValueError:
            raise UserError(
                f"{shown(text)} is not a constraint; write a metric, >= or <=, and a number: "
                "'quality >= 0.7'."
            ) from None
        if not math.isfinite(value):
            raise UserError(f"the constraint {shown(text)} needs a finite number.")
        find(metric)
        return cls(metric, sign == ">=", value)

    def violation(self, value: float) -> float:
        """By how much it is broken; 0 or less where it holds, inf for a number that is none."""
        if not math.isfinite(value):
            return math.inf
        return self.value - value if self.at_least else value - self.value

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.value:g}"


class SearchSpec(SearchOptions):
    """A search whose objectives and constraints name metrics that there are.

    No objectives stand for those of presets/search.yaml. `round` is how many candidates are drawn
    before any of them is told: a larger one keeps more workers of a cluster busy, and the same one
    draws the same wherever it is measured.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.objectives:
            find(name)
        for text in self.constraints:
            Limit.read(text)

    def digest(self) -> str:
        """Twelve hex digits over what decides the numbers, not over how long it may take."""
        data = to_dict(self)
        data["max_new_tokens"] = self.max_new_tokens or presets()["answers"]
        return digest({k: v for k, v in data.items() if k not in ("trials", "minutes", "target")})


@dataclass(frozen=True)
class Aims:
    """A spec's objectives and constraints on the prompts that this recipe's search may see.

    Attributes:
        objectives: metric names with their prompts.
        lower: for each whether less is better, given what the recipe is for.
        limits: the constraints.
        target: for the first objective.
        cheap: two scores that need no answers, or () where nothing is pruned.
        beside: what is measured with the objectives to be looked at.
        tokens: length of the answers, at most.
    """

    objectives: tuple[str, ...]
    lower: tuple[bool, ...]
    limits: tuple[Limit, ...]
    target: float
    cheap: tuple[str, ...]
    beside: tuple[str, ...]
    tokens: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """Everything that has to be measured of a candidate that is not pruned."""
        limits = (limit.metric for limit in self.limits)
        return tuple(dict.fromkeys([*self.objectives, *self.beside, *limits]))

    def reached(self, value: float) -> bool:
        """Whether the first objective is at its target."""
        return value <= self.target if self.lower[0] else value >= self.target


def aims(recipe: Recipe, spec: SearchSpec) -> Aims:
    """What this spec means for this recipe.

    Raises:
        UserError: a recipe with nothing to search.
    """
    what = purpose(replace(recipe, edits=(searched(recipe),)))
    preset, places = presets(), _places(recipe)
    chosen = preset["aims"][what]
    own = spec.objectives
    if spec.strategy == "sensitivity" and what != "merged":
        own = own or tuple(preset["prune"]["scores"])
    names = own or tuple(chosen["objectives"])
    objectives = tuple(dict.fromkeys(_seen(name, places) for name in names))
    texts = spec.constraints
    if spec.strategy == "staged" and not texts:
        texts = (f"quality >= {preset['stages']['quality']}",)
    limits = [Limit.read(text) for text in texts]
    cheap: tuple[str, ...] = ()
    if spec.prune and what == "abliterated":
        cheap = tuple(_seen(name, places) for name in preset["prune"]["scores"])
    lower = tuple(direction(find(name), goal_of(what)) == "low" for name in objectives)
    target = spec.target
    if target is None:  # objectives of one's own have none, so that the best by the first wins
        target = chosen["target"] if not own else math.inf * (-1 if lower[0] else 1)
    return Aims(
        objectives,
        lower,
        tuple(Limit(_seen(each.metric, places), each.at_least, each.value) for each in limits),
        target,
        cheap,
        _beside(objectives[0]),
        _length(recipe, spec),
    )


def evaluation(metrics: tuple[str, ...], recipe: Recipe, spec: SearchSpec) -> Evaluation:
    """How these metrics are measured of one candidate."""
    own = recipe.evaluation
    return Evaluation(
        metrics=metrics,
        preset=own.preset,
        samples=spec.samples,
        max_new_tokens=_length(recipe, spec),
        judge=own.judge,
        labels=own.labels,
    )


def held_out(made: Recipe, aim: Aims, spec: SearchSpec) -> Evaluation:
    """How a search's result is measured for its last word: on prompts that no candidate saw.

    The objectives on the prompts they have of their own, and what an edit is judged by in any case.
    """
    own = [name.partition("@")[0] for name in aim.objectives]
    shares = [share for name in (*own, *SUMMARY) for share in _beside(name)]
    return evaluation(tuple(dict.fromkeys([*own, *SUMMARY, *shares])), made, spec)


def searched(recipe: Recipe) -> Ablation | Merge:
    """The one edit that a search varies: the only ablation, else the only merge.

    Raises:
        UserError: there is none, or there are several.
    """
    for kind, word in ((Ablation, "ablation"), (Merge, "merge")):
        found = [edit for edit in recipe.edits if isinstance(edit, kind)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"a search varies one {word}; this recipe has {len(found)}.")
    raise UserError("this recipe has no edit to search; give it an ablation or a merge.")


@cache
def presets() -> Mapping[str, Any]:
    """presets/search.yaml."""
    return yaml.safe_load((PRESETS / "search.yaml").read_text(encoding="utf-8"))


def _length(recipe: Recipe, spec: SearchSpec) -> int:
    """Tokens of an answer, at most."""
    usual = presets()["answers"]
    return spec.max_new_tokens or usual["demo" if recipe.model.id == "demo" else "max_new_tokens"]


def _beside(objective: str) -> tuple[str, ...]:
    """What else the answers are that the first objective is read off, on its own prompts."""
    bare, at, prompts = objective.partition("@")
    return tuple(f"{name}{at}{prompts}" for name in presets()["beside"].get(bare, ()))


def _places(recipe: Recipe) -> dict[str, str]:
    edit = searched(recipe)
    if isinstance(edit, Merge):
        return {"safety": edit.safety_prompts, "utility": edit.utility_prompts}
    return {"harmful": edit.directions.harmful, "harmless": edit.directions.harmless}


def _seen(name: str, places: Mapping[str, str]) -> str:
    """A metric's name on prompts that the search may see; held-out sets are replaced."""
    if "{" in name:
        return name.format(**places)
    row = find(name)
    if isinstance(row, Derived) or "@" in name:
        return name
    instead = presets()["held_out"].get(row.prompts)
    if instead is None or instead.strip("{}") not in places:
        return name
    return f"{name}@{instead.format(**places)}"
