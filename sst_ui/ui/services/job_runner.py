"""Driving a job from a handler: its bar on the screen, its parts as they come, its result.

Cancel only asks: the handler that runs ends its job at the next step and has the last word, so that
no bar of it can come later, however busy the machine is. (Gradio's own `cancels` closes a handler
between two steps too, but what it had sent by then may arrive after the word that it was stopped.)
"""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

import gradio as gr

from sst_ui.progress import Progress
from sst_ui.ui.services.progress_bars import Bar, Stopped
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.messages import note_in


def name(what: str, request: gr.Request) -> str:
    """The name of a window's job of this kind."""
    return f"{what} {request.session_hash}"


def never() -> bool:
    """Of a job that nobody can stop."""
    return False


class Told:
    """The warnings of a job, each once, in the visitor's language.

    Args:
        toast: show them beside the page, for a handler that has no place of its own for them.
    """

    def __init__(self, language: str, toast: bool = True) -> None:
        self.texts: list[str] = []
        self._language, self._toast = language, toast

    def __call__(self, step: Any) -> None:
        """Listen to a step of the job."""
        self.say(step.warning if isinstance(step, Progress) else "")

    def say(self, text: str) -> None:
        """Show a warning, unless it was shown."""
        text = note_in(self._language, text) if text else ""
        if text and text not in self.texts:
            self.texts.append(text)
            if self._toast:
                gr.Warning(safe(text), duration=None)


def watched(
    language: str,
    job: Generator[Any, None, Any],
    bar: Callable[[str], Any],
    part: Callable[[Any], Any] | None = None,
    notes: bool = True,
    stopped: Callable[[], bool] = never,
    told: Told | None = None,
) -> Generator[Any, None, Any]:
    """Drive a job to its end; its result comes back from `yield from`.

    Whoever closes this closes the job with it.

    Args:
        bar: the HTML of a progress bar -> what the handler yields for it; called once, the page
            moves the bar by itself.
        part: anything else that the job yields -> what the handler yields for it; left out without.
        notes: whether the bar says what a step notes about itself.
        stopped: whether the visitor asked it to stop; asked at every step.
        told: what listens to the job's warnings; toasts unless given.

    Raises:
        Stopped: it was, or the visitor has left; the job is closed by then.
    """
    place, told = Bar(language).place, told or Told(language)
    with closing(job):
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                return end.value
            if stopped():
                raise Stopped("stopped")
            told(step)
            if not isinstance(step, Progress):
                if part is not None:
                    yield part(step)
            elif shown := place(step if notes else replace(step, note="")):
                yield bar(shown)
