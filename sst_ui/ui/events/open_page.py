"""What a window shows when it opens, and when another model is loaded into it.

The order: model, measured signal, the default recipe applied, then its metrics. The window can be
used as soon as the model is there; a slow one is measured on a few prompts first (`first_look`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.recipe import Recipe
from sst_ui.ui.events import load_model, show_results
from sst_ui.ui.events.apply import Applied, adopted
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw, fill
from sst_ui.ui.events.edit import usable
from sst_ui.ui.panels import header
from sst_ui.ui.panels.chat import ChatPanel
from sst_ui.ui.panels.model import ModelPanel
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services import first_look, job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.services.progress_bars import Bar
from sst_ui.ui.state.form import read, show
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Conversation, Variants
from sst_ui.ui.widgets import plots
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.messages import say_in
from sst_ui.ui.widgets.texts import language as language_of
from sst_ui.ui.widgets.texts import say

# No window waits for another one to open.
FRESH: dict[str, Any] = {**PRIVATE, "concurrency_limit": None}


@dataclass(frozen=True)
class Screen:
    """What a window on a model writes to."""

    session: Session
    editor: Editor
    applied: Applied
    chat: ChatPanel
    status: gr.HTML
    probe: gr.Plot

    @property
    def outputs(self) -> list:
        """The components that a fresh window may write to."""
        s = self.session
        return [
            *self.editor.outputs,
            *self.applied.outputs,
            s.language,
            s.loaded,
            s.results,
            s.conversation,
            *self.chat.columns,
            *self.chat.outdated,
            s.opened,
            self.status,
            self.probe,
        ]

    def fresh(self, engine: Engine, window: "Window", recipe: Recipe, applied: bool) -> dict:
        """A window on a model: the recipe in the controls, and earlier variants."""
        session, lang, loaded = self.session, window.language, window.loaded
        updates, form, extras = fill(self.editor.controls, recipe)
        known = replace(window.kept(), current="")
        known = known.add(recipe) if applied else known
        draft = Draft(lang, loaded, extras, known, "evidence", form)
        return {
            **updates,
            **draw(self.editor.drawing, engine, draft),
            **adopted(self.applied, draft, Board.of(lang, known, {}, window.fixed)),
            session.language: lang,
            session.loaded: loaded,
            session.results: {},
            session.opened: "",
            self.probe: plots.empty(say(lang, "probe.empty")),
        }

    def silent(self) -> dict:
        """Nothing said yet."""
        return {
            self.session.conversation: Conversation(),
            **{column: [] for column in self.chat.columns},
            **dict.fromkeys(self.chat.outdated, ""),
        }


@dataclass(frozen=True)
class Window:
    """Whose window it is: its language and model, and what its browser kept."""

    language: str
    loaded: Loaded
    saved: object
    fixed: list

    def kept(self) -> Variants:
        """Its variants of this model."""
        return Variants.restored(self.saved, self.loaded.spec.id)


def connect(
    page: gr.Blocks, screen: Screen, board: Reads, panel: ModelPanel, engine: Engine
) -> tuple[Any, list]:
    """Wire the page's load and the model panel's.

    Returns:
        The event of the page's load, and those after which another variant was measured.
    """
    session = screen.session
    reads = [session.language, session.loaded, session.saved, session.corrections]
    window = Reads(reads, Window)
    shown = page.load(
        **call(partial(opened, screen, engine), window),
        outputs=screen.outputs,
        **FRESH,
    )
    event = load_model.connect(panel, engine, session.language, session.loaded)
    other = event.success(
        **call(partial(swapped, screen, engine), window), outputs=screen.outputs, **FRESH
    )
    return shown, [*_looks(screen, board, engine, shown), *_looks(screen, board, engine, other)]


def _looks(screen: Screen, board: Reads, engine: Engine, event: Any) -> list:
    """What follows when a window is open: a few prompts are measured, then all of them."""
    session, draft = screen.session, screen.editor.draft
    adopting = []
    for _ in range(2):
        event = event.success(
            **call(
                partial(await_look, screen, engine),
                session.language, session.loaded, session.variants,
                may="measure",
            ),
            outputs=screen.status,
            **FRESH,
        )  # fmt: skip
        event = event.success(
            **call(partial(adopt, screen, engine), draft, board), outputs=screen.outputs, **FRESH
        )
        adopting.append(event)
    return adopting


def opened(screen: Screen, engine: Engine, window: Window, request: gr.Request) -> Iterator[dict]:
    """The page's first events: wait for the model, then show it measured and ready."""
    lang, status = language_of(request), screen.status
    yield {
        screen.session.language: lang,
        screen.applied.line: header.render(lang, Loaded(), ""),
        **show_results.refresh(screen.applied.results, Board(lang, Variants(), {})),
    }
    place = Bar(lang).place
    text = request.query_params.get("recipe")
    # what a link asks for is measured behind what is being measured
    for step in engine.wait() if text else engine.arrived():
        if bar := place(step):
            yield {status: bar}
    loaded = engine.loaded
    window = replace(window, language=lang, loaded=loaded)
    said = notice(" ".join(say_in(lang, each) for each in loaded.warnings), "warn")
    if engine.failure:
        said = notice(message(UserError(engine.failure), lang), "bad")
    first = wanted = engine.first_recipe()
    latest = window.kept().now
    own = latest is not None and not engine.first.made(latest.recipe)
    if latest is not None and own and engine.knows(loaded.key, latest.recipe):
        wanted = latest.recipe
    try:
        if text:
            wanted = linked(lang, loaded, text)
            heard = job_runner.Told(lang)
            for step in engine.resolve(loaded.key, wanted):
                heard(step)
                if bar := place(step):
                    yield {status: bar}
        updates = screen.fresh(engine, window, wanted, engine.knows(loaded.key, wanted))
    except Exception as error:  # whatever a link holds, the page opens and says what is wrong
        if not text:
            raise
        said = notice(message(error, lang), "bad")
        updates = screen.fresh(engine, window, first, engine.knows(loaded.key, first))
    yield {**updates, status: said}


def swapped(screen: Screen, engine: Engine, window: Window) -> dict:
    """Another model: its default recipe, and the variants that this browser has of it."""
    recipe = engine.first_recipe()
    known = engine.knows(window.loaded.key, recipe)
    return {**screen.fresh(engine, window, recipe, known), **screen.silent()}


def await_look(
    screen: Screen, engine: Engine, language: str, loaded: Loaded, variants: Variants
) -> Iterator[dict]:
    """Wait until there is more to show than is shown, unless the visitor went on with an edit of
    their own."""
    yield {}
    now = variants.now.recipe if variants.now else None
    if not loaded.key or not (now is None or engine.first.made(now)):
        return
    told, place = "look.few" if now is None else "look.all", Bar(language).place
    try:
        for step in engine.first.next(loaded.key, now):
            few = now is not None or len(engine.first.plan(loaded.key)) > 1
            words = say(language, told, few=first_look.FEW) if few else ""
            if bar := place(replace(step, note=words)):
                yield {screen.status: bar}
    except UserError as error:
        yield {screen.status: notice(message(error, language), "bad")}


def adopt(screen: Screen, engine: Engine, draft: Draft, board: Board) -> dict:
    """What was measured becomes the current variant, unless the visitor applied one meanwhile; the
    controls stay as they are."""
    key, now = draft.loaded.key, draft.variants.now
    found = engine.first.latest(key)
    if found is None or not (now is None or engine.first.made(now.recipe)):
        return {}
    if now is not None and now.recipe.digest() == found.digest():
        return {}
    draft = replace(draft, variants=draft.variants.add(found))
    more = engine.first.running(key)
    words = say(draft.language, "look.more" if more else "look.done", few=first_look.FEW)
    try:
        drawn = draw(screen.editor.drawing, engine, draft)
    except UserError:  # a control that says so itself
        drawn = {}
    return {
        **drawn,
        **adopted(screen.applied, draft, board),
        screen.status: notice(words, "info" if more else "good"),
    }


def linked(lang: str, loaded: Loaded, text: str) -> Recipe:
    """The recipe of a link, as the controls show it on the loaded model.

    Raises:
        UserError: a text that is no recipe, a recipe of another model, or one with edits that the
            screen cannot show.
    """
    return read(*show(usable(lang, loaded, recipes.from_yaml(text))), loaded.spec)
