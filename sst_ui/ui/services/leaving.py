"""Whether whoever called an endpoint is still there.

Gradio closes a generator when its caller goes, but lets a function run to its end; it marks the
event, and has no public way to ask.
"""

from collections.abc import Callable

from gradio.context import LocalContext


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
