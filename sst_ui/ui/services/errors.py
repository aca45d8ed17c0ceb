"""Errors on the screen: bad input as its own message, a defect of ours as one calm sentence.

No visitor ever reads a traceback; the log has it.
"""

import functools
import inspect
import logging
import os

import gradio as gr

from sst_ui import disk
from sst_ui.errors import LINE, UserError, line_of
from sst_ui.ui.services.job_runner import Stopped
from sst_ui.ui.state.loaded_model import Replaced
from sst_ui.ui.state.run_store import shared
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

log = logging.getLogger(__name__)


def message(error: Exception, language: str) -> str:
    """What to say about an error, in the visitor's language where we wrote it."""
    if isinstance(error, Stopped):
        return say(language, "stage.stopped")
    if isinstance(error, Replaced):
        return say(language, "model.replaced", name=error.name)
    if isinstance(error, UserError):
        text = line_of(error, LINE)
        first = text.split(" ")[0]
        named = set("._/") & set(first)  # begins with a setting or a path: leave it alone
        return text if named else text[:1].upper() + text[1:]
    if (code := disk.refusal(error)) is not None:
        name = getattr(error, "filename", None)
        named = isinstance(name, str) and not shared()
        why = os.strerror(code) + (f": {name}" if named else "")
        log.warning("the system refused a file: %s", error)
        return say(language, "error.disk", why=why)
    log.error("unexpected error on the screen", exc_info=error)
    return say(language, "error.internal", kind=type(error).__name__)


def told(error: Exception, language: str) -> str:
    """The same as the HTML of a status line: red, but for a job that was asked to stop."""
    return notice(message(error, language), "info" if isinstance(error, Stopped) else "bad")


def guarded(handler):
    """A handler (function or generator, `language` its first argument) that ends in a `gr.Error`.

    The components it would have written keep what they show.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(language, *args, **kwargs):
            try:
                yield from handler(language, *args, **kwargs)
            except gr.Error:
                raise
            except Exception as error:
                raise gr.Error(message(error, language), print_exception=False) from error

        return stream

    @functools.wraps(handler)
    def call(language, *args, **kwargs):
        try:
            return handler(language, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(message(error, language), print_exception=False) from error

    return call
