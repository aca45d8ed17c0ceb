"""Finished trials read back as recipes with numbers, and which of them is best, if any."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sst_ui.jobs.search.objectives import Aims, SearchSpec, presets, searched
from sst_ui.jobs.search.space import Params, candidate
from sst_ui.jobs.search.study import Study
from sst_ui.maths import kernel
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import NOTHING, Value
from sst_ui.recipe import Recipe

State = Literal["done", "pruned", "failed"]
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
RULED_OUT = "ruled out by the scores that need no answers"


@dataclass(frozen=True)
class Candidate:
    """One trial that is over.

    Attributes:
        number: in its study.
        params: the settings that were tried.
        recipe: that makes it.
        state: done, pruned (ruled out by the cheap scores) or failed.
        values, base: metric -> value of the edited and of the base model.
        test, test_base: the same on the test prompts, by the same names; empty for all but
            finalists.
        feasible: every constraint holds.
        note: why it failed or was pruned.
    """

    number: int
    params: Params
    recipe: Recipe
    state: State
    values: Mapping[str, Value]
    base: Mapping[str, Value]
    feasible: bool = True
    note: str = ""
    test: Mapping[str, Value] = field(default_factory=dict)
    test_base: Mapping[str, Value] = field(default_factory=dict)

    def value(self, metric: str) -> float:
        """The metric's value; nan where it was not measured."""
        return self.values.get(metric, NOTHING).value

    def to_json(self) -> dict:
        """Plain data."""
        numbers, test = (
            {name: value.to_json() for name, value in found.items()}
            for found in (self.values, self.test)
        )
        return {
            "number": self.number, "params": self.params, "recipe": self.recipe.digest(),
            "state": self.state, "feasible": self.feasible, "note": self.note, "values": numbers,
            "test": test or None,
        }  # fmt: skip


def candidates(study: Study, recipe: Recipe, layers: int) -> list[Candidate]:
    """Everything that is over in a study, in the order of its numbers."""
    tests = study.tests()
    return [
        read(trial, recipe, layers, tests.get(trial.number, {}))
        for trial in study.trials()
        if trial.state in STATES
    ]


def read(
    trial: FrozenTrial, recipe: Recipe, layers: int, test: Mapping[str, Mapping] | None = None
) -> Candidate:
    """A finished trial of a search of this recipe; `test` is what it came to in the end."""
    attrs, state = trial.user_attrs, STATES[trial.state]
    values, base, tested, tested_base = (
        {name: Value(*row) for name, row in found.get(part, {}).items()}
        for found in (attrs, test or {})
        for part in ("values", "base")
    )
    return Candidate(
        trial.number,
        dict(trial.params),
        candidate(recipe, trial.params, layers),
        state,
        values,
        base,
        feasible=all(v <= 0 for v in attrs.get("violations", ())),
        note=RULED_OUT if state == "pruned" else attrs.get("error", ""),
        test=tested,
        test_base=tested_base,
    )


def chosen(found: Sequence[Candidate], aim: Aims, spec: SearchSpec) -> Candidate | None:
    """What a search may call its best: the first of its finalists that passes the test.

    None while none is tested, and where all of them miss the target. Without a target the best by
    the first objective.
    """
    tested = [each for each in found if each.test]
    order = sorted(tested, key=lambda each: _price(each, aim))
    if not aim.targeted and spec.strategy != "staged":
        return min(tested, key=lambda each: point(each, aim), default=None)
    return next((each for each in order if passes(each, aim, spec, tested=True)), None)


def leading(found: Sequence[Candidate], aim: Aims, spec: SearchSpec) -> Candidate | None:
    """The first of the finalists as far as the search is, if it is at the target; not tested."""
    first = next(iter(finalists(found, aim, spec)), None)
    if first is None or not (passes(first, aim, spec) or not aim.targeted):
        return None
    return first


def nearest(found: Sequence[Candidate], aim: Aims, spec: SearchSpec) -> Candidate | None:
    """The one that comes nearest to the target, on the test prompts where it is known there."""
    tested = [each for each in found if each.test] or finalists(found, aim, spec)
    return min(
        tested,
        key=lambda each: (distance(each, aim, bool(each.test)), _price(each, aim)),
        default=None,
    )


def finalists(found: Sequence[Candidate], aim: Aims, spec: SearchSpec) -> list[Candidate]:
    """Who is to be tested, the cheapest first.

    Of those at the target the cheapest, the one that moves the first objective most, and others in
    between, or with the same numbers where few are on the front; where none is there, those that
    come nearest. A staged search has one, its last good stage. Nobody is among them who breaks a
    constraint or changes nothing.
    """
    if spec.strategy == "staged":
        kept = _last_good(found, aim)
        return [] if kept is None else [kept]
    count = presets()["finalists"]
    good = [each for each in found if each.state == "done" and each.feasible and moved(each, aim)]
    if not aim.targeted:
        return sorted(good, key=lambda each: point(each, aim))[:1]
    there = [each for each in good if passes(each, aim, spec)]
    if not there:
        order = sorted(good, key=lambda each: (distance(each, aim), _price(each, aim)))
        return sorted(order[:count], key=lambda each: _price(each, aim))
    ends = front(there, aim)
    # many may have the same numbers, a rate of 0 at next to no divergence: one of them is not all
    points = {point(each, aim) for each in ends}
    rest = [each for each in there if each not in ends and point(each, aim) in points]
    rest = sorted(rest, key=lambda each: _exactly(each, aim))
    ends += rest[: max(0, count - len(ends))]
    ends = sorted(ends, key=lambda each: _price(each, aim))
    places = np.linspace(0, len(ends) - 1, min(count, len(ends))).round().astype(int)
    return [ends[place] for place in places]


def passes(each: Candidate, aim: Aims, spec: SearchSpec, tested: bool = False) -> bool:
    """Whether a candidate is at the target, within the constraints, and changes something.

    Args:
        tested: go by the test prompts.
    """
    values = each.test if tested else each.values
    if any(limit.violation(values.get(limit.metric, NOTHING).value) > 0 for limit in aim.limits):
        return False
    if spec.strategy == "staged":
        return removed(each, aim, tested) >= presets()["stages"]["removal"]
    return moved(each, aim) and distance(each, aim, tested) == 0


def distance(each: Candidate, aim: Aims, tested: bool = False) -> float:
    """How far from the target it is; see `Aims.distance`."""
    values = each.test if tested else each.values
    return aim.distance(lambda name: values.get(name, NOTHING).value)


def moved(each: Candidate, aim: Aims) -> bool:
    """Whether a candidate moves what it is made to move by as much as the gate asks."""
    return shortfall(each.values, each.base, aim) <= 0


def shortfall(values: Mapping[str, Value], base: Mapping[str, Value], aim: Aims) -> float:
    """By how much a candidate misses the gate; 0 or less within it.

    Of the first objective, or of the rate that decides: where a model refuses with little more than
    even odds, its score has not far to fall while the rate goes all the way.
    """
    if not aim.gate:
        return 0.0
    gates = {aim.objectives[0]: (aim.gate, aim.lower[0])}
    end = 0.0 if aim.falls else 1.0
    if base.get(aim.decides, NOTHING).value != end:  # else it was there before any edit
        gate = presets()["gate"].get(find(aim.decides).unit, math.inf)
        gates.setdefault(aim.decides, (gate, aim.falls))
    misses = [math.inf]
    for name, (gate, falls) in gates.items():
        now, before = (found.get(name, NOTHING).value for found in (values, base))
        if find(name).unit in ("rate", "score"):
            gain = _way(before, now, 0.0 if falls else 1.0)
        else:
            gain = (before - now) * (1 if falls else -1)
        misses += [] if math.isnan(gain) else [gate - gain]
    return min(misses)


def front(found: Sequence[Candidate], aim: Aims) -> list[Candidate]:
    """The candidates that no other one beats in every objective, by the first one.

    Only those that keep the constraints and change something. Of several with the same numbers, the
    earliest.
    """
    done = [e for e in found if e.state == "done" and e.feasible and moved(e, aim)]
    points = {point(each, aim): each for each in reversed(done)}

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in points
        )

    return [points[mine] for mine in sorted(points) if not beaten(mine)]


def still(found: Sequence[Candidate], aim: Aims) -> int:
    """For how many candidates the front has not moved: none of them is better than all before it
    by more than the distances in presets/search.yaml."""
    close = [presets()["still"].get(find(name).unit, 0.0) for name in aim.objectives]
    kept: list[tuple[float, ...]] = []
    last = 0
    for place, each in enumerate(found, start=1):
        if not (each.state == "done" and each.feasible and moved(each, aim)):
            continue
        mine = tuple(
            math.log10(value) if find(name).unit == "nats/token" and value > 0 else value
            for name, value in zip(aim.objectives, point(each, aim), strict=True)
        )
        if not any(
            all(a <= b + d for a, b, d in zip(other, mine, close, strict=True)) for other in kept
        ):
            kept.append(mine)
            last = place
    return len(found) - last


def point(each: Candidate, aim: Aims) -> tuple[float, ...]:
    """A candidate's objectives, each turned so that less is better; small divergences are equal."""
    return tuple(
        max(presets()["least"], each.value(name))
        if low and find(name).unit == "nats/token"
        else each.value(name) * (1 if low else -1)
        for name, low in zip(aim.objectives, aim.lower, strict=True)
    )


def removed(each: Candidate, aim: Aims, tested: bool = False) -> float:
    """How far `aim.decides` has come from the base's value towards its end, 0 or 1.

    For a refusal rate that is to fall: the share of the base's refusals that are gone.
    """
    values, base = (each.test, each.test_base) if tested else (each.values, each.base)
    before, now = (found.get(aim.decides, NOTHING).value for found in (base, values))
    return _way(before, now, 0.0 if aim.falls else 1.0)


def ends(each: Candidate, aim: Aims) -> bool:
    """Whether a staged search ends with this stage: enough is removed, or it failed."""
    enough = presets()["stages"]["removal"]
    return each.state == "failed" or not each.feasible or removed(each, aim) >= enough


def last_stage(found: Sequence[Candidate], aim: Aims) -> Candidate | None:
    """The stage that ends a staged search, or None while it goes on."""
    return next((each for each in _by_stage(found) if ends(each, aim)), None)


def fitted(
    found: Sequence[Candidate], recipe: Recipe, aim: Aims, layers: int
) -> tuple[Recipe, np.ndarray]:
    """The bell that fits what each layer alone does to the first objective.

    Args:
        found: the candidates of a sensitivity scan.

    Returns:
        the recipe with that bell, and the effects [layers]: by how much the first objective got
        better than the base's; nan for a layer that was not measured.

    Raises:
        UserError: no layer alone had an effect.
    """
    name, sign = aim.objectives[0], 1 if aim.lower[0] else -1
    effects = np.full(layers, np.nan)
    for each in found:
        if each.state == "done" and "only" in each.params:
            change = each.base.get(name, NOTHING).value - each.value(name)
            effects[each.params["only"]] = sign * change
    peak, width = kernel.suggest(effects)
    edit = searched(recipe)
    weights = replace(edit.weights, profile="custom", peak=peak, width=width, curve=None)
    new = replace(edit, weights=weights)
    name = f"bell over the layers that matter: peak {peak:g}, width {width:g}"
    edits = tuple(new if each is edit else each for each in recipe.edits)
    return replace(recipe, edits=edits, name=name), effects


def _price(each: Candidate, aim: Aims) -> tuple[float, ...]:
    """What is compared among candidates at the target: the cost, then the other objectives."""
    mine = point(each, aim)
    return mine[1:] + mine[:1]


def _exactly(each: Candidate, aim: Aims) -> tuple[float, ...]:
    """Its objectives, divergences that count as equal included."""
    signs = [1 if low else -1 for low in aim.lower]
    return tuple(each.value(n) * s for n, s in zip(aim.objectives, signs, strict=True))


def _way(before: float, now: float, end: float) -> float:
    """The share of the way from a value to the end of its range; 1 for one that began there."""
    return (before - now) / (before - end) if before != end else 1.0


def _last_good(found: Sequence[Candidate], aim: Aims) -> Candidate | None:
    kept = None
    for each in _by_stage(found):
        if each.state == "failed" or not each.feasible:
            break
        kept = each
        if ends(each, aim):
            break
    return kept


def _by_stage(found: Sequence[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda each: abs(each.params.get("strength", 0.0)))
