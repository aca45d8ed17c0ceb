"""Find the next decision: one more direction for the draft, with its bar and Cancel, and the figure
of where the decisions lie."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.directions.rounds import Rounds
from sst_ui.progress import finish
from sst_ui.ui.events.apply import JOB, Screen, idle, watched
from sst_ui.ui.events.binding import PRIVATE, call
from sst_ui.ui.events.draw_draft import Draft, draw
from sst_ui.ui.events.edit import checker
from sst_ui.ui.panels import decisions
from sst_ui.ui.panels.figures import FiguresPanel
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import told
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say


def connect(screen: Screen, button: gr.Button, figures: FiguresPanel, engine: Engine) -> None:
    """Wire the button and the figure's tab."""
    bar, editor = screen.bar, screen.editor
    form = editor.controls.form
    button.click(
        **call(
            partial(find, screen, figures, engine),
            editor.draft,
            check=checker(engine, form, with_prompts=True),
            may="measure",
        ),
        outputs=[
            *editor.drawing.outputs, form.file, figures.decisions, figures.tabs, bar.status,
            bar.cancel, bar.undo, bar.redo,
        ],
        **JOB,
    )  # fmt: skip
    figures.decisions_tab.select(
        **call(partial(look, figures, engine), editor.draft), outputs=figures.decisions, **PRIVATE
    )


def find(
    screen: Screen, figures: FiguresPanel, engine: Engine, draft: Draft, request: gr.Request
) -> Iterator[dict]:
    """One more direction into the draft, if one is needed and delivers more."""
    bar, form, key = screen.bar, screen.editor.controls.form, draft.loaded.key
    try:
        edit, before = draft.ablation(), draft.before()
        job = engine.next_decision(key, before, edit)
        found, path = yield from watched(bar, engine, draft, job, request)
        spec = replace(edit.directions, file=str(path))
        finish(engine.measure(key, spec))  # read into memory, for the drawing
        more = replace(draft, form=draft.form._replace(file=str(path)))
        updates = draw(screen.editor.drawing, engine, more)
    except Exception as error:
        yield {bar.status: told(error, draft.language), **idle(bar)}
        return
    yield {
        **updates,
        form.file: str(path),
        figures.decisions: decisions.draw(draft.language, found.directions.decisions),
        figures.tabs: gr.update(selected="decisions"),
        bar.status: notice(words(draft.language, found), "good" if _more(found) else "info"),
        **idle(bar),
    }


def look(figures: FiguresPanel, engine: Engine, draft: Draft) -> dict:
    """The decisions of the draft's directions."""
    try:
        spec = draft.ablation().directions
    except UserError:  # said at its control
        return {figures.decisions: gr.skip()}
    known = engine.directions(draft.loaded.key, spec)
    found = () if known is None else known.decisions
    return {figures.decisions: decisions.draw(draft.language, found)}


def words(language: str, found: Rounds) -> str:
    """What came of the search, in a sentence."""
    last, tokens = found.rounds[-1], found.tokens
    if not _more(found):
        return say(language, f"rounds.{found.ended}", held=f"{last.held:.0%}", tokens=tokens)
    assert last.decision is not None
    return say(
        language,
        "rounds.found",
        k=last.number,
        position=last.decision.position,
        layer=last.decision.layer,
        before=f"{found.rounds[-2].held:.0%}",
        after=f"{last.held:.0%}",
        delivered=f"{last.shares['delivered']:.0%}",
        tokens=tokens,
    )


def _more(found: Rounds) -> bool:
    """Whether a direction was added to those that it began with."""
    return len(found.rounds) > 2
