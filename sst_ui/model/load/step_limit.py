"""Ends a template that does not end by itself, or that builds far more than it is given.

A chat template comes with a model and is run at every prompt. Jinja's sandbox keeps it from files
and from more than 100,000 turns of one `range`, not from two such loops in one another, nor from a
text of ten billion letters (see `bounded_jinja`, which counts them here).
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sst_ui.errors import UserError

STEPS = 300_000  # lines of the compiled template; the longest real ones take 100 a message
SECONDS = 10  # beside them: a line may call a filter that takes long
COMPILED = "<template>"  # the file name that Jinja gives to what it compiles
BUILT = 20_000_000  # characters and items that one rendering may build, all steps together,
COPIES = 50  # and how often it may build what it was given


class _Budget(threading.local):
    left: int | None = None  # None outside of a rendering


_budget = _Budget()


@contextmanager
def limited(given: int = 0) -> Iterator[None]:
    """Stop templates that run more than `STEPS` lines, or `SECONDS`, in this thread, or that build
    more than `BUILT`; compiling them, where Jinja computes what is constant, included.

    Args:
        given: characters of the messages.

    Raises:
        UserError: one did.
    """
    left, end = STEPS, time.monotonic() + SECONDS

    def line(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left < 0 or time.monotonic() > end:
            raise endless()
        return line

    def call(frame: FrameType, event: str, value: Any) -> Any:
        if time.monotonic() > end:  # in a function of Jinja's, or in its compiler
            raise endless()
        return line if frame.f_code.co_filename == COMPILED else None

    before, budget = sys.gettrace(), _budget.left
    _budget.left = BUILT + COPIES * given
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
        _budget.left = budget


def endless() -> UserError:
    """What is said of a template that does not come to an end."""
    return UserError(
        "the chat template does not come to an end (it loops more than any conversation needs); "
        "give another one with model.chat_template."
    )


def spend(amount: int) -> None:
    """Count what the template that is being rendered builds.

    Raises:
        UserError: it is more than `limited` allows.
    """
    if _budget.left is None:
        return
    _budget.left -= amount
    if _budget.left < 0:
        raise flood()


def flood() -> UserError:
    """What is said of a template that builds too much."""
    return UserError(
        "the chat template builds far more text than the conversation holds; give another one "
        "with model.chat_template."
    )
