"""The token view: drawn after an answer while its tab is open, and a click on a token.

It is computed beside the chat and never waited for: an answer of this window that comes meanwhile
ends it, and others' chats go first.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.token_view import PLACES, TokenView
from sst_ui.progress import Progress
from sst_ui.ui.events.binding import MANY, PRIVATE, Reads, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw
from sst_ui.ui.panels.figures import MAP, TOKENS, FiguresPanel
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.window import Conversation, Variants
from sst_ui.ui.widgets import token_grid
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

TELL = 1.0  # seconds between two words on how far the lens is
SIDES = {"left": 0, "right": 1}


@dataclass(frozen=True)
class Seen:
    """What a view is drawn of: the last turn, with the answer of one column."""

    language: str
    figure: str
    loaded: Loaded
    variants: Variants
    talk: Conversation
    side: str
    position: str

    def messages(self) -> list[dict[str, str]]:
        """The conversation as that column's model saw it: without the turns that were left out."""
        turns, column = self.talk.turns, SIDES[self.side]
        if turns and turns[-1].sources:
            left = min(turns[-1].sources[column].left_out, len(turns) - 1)
            turns = turns[left:]
        return Conversation(turns).history(column)


def connect(
    figures: FiguresPanel,
    editor: Editor,
    session: Session,
    answered: Sequence[Any],
    applied: Sequence[Any],
    engine: Engine,
) -> tuple[list, Any]:
    """Wire the tab, what it follows, and the tokens.

    Args:
        answered: events after which a message has its answers.
        applied: events after which another variant is current.

    Returns:
        The events after which those answers are drawn, and the one after which the map is open.
    """
    position = editor.controls.form.position
    seen = Reads(
        [session.language, session.figure, session.loaded, session.variants, session.conversation,
         figures.side, position],
        Seen,
    )  # fmt: skip
    drawn: dict[str, Any] = {
        "outputs": [figures.tokens, figures.token_note],
        "trigger_mode": "multiple",  # the older one ends
        "concurrency_limit": MANY,
        **PRIVATE,
    }
    following = call(partial(follow, figures, engine), seen, may="measure")
    behind = [event.success(**following, **drawn) for event in answered]
    for event in applied:
        event.success(**following, **drawn)
    tabs = {**figures.others, TOKENS: figures.tokens_tab, MAP: figures.map_tab}
    open_now = {
        name: tab.select(
            **call(partial(opened, engine, name), session.language),
            outputs=session.figure,
            **PRIVATE,
        )
        for name, tab in tabs.items()
    }
    open_now[TOKENS].success(**following, **drawn)
    figures.side.input(**following, **drawn)
    figures.tokens.click(
        **call(partial(pick, figures, editor, engine), editor.draft),
        outputs=[*editor.drawing.outputs, position, figures.token_note],
        **PRIVATE,
    )
    position.change(None, position, None, js="(said) => tokens.at(said)", **PRIVATE)
    return behind, open_now[MAP]


def opened(engine: Engine, name: str, language: str, request: gr.Request) -> str:
    """Another figure's tab is open now: what is drawn for the last one is not waited for."""
    engine.hush(_window(request))
    return name


def _window(request: gr.Request) -> str:
    return f"{request.session_hash}:tokens"


def follow(
    figures: FiguresPanel, engine: Engine, seen: Seen, request: gr.Request
) -> Iterator[dict]:
    """Draw the last turn, if the tab is open: the projection first, the lens as it is done."""
    if seen.figure != TOKENS:
        yield {}
        return
    lang, now = seen.language, seen.variants.now
    if now is None or not seen.talk.turns:
        yield {figures.tokens: token_grid.nothing(say(lang, "tokens.empty"))}
        return
    if seen.talk.turns[-1].hidden:  # it would say whose answer is whose
        yield {figures.tokens: token_grid.nothing(say(lang, "tokens.hidden"))}
        return
    mine = engine.answering(_window(request))
    told = time.monotonic()
    try:
        job = engine.token_view(seen.loaded.key, now.recipe, seen.messages())
        with closing(job):
            for part in job:
                if mine.replaced:
                    return
                if isinstance(part, TokenView):
                    view = token_grid.tokens(lang, part, now.name, seen.position)
                    yield {figures.tokens: view, figures.token_note: ""}
                elif time.monotonic() - told > TELL:
                    told = time.monotonic()
                    yield {figures.token_note: _going(lang, part)}
    except Exception as error:
        yield {figures.token_note: notice(message(error, lang), "bad")}
    finally:
        mine.over.set()


def _going(language: str, progress: Progress) -> str:
    """How far it is, in a line."""
    return notice(say(language, f"stage.{progress.stage}") + f" {progress.fraction:.0%}")


def pick(
    figures: FiguresPanel, editor: Editor, engine: Engine, draft: Draft, event: gr.EventData
) -> dict:
    """Measure the direction at the token that was clicked, or say why it cannot be done.

    Args:
        event: its `pick` is what the token is, see `Reading.place`.
    """
    place, lang, note = event.pick, draft.language, figures.token_note
    if place not in PLACES:
        return {}
    if place not in ("template", "instruction"):
        return {note: notice(say(lang, f"tokens.{place}"), "info")}
    if (draft.form.file or "").strip():
        return {note: notice(say(lang, "tokens.file"), "info")}
    if draft.form.position == place:
        return {note: notice(say(lang, f"tokens.already.{place}"), "info")}
    try:
        moved = replace(draft, form=draft.form._replace(position=place))
        updates = draw(editor.drawing, engine, moved)
    except UserError as error:
        return {note: notice(message(error, lang), "bad")}
    return {
        **updates,
        editor.controls.form.position: place,
        note: notice(say(lang, f"tokens.at.{place}"), "good"),
    }
