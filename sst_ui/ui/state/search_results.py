"""What a window knows of its search: small frozen data, from which all of the Search view is drawn.

The study behind them lives in the search's storage, and the same settings find it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from sst_ui.errors import UserError
from sst_ui.jobs.search.candidates import (
    Candidate,
    chosen,
    fitted,
    front,
    leading,
    moved,
    nearest,
    point,
)
from sst_ui.jobs.search.objectives import Aims, SearchSpec
from sst_ui.recipe import Recipe

Phase = Literal["none", "running", "paused", "over"]
BELL = "bell"  # the pick that stands for what a scan of the layers comes to
SHOWN = 40  # lines of the table


@dataclass(frozen=True, eq=False)  # another one is another state, without looking into it
class Found:
    """A search as far as it is.

    Attributes:
        phase: none before the first one; paused can be resumed, over cannot.
        job: names the call that is running.
        asked, spec, key: recipe, settings and model of the search; with the same it goes on.
        recipe, aim, layers, total: what is varied, what it is after, layers, candidates at most.
        candidates: all that are over, by number.
        importance: for each objective the share of each setting in what it did.
        notes: what is left out of the prompts, in sentences.
        folder: where a shared program keeps this window's study; None for the user's data folder.
    """

    phase: Phase = "none"
    job: str = ""
    asked: Recipe = field(default_factory=Recipe)
    spec: SearchSpec = field(default_factory=SearchSpec)
    key: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    aim: Aims | None = None
    layers: int = 0
    total: int = 0
    candidates: tuple[Candidate, ...] = ()
    importance: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def storage(self) -> str | None:
        """Optuna's URL of the study; None for the file in the user's data folder."""
        return None if self.folder is None else f"sqlite:///{self.folder / 'search.sqlite'}"

    @cached_property
    def done(self) -> tuple[Candidate, ...]:
        """Those that were measured to the end."""
        return tuple(each for each in self.candidates if each.state == "done")

    @cached_property
    def best(self) -> Candidate | None:
        """What the search comes to: once finalists are tested, who passed; until then who leads."""
        if self.aim is None:
            return None
        found = chosen if self.tested else leading
        return found(self.candidates, self.aim, self.spec)

    @cached_property
    def tested(self) -> tuple[Candidate, ...]:
        """Those that were measured on the test prompts."""
        return tuple(each for each in self.candidates if each.test)

    @cached_property
    def nearest(self) -> Candidate | None:
        """Who comes nearest to the target."""
        return None if self.aim is None else nearest(self.candidates, self.aim, self.spec)

    def idle(self, each: Candidate) -> bool:
        """Whether a candidate changes too little to count."""
        return each.state == "done" and self.aim is not None and not moved(each, self.aim)

    @cached_property
    def front(self) -> tuple[Candidate, ...]:
        """Those that no other one beats in every objective."""
        return () if self.aim is None else tuple(front(self.candidates, self.aim))

    @cached_property
    def own(self) -> Candidate | None:
        """The one that is the recipe itself, if it was tried."""
        mine = _plain(self.recipe)
        return next((each for each in self.done if _plain(each.recipe) == mine), None)

    @cached_property
    def ranked(self) -> tuple[Candidate, ...]:
        """For the table: the best, the front, the others by their objectives, then the rest."""
        if self.aim is None:
            return ()
        first = [*([self.best] if self.best else []), *self.front]
        numbers = {each.number for each in first}
        first = [each for i, each in enumerate(first) if each not in first[:i]]
        others = [each for each in self.candidates if each.number not in numbers]
        others.sort(key=lambda e: (e.state != "done", not e.feasible, self.idle(e), self._order(e)))
        return tuple([*first, *others][:SHOWN])

    @cached_property
    def bell(self) -> tuple[Recipe | None, np.ndarray, str]:
        """Of a scan: the fitted recipe or None, the effects [layers], what is wrong."""
        if self.spec.strategy != "sensitivity" or self.aim is None:
            return None, np.full(self.layers, np.nan), ""
        try:
            made, effects = fitted(self.candidates, self.recipe, self.aim, self.layers)
        except UserError as error:
            return None, np.full(self.layers, np.nan), str(error)
        return made, effects, ""

    def pick(self, wanted: str) -> str:
        """The pick that counts: the wanted one while there is such a candidate, else the best."""
        known = {str(each.number) for each in self.candidates}
        scan = self.bell[0] is not None
        if wanted in known or (wanted == BELL and scan):
            return wanted
        if scan:
            return BELL
        return "" if self.best is None else str(self.best.number)

    def get(self, wanted: str) -> Candidate | None:
        """The candidate of a pick; None for none, and for the bell."""
        pick = self.pick(wanted)
        return next((each for each in self.candidates if str(each.number) == pick), None)

    def made(self, wanted: str) -> Recipe | None:
        """The recipe of a pick."""
        found = self.get(wanted)
        if found is not None:
            return found.recipe
        return self.bell[0] if self.pick(wanted) == BELL else None

    @property
    def aims(self) -> Aims:
        """What a search that has begun is after.

        Raises:
            LookupError: it has not.
        """
        if self.aim is None:
            raise LookupError("the search has not begun")
        return self.aim

    def _order(self, each: Candidate) -> tuple[float, ...]:
        return point(each, self.aims) if each.state == "done" else (float(each.number),)


def _plain(recipe: Recipe) -> str:
    """A recipe's digest, a named profile or its numbers being the same."""
    edits = tuple(replace(e, weights=replace(e.weights, profile="custom")) for e in recipe.edits)
    return replace(recipe, edits=edits).digest()
