"""Turns between the jobs of all visitors, whatever kind they are.

So many jobs run side by side, and these share the model pass by pass (`model.runtime.fair_lock`);
chats do not wait here at all. The others wait in one line: who has fewest jobs running comes first,
then who came first. Each is told its place and about how long that will take. A job that has run
for a while goes to the end of the line, so that a search of hours holds nobody up.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sst_ui.progress import Midway, Waiting
from sst_ui.ui.services import roles
from sst_ui.ui.services.allowance import Allowance, Spent
from sst_ui.ui.services.roles import Actor, Refused

Result = TypeVar("Result")

AT_ONCE = 4
MOST = 64  # jobs that wait; each holds a thread of the server's
LOOK = 0.2  # seconds between two looks at whether it is one's turn
SLICE = 15.0  # seconds that a job runs at least before it lets others go first
HOUR = 3600.0


@dataclass(eq=False)
class _Ticket:
    owner: Actor
    started: float | None = None  # None while it waits
    took: float = 0.0  # seconds of its turns before this one


class JobQueue:
    """Every method may be called from any thread."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._guard = threading.Lock()
        self._waiting: list[_Ticket] = []
        self._running: list[_Ticket] = []
        self._took: deque[float] = deque(maxlen=20)  # seconds of the jobs before
        self._chats: Counter[Actor] = Counter()
        self._tokens = Allowance(HOUR)

    def turn(
        self, job: Generator[Any, None, Result], tokens: int = 0
    ) -> Generator[Any, None, Result]:
        """Wait for a turn, telling where one is in the line, and drive the job.

        Closing it leaves the line, or ends the job, at once.

        Args:
            tokens: that it asks for, counted as `spend` does if the job is taken in.

        Raises:
            Refused: the visitor has as many jobs as they may have, or the line is full; or as
            `spend`. Nothing is counted then.
        """
        ticket = self._enter(roles.current(), tokens)
        try:
            while True:
                while (waiting := self._place(ticket)) is not None:
                    yield waiting
                    time.sleep(LOOK)
                try:
                    step = next(job)
                except StopIteration as end:
                    return end.value
                yield step
                if not isinstance(step, Midway):  # or everyone in the line would hold a batch
                    self._let_others(ticket)
        finally:
            job.close()
            self._leave(ticket)

    @contextmanager
    def chatting(self) -> Iterator[None]:
        """An answer in the chat comes; it waits for no job.

        Raises:
            Refused: as many of the visitor's come already as may.
        """
        who = roles.current()
        with self._guard:
            if who.limits.chats is not None and self._chats[who] >= who.limits.chats:
                raise Refused(
                    f"a {who.role} of this shared studio may have {who.limits.chats} answers at a "
                    "time; wait for one to end, or stop one."
                )
            self._chats[who] += 1
        try:
            yield
        finally:
            with self._guard:
                self._chats[who] -= 1
                self._chats = +self._chats  # without those who have none

    def spend(self, tokens: int) -> None:
        """Count tokens that who is at work asks for, against what they may have in an hour.

        Raises:
            Refused: they had as many already; nothing is counted then.
        """
        with self._guard:
            self._spend(roles.current(), tokens)

    def _spend(self, actor: Actor, tokens: int) -> None:
        """As `spend`; the guard is held."""
        limit = actor.limits.hour
        if limit is None:
            return
        try:
            self._tokens.take(actor.name, tokens, limit)
        except Spent as spent:
            raise Refused(
                f"a {actor.role} of this shared studio may have {limit:,} tokens generated in an "
                f"hour, and {spent.used:,} are used. Ask for less, or again in {spent.minutes} "
                "minutes."
            ) from spent

    def _enter(self, who: Actor, tokens: int) -> _Ticket:
        ticket = _Ticket(who)
        with self._guard:
            mine = sum(each.owner == who for each in (*self._waiting, *self._running))
            if who.limits.jobs is not None and mine >= who.limits.jobs:
                raise Refused(
                    f"a {who.role} of this shared studio may have {who.limits.jobs} jobs at a "
                    "time; wait for one to end, or cancel one."
                )
            if len(self._waiting) >= MOST:
                raise Refused(f"{MOST} jobs are waiting already; try again in some minutes.")
            self._spend(who, tokens)
            self._waiting.append(ticket)
        return ticket

    def _place(self, ticket: _Ticket) -> Waiting | None:
        """Where it stands in the line; None where it is its turn."""
        with self._guard:
            if ticket.started is not None:
                return None
            before = self._line().index(ticket)
            if before < self._at_once - len(self._running):
                self._waiting.remove(ticket)
                self._running.append(ticket)
                ticket.started = time.monotonic()
                return None
            seconds = None
            if self._took:
                mean = sum(self._took) / len(self._took)
                seconds = (before + 1) * min(mean, SLICE) / self._at_once
            return Waiting("queue", 0, 1, before=before, seconds=seconds)

    def _let_others(self, ticket: _Ticket) -> None:
        """To the end of the line, if it has run for long and others wait."""
        with self._guard:
            if ticket.started is None or not self._waiting:
                return
            if (ran := time.monotonic() - ticket.started) >= SLICE:
                self._running.remove(ticket)
                self._waiting.append(ticket)
                ticket.started, ticket.took = None, ticket.took + ran

    def _line(self) -> list[_Ticket]:
        """Those who wait, in the order of their turns: each visitor's next one counts as running
        for those behind it."""
        busy = Counter(each.owner for each in self._running)
        rest, line = list(self._waiting), []
        while rest:
            first = min(rest, key=lambda each: busy[each.owner])  # the earliest of equals
            rest.remove(first)
            line.append(first)
            busy[first.owner] += 1
        return line

    def _leave(self, ticket: _Ticket) -> None:
        with self._guard:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            if ticket in self._running:
                self._running.remove(ticket)
                ran = 0.0 if ticket.started is None else time.monotonic() - ticket.started
                self._took.append(ticket.took + ran)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many jobs run, and how many wait."""
        with self._guard:
            return len(self._running), len(self._waiting)
