"""How long a test waits for a state: one limit for all of them, in one place.

A test waits for what the page or the program says, never for an amount of time; the limit is only
there so that a test of something broken ends. A machine with other work to do is slow, not wrong.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from sst_ui.ui import launch_options

SECONDS = 300
MILLISECONDS = SECONDS * 1000  # as Playwright counts

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = SECONDS) -> T:
    """What the condition says once that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
    return value


def launched(page) -> str:
    """The address of a launched page, which answers.

    Gradio launches when its server has answered its start-up request, however long that takes. It
    then asks once more, gives that three seconds, and gives up on a machine that is busy: here that
    second question is left out.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradio.networking.url_ok", lambda address: True)
        _, address, _ = page.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, run_history=False,
            **launch_options(),
        )  # fmt: skip
    return address
