"""Errors on the screen: bad input as its own message, a defect of ours as one calm sentence.

No visitor ever reads a traceback; the log has it.
"""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from sst_ui import disk
from sst_ui.errors import LINE, UserError, line_of
from sst_ui.ui.services.progress_bars import Stopped
from sst_ui.ui.state.loaded_model import Replaced
from sst_ui.ui.state.run_store import shared
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.messages import note_in, say_in
from sst_ui.ui.widgets.texts import say

log = logging.getLogger(__name__)


def message(error: Exception, language: str) -> str:
    """What to say about an error, in the visitor's language where that is known."""
    if isinstance(error, Stopped):
        return say(language, "stage.stopped")
    if isinstance(error, Replaced):
        return say(language, "model.replaced", name=error.name)
    if isinstance(error, UserError):
        text = line_of(error, LINE)
        if (translated := say_in(language, text)) != text:
            return translated
        first = text.split(" ")[0]  # of a setting or a path it is left alone
        return text if set("._/") & set(first) else text[:1].upper() + text[1:]
    if (code := disk.refusal(error)) is not None:
        name = getattr(error, "filename", None)
        named = isinstance(name, str) and not shared()
        why = note_in(language, os.strerror(code)) + (f": {name}" if named else "")
        log.warning("the system refused a file: %s", error)
        return say(language, "error.disk", why=why)
    log.error("unexpected error on the screen", exc_info=error)
    return say(language, "error.internal", kind=type(error).__name__)


def told(error: Exception, language: str) -> str:
    """The same as the HTML of a status line: red, but for a job that was asked to stop."""
    return notice(message(error, language), "info" if isinstance(error, Stopped) else "bad")


def guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler (function or generator, `language` its first argument) that ends in a `gr.Error`.

    The components it would have written keep what they show.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(language: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from handler(language, *args, **kwargs)
            except gr.Error:
                raise
            except Exception as error:
                raise gr.Error(message(error, language), print_exception=False) from error

        return stream

    @functools.wraps(handler)
    def call(language: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return handler(language, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(message(error, language), print_exception=False) from error

    return call
