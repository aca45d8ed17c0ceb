"""Apply, measure, undo, and picking a variant.

The model is used through the engine only.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from sst_ui.errors import UserError
from sst_ui.model.architecture.discover import fold
from sst_ui.model.hooks.self_check import EditReport
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import draw_draft, show_results
from sst_ui.ui.events.binding import MANY, PRIVATE, Reads, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw, fill
from sst_ui.ui.events.edit import checker
from sst_ui.ui.events.show_results import ResultsView
from sst_ui.ui.panels import chat, header
from sst_ui.ui.panels.weights import ApplyBar
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message, told
from sst_ui.ui.services.job_runner import Told
from sst_ui.ui.services.merge_forecasts import First
from sst_ui.ui.state.form import split
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.texts import say

JOB: dict[str, Any] = {**PRIVATE, "concurrency_id": "jobs", "concurrency_limit": MANY}


@dataclass(frozen=True)
class Applied:
    """The components that say which recipe is applied, beside its drawing."""

    line: gr.HTML
    variants: gr.State
    saved: gr.BrowserState
    results: ResultsView
    pickers: tuple[gr.Dropdown, gr.Dropdown]

    @property
    def outputs(self) -> list:
        """The components that `adopted` may write to."""
        return [self.line, self.variants, self.saved, *self.results.outputs, *self.pickers]


@dataclass(frozen=True)
class Screen:
    """What the jobs of this file write to."""

    bar: ApplyBar
    editor: Editor
    applied: Applied
    figures: gr.Tabs


def adopted(view: Applied, draft: Draft, board: Board) -> dict:
    """Updates after the current variant changed: header, results, the columns' choices."""
    lang, known = draft.language, draft.variants
    now = known.now
    digest, name = (now.recipe.digest(), now.name) if now else ("", "")
    options = chat_events.choices(lang, known)
    left, right = view.pickers
    return {
        view.line: header.render(lang, draft.loaded, digest, name),
        view.variants: known,
        view.saved: known.saved(),
        **show_results.refresh(view.results, replace(board, language=lang, variants=known)),
        left: gr.Dropdown(choices=options, value=chat.BASE),
        right: gr.Dropdown(choices=options, value=chat.EDITED),
    }


def report_text(lang: str, name: str, report: EditReport) -> str:
    """The self-check of an edit in one line."""
    text = say(
        lang,
        "apply.done",
        name=name,
        matched=report.matched,
        expected=report.expected,
        error=f"{report.max_error:.0e}".replace("-", "−"),  # a minus, not a place to break
    )
    if report.clamped:
        text += " · " + say(lang, "apply.clamped", count=report.clamped)
    return text


def report_more(lang: str, report: EditReport) -> list[str]:
    """What opens under that line: remarks, the modules that change and those that do not."""
    names = {"apply.changes": report.changed, "apply.leaves": report.untouched}
    lists = [say(lang, key, names=fold(found) or "–") for key, found in names.items()]
    return [*report.messages, *lists]


def connect(
    screen: Screen, measure_button: gr.Button, language: gr.State, board: Reads, engine: Engine
) -> tuple[list, Any]:
    """Wire the jobs.

    Returns:
        The events after which another variant is current, and the one that measures.
    """
    bar, editor, applied = screen.bar, screen.editor, screen.applied
    form, merge, draft = editor.controls.form, editor.controls.merge, editor.draft
    changed = [
        *editor.drawing.outputs,
        *applied.outputs,
        bar.status,
        bar.cancel,
        bar.undo,
        bar.redo,
    ]
    back = [*changed, *editor.controls.outputs]
    check = checker(engine, form, with_prompts=True)
    applying = bar.apply.click(
        **call(partial(apply, screen, engine), draft, board, check=check, may="measure"),
        outputs=changed,
        **JOB,
    )
    measuring = measure_button.click(
        **call(partial(measure, screen, engine), draft, check=check, may="measure"),
        outputs=changed,
        **JOB,
    )
    merge.predict.click(
        **call(partial(predict, screen, engine), draft, check=check, may="measure"),
        outputs=[*changed, form.merge_on, screen.figures],
        **JOB,
    )
    bar.cancel.click(**call(partial(stop, engine), language), outputs=bar.cancel, **PRIVATE)
    undoing = bar.undo.click(
        **call(partial(undo, screen, engine), draft, board), outputs=back, **PRIVATE
    )
    redoing = bar.redo.click(
        **call(partial(redo, screen, engine), draft, board), outputs=back, **PRIVATE
    )
    picking = applied.results.variants.click(
        **call(partial(pick, screen, engine), draft, board), outputs=back, **PRIVATE
    )
    return [applying, undoing, redoing, picking], measuring


def apply(
    screen: Screen, engine: Engine, draft: Draft, board: Board, request: gr.Request
) -> Iterator[dict]:
    """Make the draft the current variant, with its self-check in a line."""
    bar = screen.bar
    told_of = job_runner.Told(draft.language, toast=False)  # they stay under the button
    try:
        recipe = draft.recipe()
        job = engine.checked(draft.loaded.key, recipe)
        report = yield from watched(bar, engine, draft, job, request, told_of)
    except Exception as error:
        text = message(error, draft.language)
        yield {bar.status: told(error, draft.language), **idle(bar)}
        raise gr.Error(text, visible=False, print_exception=False) from error  # said already
    draft = replace(draft, variants=draft.variants.add(recipe))
    text = report_text(draft.language, draft.variants.current, report)
    fine = report.matched == report.expected and not told_of.texts
    text, tone = " ".join([text, *told_of.texts]), "good" if fine else "warn"
    yield {
        **draw(screen.editor.drawing, engine, draft),
        **adopted(screen.applied, draft, board),
        bar.status: notice(text, tone, report_more(draft.language, report)),
        **idle(bar),
    }


def measure(screen: Screen, engine: Engine, draft: Draft, request: gr.Request) -> Iterator[dict]:
    """The directions of the draft, and where their signal is strongest, if it is reliable."""
    bar = screen.bar
    try:
        edit, before = draft.ablation(), draft.before()
        spec = edit.directions
        job = engine.measure_edit(draft.loaded.key, before, edit, again=True)
        yield from watched(bar, engine, draft, job, request)
        signals = engine.signals(draft.loaded.key, spec)
        updates = draw(screen.editor.drawing, engine, draft)
    except Exception as error:
        yield {bar.status: told(error, draft.language), **idle(bar)}
        return
    text, tone = say(draft.language, "stage.done"), "good"
    name = say(draft.language, f"signal.{draft.signal}")
    if doubt := engine.doubt(draft.loaded.key, spec, draft.signal):
        text, tone = say(draft.language, f"direction.doubt.{doubt}", name=name), "warn"
    elif (values := signals.get(draft.signal)) is not None:
        best = int(np.nanargmax(values))
        text = say(
            draft.language,
            "direction.measured",
            layer=best,
            name=name,
            value=float(values[best]),
        )
    yield {**updates, bar.status: notice(text, tone), **idle(bar)}


def predict(screen: Screen, engine: Engine, draft: Draft, request: gr.Request) -> Iterator[dict]:
    """The Fisher statistics of the two adapters; what follows from them is drawn live."""
    bar = screen.bar
    on = replace(draft, form=draft.form._replace(merge_on=True))
    try:
        merge, _ = split(on.recipe())
        assert merge is not None  # it is switched on
        key, shown = draft.loaded.key, gr.update(selected="merge")
        switched = {screen.editor.controls.form.merge_on: True, screen.figures: shown}

        def first(_: First) -> dict:
            return {**draw_draft.draw_rest(screen.editor.drawing, engine, on), **switched}

        yield from watched(
            bar, engine, draft, engine.merges.predict(key, merge), request, part=first
        )
        updates = draw_draft.draw_rest(screen.editor.drawing, engine, on)
    except Exception as error:
        yield {bar.status: told(error, draft.language), **idle(bar)}
        return
    done = notice(say(draft.language, "merge.done"), "good")
    yield {**updates, **switched, bar.status: done, **idle(bar)}


def stop(engine: Engine, language: str, request: gr.Request) -> dict:
    """Ask the running job to stop; it says the rest when it has ended."""
    engine.stop(job_runner.name("apply", request))
    return gr.update(interactive=False)


def undo(screen: Screen, engine: Engine, draft: Draft, board: Board) -> dict:
    """Back to the variant that was current before."""
    return _moved(screen, engine, draft, board, Variants.back, "apply.nothing")


def redo(screen: Screen, engine: Engine, draft: Draft, board: Board) -> dict:
    """To the variant that was left by undo."""
    return _moved(screen, engine, draft, board, Variants.forward, "apply.no_more")


def _moved(
    screen: Screen,
    engine: Engine,
    draft: Draft,
    board: Board,
    move: Callable[[Variants], Variants],
    refusal: str,
) -> dict:
    try:
        known = move(draft.variants)
    except UserError:
        return {screen.bar.status: notice(say(draft.language, refusal), "info")}
    return _bring_back(screen, engine, draft, known, board)


def pick(screen: Screen, engine: Engine, draft: Draft, board: Board, event: gr.EventData) -> dict:
    """To the variant whose row was clicked, or another name for it."""
    if draft.variants.get(event.pick) is None:  # a row of an earlier list
        return {}
    if named := getattr(event, "named", None):
        return _renamed(screen, draft, board, event.pick, str(named))
    known = draft.variants.pick(event.pick)
    return _bring_back(screen, engine, draft, known, board)


def _renamed(screen: Screen, draft: Draft, board: Board, name: str, wanted: str) -> dict:
    """The same variant under another name; nothing else changes."""
    try:
        known = draft.variants.rename(name, wanted)
    except UserError as error:
        return {screen.bar.status: notice(message(error, draft.language), "bad")}
    return adopted(screen.applied, replace(draft, variants=known), board)


def _bring_back(
    screen: Screen, engine: Engine, draft: Draft, known: Variants, board: Board
) -> dict:
    """A variant's settings into the controls, and the variant into chat and metrics."""
    if known.now is None:
        return {}
    updates, form, extras = fill(screen.editor.controls, known.now.recipe, draft)
    draft = replace(draft, form=form, extras=extras, variants=known)
    try:
        drawn = draw(screen.editor.drawing, engine, draft)
    except UserError as error:  # a control of an edit that this variant does not have
        return {screen.bar.status: notice(message(error, draft.language), "bad")}
    return {**updates, **drawn, **adopted(screen.applied, draft, board), screen.bar.status: ""}


def watched(
    bar: ApplyBar,
    engine: Engine,
    draft: Draft,
    job: Generator[Any, None, Any],
    request: gr.Request,
    told: Told | None = None,
    part: Callable[[Any], dict] | None = None,
) -> Generator[dict, None, Any]:
    """Drive a job with its bar above the button; the result comes back from `yield from`.

    Args:
        told, part: see `job_runner.watched`.
    """
    stopped = engine.begin(job_runner.name("apply", request))
    busy = {
        bar.cancel: gr.update(visible=True, interactive=True),
        bar.undo: gr.update(visible=HIDDEN),
        bar.redo: gr.update(visible=HIDDEN),
    }
    return job_runner.watched(
        draft.language, job, lambda shown: {bar.status: shown, **busy}, part, stopped=stopped,
        told=told,
    )  # fmt: skip


def idle(bar: ApplyBar) -> dict:
    """No job runs any more: Undo and Redo in place of Cancel."""
    seen = gr.update(visible=True)
    return {bar.cancel: gr.update(visible=HIDDEN), bar.undo: seen, bar.redo: seen}
