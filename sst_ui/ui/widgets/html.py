"""Small pieces of HTML that several panels share. Everything that came from outside is escaped."""

import html
import time
from collections.abc import Sequence

from sst_ui.metrics.registry import METRICS
from sst_ui.progress import Progress, Waiting
from sst_ui.ui.widgets.messages import note_in
from sst_ui.ui.widgets.texts import has, say

CLICKS = """
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-pick]');
  if (target) trigger('click', {pick: target.dataset.pick});
});
element.addEventListener('keydown', (event) => {
  const target = event.target.closest('[data-pick]');
  if (target && (event.key === 'Enter' || event.key === ' ')) {
    event.preventDefault();
    trigger('click', {pick: target.dataset.pick});
  }
});
"""  # clicks (and keys) on anything with data-pick reach Python as event.pick


def safe(text: object) -> str:
    """Text as HTML, quotes included."""
    return html.escape(str(text), quote=True)


def notice(text: str, tone: str = "info", more: Sequence[str] = ()) -> str:
    """A line beside a control; `tone`: info, good, warn or bad. Empty for no text.

    `more` are sentences that open on a click.
    """
    if not text:
        return ""
    if not more:
        return f'<div class="notice {tone}" role="status">{safe(text)}</div>'
    details = "".join(f"<p>{safe(line)}</p>" for line in more)
    return (
        f'<details class="notice {tone}" role="status"><summary>{safe(text)}</summary>'
        f"{details}</details>"
    )


class Clock:
    """How long a job will still take, from how fast its stage went so far.

    The rate is that of this job: what was done before it began (a search or an upload that goes on)
    does not count, nor does the time since the last step that was finished.

    Args:
        limit: seconds after which the job ends in any case, or None.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._stage, self._first, self._last = "", 0.0, 0.0
        self._began = self._moved = time.monotonic()
        self._end = None if limit is None else self._began + limit

    def bar(self, language: str, progress: Progress) -> str:
        """A thin bar with stage, count, note and remaining time."""
        now, part = time.monotonic(), progress.fraction
        counted = progress.stage
        if progress.overall is not None:  # what is left is said of the whole job
            part, counted = progress.overall, ""
        if counted != self._stage:
            self._stage, self._began, self._first, self._last = counted, now, part, part
        if part != self._last:
            self._moved, self._last = now, part
        left, gone = "", part - self._first
        if now - self._began > 1 and gone > 0.02 and part < 1:
            seconds = (self._moved - self._began) * (1 - part) / gone - (now - self._moved)
            if self._end is not None:
                seconds = min(seconds, self._end - now)
            left = _remaining(language, max(1, round(seconds)))
        stage = _stage(language, progress.stage)
        count = f"{progress.done:,}/{progress.total:,}" if 1 < progress.total < 100_000 else ""
        note = note_in(language, progress.note)
        if isinstance(progress, Waiting):
            note = say(language, "queue.before", jobs=progress.before) if progress.before else ""
            if progress.seconds is not None:
                left = _remaining(language, max(1, round(progress.seconds)))
        place = ""
        if progress.steps > 1:
            place = say(language, "stage.step", step=progress.step, steps=progress.steps)
        words = " · ".join(safe(w) for w in (stage, count, place, note, left) if w)
        return (
            f'<div class="bar" role="progressbar" aria-label="{safe(stage)}" '
            f'aria-valuenow="{part * 100:.0f}">'
            f'<i style="width:{part * 100:.1f}%"></i></div><div class="bar-text">{words}</div>'
        )


def _stage(language: str, stage: str) -> str:
    """A stage in words; that of an evaluation has the title of a metric."""
    if has(f"stage.{stage}"):
        return say(language, f"stage.{stage}")
    names = {row.title: row.name for row in METRICS}
    bare, prompts = stage, ""
    if stage not in names:  # that of other prompts ends with the name of their file
        bare, _, prompts = stage.rpartition(" (")
    if not has(key := f"metric.{names.get(bare, '')}"):
        return stage.replace("_", " ")
    return say(language, key) + (f" ({prompts}" if prompts else "")


def _remaining(language: str, seconds: int) -> str:
    if seconds < 120:
        return say(language, "stage.remaining", seconds=seconds)
    return say(language, "stage.remaining_minutes", minutes=round(seconds / 60))
