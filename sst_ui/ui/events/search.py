"""A search from its buttons: started, paused, resumed, stopped, and drawn while it runs.

The running handler hands on what is found as a state, at most once a second; whatever is drawn
follows from that state, so that a view may be changed meanwhile. What is done with candidates is in
`search_choices`.
"""

import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import gradio as gr

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.jobs.search.candidates import Candidate
from sst_ui.jobs.search.objectives import aims, searched
from sst_ui.jobs.search.search import Opened
from sst_ui.metrics.registry import find
from sst_ui.progress import Progress
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.events.edit import checker
from sst_ui.ui.panels import search as search_panel
from sst_ui.ui.panels import search_plots, search_table
from sst_ui.ui.panels.metrics import title
from sst_ui.ui.panels.search import SETTINGS
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.services.job_runner import PACE
from sst_ui.ui.state.run_store import shared
from sst_ui.ui.state.search_results import Found
from sst_ui.ui.widgets.html import Clock, notice
from sst_ui.ui.widgets.texts import say

BY_METRIC = ("grid", "sensitivity")  # strategies whose own figure shows one metric
DRAWN = 1.0  # seconds between two figures
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
JOB = {**PRIVATE, "concurrency_id": "searches", "concurrency_limit": 4}
ENDED, STOPPED = ":ended", ":stopped"  # marks of a job, beside its own name


def connect(studio, engine: Engine, opened) -> None:
    """Wire the panel; `opened` is the event of the page's load."""
    panel, session = studio.search, studio.session
    settings, cut = list(panel.settings.values()), len(studio.draft)

    def buttons(phase: str) -> dict:
        """Which buttons there are, all of them to be pressed."""
        there = {
            panel.run: phase in ("none", "over"),
            panel.pause: phase == "running",
            panel.resume: phase == "paused",
            panel.stop: phase in ("running", "paused"),
        }
        return {b: gr.update(visible=seen, interactive=True) for b, seen in there.items()}

    def go(lang: str, found: Found) -> Generator[dict, None, None]:
        """Begin or go on; ends when the search does, or when its job is told to stop."""
        mine = uuid4().hex
        found = replace(found, phase="running", job=mine)
        known, study, news = {each.number: each for each in found.candidates}, None, False
        minutes = found.spec.minutes
        clock, shown, drawn = Clock(minutes and 60 * minutes), 0.0, time.monotonic()

        def now(found: Found) -> Found:
            scores = ()
            if study is not None and found.spec.strategy == "tpe":
                scores = tuple(study.importance(i) for i in range(len(found.aim.objectives)))
            rows = tuple(known[number] for number in sorted(known))
            return replace(found, candidates=rows, importance=scores)

        yield {panel.found: found, panel.status: "", panel.progress: "", **buttons("running")}
        try:
            job = engine.search(found.key, found.asked, found.spec, found.storage)
            heard = job_runner.Told()
            with closing(job):
                for part in job:
                    heard(part)
                    if engine.stopped(mine) and isinstance(part, Progress):
                        break  # not between candidates: a batch that is measured is kept whole
                    update = {}
                    if isinstance(part, Opened):
                        study = part.study
                        found = replace(found, recipe=part.recipe, aim=part.aim, total=part.total)
                        update[panel.metric] = choices(lang, found)
                    elif isinstance(part, Candidate):
                        known[part.number], news = part, True
                    elif isinstance(part, Progress) and time.monotonic() - shown >= PACE:
                        shown = time.monotonic()
                        update[panel.progress] = clock.bar(lang, part)
                    if news and time.monotonic() - drawn >= DRAWN:
                        drawn, news, found = time.monotonic(), False, now(found)
                        update[panel.found] = found
                    if update:
                        yield update
        except Exception as error:
            found = replace(now(found), phase="paused" if known else "over")
            told = notice(message(error, lang), "bad")
            yield {panel.found: found, panel.status: told, panel.progress: "",
                   **buttons(found.phase)}  # fmt: skip
            return
        finally:
            engine.stop(mine + ENDED)
        paused = engine.stopped(mine) and not engine.stopped(mine + STOPPED)
        found = replace(now(found), phase="paused" if paused else "over")
        told = ended(lang, found, engine.stopped(mine))
        yield {panel.found: found, panel.status: told, panel.progress: "", **buttons(found.phase)}

    @guarded
    def run(*values):
        """A new search of the recipe in the controls."""
        draft, wanted = Draft.of(*values[:cut]), search_panel.spec(*values[cut:-1])
        lang, before = draft.language, values[-1]
        try:
            recipe = draft.recipe()
            aims(recipe, wanted)
            searched(recipe)
        except Exception as error:
            yield {panel.status: notice(message(error, lang), "bad")}
            return
        folder = before.folder
        if shared() and folder is None:
            folder = Path(tempfile.mkdtemp(prefix="search-", dir=disk.temporary()))
        found = Found(
            asked=recipe, spec=wanted, key=draft.loaded.key, recipe=recipe,
            layers=draft.loaded.layers, folder=folder,
        )  # fmt: skip
        yield {panel.picked: "", panel.told: ""}
        yield from go(lang, found)

    @guarded
    def resume(lang, found: Found):
        if found.phase == "paused":
            yield from go(lang, found)

    def leave(lang, found: Found, mark: str, phase: str, waiting: str) -> dict:
        """Tell the running job; where none runs any more, say how it stands."""
        ended_by_itself = engine.stopped(found.job + ENDED)
        if found.phase == "running" and not ended_by_itself:
            engine.stop(found.job + mark)
            engine.stop(found.job)
            return {
                panel.status: notice(say(lang, waiting)),
                panel.pause: gr.update(interactive=False),
                panel.stop: gr.update(interactive=phase == "paused"),
            }
        if found.phase not in ("running", "paused"):
            return {}
        found = replace(found, phase=phase)
        told = ended(lang, found, True)
        return {panel.found: found, panel.status: told, panel.progress: "", **buttons(phase)}

    @guarded
    def pause(lang, found: Found):
        return leave(lang, found, "", "paused", "search.pausing")

    @guarded
    def stop(lang, found: Found):
        return leave(lang, found, STOPPED, "over", "search.stopping")

    @guarded
    def look(lang, found: Found, picked, view, metric):
        """Everything that follows from what is found so far."""
        return draw(studio, lang, found, picked, view, metric)

    @guarded
    def pick(lang, event: gr.EventData, found, picked, view, metric):
        return {panel.picked: event.pick, **draw(studio, lang, found, event.pick, view, metric)}

    @guarded
    def hint(*values):
        """What the strategy does, and what it goes by."""
        draft, given = Draft.of(*values[:cut]), dict(zip(SETTINGS, values[cut:], strict=True))
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

    def settle(strategy):
        """Which settings the strategy has. Only a change of it touches them: an update takes what
        is said at a control away."""
        return search_panel.shown(panel, strategy)

    form = checker(engine, with_prompts=True)

    def check(*values):
        """A validator: a message appears at the setting that is wrong."""
        wrong = search_panel.problems(values[0] or "en", *values[cut:-1])
        mine = [gr.validate(n not in wrong, wrong.get(n, "")) for n in SETTINGS]
        return [*form(*values[:cut]), *mine, gr.validate(True, "")]

    state = [panel.status, panel.progress, panel.found, panel.run, panel.pause, panel.resume,
             panel.stop]  # fmt: skip
    every = [*state, panel.metric]
    panel.run.click(
        run, [*studio.draft, *settings, panel.found],
        [*every, panel.picked, panel.told], validator=check, **JOB,
    )  # fmt: skip
    panel.resume.click(resume, [session.language, panel.found], every, **JOB)
    panel.pause.click(pause, [session.language, panel.found], state, **PRIVATE)
    panel.stop.click(stop, [session.language, panel.found], state, **PRIVATE)
    seen = [session.language, panel.found, panel.picked, panel.view, panel.metric]
    drawn = outputs(studio)
    live = {**PRIVATE, "trigger_mode": "always_last", "concurrency_limit": None}
    for listen in (panel.found.change, panel.view.change, panel.metric.input, opened.success):
        listen(look, seen, drawn, **live)
    panel.table.click(pick, seen, [panel.picked, *drawn], **PRIVATE)
    told = [panel.settings[name].change for name in ("strategy", "objectives", "target")]
    for listen in (*told, studio.search_tab.select, opened.success):
        listen(hint, [*studio.draft, *settings], panel.hint, **live)
    strategy = panel.settings["strategy"]
    strategy.change(settle, strategy, settings, **live)


def outputs(studio) -> list:
    """The components that `draw` may write to."""
    panel = studio.search
    return [panel.plot, panel.table, panel.use, panel.keep, panel.check, panel.metric]


def draw(studio, language: str, found: Found, picked: str, view: str, metric: str) -> dict:
    """Figure and table, and whether there is something to use."""
    panel = studio.search
    names = found.aim.metrics if found.aim else ()
    metric = metric if metric in names else (names[0] if names else "")
    there = found.made(picked) is not None
    return {
        panel.plot: search_plots.figure(language, found, picked, view, metric),
        panel.table: search_table.render(language, found, picked),
        panel.use: gr.update(interactive=there),
        panel.check: gr.update(interactive=there),
        panel.keep: gr.update(interactive=bool(found.done)),
        panel.metric: gr.update(
            visible=bool(names) and view == "own" and found.spec.strategy in BY_METRIC
        ),
    }


def choices(language: str, found: Found):
    """The metrics that a figure may show."""
    names = [(title(language, n, find(n).title), n) for n in found.aim.metrics]
    return gr.update(choices=names, value=found.aim.metrics[0])


def ended(language: str, found: Found, early: bool) -> str:
    """How a search stands that does not run, in a line."""
    counts = {"done": len(found.candidates), "total": found.total}
    if found.phase == "paused":
        return notice(say(language, "search.paused", **counts))
    if early:
        return notice(say(language, "search.stopped", **counts))
    pick = found.pick("")
    if not pick:
        why = next((each.note for each in found.candidates if each.note), "") or found.bell[2]
        return notice(say(language, "search.over.none", why=why, **counts), "bad")
    best = search_table.named(language, found, pick)
    return notice(say(language, "search.over", best=best, **counts), "good")
