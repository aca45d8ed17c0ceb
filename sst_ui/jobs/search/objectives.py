"""What a search optimises: objectives, constraints, a target, and its budget.

On which prompts they are measured while a search runs, and at its end, is in `prompts`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import yaml

import sst_ui.metrics  # noqa: F401  registers the metrics
from sst_ui.errors import UserError, shown
from sst_ui.jobs.evaluate.apart import Apart
from sst_ui.jobs.evaluate.evaluate import limits
from sst_ui.jobs.purpose import goal_of, purpose
from sst_ui.jobs.search import prompts
from sst_ui.jobs.search.prompts import MEASURED
from sst_ui.metrics.registry import METRICS, SUMMARY, Derived, find
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
        find(metric.partition("@{")[0])
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
        ends = ("trials", "minutes", "target", "patience", "test")
        data = {name: value for name, value in to_dict(self).items() if name not in ends}
        return digest({**data, "max_new_tokens": self.max_new_tokens or presets()["answers"]})


@dataclass(frozen=True)
class Aims:
    """A spec's objectives and constraints on the prompts that candidates are selected on.

    Attributes:
        objectives: metric names with their prompts: what is optimised. The second one is what an
            edit costs.
        lower: for each whether less is better, given what the recipe is for.
        limits: the constraints.
        decides: the metric that has the target and decides among finalists; the first objective, or
            a rate beside it that a continuous score stands in for.
        falls: whether less of it is better.
        target: for `decides`; infinite where there is none.
        floors: what else belongs to the target. Unlike the constraints they keep nobody off the
            front.
        cheap: two scores that need no answers, or () where nothing is pruned.
        gate: by how much a candidate must have moved the first objective; 0 for one that an edit
            is not made to move. Of a rate, the share of the way from the base's value to its end.
        beside: what is measured with `decides`, on the same answers, to be looked at.
        tokens: length of the answers, at most, while candidates are compared.
        tests: each metric's name -> its name on the prompts that finalists are tested on.
    """

    objectives: tuple[str, ...]
    lower: tuple[bool, ...]
    limits: tuple[Limit, ...]
    decides: str
    falls: bool
    target: float
    floors: tuple[Limit, ...]
    cheap: tuple[str, ...]
    gate: float
    beside: tuple[str, ...]
    tokens: int
    tests: Mapping[str, str]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Everything that has to be measured of a candidate that is not pruned."""
        limits = (limit.metric for limit in (*self.limits, *self.floors))
        return tuple(dict.fromkeys([self.decides, *self.objectives, *self.beside, *limits]))

    @property
    def cost(self) -> str | None:
        """The metric that decides among candidates at the target; None with one objective."""
        return self.objectives[1] if len(self.objectives) > 1 else None

    @property
    def targeted(self) -> bool:
        """Whether there is a target that can be missed."""
        return math.isfinite(self.target)

    def reached(self, value: float) -> bool:
        """Whether `decides` is at its target."""
        return value <= self.target if self.falls else value >= self.target

    def distance(self, value: Callable[[str], float]) -> float:
        """How far from the target a candidate is, floors included; 0 at it.

        Args:
            value: a metric's value by its name; nan is infinitely far away.
        """
        ends = (Limit(self.decides, not self.falls, self.target), *self.floors)
        return sum(max(0.0, each.violation(value(each.metric))) for each in ends)

    def __str__(self) -> str:
        ends = (Limit(self.decides, not self.falls, self.target), *self.floors)
        words = []
        for each in ends:
            sign = "at least" if each.at_least else "at most"
            words.append(f"{find(each.metric.partition('@')[0]).title} {sign} {each.value:g}")
        return " and ".join(words)


def aims(recipe: Recipe, spec: SearchSpec) -> Aims:
    """What this spec means for this recipe.

    Raises:
        UserError: a recipe with nothing to search.
    """
    what = purpose(replace(recipe, edits=(searched(recipe),)))
    said = recipe.evaluation.goal
    if said in ("remove", "reinforce") and what in ("abliterated", "reinforced"):
        what = "abliterated" if said == "remove" else "reinforced"
    preset, named = presets(), _Names(recipe, spec)
    chosen = preset["aims"][what]
    own = spec.objectives
    if spec.strategy == "sensitivity" and what != "merged":
        own = own or tuple(preset["sensitivity"])
    names = own or tuple(chosen["objectives"])
    decides = named(names[0])
    if spec.strategy == "tpe" and not own:
        known = {row.name for row in METRICS}  # which plug-ins may add to
        names = tuple(n for n in chosen.get("continuous", names) if n.partition("@")[0] in known)
    objectives = tuple(dict.fromkeys(named(name) for name in names))
    texts = spec.constraints
    if spec.strategy == "staged" and not texts:
        texts = (f"quality >= {preset['stages']['quality']}",)
    read = [Limit.read(text) for text in texts]
    cheap: tuple[str, ...] = ()
    if spec.prune and what == "abliterated":
        cheap = tuple(named(name) for name in preset["prune"]["scores"])
    goal = goal_of(what)
    falls = direction(find(decides), goal) == "low"
    bound = {each.metric.partition("@")[0] for each in read}
    floors = [Limit.read(text) for text in chosen.get("floors", ())]
    if own or spec.strategy == "staged":
        floors = []
    target = spec.target
    if target is None:  # objectives of one's own have none, so that the best by the first wins
        target = chosen["target"] if not own else math.inf * (-1 if falls else 1)
    first = find(objectives[0])
    return Aims(
        objectives,
        tuple(direction(find(name), goal) == "low" for name in objectives),
        tuple(Limit(named(each.metric), each.at_least, each.value) for each in read),
        decides,
        falls,
        target,
        tuple(
            replace(each, metric=named(each.metric))
            for each in floors
            if each.metric.partition("@")[0] not in bound
        ),
        cheap,
        preset["gate"].get(first.unit, 0.0) if first.follows_goal else 0.0,
        tuple(named(name) for name in _beside(decides)),
        tokens(recipe, spec),
        named.tests,
    )


def evaluation(metrics: tuple[str, ...], recipe: Recipe, spec: SearchSpec) -> Evaluation:
    """How these metrics are measured of one candidate, on the prompts that are selected on."""
    own, sets = recipe.evaluation, prompts.sets(searched(recipe), spec)
    return Apart(
        metrics=metrics,
        preset=own.preset,
        samples=spec.samples,
        max_new_tokens=tokens(recipe, spec),
        judge=own.judge,
        labels=own.labels,
        part=MEASURED,  # the other half of a metric's own set is tested on
        whole=tuple(sets.select.values()),
        without=sets.measured,
    )


def tokens(recipe: Recipe, spec: SearchSpec) -> int:
    """How long an answer is while candidates are compared: long enough for late refusals."""
    usual = presets()["answers"]
    return spec.max_new_tokens or usual["demo" if recipe.model.id == "demo" else "max_new_tokens"]


def final(recipe: Recipe, aim: Aims, spec: SearchSpec) -> Evaluation:
    """How finalists are measured at the end: what the search went by, in full, on its test prompts.

    How many prompts and how long answers are the recipe's own evaluation's to say; answers are not
    shorter than while candidates were compared.
    """
    return _unseen(tuple(aim.tests[name] for name in aim.metrics), recipe, aim, spec)


def held_out(made: Recipe, aim: Aims, spec: SearchSpec) -> Evaluation:
    """How one candidate is looked at more closely: as finalists are, and by what an edit is judged
    by in any case."""
    names = [aim.tests[name] for name in (aim.decides, *aim.objectives, *aim.beside)]
    return _unseen((*names, *SUMMARY), made, aim, spec)


def _unseen(names: tuple[str, ...], recipe: Recipe, aim: Aims, spec: SearchSpec) -> Evaluation:
    own, sets = recipe.evaluation, prompts.sets(searched(recipe), spec)
    _, length = limits(own, recipe.model.id)
    seen = [*sets.measured, *sets.select.values()]
    for name in aim.metrics:  # halves of sets that constraints have by themselves
        seen += [prompts.in_part(leaf, MEASURED) for leaf in _leaves(name) if leaf not in seen]
    return Apart(
        metrics=tuple(dict.fromkeys(names)),
        preset=own.preset,
        samples=own.samples,
        max_new_tokens=max(length, tokens(recipe, spec)) if own.max_new_tokens is None else length,
        judge=own.judge,
        labels=own.labels,
        without=tuple(dict.fromkeys(seen)),
    )


def test_sets(aim: Aims) -> tuple[str, ...]:
    """The prompt sets that finalists are tested on."""
    names = [leaf for name in aim.metrics for leaf in _leaves(aim.tests[name])]
    return tuple(dict.fromkeys(names))


def _leaves(name: str) -> list[str]:
    """The prompt sets that a metric is measured on."""
    row = find(name)
    if isinstance(row, Derived):
        return [prompts for source in row.sources for prompts in _leaves(source)]
    return [row.prompts]


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


def startup(trials: int | None) -> int:
    """How many candidates of a multi-objective search are drawn evenly: half of few ones."""
    return min(presets()["startup"], (trials or presets()["trials"]) // 2)


def _beside(decides: str) -> tuple[str, ...]:
    """What else the answers are that the metric with the target is read off, on its prompts."""
    bare, at, place = decides.partition("@")
    return tuple(f"{name}{at}{place}" for name in presets()["beside"].get(bare, ()))


class _Names:
    """Metrics' names on the prompts that candidates are selected on.

    Attributes:
        tests: what each name that was asked for is called on the prompts that are tested on.
    """

    def __init__(self, recipe: Recipe, spec: SearchSpec) -> None:
        self._sets = prompts.sets(searched(recipe), spec)
        self.tests: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if "{" not in name:
            name = self._role(name)
        selected = name.format(**self._sets.select)
        bare, _, place = name.partition("@")
        if "{" in place:
            name = name.format(**self._sets.test) if self._sets.test else bare
        self.tests[selected] = name
        return selected

    def _role(self, name: str) -> str:
        """The name with its prompts as a role, where it names the recipe's own or held-out ones."""
        row = find(name)
        if isinstance(row, Derived):
            return name
        bare, at, place = name.partition("@")
        if not at:
            instead = presets()["held_out"].get(row.prompts, "")
            return f"{name}@{instead}" if instead.strip("{}") in self._sets.select else name
        for role, own in (*self._sets.measure.items(), *self._sets.select.items()):
            if prompts.bare(place) == prompts.bare(own):
                return f"{bare}@{{{role}}}"
        return name
