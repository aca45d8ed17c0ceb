"""Metrics that start by themselves: after Apply, after a variant was picked, when the page opens.

How results look is in `metrics` and `show_results`.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from uuid import uuid4

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.metrics import corrections
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import MetricResult
from sst_ui.progress import Progress
from sst_ui.recipe import Evaluation
from sst_ui.ui.events import show_results
from sst_ui.ui.events.answers import DRAWN
from sst_ui.ui.panels import metrics
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.state.form import MEASURING, evaluation, measuring
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets.html import Clock, notice
from sst_ui.ui.widgets.texts import say

CANCELLED = ":cancelled"  # mark of a job that ends with a word, beside its own name
PACE = 0.5  # seconds between two updates of the progress bar
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
SOUND = dict(zip(MEASURING, ((), "standard", 0, 0, "", ""), strict=True))


def check_settings(lang, results, *settings):
    """A validator: the message appears at the setting that is wrong."""
    checks = [gr.validate(True, "")] * (2 + len(MEASURING))
    for place, (name, value) in enumerate(zip(MEASURING, settings, strict=True), start=2):
        try:
            _look(evaluation(**{_argument(n): v for n, v in (SOUND | {name: value}).items()}))
        except UserError as error:
            checks[place] = gr.validate(False, message(error, lang))
    return checks


def _argument(name: str) -> str:
    return name.removeprefix("metric_")


def _look(wanted: Evaluation) -> None:
    """Read the files that the settings name, so that a bad one is said before anything runs."""
    for name in wanted.metrics:
        if "@" in name:
            prompt_sets.load(find(name).prompts)
    if wanted.labels:
        corrections.read(wanted.labels)


def connect(studio, engine: Engine, triggers: Sequence, interrupts: Sequence) -> list:
    """Wire the metrics; returns the events at whose end there may be new ones.

    Args:
        triggers: events after whose success metrics start.
        interrupts: event listeners (`button.click`) that make running metrics obsolete.
    """
    session, panel = studio.session, studio.metrics
    working = {panel.cancel: gr.update(visible=True), panel.run: gr.update(visible=False)}
    resting = {panel.cancel: gr.update(visible=False), panel.run: gr.update(visible=True)}

    @guarded
    def run(lang, loaded: Loaded, earlier: str, *values):
        """Metrics of the current variant, row by row as they finish."""
        engine.stop(earlier)
        mine = uuid4().hex
        cut = len(studio.board) - 1
        board = Board.of(lang, *values[:cut])
        if board.variants.now is None:
            return
        recipe, wanted = board.variants.now.recipe, evaluation(*values[cut:])
        digest, clock, found, shown = recipe.digest(), Clock(), [], 0.0
        if board.results.get(f"done:{digest}") == wanted:
            yield {panel.rows: metrics.render(board), panel.progress: "", **resting}
            return
        board = replace(board, results={**board.results, digest: ()})
        yield {panel.rows: metrics.render(board, pending=True), session.job: mine, **working}
        try:
            heard = job_runner.Told()
            with closing(engine.evaluate(loaded.key, recipe, wanted)) as job:
                for part in job:
                    heard(part)
                    if engine.stopped(mine):
                        return
                    if engine.stopped(mine + CANCELLED):
                        yield ended(lang, board)
                        return
                    if isinstance(part, MetricResult):
                        found.append(part)
                        board = replace(board, results={**board.results, digest: tuple(found)})
                        rows = metrics.render(board, pending=True)
                        yield {panel.rows: rows, session.results: board.results}
                    elif isinstance(part, Progress) and time.monotonic() - shown >= PACE:
                        shown = time.monotonic()
                        yield {panel.progress: clock.bar(lang, part)}
        except Exception as error:
            told = notice(message(error, lang), "bad")
            yield {panel.rows: metrics.render(board), panel.progress: told, **resting}
            return
        done = {**board.results, f"done:{digest}": wanted}
        rows = metrics.render(board)
        yield {panel.rows: rows, panel.progress: "", session.results: done, **resting}

    @guarded
    def show(lang, *values):
        return show_results.refresh(studio, Board.of(lang, *values))

    @guarded
    def stop(lang, job, *values):
        """Says at once that it is over; the job ends at its next step and says it once more, after
        whatever it had on its way."""
        engine.stop(job + CANCELLED)
        board = Board.of(lang, *values)
        return {**show_results.refresh(studio, board), **ended(lang, board)}

    def ended(lang, board: Board) -> dict:
        told = notice(say(lang, "metrics.cancelled"), "info")
        return {panel.progress: told, panel.rows: metrics.render(board), **resting}

    @guarded
    def forget(lang, results, *settings):
        return {name: value for name, value in results.items() if not name.startswith("done:")}

    settings = list(measuring(studio.form))
    shown = show_results.outputs(studio)
    again = panel.run.click(
        forget,
        [session.language, session.results, *settings],
        session.results,
        validator=check_settings,
        **PRIVATE,
    )
    buttons = [panel.rows, panel.progress, panel.cancel, panel.run]
    running = [
        event.success(
            run,
            [session.language, session.loaded, session.job, *studio.board[1:], *settings],
            [*buttons, session.results, session.job],
            concurrency_id="metrics",
            concurrency_limit=4,
            **PRIVATE,
        )
        for event in (*triggers, again)
    ]
    for event in running:  # with what was corrected or filtered in the meantime
        event.then(show, studio.board, shown, **DRAWN)
    for listen in interrupts:
        listen(None, None, None, cancels=running, **PRIVATE)
    panel.cancel.click(
        stop,
        [session.language, session.job, *studio.board[1:]],
        [*shown, panel.progress, panel.cancel, panel.run],
        **PRIVATE,
    )
    return running
