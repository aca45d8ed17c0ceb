"""Ends a template that does not end by itself.

A chat template comes with a model and is run at every prompt. Jinja's sandbox keeps it from files
and from more than 100,000 turns of one `range`, not from two such loops in one another.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sst_ui.errors import UserError

STEPS = 300_000  # lines of the compiled template; the longest real ones take 100 a message
SECONDS = 10  # beside them: a line may call a filter that takes long
COMPILED = "<template>"  # the file name that Jinja gives to what it compiles


@contextmanager
def limited() -> Iterator[None]:
    """Stop templates that run more than `STEPS` lines, or `SECONDS`, in this thread.

    Raises:
        UserError: one did.
    """
    left, end = STEPS, time.monotonic() + SECONDS

    def line(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left < 0 or time.monotonic() > end:
            raise UserError(
                "the chat template does not come to an end (it loops more than any conversation "
                "needs); give another one with model.chat_template."
            )
        return line

    def call(frame: FrameType, event: str, value: Any) -> Any:
        return line if frame.f_code.co_filename == COMPILED else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
