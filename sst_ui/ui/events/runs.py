"""The runs: kept when a recipe was applied and when its numbers are there; chosen, loaded, deleted.

How it looks is in `runs`, where runs are kept in `ui.state.run_store`. A history that cannot be
read or written is told here and never stops an edit.
"""

from collections.abc import Sequence
from dataclasses import replace

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.ui.events import draw_draft
from sst_ui.ui.events.draw_draft import Draft, draw, fill
from sst_ui.ui.events.edit import usable
from sst_ui.ui.panels import runs
from sst_ui.ui.panels.runs import View
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.state.run_store import Shelf
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def connect(studio, engine: Engine, opened, applied, measured: Sequence) -> None:
    """Wire the Runs view.

    Args:
        opened: the event of the page's load.
        applied: the event of Apply.
        measured: events at whose end there may be metrics.
    """
    session, panel = studio.session, studio.runs

    def shown(lang: str, shelf: Shelf, view: View, search: str, known: Variants, said="") -> dict:
        """Everything of the view, from what there is to see."""
        try:
            records = shelf.list(search or "")
            chosen = {r.id for r in shelf.get(view.chosen)}
        except UserError as error:
            records, chosen, said = (), set(), notice(message(error, lang), "bad")
        view = replace(view, chosen=tuple(run for run in view.chosen if run in chosen))
        view = replace(view, comparing=view.comparing and len(view.chosen) > 1)
        now = known.now.recipe.digest() if known.now else ""
        if view.comparing:
            body = runs.compared(lang, shelf.get(view.chosen))
        else:
            body = runs.listed(lang, records, view, now, "no_match" if search else "none")
        count = len(view.chosen)
        many = (
            say(lang, "runs.compare_many", count=count) if count > 1 else say(lang, "runs.compare")
        )
        return {
            session.runs: list(shelf.rows) if shelf.history is None else gr.skip(),
            session.view: view,
            panel.table: body,
            panel.status: said,
            panel.search: gr.update(visible=not view.comparing),
            panel.back: gr.update(visible=view.comparing),
            panel.undo: gr.update(visible=bool(view.gone) and not view.comparing),
            panel.compare: gr.update(value=many, interactive=count > 1, visible=not view.comparing),
            panel.delete: gr.update(interactive=count > 0, visible=not view.comparing),
        }

    @guarded
    def look(lang, rows, view, search, known):
        return shown(lang, Shelf.of(engine.history, rows), view, search, known)

    def kept(lang, rows, view, search, known, recipe, model, results=()) -> dict:
        shelf = Shelf.of(engine.history, rows)
        try:
            shelf = shelf.add(recipe, model, results)
        except UserError as error:  # the edit stands all the same
            return shown(lang, shelf, view, search, known, notice(message(error, lang), "bad"))
        return shown(lang, shelf, view, search, known)

    @guarded
    def keep_applied(lang, rows, view, search, known: Variants, loaded):
        if known.now is None:
            return gr.skip()
        return kept(lang, rows, view, search, known, known.now.recipe, loaded.spec.id)

    @guarded
    def keep_measured(lang, rows, view, search, known: Variants, loaded, results):
        """The numbers as they were measured; labels corrected later stay in the browser."""
        now = known.now
        wanted = results.get(f"done:{now.recipe.digest()}") if now else None
        if wanted is None:  # stopped on the way
            return gr.skip()
        recipe = replace(now.recipe, evaluation=wanted)
        numbers = results.get(now.recipe.digest(), ())
        return kept(lang, rows, view, search, known, recipe, loaded.spec.id, numbers)

    @guarded
    def choose(lang, event: gr.EventData, rows, view, search, known):
        run = int(event.run)
        others = tuple(r for r in view.chosen if r != run)
        view = replace(view, chosen=others if run in view.chosen else (*others, run))
        return shown(lang, Shelf.of(engine.history, rows), view, search, known)

    @guarded
    def side_by_side(lang, rows, view, search, known):
        shelf = Shelf.of(engine.history, rows)
        return shown(lang, shelf, replace(view, comparing=True), search, known)

    @guarded
    def back(lang, rows, view, search, known):
        shelf = Shelf.of(engine.history, rows)
        return shown(lang, shelf, replace(view, comparing=False), search, known)

    @guarded
    def delete(lang, rows, view, search, known):
        shelf, gone = Shelf.of(engine.history, rows).delete(view.chosen)
        said = notice(say(lang, "runs.deleted", count=len(gone)), "info")
        return shown(lang, shelf, View(gone=gone), search, known, said)

    @guarded
    def undo(lang, rows, view, search, known):
        shelf = Shelf.of(engine.history, rows).restore(view.gone)
        return shown(lang, shelf, replace(view, gone=()), search, known)

    @guarded
    def load(lang, event: gr.EventData, rows, *values):
        """A run's settings into the controls, as if its recipe had been opened."""
        draft = Draft.of(lang, *values)
        try:
            found = Shelf.of(engine.history, rows).get([int(event.run)])
            if not found:
                raise UserError(say(lang, "runs.gone"))
            recipe = usable(draft, found[0].recipe)
            updates, form, extras = fill(studio, recipe, draft)
            drawn = draw(studio, engine, replace(draft, form=form, extras=extras))
        except UserError as error:
            return {panel.status: notice(message(error, lang), "bad")}
        told = say(lang, "runs.loaded", name=found[0].title)
        return {**updates, **drawn, panel.status: notice(told, "good")}

    seen = [session.language, session.runs, session.view, panel.search, session.variants]
    written = [
        session.runs, session.view, panel.table, panel.status, panel.search, panel.back,
        panel.undo, panel.compare, panel.delete,
    ]  # fmt: skip
    for listen in (opened.success, studio.runs_tab.select):
        listen(look, seen, written, **PRIVATE)
    panel.search.change(look, seen, written, trigger_mode="always_last", **PRIVATE)
    applied.success(keep_applied, [*seen, session.loaded], written, **PRIVATE)
    for event in measured:
        event.success(keep_measured, [*seen, session.loaded, session.results], written, **PRIVATE)
    panel.table.select(choose, seen, written, **PRIVATE)
    panel.compare.click(side_by_side, seen, written, **PRIVATE)
    panel.back.click(back, seen, written, **PRIVATE)
    panel.delete.click(delete, seen, written, **PRIVATE)
    panel.undo.click(undo, seen, written, **PRIVATE)
    panel.table.apply(
        load,
        [session.language, session.runs, *studio.draft[1:]],
        [
            *draw_draft.outputs(studio),
            *studio.form,
            *studio.merge.decades.values(),
            session.extras,
            panel.status,
        ],
        **PRIVATE,
    )
