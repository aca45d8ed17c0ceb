"""Jobs that outlive the page that started them, for whoever reloads it, or closes and reopens it.

Gradio ends a handler when its page goes. A lasting job therefore runs in a thread of its own, and
handlers only watch it, any number of them. Starting one gives a ticket, which the visitor's browser
keeps and hands in when it comes back; nobody can guess it. A job that nobody watches any more is
told so after a while, and ends.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sst_ui.ui.services import leaving, roles
from sst_ui.ui.services.roles import Actor, Role

Seen = TypeVar("Seen")

# Seconds without a watcher after which a job is told to end: others wait for a visitor's to do so,
# while on one's own machine nobody does.
AWAY, OWNER_AWAY = leaving.LATER, 3600.0
LOOK = 0.5  # seconds between two looks at whether a watcher is still there
MOST = 64  # jobs that have ended and are kept


class LastingJob(Generic[Seen]):
    """A job in a thread of its own; how far it is can be watched from several windows.

    Args:
        steps: takes a question, whether nobody has watched for long; yields what there is to see,
            each time all of it. The last one stays.
        owner: who started it.
    """

    def __init__(self, steps: Callable[[Callable[[], bool]], Iterator[Seen]], owner: Actor) -> None:
        self.owner = owner
        self._steps = steps
        self._news = threading.Condition()
        self._seen: Seen | None = None
        self._number, self._watchers, self._over = 0, 0, False
        self._alone = time.monotonic()  # since when nobody watches
        run = copy_context().run  # it stays the visitor's: their rights, and on a Space their quota
        self._thread = threading.Thread(
            target=run, args=(self._drive,), name="lasting", daemon=True
        )

    def start(self) -> None:
        """Begin; called once."""
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        with self._news:
            return self._over

    @property
    def seen(self) -> Seen | None:
        """The latest that there is to see; None before the first."""
        with self._news:
            return self._seen

    def deserted(self) -> bool:
        """Whether nobody has watched for long."""
        limit = OWNER_AWAY if self.owner.role is Role.OWNER else AWAY
        with self._news:
            return not self._watchers and time.monotonic() - self._alone > limit

    def watch(self) -> Iterator[Seen]:
        """What is to be seen now, and again whenever that changes, until the job has ended.

        Of changes that come faster than they are taken only the latest is handed out.
        """
        left, number = leaving.watch(), 0
        with self._news:
            self._watchers += 1
        try:
            while not left():
                with self._news:
                    if self._number == number and not self._over:
                        self._news.wait(LOOK)
                    changed, number = self._number != number, self._number
                    seen, over = self._seen, self._over
                if changed and seen is not None:
                    yield seen
                elif over:
                    return
        finally:
            with self._news:
                self._watchers -= 1
                self._alone = time.monotonic()

    def _drive(self) -> None:
        try:
            for seen in self._steps(self.deserted):
                with self._news:
                    self._seen, self._number = seen, self._number + 1
                    self._news.notify_all()
        finally:
            with self._news:
                self._over = True
                self._news.notify_all()


@dataclass(frozen=True, eq=False)
class _Entry(Generic[Seen]):
    job: LastingJob[Seen]
    forgotten: Callable[[], None] = field(default=lambda: None)


class LastingJobs(Generic[Seen]):
    """The lasting jobs of one kind, by ticket. Every method may be called from any thread.

    Args:
        life: seconds that one is kept after its end; None for as long as there is room.
    """

    def __init__(self, life: float | None = None) -> None:
        self._life, self._guard = life, threading.Lock()
        self._entries: dict[str, _Entry[Seen]] = {}

    def begin(
        self,
        steps: Callable[[Callable[[], bool]], Iterator[Seen]],
        forgotten: Callable[[], None] = lambda: None,
    ) -> tuple[str, LastingJob[Seen]]:
        """Start a job as who is at work now.

        Args:
            steps: see `LastingJob`.
            forgotten: called when its ticket is good for nothing any more.

        Returns:
            Its ticket, and the job.
        """
        ticket = secrets.token_urlsafe(24)

        def driven(deserted: Callable[[], bool]) -> Iterator[Seen]:
            try:
                yield from steps(deserted)
            finally:
                self._ended(ticket)

        job = LastingJob(driven, roles.current())
        with self._guard:
            self._entries[ticket] = _Entry(job, forgotten)
        job.start()
        return ticket, job

    def find(self, ticket: object) -> LastingJob[Seen] | None:
        """The job of a ticket; None where there is none, or where somebody else signed in."""
        with self._guard:
            entry = self._entries.get(ticket) if isinstance(ticket, str) else None
        if entry is None:
            return None
        owner = entry.job.owner
        if owner.role is Role.SIGNED_IN and owner != roles.current():
            return None
        return entry.job

    def all(self) -> list[LastingJob[Seen]]:
        """Every job that has a ticket."""
        with self._guard:
            return [each.job for each in self._entries.values()]

    def forget(self, ticket: str) -> None:
        """The ticket is good for nothing from now on."""
        with self._guard:
            entry = self._entries.pop(ticket, None)
        if entry is not None:
            entry.forgotten()

    def _ended(self, ticket: str) -> None:
        if self._life is not None:
            timer = threading.Timer(self._life, self.forget, (ticket,))
            timer.daemon = True
            timer.start()
        with self._guard:
            over = [name for name, each in self._entries.items() if each.job.over]
        for name in over[:-MOST]:
            self.forget(name)
