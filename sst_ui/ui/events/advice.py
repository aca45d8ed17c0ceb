"""What to try next, under the metrics: one sentence each and a button that fills the controls.

The rules are in `metrics.advice`; nothing is applied here.
"""

from dataclasses import replace

import gradio as gr

from sst_ui.metrics.advice import Advice, advise
from sst_ui.recipe import Ablation
from sst_ui.ui.events import draw_draft
from sst_ui.ui.events.draw_draft import Draft, draw
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded
from sst_ui.ui.state.form import Form, split
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets.html import notice, safe
from sst_ui.ui.widgets.texts import say

SHAPE = ("peak", "width", "threshold")


def of(board: Board) -> list[Advice]:
    """Advice on the current variant's metrics."""
    edit = _ablation(board)
    return [] if edit is None else advise(board.now, edit.weights, _control(edit))


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
        f'<button type="button" data-pick="{a.key}">'
        f"{say(lang, 'advice.table' if by_layer(a) else 'advice.try')}</button></p>"
        for a in found
    )
    return f'<div class="advice">{lines}</div>'


def by_layer(advice: Advice) -> bool:
    """Whether the advice is to set weights by hand, layer by layer."""
    return dict(advice.settings) == {"profile": "custom"}


def followed(form: Form, advice: Advice) -> Form:
    """The controls' values with the suggested ones in them."""
    shaped = any(name in advice.settings for name in SHAPE)
    form = form._replace(profile="custom") if shaped else form
    return form._replace(**advice.settings)


def connect(studio, engine: Engine) -> None:
    """Wire the buttons of the advice."""
    form, session = studio.form, studio.session
    settable = [form.profile, form.strength, *(getattr(form, name) for name in SHAPE)]

    @guarded
    def follow(lang, event: gr.EventData, *values):
        values, shown = values[: len(studio.draft) - 1], values[len(studio.draft) - 1 :]
        draft, board = Draft.of(lang, *values), Board.of(*shown)
        advice = next((a for a in of(board) if a.key == event.pick), None)
        if advice is None:
            return {}
        extras = draft.extras
        if any(name in advice.settings for name in SHAPE):  # a pasted curve would hide them
            extras = replace(extras, curve=None)
        draft = replace(draft, form=followed(draft.form, advice), extras=extras)
        tab = gr.update(selected="table" if by_layer(advice) else "curve")
        return {
            **draw(studio, engine, draft),
            **{c: getattr(draft.form, name) for name, c in _named(studio, settable)},
            session.extras: extras,
            studio.figures.tabs: tab,
            studio.apply.status: notice(say(draft.language, "advice.tried"), "info"),
        }

    studio.metrics.advice.click(
        follow,
        [*studio.draft, *studio.board],
        [*draw_draft.outputs(studio), *settable, session.extras, studio.figures.tabs,
         studio.apply.status],
        api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip


def _named(studio, components) -> list:
    return [(name, c) for name, c in studio.form._asdict().items() if c in components]
