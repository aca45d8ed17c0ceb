"""What becomes of a search's candidates: one in the controls, some as variants, one measured again.

What was found is `ui.state.search_results`, how a search runs is `search`.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.search.objectives import held_out
from sst_ui.metrics.registry import find
from sst_ui.recipe import Recipe
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events.apply import Applied, adopted
from sst_ui.ui.events.binding import MANY, PRIVATE, Reads, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw, fill
from sst_ui.ui.events.edit import usable
from sst_ui.ui.panels import search_table
from sst_ui.ui.panels.metrics import title
from sst_ui.ui.panels.search import SearchPanel
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services import errors, job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.merge_form import whole
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.search_results import BELL, Found
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.numbers import exact
from sst_ui.ui.widgets.texts import say

MOST = 10  # candidates that become variants at once


def connect(
    panel: SearchPanel,
    editor: Editor,
    applied: Applied,
    board: Reads,
    session: Session,
    engine: Engine,
) -> None:
    """Wire the buttons."""
    chosen = [panel.found, panel.picked]
    panel.use.click(
        **call(partial(use, panel, editor, engine), editor.draft, *chosen),
        outputs=[*editor.outputs, panel.told],
        **PRIVATE,
    )
    panel.keep.click(
        **call(
            partial(keep, panel, applied),
            editor.draft, panel.found, panel.count, board,
            check=partial(_bad_count, panel.count),
        ),
        outputs=[*applied.outputs, panel.told],
        **PRIVATE,
    )  # fmt: skip
    panel.check.click(
        **call(
            partial(check, panel, engine),
            session.language,
            session.loaded,
            *chosen,
            may="search",
        ),
        outputs=[panel.told, panel.cancel, panel.check],
        concurrency_id="searches",
        concurrency_limit=MANY,
        **PRIVATE,
    )
    panel.cancel.click(
        **call(partial(stop, engine), session.language), outputs=panel.cancel, **PRIVATE
    )


def use(
    panel: SearchPanel, editor: Editor, engine: Engine, draft: Draft, found: Found, picked: str
) -> dict:
    """A candidate's settings into the controls; what is measured stays as it is there."""
    lang = draft.language
    try:
        recipe = _made(lang, found, picked)
        recipe = usable(
            draft.language, draft.loaded, replace(recipe, evaluation=draft.recipe().evaluation)
        )
        updates, form, extras = fill(editor.controls, recipe, draft)
        drawn = draw(editor.drawing, engine, replace(draft, form=form, extras=extras))
    except UserError as error:
        return {panel.told: notice(message(error, lang), "bad")}
    told = say(lang, "search.used", name=search_table.named(lang, found, found.pick(picked)))
    return {**updates, **drawn, panel.told: notice(told, "good")}


def keep(
    panel: SearchPanel, applied: Applied, draft: Draft, found: Found, count: object, board: Board
) -> dict:
    """The best few as variants; the right column of the chat answers as the first of them."""
    lang, known = draft.language, draft.variants
    names = []
    try:
        for pick in _first(found, how_many(count)):
            recipe = usable(draft.language, draft.loaded, _made(lang, found, pick))
            recipe = replace(recipe, evaluation=draft.recipe().evaluation)
            known = known.add(recipe, search_table.named(lang, found, pick))
            names.append(known.current)
        if not names:
            raise UserError(say(lang, "search.nothing"))
    except UserError as error:
        return {panel.told: notice(message(error, lang), "bad")}
    if draft.variants.current:  # what is chosen is offered, and nothing else is applied
        known = replace(draft.variants, items=known.items)
    else:
        known = replace(known, current=names[0], past=())
    right = gr.Dropdown(choices=chat_events.choices(lang, known), value=f"variant:{names[0]}")
    told = say(lang, "search.kept", count=len(set(names)), name=names[0])
    return {
        **adopted(applied, replace(draft, variants=known), board),
        applied.pickers[1]: right,
        panel.told: notice(told, "good"),
    }


def check(
    panel: SearchPanel,
    engine: Engine,
    language: str,
    loaded: Loaded,
    found: Found,
    picked: str,
    request: gr.Request,
) -> Iterator[dict]:
    """The picked one on prompts that no candidate has seen."""
    stopped = engine.begin(job_runner.name("held out", request))
    busy = {
        panel.cancel: gr.update(visible=True, interactive=True),
        panel.check: gr.update(visible=HIDDEN),
    }
    idle = {panel.cancel: gr.update(visible=HIDDEN), panel.check: gr.update(visible=True)}
    try:
        recipe = _made(language, found, picked)
        wanted = held_out(recipe, found.aims, found.spec)
        numbers = yield from job_runner.watched(
            language,
            engine.held_out(loaded.key, recipe, wanted),
            lambda bar: {panel.told: bar, **busy},
            stopped=stopped,
        )
        if numbers.error:
            raise UserError(numbers.error)
    except Exception as error:
        yield {panel.told: errors.told(error, language), **idle}
        return
    words = []
    for name, value in numbers.values.items():
        row = find(name)
        pair = [exact(v, row.unit) for v in (numbers.base.get(name), value)]
        words.append(f"{title(language, name, row.title)} {' → '.join(pair)} (n {value.n})")
    name = search_table.named(language, found, found.pick(picked))
    told = say(language, "search.checked", name=name, values=" · ".join(words))
    yield {panel.told: notice(told, "good"), **idle}


def stop(engine: Engine, language: str, request: gr.Request) -> dict:
    """Ask the running job to stop; it says the rest when it has ended."""
    engine.stop(job_runner.name("held out", request))
    return gr.update(interactive=False)


def _bad_count(box: gr.Number, draft: Draft, found: Found, count: object, board: Board) -> dict:
    """What is wrong with the number of candidates."""
    try:
        how_many(count)
    except UserError as error:
        return {box: message(error, draft.language or "en")}
    return {}


def how_many(count: Any) -> int:
    """How many candidates become variants (`UserError` for a number that cannot be)."""
    wanted = whole("search.count", count)
    if not 1 <= wanted <= MOST:
        raise UserError(f"search.count is {wanted}; it must be 1 to {MOST}.")
    return wanted


def _made(language: str, found: Found, picked: str) -> Recipe:
    recipe = found.made(picked)
    if recipe is None:
        raise UserError(say(language, "search.nothing"))
    return recipe


def _first(found: Found, count: int) -> list[str]:
    """The picks that are worth keeping: what the search comes to, then others at the target."""
    bell = [BELL] if found.bell[0] is not None else []
    done = (each for each in found.ranked if each.state == "done" and each.feasible)
    good = [each for each in done if not found.idle(each)]
    if found.aim is not None:  # the front has points far from it as well
        first = found.aim.decides
        good.sort(
            key=lambda each: each is not found.best and not found.aims.reached(each.value(first))
        )
    return [*bell, *(str(each.number) for each in good)][:count]
