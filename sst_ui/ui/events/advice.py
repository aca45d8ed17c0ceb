"""What to try next, under the metrics: one sentence each and a button that fills the controls.

The rules are in `metrics.advice`; nothing is applied here.
"""

from dataclasses import replace
from functools import partial

import gradio as gr

from sst_ui import profiles
from sst_ui.jobs.purpose import goal_for
from sst_ui.metrics.advice import Advice, advise
from sst_ui.recipe import SHAPE, Ablation, Recipe
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.state.form import Form, split, tabled
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets.html import notice, safe
from sst_ui.ui.widgets.texts import say

SETTABLE = ("operation", "norm_preserving", "affine", "profile", "strength", *SHAPE)


def of(board: Board) -> list[Advice]:
    """Advice on the current variant's metrics."""
    edit = _ablation(board)
    if edit is None:
        return []
    assert board.variants.now is not None  # it has the edit
    said = board.variants.now.recipe.evaluation.goal
    aim = goal_for(Recipe(edits=(edit,)), said)
    return advise(board.now, edit.weights, aim, _control(edit), edit.operation)


def _ablation(board: Board) -> Ablation | None:
    """What the advice is about: an ablation of the base, and nothing else."""
    merge, edit = split(board.variants.now.recipe) if board.variants.now else (None, None)
    return None if merge is not None else edit


def _control(edit: Ablation) -> bool:
    return edit.directions.estimator == "random"


def render(board: Board) -> str:
    """The advice as HTML; empty where there is none, a note where there cannot be any."""
    lang, found, edit = board.language, of(board), _ablation(board)
    if board.now and edit is not None and _control(edit):
        return notice(say(lang, "warn.control"), "info")
    if not found:
        return ""
    lines = "".join(
        f"<p><b>{say(lang, 'advice.title')}</b> {safe(say(lang, f'advice.{a.key}', **a.values))} "
        f"{_button(lang, a)}</p>"
        for a in found
    )
    return f'<div class="advice">{lines}</div>'


def _button(lang: str, advice: Advice) -> str:
    if not advice.settings:
        return ""
    said = say(lang, "advice.table" if by_layer(advice) else "advice.try")
    return f'<button type="button" data-pick="{advice.key}">{said}</button>'


def by_layer(advice: Advice) -> bool:
    """Whether the advice is to set weights by hand, layer by layer."""
    return dict(advice.settings) == {"profile": "custom"}


def followed(form: Form, advice: Advice) -> Form:
    """The controls' values with the suggested ones in them."""
    settings = {**profiles.named().get(advice.settings.get("profile", ""), {}), **advice.settings}
    if any(name in advice.settings for name in SHAPE):
        settings["profile"] = "custom"
    if settings.get("operation") == "filter":  # the other ways exclude it
        settings |= {"norm_preserving": False, "affine": False}
    return form._replace(**settings)


def connect(
    shown: gr.HTML, editor: Editor, board: Reads, tabs: gr.Tabs, status: gr.HTML, engine: Engine
) -> None:  # fmt: skip
    """Wire the buttons of the advice.

    Args:
        shown: where the advice stands.
        tabs: of the figures; the curve is shown.
        status: where it is said that nothing is applied yet.
    """
    controls = editor.controls
    shown.click(
        **call(partial(follow, editor, tabs, status, engine), editor.draft, board),
        outputs=[
            *editor.drawing.outputs,
            *(getattr(controls.form, name) for name in SETTABLE),
            controls.extras,
            tabs,
            status,
        ],
        **PRIVATE,
    )


def follow(
    editor: Editor,
    tabs: gr.Tabs,
    status: gr.HTML,
    engine: Engine,
    draft: Draft,
    board: Board,
    event: gr.EventData,
) -> dict:
    """Fill the controls with what was advised; nothing is applied."""
    advice = next((a for a in of(board) if a.key == event.pick), None)
    if advice is None:
        return {}
    extras = draft.extras
    bell = {"profile", *SHAPE} & advice.settings.keys()
    if bell and not by_layer(advice):  # a pasted curve would hide it
        extras = extras.one_bell()
    form = followed(draft.form, advice)
    extras = tabled(form, extras, draft.form.profile, draft.loaded.layers)
    draft = replace(draft, form=form, extras=extras)
    controls = editor.controls
    return {
        **draw(editor.drawing, engine, draft),
        **{getattr(controls.form, name): getattr(draft.form, name) for name in SETTABLE},
        controls.extras: extras,
        tabs: gr.update(selected="curve"),
        status: notice(say(draft.language, "advice.tried"), "info"),
    }
