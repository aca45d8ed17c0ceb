"""Who has left: callers of an endpoint, and windows.

Gradio closes a generator when its caller goes, but lets a function run to its end; it marks the
event, and has no public way to ask. Of a window that was closed it keeps the states for an hour and
all else until there are too many windows: a few megabytes each.
"""

import threading
from collections.abc import Callable
from datetime import datetime

import gradio as gr
from gradio.context import LocalContext

from sst_ui.ui.services.roles import asks, sender

LATER = 300.0  # seconds that a window is kept, for a line that only broke off


def watch() -> Callable[[], bool]:
    """A question about the call that is being answered: has its caller left?"""
    queue = getattr(LocalContext.blocks.get(None), "_queue", None)
    number = LocalContext.event_id.get(None)

    def left() -> bool:
        batches = getattr(queue, "active_jobs", ())
        return any(
            event._id == number and not event.alive for batch in batches for event in batch or ()
        )

    return left


def forget_windows(page: gr.Blocks) -> None:
    """From now on what the server keeps of a window goes some minutes after it was closed."""

    @asks("look", sender)
    def leave(request: gr.Request) -> None:
        if window := request.session_hash:
            timer = threading.Timer(LATER, forget, (page, window, last_used(page, window)))
            timer.daemon = True
            timer.start()

    page.unload(leave)


def last_used(page: gr.Blocks, window: str) -> datetime | None:
    """When a window was used, by a clock that may be set back: good for telling whether that is
    still so, not for how long ago it was."""
    return page.app.state_holder.time_last_used.get(window)


def forget(page: gr.Blocks, window: str, used: datetime | None) -> None:
    """What the server keeps of a window, unless it was used again since it was closed.

    Args:
        used: when it was `last_used` as it was closed.
    """
    holder = page.app.state_holder
    if used is None or last_used(page, window) != used:
        return
    holder.delete_state(window)  # calls what the states want to be called at their end
    holder.session_data.pop(window, None)
    holder.time_last_used.pop(window, None)
