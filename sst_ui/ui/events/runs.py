"""The runs: kept when a recipe was applied and when its numbers are there; chosen, loaded, deleted.

How it looks is in `runs`, where runs are kept in `ui.state.run_store`. A history that cannot be
read or written is told here and never stops an edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.metrics.results import MetricResult
from sst_ui.recipe import Recipe
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw, fill
from sst_ui.ui.events.edit import usable
from sst_ui.ui.panels import runs
from sst_ui.ui.panels.runs import RunsPanel, View
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.run_store import Shelf
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import visibility
from sst_ui.ui.widgets.texts import say


@dataclass(frozen=True)
class Seen:
    """What the view shows and is asked: the browser's rows, what is chosen, the search."""

    language: str
    rows: list
    view: View
    search: str
    known: Variants


@dataclass(frozen=True)
class Screen:
    """What the Runs view writes to."""

    panel: RunsPanel
    rows: gr.BrowserState
    view: gr.State

    @property
    def outputs(self) -> list:
        """The components that `show` may write to."""
        p = self.panel
        return [
            self.rows, self.view, p.table, p.status, p.search, p.back, p.undo, p.compare, p.delete,
        ]  # fmt: skip

    def show(self, seen: Seen, shelf: Shelf, view: View, said: str = "") -> dict:
        """Everything of the view, from what there is to see."""
        panel, lang = self.panel, seen.language
        try:
            records = shelf.list(seen.search or "")
            chosen = {r.id for r in shelf.get(view.chosen)}
        except UserError as error:
            records, chosen, said = (), set(), notice(message(error, lang), "bad")
        view = replace(view, chosen=tuple(run for run in view.chosen if run in chosen))
        view = replace(view, comparing=view.comparing and len(view.chosen) > 1)
        now = seen.known.now.recipe.digest() if seen.known.now else ""
        if view.comparing:
            body = runs.compared(lang, shelf.get(view.chosen))
        else:
            body = runs.listed(lang, records, view, now, "no_match" if seen.search else "none")
        count = len(view.chosen)
        key = "runs.compare_many" if count > 1 else "runs.compare"
        many = say(lang, key, count=count)
        return {
            self.rows: list(shelf.rows) if shelf.history is None else gr.skip(),
            self.view: view,
            panel.table: body,
            panel.status: said,
            panel.search: gr.update(visible=not view.comparing),
            panel.back: gr.update(visible=visibility(view.comparing)),
            panel.undo: gr.update(visible=visibility(bool(view.gone) and not view.comparing)),
            panel.compare: gr.update(
                value=many, interactive=count > 1, visible=visibility(not view.comparing)
            ),
            panel.delete: gr.update(
                value=say(lang, "runs.delete_many", count=count)
                if count
                else say(lang, "runs.delete"),
                interactive=count > 0,
                visible=visibility(not view.comparing),
            ),
        }


def connect(
    panel: RunsPanel,
    session: Session,
    editor: Editor,
    engine: Engine,
    shown: Sequence,
    applied: Any,
    measured: Sequence,
) -> None:
    """Wire the Runs view.

    Args:
        shown: event listeners (`tab.select`) at which the view is drawn.
        applied: the event of Apply.
        measured: events at whose end there may be metrics.
    """
    screen = Screen(panel, session.runs, session.view)
    seen = Reads(
        [session.language, session.runs, session.view, panel.search, session.variants], Seen
    )
    written = {**PRIVATE, "outputs": screen.outputs}
    looking = call(partial(look, screen, engine), seen)
    for listen in shown:
        listen(**looking, **written)
    panel.search.change(**looking, trigger_mode="always_last", **written)
    keeping = call(partial(keep_applied, screen, engine), seen, session.loaded)
    applied.success(**keeping, **written)
    keeping = call(partial(keep_measured, screen, engine), seen, session.loaded, session.results)
    for event in measured:
        event.success(**keeping, **written)
    for listen, handler in (
        (panel.table.select, choose),
        (panel.compare.click, side_by_side),
        (panel.back.click, back),
        (panel.delete.click, delete),
        (panel.undo.click, undo),
    ):
        listen(**call(partial(handler, screen, engine), seen), **written)
    panel.table.apply(
        **call(partial(load, panel.status, editor, engine), editor.draft, session.runs),
        outputs=[*editor.outputs, panel.status],
        **PRIVATE,
    )


def _shelf(engine: Engine, seen: Seen) -> Shelf:
    return Shelf.of(engine.history, seen.rows)


def look(screen: Screen, engine: Engine, seen: Seen) -> dict:
    """What there is now."""
    return screen.show(seen, _shelf(engine, seen), seen.view)


def _kept(
    screen: Screen, engine: Engine, seen: Seen, recipe: Recipe, model: str,
    results: Sequence[MetricResult] = (),
) -> dict:  # fmt: skip
    shelf = _shelf(engine, seen)
    try:
        shelf = shelf.add(recipe, model, results)
    except UserError as error:  # the edit stands all the same
        return screen.show(seen, shelf, seen.view, notice(message(error, seen.language), "bad"))
    return screen.show(seen, shelf, seen.view)


def keep_applied(screen: Screen, engine: Engine, seen: Seen, loaded: Loaded) -> Any:
    """Keep the recipe that was applied."""
    if seen.known.now is None:
        return gr.skip()
    return _kept(screen, engine, seen, seen.known.now.recipe, loaded.spec.id)


def keep_measured(
    screen: Screen, engine: Engine, seen: Seen, loaded: Loaded, results: dict[str, Any]
) -> Any:
    """The numbers as they were measured; labels corrected later stay in the browser."""
    now = seen.known.now
    wanted = results.get(f"done:{now.recipe.digest()}") if now else None
    if now is None or wanted is None:  # stopped on the way
        return gr.skip()
    recipe = replace(now.recipe, evaluation=wanted)
    numbers = results.get(now.recipe.digest(), ())
    return _kept(screen, engine, seen, recipe, loaded.spec.id, numbers)


def choose(screen: Screen, engine: Engine, seen: Seen, event: gr.EventData) -> dict:
    """Choose a run, or let it go."""
    run, view = int(event.run), seen.view
    others = tuple(r for r in view.chosen if r != run)
    view = replace(view, chosen=others if run in view.chosen else (*others, run))
    return screen.show(seen, _shelf(engine, seen), view)


def side_by_side(screen: Screen, engine: Engine, seen: Seen) -> dict:
    """The chosen runs beside each other."""
    return screen.show(seen, _shelf(engine, seen), replace(seen.view, comparing=True))


def back(screen: Screen, engine: Engine, seen: Seen) -> dict:
    """Back to the list."""
    return screen.show(seen, _shelf(engine, seen), replace(seen.view, comparing=False))


def delete(screen: Screen, engine: Engine, seen: Seen) -> dict:
    """Delete the chosen runs; Undo knows them."""
    shelf, gone = _shelf(engine, seen).delete(seen.view.chosen)
    said = notice(say(seen.language, "runs.deleted", count=len(gone)), "info")
    return screen.show(seen, shelf, View(gone=gone), said)


def undo(screen: Screen, engine: Engine, seen: Seen) -> dict:
    """Bring back what was deleted last."""
    shelf = _shelf(engine, seen).restore(seen.view.gone)
    return screen.show(seen, shelf, replace(seen.view, gone=()))


def load(
    status: gr.HTML, editor: Editor, engine: Engine, draft: Draft, rows: list, event: gr.EventData
) -> dict:
    """A run's settings into the controls, as if its recipe had been opened."""
    lang = draft.language
    try:
        found = Shelf.of(engine.history, rows).get([int(event.run)])
        if not found:
            raise UserError(say(lang, "runs.gone"))
        recipe = usable(draft.language, draft.loaded, found[0].recipe)
        updates, form, extras = fill(editor.controls, recipe, draft)
        drawn = draw(editor.drawing, engine, replace(draft, form=form, extras=extras))
    except UserError as error:
        return {status: notice(message(error, lang), "bad")}
    told = say(lang, "runs.loaded", name=found[0].title)
    return {**updates, **drawn, status: notice(told, "good")}
