"""What a window shows when it opens, and when another model is loaded into it.

The order: model, measured signal, the default recipe applied, then its metrics.
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
from sst_ui.ui.services import job_runner
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
        """A window on a model: the recipe in the controls, earlier variants, nothing said yet."""
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
            session.conversation: Conversation(),
            **{column: [] for column in self.chat.columns},
            **dict.fromkeys(self.chat.outdated, ""),
            session.opened: "",
            self.probe: plots.empty(say(lang, "probe.empty")),
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


def connect(page: gr.Blocks, screen: Screen, panel: ModelPanel, engine: Engine) -> Any:
    """Wire the page's load and the model panel's; returns the event of the page's load."""
    session = screen.session
    reads = [session.language, session.loaded, session.saved, session.corrections]
    window = Reads(reads, Window)
    shown = page.load(
        **call(partial(opened, screen, engine), window),
        outputs=screen.outputs,
        **FRESH,
    )
    event = load_model.connect(panel, engine, session.language, session.loaded)
    event.success(**call(partial(swapped, screen, engine), window), outputs=screen.outputs, **FRESH)
    return shown


def opened(screen: Screen, engine: Engine, window: Window, request: gr.Request) -> Iterator[dict]:
    """The page's first events: wait for the model, then show it measured and ready."""
    lang, status = language_of(request), screen.status
    yield {
        screen.session.language: lang,
        screen.applied.line: header.render(lang, Loaded(), ""),
        **show_results.refresh(screen.applied.results, Board(lang, Variants(), {})),
    }
    place = Bar(lang).place
    for step in engine.wait():
        if bar := place(step):
            yield {status: bar}
    loaded = engine.loaded
    window = replace(window, language=lang, loaded=loaded)
    said = notice(" ".join(say_in(lang, each) for each in loaded.warnings), "warn")
    if engine.failure:
        said = notice(message(UserError(engine.failure), lang), "bad")
    first = wanted = engine.first_recipe()
    latest = window.kept().now
    if latest is not None and engine.knows(loaded.key, latest.recipe):
        wanted = latest.recipe
    text = request.query_params.get("recipe")
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
    return screen.fresh(engine, window, recipe, engine.knows(window.loaded.key, recipe))


def linked(lang: str, loaded: Loaded, text: str) -> Recipe:
    """The recipe of a link, as the controls show it on the loaded model.

    Raises:
        UserError: a text that is no recipe, a recipe of another model, or one with edits that the
            screen cannot show.
    """
    return read(*show(usable(lang, loaded, recipes.from_yaml(text))), loaded.spec)
