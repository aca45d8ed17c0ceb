"""A search from its buttons: started, paused, resumed, stopped, and drawn while it runs.

A search runs on while its page is away (`services.searches`); the handlers here watch it. They hand
on what is found as a state, at most once a second; whatever is drawn follows from that state, so
that a view may be changed meanwhile. What is done with candidates is in `search_choices`.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.jobs.search.candidates import Candidate
from sst_ui.jobs.search.objectives import aims, presets, searched
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import NOTHING
from sst_ui.ui.events.binding import MANY, PRIVATE, Reads, call, together
from sst_ui.ui.events.draw_draft import Draft, Editor
from sst_ui.ui.events.edit import checker
from sst_ui.ui.panels import search as search_panel
from sst_ui.ui.panels import search_plots, search_table
from sst_ui.ui.panels.metrics import title
from sst_ui.ui.panels.search import SETTINGS, SearchPanel
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.services.lasting_jobs import LastingJob
from sst_ui.ui.services.searches import ENDED, STOPPED, Sight
from sst_ui.ui.state.run_store import shared
from sst_ui.ui.state.search_results import Found, Phase
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import visibility
from sst_ui.ui.widgets.messages import say_in
from sst_ui.ui.widgets.numbers import exact
from sst_ui.ui.widgets.texts import say

BY_METRIC = ("grid", "sensitivity")  # strategies whose own figure shows one metric
JOB: dict[str, Any] = {**PRIVATE, "concurrency_id": "searches", "concurrency_limit": MANY}
LIVE: dict[str, Any] = {**PRIVATE, "trigger_mode": "always_last", "concurrency_limit": None}


@dataclass(frozen=True)
class Picked:
    """What is looked at: the search, which candidate, in which view, by which metric."""

    language: str
    found: Found
    pick: str
    view: str
    metric: str


def connect(
    panel: SearchPanel,
    editor: Editor,
    session: Session,
    shown: gr.Tab,
    opened: Any,
    engine: Engine,
) -> None:
    """Wire the panel.

    Args:
        shown: the tab that the panel is on.
        opened: the event of the page's load.
    """
    _connect_buttons(panel, editor, session, opened, engine)
    seen = Reads([session.language, panel.found, panel.picked, panel.view, panel.metric], Picked)
    drawn = outputs(panel)
    looking = call(partial(look, panel), seen)
    for listen in (panel.found.change, panel.view.change, panel.metric.input, opened.success):
        listen(**looking, outputs=drawn, **LIVE)
    panel.table.click(**call(partial(pick, panel), seen), outputs=[panel.picked, *drawn], **PRIVATE)
    settings = list(panel.settings.values())
    told = [panel.settings[name].change for name in ("strategy", "objectives", "target")]
    hinting = call(hint, editor.draft, together(settings))
    for listen in (*told, shown.select, opened.success):
        listen(**hinting, outputs=panel.hint, **LIVE)
    strategy = panel.settings["strategy"]
    strategy.change(
        **call(partial(settle, panel), session.language, strategy), outputs=settings, **LIVE
    )


def _connect_buttons(
    panel: SearchPanel, editor: Editor, session: Session, opened: Any, engine: Engine
) -> None:
    language, kept = session.language, session.search
    state = [panel.status, panel.progress, panel.found, panel.run, panel.pause, panel.resume,
             panel.stop]  # fmt: skip
    every = [*state, panel.metric]
    sound = checker(engine, editor.controls.form, with_prompts=True)
    panel.run.click(
        **call(
            partial(run, panel, kept, engine),
            editor.draft, together(list(panel.settings.values())), panel.found,
            check=partial(_wrong, panel, sound), may="search",
        ),
        outputs=[*every, kept, panel.picked, panel.told],
        **JOB,
    )  # fmt: skip
    panel.resume.click(
        **call(partial(resume, panel, kept, engine), language, panel.found, may="search"),
        outputs=[*every, kept],
        **JOB,
    )
    opened.success(**call(partial(attach, panel, engine), language, kept), outputs=every, **JOB)
    for button, handler in ((panel.pause, pause), (panel.stop, stop)):
        button.click(
            **call(partial(handler, panel, engine), language, panel.found),
            outputs=state,
            **PRIVATE,
        )


def _buttons(panel: SearchPanel, phase: str) -> dict:
    """Which buttons there are, all of them to be pressed."""
    there = {
        panel.run: phase in ("none", "over"),
        panel.pause: phase == "running",
        panel.resume: phase == "paused",
        panel.stop: phase in ("running", "paused"),
    }
    return {b: gr.update(visible=visibility(seen), interactive=True) for b, seen in there.items()}


def _watch(panel: SearchPanel, language: str, search: LastingJob[Sight]) -> Iterator[dict]:
    """What a search changes on the screen, until it has ended or its window has left."""
    told, bar, aim = job_runner.Told(language), "", None
    shown: Found | None = None
    for sight in search.watch():
        found = sight.found
        update: dict[Any, Any] = {}
        if shown is None:
            update = {panel.status: "", panel.progress: "", **_buttons(panel, "running")}
        for text in sight.warnings:
            told.say(text)
        if found is not shown:
            update[panel.found] = shown = found
        if found.aim is not None and found.aim is not aim:
            aim = found.aim
            update[panel.metric] = choices(language, found)
        if sight.bar and not bar:
            update[panel.progress] = bar = sight.bar
        if found.phase != "running":
            update |= _last(panel, language, sight)
        if update:
            yield update


def _last(panel: SearchPanel, language: str, sight: Sight) -> dict:
    """The last word of a search."""
    text = ended(language, sight.found, sight.early)
    if sight.error is not None:
        text = notice(message(sight.error, language), "bad")
    return {panel.status: text, panel.progress: "", **_buttons(panel, sight.found.phase)}


def run(
    panel: SearchPanel, kept: gr.BrowserState, engine: Engine, draft: Draft, settings: tuple,
    before: Found,
) -> Iterator[dict]:  # fmt: skip
    """A new search of the recipe in the controls."""
    wanted = search_panel.spec(*settings)
    try:
        recipe = draft.recipe()
        aims(recipe, wanted)
        searched(recipe)
    except Exception as error:
        yield {panel.status: notice(message(error, draft.language), "bad")}
        return
    folder = before.folder
    if shared() and folder is None:
        folder = Path(tempfile.mkdtemp(prefix="search-", dir=disk.temporary()))
    found = Found(
        asked=recipe, spec=wanted, key=draft.loaded.key, recipe=recipe,
        layers=draft.loaded.layers, folder=folder,
    )  # fmt: skip
    ticket, search = engine.searches.begin(draft.language, found)
    yield {panel.picked: "", panel.told: "", kept: ticket}
    yield from _watch(panel, draft.language, search)


def resume(
    panel: SearchPanel, kept: gr.BrowserState, engine: Engine, language: str, found: Found
) -> Iterator[dict]:
    """Go on with a paused search."""
    if found.phase == "paused":
        ticket, search = engine.searches.begin(language, found)
        yield {kept: ticket}
        yield from _watch(panel, language, search)


def attach(panel: SearchPanel, engine: Engine, language: str, ticket: Any) -> Iterator[dict]:
    """The search that this browser started before its page was reloaded or closed."""
    if (search := engine.searches.find(ticket)) is not None:
        yield from _watch(panel, language, search)


def pause(panel: SearchPanel, engine: Engine, language: str, found: Found) -> dict:
    """Stop for now; Resume goes on."""
    return _leave(panel, engine, language, found, "", "paused", "search.pausing")


def stop(panel: SearchPanel, engine: Engine, language: str, found: Found) -> dict:
    """Stop for good."""
    return _leave(panel, engine, language, found, STOPPED, "over", "search.stopping")


def _leave(
    panel: SearchPanel, engine: Engine, language: str, found: Found,
    mark: str, phase: Phase, waiting: str,
) -> dict:  # fmt: skip
    """Tell the running job; where none runs any more, say how it stands."""
    ended_by_itself = engine.stopped(found.job + ENDED)
    if found.phase == "running" and not ended_by_itself:
        engine.stop(found.job + mark)
        engine.stop(found.job)
        return {
            panel.status: notice(say(language, waiting)),
            panel.pause: gr.update(interactive=False),
            panel.stop: gr.update(interactive=phase == "paused"),
        }
    if found.phase not in ("running", "paused"):
        return {}
    found = replace(found, phase=phase)
    told = ended(language, found, True)
    return {panel.found: found, panel.status: told, panel.progress: "", **_buttons(panel, phase)}


def look(panel: SearchPanel, seen: Picked) -> dict:
    """Everything that follows from what is found so far."""
    return draw(panel, seen)


def pick(panel: SearchPanel, seen: Picked, event: gr.EventData) -> dict:
    """Another candidate."""
    return {panel.picked: event.pick, **draw(panel, replace(seen, pick=event.pick))}


def hint(draft: Draft, settings: tuple) -> str:
    """What the strategy does, and what it goes by."""
    given = dict(zip(SETTINGS, settings, strict=True))
    try:
        wanted = search_panel.spec(*given.values())
    except UserError:  # said at its control when the search is started
        sound = search_panel.SOUND | {"strategy": given["strategy"]}
        wanted = search_panel.spec(*sound.values())
    try:
        recipe = draft.recipe() if draft.loaded.key else None
    except UserError:
        recipe = None
    return search_panel.hinted(draft.language, recipe, wanted)


def settle(panel: SearchPanel, language: str, strategy: str) -> dict:
    """Which settings the strategy has. Only a change of it touches them: an update takes what
    is said at a control away."""
    return search_panel.shown(panel, strategy)


def _wrong(
    panel: SearchPanel, sound: Callable[..., dict], draft: Draft, settings: tuple, before: Found
) -> dict:
    """What is wrong at which control of the form or setting of the search."""
    wrong = search_panel.problems(draft.language or "en", *settings)
    return {**sound(draft), **{panel.settings[name]: text for name, text in wrong.items()}}


def outputs(panel: SearchPanel) -> list:
    """The components that `draw` may write to."""
    return [panel.plot, panel.table, panel.use, panel.keep, panel.check, panel.metric]


def draw(panel: SearchPanel, seen: Picked) -> dict:
    """Figure and table, and whether there is something to use."""
    language, found, metric = seen.language, seen.found, seen.metric
    names = found.aim.metrics if found.aim else ()
    metric = metric if metric in names else (names[0] if names else "")
    there = found.made(seen.pick) is not None
    return {
        panel.plot: search_plots.figure(language, found, seen.pick, seen.view, metric),
        panel.table: search_table.render(language, found, seen.pick),
        panel.use: gr.update(interactive=there),
        panel.check: gr.update(interactive=there),
        panel.keep: gr.update(interactive=bool(found.done)),
        panel.metric: gr.update(
            visible=bool(names) and seen.view == "own" and found.spec.strategy in BY_METRIC
        ),
    }


def choices(language: str, found: Found) -> Any:
    """The metrics that a figure may show."""
    names = [(title(language, n, find(n).title), n) for n in found.aims.metrics]
    return gr.update(choices=names, value=found.aims.metrics[0])


def ended(language: str, found: Found, early: bool) -> str:
    """How a search stands that does not run, in a line."""
    counts = {"done": len(found.candidates), "total": found.total}
    if found.phase == "paused":
        return notice(say(language, "search.paused", **counts))
    if early:
        return notice(say(language, "search.stopped", **counts))
    if found.bell[0] is not None:
        best = search_table.named(language, found, found.pick(""))
        return notice(say(language, "search.over", best=best, **counts), "good")
    if not found.done or found.spec.strategy == "sensitivity":
        why = next((each.note for each in found.candidates if each.note), "") or found.bell[2]
        why = say_in(language, why)
        return notice(say(language, "search.over.none", why=why, **counts), "bad")
    notes = " ".join(say_in(language, each) for each in found.notes)
    if found.best is None or not found.tested:
        return notice(f"{missed(language, found)} {notes}".rstrip(), "bad")
    best = search_table.named(language, found, str(found.best.number))
    told = say(language, "search.over.tested", best=best, tested=len(found.tested),
               value=tested(language, found, found.best), **counts)  # fmt: skip
    return notice(f"{told} {notes}".rstrip(), "good")


def missed(language: str, found: Found) -> str:
    """That a search that is over has no best, in a line."""
    counts = {"done": len(found.candidates), "total": found.total}
    aim, near = found.aims, found.nearest
    sign = "≤" if aim.falls else "≥"
    wanted = f"{search_table.name_of(language, aim.decides)} {sign} {aim.target:g}"
    for floor in aim.floors:
        sign = "≥" if floor.at_least else "≤"
        wanted += f", {search_table.name_of(language, floor.metric)} {sign} {floor.value:g}"
    if found.spec.strategy == "staged":
        share = presets()["stages"]["removal"]
        wanted = f"{search_table.name_of(language, 'removal')} ≥ {share:g}"
    elif not aim.targeted:
        wanted = say(language, "search.effect.any")
    if near is None:
        return say(language, "search.missed.idle", wanted=wanted, **counts)
    return say(
        language, "search.missed", wanted=wanted, value=tested(language, found, near),
        near=search_table.named(language, found, str(near.number)), **counts,
    )  # fmt: skip


def tested(language: str, found: Found, each: Candidate) -> str:
    """What the target's metrics came to on the test prompts, with interval and number."""
    names = [found.aims.decides, *(floor.metric for floor in found.aims.floors)]
    words = []
    for name in names:
        value = (each.test or each.values).get(name, NOTHING)
        title = search_table.name_of(language, name)
        words.append(f"{title} {exact(value, find(name).unit)} (n {value.n})")
    return ", ".join(words)
