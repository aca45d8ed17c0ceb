"""The table of weights: a cell typed or dragged, a row that is pasted, and back to the curve.

A cell or a row that cannot be read is refused under the table, and nothing else changes.
"""

from dataclasses import replace
from functools import partial

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.ui.events.binding import PRIVATE, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw
from sst_ui.ui.panels.figures import FiguresPanel
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.form import Extras, tabled
from sst_ui.ui.widgets import weight_table
from sst_ui.ui.widgets.html import notice


def connect(panel: FiguresPanel, editor: Editor, engine: Engine) -> None:
    """Wire the table, the points of the curve, and the row below them.

    The page draws a cell before it is answered here, and asks to be told when it was: what was
    refused must not stay.
    """
    form, draft, note = editor.controls.form, editor.draft, panel.table_note
    typed = [*editor.drawing.outputs, editor.controls.extras, note]
    panel.curve.input(
        **call(partial(type_cell, editor, note, engine), draft),
        outputs=typed,
        trigger_mode="multiple",  # a cell typed while another one is on its way counts too
        **PRIVATE,
    ).then(None, None, None, js="() => curve.answered()", **PRIVATE)
    gr.on(
        [panel.use.click, panel.row.submit],
        **call(partial(paste, editor, note, engine), draft, panel.row, panel.target),
        outputs=[*typed, form.profile, form.threshold],
        **PRIVATE,
    )
    panel.reset.click(**call(partial(reset, editor, note, engine), draft), outputs=typed, **PRIVATE)


def type_cell(
    editor: Editor, note: gr.HTML, engine: Engine, draft: Draft, event: gr.EventData
) -> dict:
    """Pin the cells that were typed or dragged."""
    try:
        weights = draft.ablation().weights
        edited = weight_table.typed(draft.language, event.cells, weights, draft.loaded.layers)
        extras = replace(edited.extras, merge=draft.extras.merge)
        extras = tabled(draft.form, extras, None, draft.loaded.layers)
        updates = draw(editor.drawing, engine, replace(draft, extras=extras))
    except UserError as error:
        return {note: notice(message(error, draft.language), "bad")}
    return {**updates, editor.controls.extras: extras, note: notice(edited.complaint, "bad")}


def paste(
    editor: Editor, note: gr.HTML, engine: Engine, draft: Draft, text: str | None, target: str
) -> dict:
    """A pasted row becomes the curve, or one kind's column."""
    form, layers = draft.form, draft.loaded.layers
    try:
        extras = weight_table.pasted(draft.language, text or "", target, draft.extras, layers)
        if target == "curve":
            form = form._replace(profile="custom", threshold=0.0)
        extras = tabled(form, extras, draft.form.profile, layers)
        updates = draw(editor.drawing, engine, replace(draft, extras=extras, form=form))
    except UserError as error:
        return {note: notice(message(error, draft.language), "bad")}
    controls = editor.controls
    return {
        **updates,
        controls.extras: extras,
        controls.form.profile: form.profile,
        controls.form.threshold: form.threshold,
        note: "",
    }


def reset(editor: Editor, note: gr.HTML, engine: Engine, draft: Draft) -> dict:
    """The curve alone: nothing is pinned or pasted."""
    extras = Extras(merge=draft.extras.merge)
    try:
        updates = draw(editor.drawing, engine, replace(draft, extras=extras))
    except UserError as error:
        return {note: notice(message(error, draft.language), "bad")}
    return {**updates, editor.controls.extras: extras, note: ""}
