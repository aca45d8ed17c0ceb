"""What becomes of a search's candidates: one in the controls, some as variants, one measured again.

What was found is `ui.state.search_results`, how a search runs is `search`.
"""

from dataclasses import replace

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.search.objectives import held_out
from sst_ui.metrics.registry import find
from sst_ui.recipe import Recipe
from sst_ui.ui.events import apply, draw_draft
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events.draw_draft import Draft, draw, fill
from sst_ui.ui.events.edit import usable
from sst_ui.ui.panels import search_table
from sst_ui.ui.panels.metrics import title
from sst_ui.ui.services import errors, job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.state.merge_form import whole
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.search_results import BELL, Found
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.numbers import exact
from sst_ui.ui.widgets.texts import say

MOST = 10  # candidates that become variants at once
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def connect(studio, engine: Engine) -> None:
    """Wire the buttons."""
    panel, session, cut = studio.search, studio.session, len(studio.draft)
    busy = {
        panel.cancel: gr.update(visible=True, interactive=True),
        panel.check: gr.update(visible=False),
    }
    idle = {panel.cancel: gr.update(visible=False), panel.check: gr.update(visible=True)}

    @guarded
    def use(*values):
        """A candidate's settings into the controls; what is measured stays as it is there."""
        draft, (found, picked) = Draft.of(*values[:cut]), values[cut:]
        lang = draft.language
        try:
            recipe = _made(lang, found, picked)
            recipe = usable(draft, replace(recipe, evaluation=draft.recipe().evaluation))
            updates, form, extras = fill(studio, recipe, draft)
            drawn = draw(studio, engine, replace(draft, form=form, extras=extras))
        except UserError as error:
            return {panel.told: notice(message(error, lang), "bad")}
        told = say(lang, "search.used", name=search_table.named(lang, found, found.pick(picked)))
        return {**updates, **drawn, panel.told: notice(told, "good")}

    @guarded
    def keep(*values):
        """The best few as variants; the right column of the chat answers as the first of them."""
        draft, rest = Draft.of(*values[:cut]), values[cut:]
        (found, count), board = rest[:2], Board.of(*rest[2:])
        lang, known = draft.language, draft.variants
        names = []
        try:
            for pick in _first(found, how_many(count)):
                recipe = usable(draft, _made(lang, found, pick))
                recipe = replace(recipe, evaluation=draft.recipe().evaluation)
                known = known.add(recipe, search_table.named(lang, found, pick))
                names.append(known.current)
            if not names:
                raise UserError(say(lang, "search.nothing"))
        except UserError as error:
            return {panel.told: notice(message(error, lang), "bad")}
        known = replace(known, current=draft.variants.current or names[0])
        draft = replace(draft, variants=known)
        right = gr.Dropdown(choices=chat_events.choices(lang, known), value=f"variant:{names[0]}")
        told = say(lang, "search.kept", count=len(set(names)), name=names[0])
        return {
            **apply.adopted(studio, draft, board),
            studio.chat.pickers[1]: right,
            panel.told: notice(told, "good"),
        }

    @guarded
    def check(lang, request: gr.Request, loaded, found: Found, picked):
        """The picked one on prompts that no candidate has seen."""
        stopped = engine.begin(job_runner.name("held out", request))
        try:
            recipe = _made(lang, found, picked)
            wanted = held_out(recipe, found.aim, found.spec)
            numbers = yield from job_runner.watched(
                lang,
                engine.held_out(loaded.key, recipe, wanted),
                lambda bar: {panel.told: bar, **busy},
                stopped=stopped,
            )
            if numbers.error:
                raise UserError(numbers.error)
        except Exception as error:
            yield {panel.told: errors.told(error, lang), **idle}
            return
        words = []
        for name, value in numbers.values.items():
            row = find(name)
            pair = [exact(v, row.unit) for v in (numbers.base.get(name), value)]
            words.append(f"{title(lang, name, row.title)} {' → '.join(pair)} (n {value.n})")
        name = search_table.named(lang, found, found.pick(picked))
        told = say(lang, "search.checked", name=name, values=" · ".join(words))
        yield {panel.told: notice(told, "good"), **idle}

    def stop(lang, request: gr.Request):
        engine.stop(job_runner.name("held out", request))
        return gr.update(interactive=False)  # the job says the rest when it has ended

    def check_count(*values):
        place = cut + 1
        try:
            how_many(values[place])
        except UserError as error:
            told = message(error, values[0] or "en")
            return [gr.validate(i != place, told) for i in range(len(values))]
        return [gr.validate(True, "")] * len(values)

    chosen = [panel.found, panel.picked]
    panel.use.click(
        use,
        [*studio.draft, *chosen],
        [*draw_draft.outputs(studio), *studio.form, *studio.merge.decades.values(), session.extras,
         panel.told],
        **PRIVATE,
    )  # fmt: skip
    panel.keep.click(
        keep,
        [*studio.draft, panel.found, panel.count, *studio.board],
        [*apply.outputs(studio), panel.told],
        validator=check_count,
        **PRIVATE,
    )
    panel.check.click(
        check,
        [session.language, session.loaded, *chosen],
        [panel.told, panel.cancel, panel.check],
        concurrency_id="searches",
        concurrency_limit=4,
        **PRIVATE,
    )
    panel.cancel.click(stop, session.language, panel.cancel, **PRIVATE)


def how_many(count) -> int:
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
    good = [each for each in found.ranked if each.state == "done" and each.feasible]
    if found.aim is not None:  # the front has points far from it as well
        first = found.aim.objectives[0]
        good.sort(
            key=lambda each: each is not found.best and not found.aim.reached(each.value(first))
        )
    return [*bell, *(str(each.number) for each in good)][:count]
