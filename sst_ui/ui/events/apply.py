"""Apply, measure, undo, and picking a variant.

The model is used through the engine only.
"""

from dataclasses import replace

import gradio as gr
import numpy as np

from sst_ui.errors import UserError
from sst_ui.model.architecture.discover import fold
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import draw_draft, show_results
from sst_ui.ui.events.draw_draft import Draft, draw, fill
from sst_ui.ui.events.edit import checker
from sst_ui.ui.panels import chat, header
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message, told
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say


def outputs(studio) -> list:
    """What an applied recipe changes on the screen, beside the drawing."""
    return [
        studio.header.line,
        studio.session.variants,
        studio.session.saved,
        *show_results.outputs(studio),
        *studio.chat.pickers,
    ]


def adopted(studio, draft: Draft, board: Board) -> dict:
    """Updates after the current variant changed: header, results, the columns' choices."""
    lang, known = draft.language, draft.variants
    now = known.now
    digest, name = (now.recipe.digest(), now.name) if now else ("", "")
    options = chat_events.choices(lang, known)
    left, right = studio.chat.pickers
    return {
        studio.header.line: header.render(lang, draft.loaded, digest, name),
        studio.session.variants: known,
        studio.session.saved: known.saved(),
        **show_results.refresh(studio, replace(board, language=lang, variants=known)),
        left: gr.Dropdown(choices=options, value=chat.BASE),
        right: gr.Dropdown(choices=options, value=chat.EDITED),
    }


def report_text(lang: str, name: str, report) -> str:
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


def report_more(lang: str, report) -> list[str]:
    """What opens under that line: remarks, the modules that change and those that do not."""
    names = {"apply.changes": report.changed, "apply.leaves": report.untouched}
    lists = [say(lang, key, names=fold(found) or "–") for key, found in names.items()]
    return [*report.messages, *lists]


def connect(studio, engine: Engine):
    """Wire the jobs; returns the events after which another variant is current."""
    session, bar = studio.session, studio.apply
    drawn = draw_draft.outputs(studio)
    busy = {
        bar.cancel: gr.update(visible=True, interactive=True),
        bar.undo: gr.update(visible=False),
    }
    idle = {bar.cancel: gr.update(visible=False), bar.undo: gr.update(visible=True)}

    def watched(lang, job, request, told=None):
        """Drive a job with its bar above the button; the result comes back from `yield from`."""
        stopped = engine.begin(job_runner.name("apply", request))
        return job_runner.watched(
            lang, job, lambda shown: {bar.status: shown, **busy}, stopped=stopped, told=told
        )

    inputs = [*studio.draft, *studio.board]

    def split(values) -> tuple[Draft, Board]:
        cut = len(studio.draft)
        return Draft.of(*values[:cut]), Board.of(*values[cut:])

    @guarded
    def apply(lang, request: gr.Request, *values):
        draft, board = split((lang, *values))
        told_of = job_runner.Told(toast=False)  # they stay under the button
        try:
            recipe = draft.recipe()
            edits = yield from watched(
                draft.language, engine.resolve(draft.loaded.key, recipe), request, told_of
            )
            report = engine.check(draft.loaded.key, edits)
        except Exception as error:
            text = message(error, draft.language)
            yield {bar.status: told(error, draft.language), **idle}
            raise gr.Error(text, visible=False, print_exception=False) from error  # said already
        draft = replace(draft, variants=draft.variants.add(recipe))
        text = report_text(draft.language, draft.variants.current, report)
        fine = report.matched == report.expected and not told_of.texts
        text, tone = " ".join([text, *told_of.texts]), "good" if fine else "warn"
        yield {
            **draw(studio, engine, draft),
            **adopted(studio, draft, board),
            bar.status: notice(text, tone, report_more(draft.language, report)),
            **idle,
        }

    @guarded
    def measure(lang, request: gr.Request, *values):
        draft = Draft.of(lang, *values)
        try:
            spec = draft.ablation().directions
            yield from watched(draft.language, engine.measure(draft.loaded.key, spec), request)
            signals = engine.signals(draft.loaded.key, spec)
            updates = draw(studio, engine, draft)
        except Exception as error:
            yield {bar.status: told(error, draft.language), **idle}
            return
        text = say(draft.language, "stage.done")
        if (values := signals.get(draft.signal)) is not None:
            best = int(np.nanargmax(values))
            text = say(
                draft.language,
                "direction.measured",
                layer=best,
                name=say(draft.language, f"signal.{draft.signal}"),
                value=float(values[best]),
            )
        yield {**updates, bar.status: notice(text, "good"), **idle}

    @guarded
    def predict(lang, request: gr.Request, *values):
        """The Fisher statistics of the two adapters; what follows from them is drawn live."""
        draft = Draft.of(lang, *values)
        on = replace(draft, form=draft.form._replace(merge_on=True))
        try:
            merge = on.recipe().edits[0]
            yield from watched(
                draft.language, engine.merges.prepare(draft.loaded.key, merge), request
            )
            updates = draw_draft.draw_rest(studio, engine, on)
        except Exception as error:
            yield {bar.status: told(error, draft.language), **idle}
            return
        done = notice(say(draft.language, "merge.done"), "good")
        shown = gr.update(selected="merge")
        switched = {studio.form.merge_on: True, studio.figures.tabs: shown}
        yield {**updates, **switched, bar.status: done, **idle}

    def bring_back(draft: Draft, known: Variants, board: Board) -> dict:
        """A variant's settings into the controls, and the variant into chat and metrics."""
        updates, form, extras = fill(studio, known.now.recipe, draft)
        draft = replace(draft, form=form, extras=extras, variants=known)
        try:
            drawn = draw(studio, engine, draft)
        except UserError as error:  # a control of an edit that this variant does not have
            return {bar.status: notice(message(error, draft.language), "bad")}
        return {
            **updates,
            **drawn,
            **adopted(studio, draft, board),
            bar.status: "",
        }

    @guarded
    def undo(*values):
        draft, board = split(values)
        try:
            known = draft.variants.back()
        except UserError:
            return {bar.status: notice(say(draft.language, "apply.nothing"), "info")}
        return bring_back(draft, known, board)

    @guarded
    def pick(lang, event: gr.EventData, *values):
        draft, board = split((lang, *values))
        if draft.variants.get(event.pick) is None:  # a row of an earlier list
            return {}
        return bring_back(draft, replace(draft.variants, current=event.pick), board)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    job = {**private, "concurrency_id": "jobs", "concurrency_limit": 4}
    changed = [*drawn, *outputs(studio), bar.status, bar.cancel, bar.undo]
    back = [*changed, *studio.form, *studio.merge.decades.values(), session.extras]
    check = checker(engine, with_prompts=True)

    def check_apply(*values):
        rest = [gr.validate(True, "")] * len(studio.board)
        return [*check(*values[: len(studio.draft)]), *rest]

    applied = bar.apply.click(apply, inputs, changed, validator=check_apply, **job)
    studio.direction.measure.click(measure, studio.draft, changed, validator=check, **job)
    studio.merge.predict.click(
        predict,
        studio.draft,
        [*changed, studio.form.merge_on, studio.figures.tabs],
        validator=check,
        **job,
    )

    def stop(lang, request: gr.Request):
        engine.stop(job_runner.name("apply", request))
        return gr.update(interactive=False)  # the job says the rest when it has ended

    bar.cancel.click(stop, session.language, bar.cancel, **private)
    undone = bar.undo.click(undo, inputs, back, **private)
    picked = studio.variants.rows.click(pick, inputs, back, **private)
    return [applied, undone, picked]
