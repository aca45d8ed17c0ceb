"""How a long job tells how far it is.

A job is a generator: it yields `Progress` (and, where useful, finished parts), and its return value
is the result. Closing the generator cancels the job; nothing else is needed to stop it.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Progress:
    """One step of a job: `done` of `total` units of `stage`; `note` is free text for the screen.

    A job that finds something a person should know, and can go on, says it once in `warning`: the
    terminal prints it, the page shows it. No step with a warning may be left out.

    Attributes:
        step, steps: which part of a job of several parts it is in, from 1; 0 for a job of one.
        overall: share of the whole job that is done, 0..1, where the parts' costs are known.
    """

    stage: str
    done: int
    total: int
    note: str = ""
    warning: str = ""
    step: int = 0
    steps: int = 0
    overall: float | None = None

    @property
    def fraction(self) -> float:
        """Share done, 0..1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(frozen=True)
class Waiting(Progress):
    """A job that waits for others: how many go before it, and about how many seconds they take."""

    before: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Midway(Progress):
    """A step in the middle of a batch, whose memory is held until the end of that."""


@dataclass(frozen=True)
class Joint(Progress):
    """A step that chats had a part in: they need no more time to go first."""


def finish(
    job: Generator[Any, None, Result], each: Callable[[Any], None] = lambda _: None
) -> Result:
    """Run a job to its end, hand everything it yields to `each`, and return its result."""
    while True:
        try:
            each(next(job))
        except StopIteration as end:
            return end.value


def steps(
    job: Generator[Any, None, Result], told: Callable[[Progress], Progress] = lambda step: step
) -> Generator[Progress, None, Result]:
    """Drive a job that yields finished parts as well, and pass on its progress alone.

    Args:
        told: what becomes of each step.
    """
    while True:
        try:
            step = next(job)
        except StopIteration as end:
            return end.value
        if isinstance(step, Progress):
            yield told(step)


def part(
    job: Generator[Any, None, Result], low: float, high: float
) -> Generator[Any, None, Result]:
    """Drive a job that is a part of a larger one, from `low` to `high` of the whole, 0..1.

    Its steps say how much of the whole is done. Where the job does not say how much of itself is
    done, each of its stages begins anew, and only the furthest one counts.
    """
    reached = 0.0
    with closing(job):
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                return end.value
            if isinstance(step, Progress):
                own = step.fraction if step.overall is None else step.overall
                reached = max(reached, own)
                step = replace(step, overall=low + (high - low) * reached)
            yield step
