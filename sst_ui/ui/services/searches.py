"""Searches that go on while their page is away, and what a window sees of one that runs."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sst_ui.jobs.search.candidates import Candidate
from sst_ui.jobs.search.search import Opened
from sst_ui.progress import Progress
from sst_ui.ui.services.lasting_jobs import LastingJob, LastingJobs
from sst_ui.ui.services.progress_bars import Bar
from sst_ui.ui.state.run_store import LIFE, shared
from sst_ui.ui.state.search_results import Found

if TYPE_CHECKING:  # it holds this
    from sst_ui.ui.services.engine import Engine

DRAWN = 1.0  # seconds between two states with new candidates
ENDED, STOPPED = ":ended", ":stopped"  # marks of a job, beside its own name


@dataclass(frozen=True, eq=False)
class Sight:
    """What there is to see of a search.

    Attributes:
        found: as far as it is, its phase included.
        bar: the place of its bar, as HTML; '' once it has ended.
        warnings: that it gave, each once.
        error: that ended it, or None.
        early: whether it was told to end.
    """

    found: Found
    bar: str = ""
    warnings: tuple[str, ...] = ()
    error: Exception | None = None
    early: bool = False


class Searches:
    """The searches of all windows on the engine's model. Call it from any thread."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._jobs: LastingJobs[Sight] = LastingJobs(LIFE if shared() else None)

    def begin(self, language: str, found: Found) -> tuple[str, LastingJob[Sight]]:
        """Begin a search, or go on with one; its ticket, and the job to watch.

        Args:
            language: of its bar.
        """
        if found.folder is not None:  # it may have been away for longer than that is kept
            found.folder.mkdir(0o700, parents=True, exist_ok=True)
        running = _Running(language, found)

        def steps(deserted: Callable[[], bool]) -> Iterator[Sight]:
            return _driven(self._engine, running, deserted)

        def forgotten() -> None:
            if found.folder is not None and not self._used(running.found.job, found):
                shutil.rmtree(found.folder, ignore_errors=True)

        return self._jobs.begin(steps, forgotten)

    def find(self, ticket: object) -> LastingJob[Sight] | None:
        """The search that a browser has the ticket of; None where there is none."""
        return self._jobs.find(ticket)

    def forget(self, ticket: str) -> None:
        """Keep nothing of a search any more."""
        self._jobs.forget(ticket)

    def _used(self, job: str, found: Found) -> bool:
        """Whether another search of the same window keeps its study in the same folder."""
        seen = [each.seen for each in self._jobs.all()]
        return any(s and s.found.folder == found.folder and s.found.job != job for s in seen)


class _Running:
    """A search while it runs: what is found so far, and when that was last told."""

    def __init__(self, language: str, found: Found) -> None:
        self.found = replace(found, phase="running", job=uuid4().hex)
        self._known = {each.number: each for each in found.candidates}
        limit = found.spec.minutes and 60 * found.spec.minutes
        self._bar = Bar(language, limit, left=lambda: False)
        self._warnings: tuple[str, ...] = ()
        self._study: Any = None
        self._news, self._told = False, time.monotonic()

    def heard(self, part: Any) -> Sight | None:
        """What is to be seen after a step of the job; None for nothing new."""
        new = False
        if isinstance(part, Opened):
            self._study, new = part.study, True
            self.found = replace(
                self.found, recipe=part.recipe, aim=part.aim, total=part.total, notes=part.notes
            )
        elif isinstance(part, Candidate):
            self._known[part.number], self._news = part, True
        elif isinstance(part, Progress):
            new = self._bar.place(part) is not None
            if part.warning and part.warning not in self._warnings:
                self._warnings, new = (*self._warnings, part.warning), True
        if self._news and time.monotonic() - self._told >= DRAWN:
            self._told, self._news, new = time.monotonic(), False, True
            self.found = self._now()
        return self.sight() if new else None

    def sight(self) -> Sight:
        """What there is to see while it runs."""
        return Sight(self.found, self._bar.html, self._warnings)

    def over(self, early: bool, paused: bool, error: Exception | None = None) -> Sight:
        """The last word."""
        paused = bool(self._known) if error else paused
        found = replace(self._now(), phase="paused" if paused else "over")
        return Sight(found, "", self._warnings, error, early)

    def _now(self) -> Found:
        """With all candidates that are over."""
        scores: tuple = ()
        if self._study is not None and self.found.spec.strategy == "tpe":
            objectives = range(len(self.found.aims.objectives))
            scores = tuple(self._study.importance(i) for i in objectives)
        rows = tuple(self._known[number] for number in sorted(self._known))
        return replace(self.found, candidates=rows, importance=scores)


def _driven(engine: "Engine", running: _Running, deserted: Callable[[], bool]) -> Iterator[Sight]:
    """A search to its end, or until it is told to stop, or nobody has watched it for long."""
    found, mine = running.found, running.found.job
    early = False
    yield running.sight()
    try:
        with closing(engine.search(found.key, found.asked, found.spec, found.storage)) as job:
            for part in job:
                early = engine.stopped(mine) or deserted()
                if early and isinstance(part, Progress):
                    break  # not between candidates: a batch that is measured is kept whole
                if sight := running.heard(part):
                    yield sight
    except Exception as error:
        yield running.over(early, True, error)
        return
    finally:
        engine.stop(mine + ENDED)
    early = early or engine.stopped(mine)
    yield running.over(early, early and not engine.stopped(mine + STOPPED))
