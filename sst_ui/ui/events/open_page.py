"""What a window shows when it opens, and when another model is loaded into it.

The order: model, measured signal, the default recipe applied, then its metrics.
"""

from dataclasses import replace

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.recipe import Recipe
from sst_ui.ui.events import apply as apply_events
from sst_ui.ui.events import draw_draft, show_results
from sst_ui.ui.events.draw_draft import Draft, draw, fill
from sst_ui.ui.events.edit import usable
from sst_ui.ui.panels import header, model
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.state.form import read, show
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Conversation, Variants
from sst_ui.ui.widgets.html import Clock, notice
from sst_ui.ui.widgets.texts import language as language_of


def connect(page: gr.Blocks, studio, engine: Engine):
    """Wire the page's load and the model panel's; returns the event of the page's load."""
    session, bar = studio.session, studio.apply

    def fresh(lang: str, loaded: Loaded, recipe, applied: bool, saved=(), fixed=()) -> dict:
        """A window on a model: the recipe in the controls, earlier variants, nothing said yet."""
        updates, form, extras = fill(studio, recipe)
        known = Variants.restored(saved or (), loaded.spec.id)
        known = known.add(recipe) if applied else replace(known, current="")
        draft = Draft(lang, loaded, extras, known, "evidence", form)
        return {
            **updates,
            **draw(studio, engine, draft),
            **apply_events.adopted(studio, draft, Board.of(lang, known, {}, fixed)),
            session.language: lang,
            session.loaded: loaded,
            session.results: {},
            session.conversation: Conversation(),
            studio.chat.columns[0]: [],
            studio.chat.columns[1]: [],
            session.opened: "",
        }

    def opened(saved, fixed, request: gr.Request):
        """The page's first events: wait for the model, then show it measured and ready."""
        lang, clock = language_of(request), Clock()
        yield {
            session.language: lang,
            studio.header.line: header.render(lang, Loaded(), ""),
            **show_results.refresh(studio, Board(lang, Variants(), {})),
        }
        for step in engine.wait():
            yield {bar.status: clock.bar(lang, step)}
        loaded = engine.loaded
        said = notice(" ".join(loaded.warnings), "warn")
        if engine.failure:
            said = notice(message(UserError(engine.failure), lang), "bad")
        first = wanted = engine.first_recipe()
        text = request.query_params.get("recipe")
        try:
            if text:
                wanted = linked(lang, loaded, text)
                heard = job_runner.Told()
                for step in engine.resolve(loaded.key, wanted):
                    heard(step)
                    yield {bar.status: clock.bar(lang, step)}
            known = engine.knows(loaded.key, wanted)
            updates = fresh(lang, loaded, wanted, known, saved, fixed)
        except Exception as error:  # whatever a link holds, the page opens and says what is wrong
            if not text:
                raise
            said = notice(message(error, lang), "bad")
            updates = fresh(lang, loaded, first, engine.knows(loaded.key, first), saved, fixed)
        yield {**updates, bar.status: said}

    @guarded
    def swapped(lang, loaded: Loaded, saved, fixed):
        recipe = engine.first_recipe()
        return fresh(lang, loaded, recipe, engine.knows(loaded.key, recipe), saved, fixed)

    written = [
        *draw_draft.outputs(studio),
        *apply_events.outputs(studio),
        *studio.form,
        *studio.merge.decades.values(),
        session.language,
        session.loaded,
        session.extras,
        session.results,
        session.conversation,
        *studio.chat.columns,
        session.opened,
        bar.status,
    ]
    private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    shown = page.load(opened, [session.saved, session.corrections], written, **private)
    event = model.connect(studio.model, engine, session.language, session.loaded)
    kept = [session.language, session.loaded, session.saved, session.corrections]
    event.success(swapped, kept, written, **private)
    return shown


def linked(lang: str, loaded: Loaded, text: str) -> Recipe:
    """The recipe of a link, as the controls show it on the loaded model.

    Raises:
        UserError: a text that is no recipe, a recipe of another model, or one with edits that the
            screen cannot show.
    """
    draft = Draft(lang, loaded, None, Variants(), "evidence", None)
    return read(*show(usable(draft, recipes.from_yaml(text))), loaded.spec)
