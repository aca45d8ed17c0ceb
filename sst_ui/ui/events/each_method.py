"""One message answered by the base, by the utility adapter alone and by its merge under every
method, side by side in one batch.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.merge.compare_methods import under, utility_only
from sst_ui.maths.merge.registry import METHODS
from sst_ui.recipe import Merge, Recipe
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.events.draw_draft import Draft, Editor
from sst_ui.ui.events.ladder import Asked, Buttons, side_by_side, speed, stop, unasked, window
from sst_ui.ui.panels.chat import ChatPanel
from sst_ui.ui.panels.ladder import AskPanel, Rung, render
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services.engine import CHATS, Answering, Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.form import split
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

NAME = "each-method"


def connect(
    panel: AskPanel, chat: ChatPanel, editor: Editor, session: Session, engine: Engine
) -> None:
    """Wire the question; length, temperature, seed and system prompt are the chat's."""
    screen, numbers = Buttons(panel), [chat.tokens, chat.temperature, chat.seed]
    asked = Reads([*numbers, chat.system, session.conversation, panel.box], Asked.of)
    gr.on(
        [panel.ask.click, panel.box.submit],
        **call(
            partial(answer, screen, engine), editor.draft, asked,
            check=partial(unasked, numbers, panel), may="measure",
        ),
        outputs=screen.outputs,
        **CHATS,
        trigger_mode="multiple",
        **PRIVATE,
    )  # fmt: skip
    panel.stop.click(
        **call(partial(stop, screen, engine), session.language),
        outputs=[panel.ask, panel.stop],
        **PRIVATE,
    )


def rows(draft: Draft) -> list[tuple[str, Recipe | None]]:
    """Name and recipe of each: the merge of the controls, switched on or not, under every method.

    Raises:
        UserError: the controls of the merge are not filled in.
    """
    form = draft.form._replace(merge_on=True, ablation_on=False)
    spec, _ = split(replace(draft, form=form).recipe())
    assert spec is not None  # it is switched on
    lang, model = draft.language, draft.loaded.spec

    def merged(edit: Merge) -> Recipe:
        return Recipe(model=model, edits=(edit,))

    return [
        (say(lang, "methods.base"), None),
        (say(lang, "methods.utility"), merged(utility_only(spec))),
        *((METHODS[name].title, merged(under(spec, name))) for name in METHODS.names()),
    ]


def answer(
    screen: Buttons, engine: Engine, draft: Draft, asked: Asked, request: gr.Request
) -> Iterator[dict]:
    """Answer under every method."""
    mine = engine.answering(window(screen, request))
    try:
        yield from _stream(screen, engine, mine, draft, asked)
    finally:
        mine.over.set()


def _merged(engine: Engine, mine: Answering, key: str, recipe: Recipe) -> bool:
    """Whether the merge was carried out; not, where it was stopped or another took its place."""
    with closing(engine.resolve(key, recipe)) as job:
        return not any(mine.stopped or mine.replaced for _ in job)


def _stream(
    screen: Buttons, engine: Engine, mine: Answering, draft: Draft, asked: Asked
) -> Iterator[dict]:
    lang, key, panel = draft.language, draft.loaded.key, screen.panel
    rungs: list[Rung] = []
    recipes: list[Recipe | None] = []
    left_out: list[str] = []
    yield {panel.rungs: "", panel.status: "", **screen.buttons(True)}
    try:
        for place, (name, recipe) in enumerate(found := rows(draft)):
            if mine.replaced:
                return
            if mine.stopped:
                break
            words = say(lang, "each-method.merging", name=name, place=place + 1, of=len(found))
            yield {panel.status: notice(words, "info"), **screen.buttons(True)}
            try:  # what can be merged here; the merges are kept, so asking again answers at once
                if recipe is not None and not _merged(engine, mine, key, recipe):
                    continue  # nor will the others be: the next round sees why
            except UserError as error:
                if place == 1:  # neither adapter can be used
                    raise
                left_out.append(f"{name}: {message(error, lang)}")
                continue
            rungs.append(Rung(0.0, name=name))
            recipes.append(recipe)
        start = time.monotonic()
        if not mine.stopped:
            answers = side_by_side(engine, mine, key, rungs, recipes, asked)
            for rungs in answers:
                yield {panel.rungs: render(lang, rungs, NAME), **screen.buttons(True)}
        said = notice(speed(engine, lang, key, rungs, start), "info")
        if left_out:
            said += notice(say(lang, "each-method.left_out", count=len(left_out)), "info", left_out)
    except Exception as error:
        said = notice(message(error, lang), "bad")
    if not mine.replaced:
        yield {panel.rungs: render(lang, rungs, NAME), panel.status: said, **screen.buttons(False)}
