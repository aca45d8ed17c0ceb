"""Driving a job from a handler: its bar on the screen, its parts as they come, its result.

Knows generators that yield `Progress`. Does not know components: what a bar is written to is the
handler's to say.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

from sst_ui.progress import Progress
from sst_ui.ui.html import Clock

PACE = 0.1  # seconds between two updates of a progress bar


def watched(
    language: str,
    job: Generator[Any, None, Any],
    bar: Callable[[str], Any],
    part: Callable[[Any], Any] | None = None,
    notes: bool = True,
) -> Generator[Any, None, Any]:
    """Drive a job to its end; its result comes back from `yield from`.

    Whoever closes this closes the job with it: that is how Cancel works.

    Args:
        bar: the HTML of a progress bar -> what the handler yields for it.
        part: anything else that the job yields -> what the handler yields for it; left out without.
        notes: whether the bar says what a step notes about itself.
    """
    clock, shown = Clock(), 0.0
    with closing(job):
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                return end.value
            if not isinstance(step, Progress):
                if part is not None:
                    yield part(step)
            elif time.monotonic() - shown >= PACE:
                shown = time.monotonic()
                yield bar(clock.bar(language, step if notes else replace(step, note="")))
