"""The three sets of prompts of a search: measured on, selected on, tested on; no prompt is in two.

Directions (of a merge, moments) are measured on one half of the recipe's own sets and candidates
are selected on the other half, unless sets of their own are given. The finalists are tested on the
sets that the metrics have by themselves, which nothing else of a search looks at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sst_ui.data import prompt_sets
from sst_ui.data.prompt_sets import in_part, part_of
from sst_ui.errors import UserError, shown
from sst_ui.jobs.evaluate.apart import keys
from sst_ui.options import SearchOptions
from sst_ui.recipe import Ablation, Merge, Recipe

LEAST = 4  # prompts of a part: fewer say nothing of a rate
MEASURED, SELECTED = "1/2", "2/2"
ROLES = {Ablation: ("harmful", "harmless"), Merge: ("safety", "utility")}


@dataclass(frozen=True)
class Sets:
    """Names of prompt sets by what they hold: harmful and harmless, or safety and utility.

    Attributes:
        measure: empty where directions are read from a file.
        test: empty for the metrics' own.
        beside: what else is measured on: protected concepts, a merge's look-alikes.
    """

    measure: Mapping[str, str]
    select: Mapping[str, str]
    test: Mapping[str, str]
    beside: tuple[str, ...] = ()

    @property
    def measured(self) -> tuple[str, ...]:
        """All that is measured on, each once."""
        return tuple(dict.fromkeys([*self.measure.values(), *self.beside]))


def sets(edit: Ablation | Merge, spec: SearchOptions) -> Sets:
    """The sets of a search of this edit; the same for an edit that is `divided` already."""
    roles, own = ROLES[type(edit)], _own(edit)
    select = {role: in_part(name, _other(part_of(name))) for role, name in own.items()}
    measure = {
        role: name if part_of(name) else in_part(name, MEASURED) for role, name in own.items()
    }
    if spec.select:
        select, measure = dict(zip(roles, spec.select, strict=True)), own
    beside: tuple[str, ...] = ()
    if isinstance(edit, Ablation):
        given = edit.directions
        measure = measure if given.file is None else {}
        if given.estimator == "surgical" and given.concepts and measure:
            beside = (given.concepts,)
    elif edit.lookalikes:
        beside = (edit.lookalikes,)
    return Sets(measure, select, dict(zip(roles, spec.test, strict=False)), beside)


def divided(recipe: Recipe, edit: Ablation | Merge, spec: SearchOptions) -> Recipe:
    """The recipe with the edit that is searched measured on its part of the prompts."""
    measure = sets(edit, spec).measure
    new: Ablation | Merge
    if isinstance(edit, Merge):
        new = replace(edit, safety_prompts=measure["safety"], utility_prompts=measure["utility"])
    elif measure:
        new = replace(
            edit,
            directions=replace(
                edit.directions, harmful=measure["harmful"], harmless=measure["harmless"]
            ),
        )
    else:
        return recipe
    edits = tuple(new if each is edit else each for each in recipe.edits)
    return replace(recipe, edits=edits)


def notes(edit: Ablation | Merge, spec: SearchOptions, tests: tuple[str, ...]) -> tuple[str, ...]:
    """What is left out so that no prompt is in two sets, in sentences.

    Args:
        tests: sets that are tested on.

    Raises:
        UserError: a set that cannot be read, or one that is too small once nothing overlaps.
    """
    found = sets(edit, spec)
    said = []
    if isinstance(edit, Ablation) and edit.directions.file is not None:
        said.append(
            "The directions are read from a file; which prompts they were measured on is not "
            "checked."
        )
    before = list(found.measured)
    for what, names, others in (
        ("selected on", list(found.select.values()), before),
        ("tested on", list(tests), [*before, *found.select.values()]),
    ):
        for name in dict.fromkeys(names):
            whole = prompt_sets.load(name)
            kept = whole.without(keys(others))
            gone = len(whole) - len(kept)
            if gone:
                said.append(f"{gone} of {len(whole)} prompts of {name} are left out, not {what}: "
                            "they are in another set of this search.")  # fmt: skip
            if len(kept) < LEAST:
                raise UserError(
                    f"{shown(name)} has {len(kept)} prompts to be {what} that are in no other set "
                    f"of this search; it needs {LEAST}. Give more prompts, or other ones."
                )
    return tuple(said)


def _own(edit: Ablation | Merge) -> dict[str, str]:
    if isinstance(edit, Merge):
        return {"safety": edit.safety_prompts, "utility": edit.utility_prompts}
    return {"harmful": edit.directions.harmful, "harmless": edit.directions.harmless}


def bare(name: str) -> str:
    """A set's name without the part that it says."""
    return in_part(name, "").removesuffix("part=").rstrip("?&")


def _other(part: str) -> str:
    """The part that is selected on, beside the one that is measured on."""
    if not part:
        return SELECTED
    number, parts = map(int, part.split("/"))
    if parts == 1:
        raise UserError(f"part={part} leaves no other part to select on; give part=1/2.")
    return f"{number % parts + 1}/{parts}"
