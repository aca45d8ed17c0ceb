"""Finished trials read back as recipes with numbers, and which of them is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sst_ui.jobs.search.objectives import Aims, SearchSpec, presets, searched
from sst_ui.jobs.search.space import Params, candidate
from sst_ui.jobs.search.study import Study
from sst_ui.maths import kernel
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

    def value(self, metric: str) -> float:
        """The metric's value; nan where it was not measured."""
        return self.values.get(metric, NOTHING).value

    def to_json(self) -> dict:
        """Plain data."""
        numbers = {name: value.to_json() for name, value in self.values.items()}
        return {
            "number": self.number, "params": self.params, "recipe": self.recipe.digest(),
            "state": self.state, "feasible": self.feasible, "note": self.note, "values": numbers,
        }  # fmt: skip


def candidates(study: Study, recipe: Recipe, layers: int) -> list[Candidate]:
    """Everything that is over in a study, in the order of its numbers."""
    return [read(t, recipe, layers) for t in study.trials() if t.state in STATES]


def read(trial: FrozenTrial, recipe: Recipe, layers: int) -> Candidate:
    """A finished trial of a search of this recipe."""
    attrs, state = trial.user_attrs, STATES[trial.state]
    values, base = (
        {name: Value(*row) for name, row in attrs.get(part, {}).items()}
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
    )


def chosen(found: Sequence[Candidate], aim: Aims, spec: SearchSpec) -> Candidate | None:
    """The search result: the last good stage of a staged search, else the best candidate."""
    if spec.strategy != "staged":
        return best(found, aim)
    kept = None
    for each in _by_stage(found):
        if each.state == "failed" or not each.feasible:
            break
        kept = each
        if ends(each, aim):
            break
    return kept


def best(found: Sequence[Candidate], aim: Aims) -> Candidate | None:
    """The best by the second objective of those whose first is at its target.

    Where none gets there, the one that comes nearest. Constraints come first: only where no
    candidate keeps them, those that do not are considered.
    """
    done = [each for each in found if each.state == "done"]
    done = [each for each in done if each.feasible] or done
    if not done:
        return None
    there = [each for each in done if aim.reached(each.value(aim.objectives[0]))]
    if not there:
        return min(done, key=lambda each: point(each, aim))
    return min(there, key=lambda each: point(each, aim)[1:] + point(each, aim)[:1])


def front(found: Sequence[Candidate], aim: Aims) -> list[Candidate]:
    """The feasible candidates that no other one beats in every objective, by the first one.

    Of several with the same numbers, the earliest.
    """
    done = [each for each in found if each.state == "done" and each.feasible]
    points = {point(each, aim): each for each in reversed(done)}

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in points
        )

    return [points[mine] for mine in sorted(points) if not beaten(mine)]


def point(each: Candidate, aim: Aims) -> tuple[float, ...]:
    """A candidate's objectives, each turned so that less is better."""
    return tuple(
        each.value(name) * (1 if low else -1)
        for name, low in zip(aim.objectives, aim.lower, strict=True)
    )


def removed(each: Candidate, aim: Aims) -> float:
    """How far the first objective has come from the base's value towards its end, 0 or 1.

    For a refusal rate that is to fall: the share of the base's refusals that are gone.
    """
    name, end = aim.objectives[0], 0.0 if aim.lower[0] else 1.0
    base, now = each.base.get(name, NOTHING).value, each.value(name)
    return (base - now) / (base - end) if base != end else 1.0


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


def _by_stage(found: Sequence[Candidate]) -> list[Candidate]:
    return sorted(found, key=lambda each: abs(each.params.get("strength", 0.0)))
