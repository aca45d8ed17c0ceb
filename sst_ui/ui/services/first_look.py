"""What a fresh window shows is measured behind the open page: of a slow model on a few prompts
first, then on all of them.

The base answers as soon as its weights are there. Who asks the edited model earlier, or for
directions that are on their way, waits for what is being measured (see `waiting`).
"""

import logging
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, DirectionSpec, Recipe
from sst_ui.ui.services import zero_gpu
from sst_ui.ui.services.roles import Actor, Role, acting
from sst_ui.ui.state.loaded_model import Replaced

if TYPE_CHECKING:  # it holds this
    from sst_ui.ui.services.engine import Engine

log = logging.getLogger(__name__)
FEW = 32  # prompts of each kind that a slow model is measured on first
TRIED = 2.0  # seconds after which it is known whether a model is slow
ASIDE = 120.0  # seconds that it waits for others between two steps
SLOW = 20.0  # seconds that all prompts may take without a look at a few of them


@dataclass
class Look:
    """One model's.

    Attributes:
        key: the model's.
        plan: the recipes to measure, in order, as soon as they are chosen; the last is the one
            with all prompts.
        done: how many of them are measured.
        progress: of the one that is.
    """

    key: str
    plan: tuple[Recipe, ...] = ()
    done: int = 0
    progress: Progress = field(default_factory=lambda: Progress("residuals", 0, 1))
    failure: Exception | None = None
    over: threading.Event = field(default_factory=threading.Event)
    thread: int = 0
    process: int = field(default_factory=os.getpid)


class FirstLook:
    """The look at the model that is loaded. Every method may be called from any thread."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._look = Look("")
        self._look.over.set()
        self._before = 0  # jobs that go first
        self._counting = threading.Lock()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A look waits meanwhile, since somebody does: for a minute or two at most."""
        with self._counting:
            self._before += 1
        try:
            yield
        finally:
            with self._counting:
                self._before -= 1

    def begin(self) -> None:
        """Look at the loaded model in a thread; returns at once."""
        look = Look(self._engine.loaded.key)
        self._look = look  # an earlier one ends at its next step: its model is gone
        threading.Thread(target=self._run, args=[look], name="first-look", daemon=True).start()

    def join(self) -> None:
        """Wait for the end of the latest look."""
        self._look.over.wait()

    @property
    def progress(self) -> Progress:
        """How far the latest look is."""
        return self._look.progress

    def _run(self, look: Look) -> None:
        """What goes wrong is kept for who waits."""
        look.thread = threading.get_ident()
        try:
            # at home: a GPU is lent to visitors, by their quota
            with acting(Actor(Role.OWNER)), zero_gpu.at_home():
                self._measure(look)
        except Replaced:
            pass
        except Exception as error:
            if not isinstance(error, UserError):
                log.exception("measuring %s failed", self._engine.loaded.name)
            look.failure = error
        finally:
            look.over.set()

    def _measure(self, look: Look) -> None:
        """All prompts, unless that is seen to take long before it is over: then a few first."""
        whole = self._engine.first_recipe()
        few, begun = _few(whole), time.monotonic()
        with closing(self._engine.quietly(look.key, whole)) as job:
            for step in job:
                look.progress = step
                took = time.monotonic() - begun
                if few is None or look.plan or took < TRIED:
                    continue
                # the passes for a filter cost about what those for the directions do
                passes = 2 if any(_filters(edit) for edit in whole.edits) else 1
                if took * passes > SLOW * step.fraction:
                    break
                look.plan = (whole,)
            else:
                look.plan, look.done = (whole,), 1
                return
        look.plan = (few, whole)
        for recipe in look.plan:
            self._drive(look, recipe)
            look.done += 1

    def _drive(self, look: Look, recipe: Recipe) -> None:
        for step in self._engine.quietly(look.key, recipe):
            look.progress = step
            until = time.monotonic() + ASIDE
            while self._before and look.done and time.monotonic() < until:
                time.sleep(0.05)

    def plan(self, key: str) -> tuple[Recipe, ...]:
        """What is measured of this model, few prompts before all; () when it is over, for another
        model, and as long as that is not chosen."""
        return self._look.plan if self.running(key) else ()

    def running(self, key: str) -> bool:
        """Whether this model is being looked at, in this process."""
        look = self._look
        return look.key == key and not look.over.is_set() and look.process == os.getpid()

    def made(self, recipe: Recipe) -> bool:
        """Whether a recipe is one of those that the latest look measured."""
        return any(recipe.digest() == each.digest() for each in self._look.plan)

    def latest(self, key: str) -> Recipe | None:
        """What was measured of this model so far, on the most prompts."""
        look = self._look
        return look.plan[look.done - 1] if look.key == key and look.done else None

    def stand_in(self, key: str, spec: DirectionSpec) -> DirectionSpec:
        """The same directions from a few prompts, as long as those from all are on their way."""
        few = self.latest(key)
        if few is None or self._engine.directions(key, spec) is not None:
            return spec
        for short, whole in zip(few.edits, self._look.plan[-1].edits, strict=True):
            if isinstance(whole, Ablation) and whole.directions == spec:
                assert isinstance(short, Ablation)
                return short.directions
        return spec

    def next(
        self, key: str, known: Recipe | None = None
    ) -> Generator[Progress, None, Recipe | None]:
        """Wait until there is something to show.

        Args:
            known: what is shown now.

        Returns:
            What is at hand and comes behind that; None where nothing does.

        Raises:
            UserError: it could not be measured.
        """
        look = self._look
        while look.key == key:
            over = look.over.is_set()
            ready = self.latest(key)
            if ready is not None and (known is None or known.digest() != ready.digest()):
                return ready
            if over:
                break
            yield look.progress
            look.over.wait(0.1)
        if look.failure is not None and look.key == key:
            raise look.failure
        return None

    def waiting(
        self, key: str, spec: DirectionSpec, edit: Ablation | None = None
    ) -> Generator[Progress, None, None]:
        """Wait for directions that are on their way, so that nobody measures them a second time.

        Args:
            edit: whose filter is wanted, too; without, the directions are enough.
        """
        look = self._look
        while self.running(key) and look.thread != threading.get_ident():
            # until it is chosen, all prompts are being looked at
            coming = look.plan[look.done :] or (() if look.plan else (self._engine.first_recipe(),))
            wanted = [e for recipe in coming for e in recipe.edits if isinstance(e, Ablation)]
            if not any(each.directions == spec for each in wanted):
                return
            if edit is None and self._engine.directions(key, spec) is not None:
                return
            yield look.progress
            look.over.wait(0.1)


def _few(whole: Recipe) -> Recipe | None:
    """The recipe measured on the first prompts of each kind; None where there are hardly more."""
    edits = []
    for edit in whole.edits:
        if not isinstance(edit, Ablation) or edit.directions.file is not None:
            return None
        spec = edit.directions
        sets = [prompt_sets.load(name, spec.samples) for name in (spec.harmful, spec.harmless)]
        if min(len(each.prompts) for each in sets) < 3 * FEW:
            return None
        edits.append(replace(edit, directions=replace(edit.directions, samples=FEW)))
    return replace(whole, edits=tuple(edits))


def _filters(edit: object) -> bool:
    return isinstance(edit, Ablation) and edit.operation == "filter"
