"""The search's wiring without a browser: from its settings to the figures, the form, the chat."""

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui.jobs.search.trials import Local
from sst_ui.maths import kernel
from sst_ui.paths import data_dir
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import search as search_events
from sst_ui.ui.events import search_choices
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.panels import search as search_panel
from sst_ui.ui.panels.search import SETTINGS
from sst_ui.ui.services import lasting_jobs, searches
from sst_ui.ui.services.roles import Actor, Role, acting
from sst_ui.ui.state.form import show
from sst_ui.ui.state.search_results import BELL, Found
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets import html
from sst_ui.ui.widgets.texts import LANGUAGES
from tests.patience import until
from tests.wiring.test_results import handler
from tests.wiring.test_wiring import with_strength

SMALL = {"strategy": "grid", "samples": 6, "tokens": 16, "trials": "10"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Studies of each test's own; every figure is sent, however fast the machine."""
    monkeypatch.setenv("SST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(searches, "DRAWN", 0.0)


@pytest.fixture
def held(monkeypatch):
    """Searches wait after their first five candidates, telling so, until the event is set."""
    gate, batch, begun = threading.Event(), Local.batch, []

    def waiting(self, recipes, evaluation):
        begun.append(len(recipes))
        while len(begun) > 1 and not gate.wait(0.05):
            yield Progress("refusal_rate", 0, 1, "held by the test")
        return (yield from batch(self, recipes, evaluation))

    monkeypatch.setattr(Local, "batch", waiting)
    yield gate
    gate.set()


@pytest.fixture
def measured(monkeypatch):
    """The recipes that were measured to the end, in order."""
    done, batch = [], Local.batch

    def counted(self, recipes, evaluation):
        found = yield from batch(self, recipes, evaluation)
        if "refusal_rate" not in evaluation.metrics:  # finalists are tested beside
            done.extend(recipe.digest() for recipe in recipes)
        return found

    monkeypatch.setattr(Local, "batch", counted)
    return done


def draft(engine, language="en", known=Variants(), **changes):  # noqa: B008
    form, extras = show(engine.first_recipe())
    form = form._replace(**{"metric_samples": 6, "metric_tokens": 16, **changes})
    return [language, engine.loaded, extras, None, known, "evidence", "budget", *form]


def settings(**changes):
    return list({**search_panel.SOUND, **SMALL, **changes}.values())


def begin(page, engine, found=None, language="en", **changes):
    values = [*draft(engine, language), *settings(**changes), found or Found()]
    return handler(page, search_events, "run")(*values)


def state(update):
    return next((v for v in update.values() if isinstance(v, Found)), None)


def said(update, name):
    return next((v for k, v in update.items() if getattr(k, "elem_id", None) == name), None)


def ended(job):
    """The last state of a job, and all that it sent."""
    updates = list(job)
    return [s for u in updates if (s := state(u))][-1], updates


def numbers(figure, kind):
    traces = [t for t in json.loads(figure.to_json())["data"] if t["type"] == kind]
    assert traces, kind
    return traces[0]


def test_a_small_grid_ends_with_its_map_its_scatter_and_its_table(page, engine, monkeypatch):
    monkeypatch.setattr(searches, "DRAWN", 1.0)
    told, place = [], searches.Bar.place
    monkeypatch.setattr(searches.Bar, "place", lambda bar, p: told.append(p) or place(bar, p))
    began = time.monotonic()
    found, updates = ended(begin(page, engine))
    shares = [p.overall for p in told if p.stage == "search"]
    assert shares == sorted(shares), "what is left is said of the whole search"
    assert any(0 < p.overall < 0.5 and not p.done for p in told if p.stage == "search")
    assert 0.5 < shares[-1] <= 1
    spent = time.monotonic() - began
    assert found.phase == "over"
    assert [(e.params["peak"], e.params["width"]) for e in found.candidates] == kernel.grid()[:10]
    bars = [b for u in updates if (b := said(u, "search-progress"))]
    assert any("progressbar" in bar for bar in bars)
    states = [u for u in updates if state(u)]
    assert len(states) <= 4 + spent, "figures are sent at most once a second"
    metric = found.aim.objectives[0]
    for language in LANGUAGES:
        look = handler(page, search_events, "look")
        shown = look(language, found, "", "own", metric)
        heat = said(shown, "search-plot")
        values = [v for row in numbers(heat, "heatmap")["z"] for v in row if v is not None]
        assert sorted(values) == sorted(each.value(metric) for each in found.candidates)
        table = said(shown, "search-table")
        assert table.count("data-pick") == 10
        assert f'data-pick="{found.best.number}"' in table.split("</tr>")[1]  # the first row
        drawn = {
            view: bool(said(look(language, found, "", view, metric), "search-plot").data)
            for view in search_panel.VIEWS
        }
        assert drawn == {"own": True, "front": True, "importance": False}  # a grid has none


def begun(page, engine):
    """A search with its first five candidates, its handler, and the ticket that the browser got."""
    job, ticket = begin(page, engine), None
    for update in job:
        tickets = [v for k, v in update.items() if isinstance(k, gr.BrowserState)]
        ticket = next(iter(tickets), ticket)
        found = state(update)
        if found is not None and len(found.candidates) == 5:
            return job, ticket, found
    raise AssertionError("there are no five candidates")


def test_a_running_search_is_shown_to_the_browser_that_comes_back(page, engine, measured, held):
    job, ticket, found = begun(page, engine)
    job.close()  # the page is reloaded, or closed
    attach = handler(page, search_events, "attach")
    back = attach("ja", ticket)
    seen = next(back)
    assert state(seen).job == found.job
    assert state(seen).candidates == found.candidates
    assert said(seen, "pause-search")["visible"] is True
    assert said(seen, "run-search")["visible"] == "hidden"
    assert "progressbar" in said(seen, "search-progress")
    held.set()
    *_, last = back
    assert [e.number for e in state(last).candidates] == list(range(10))
    assert state(last).phase == "over"
    assert said(last, "run-search")["visible"] is True
    assert len(measured) == len(set(measured)) == 10
    (again,) = attach("en", ticket)  # and to one that comes when it has ended, its result
    assert "Tried 10 of 10" in said(again, "search-status")
    for foreign in ("", None, 7, ticket[:-1], found.job):
        assert list(attach("en", foreign)) == []


def test_a_ticket_of_somebody_who_signed_in_is_good_for_nobody_else(page, engine):
    ann, bob = (Actor(Role.SIGNED_IN, name) for name in ("ann", "bob"))
    with acting(ann):
        ticket, search = engine.searches.begin("en", Found(key="another model"))
        assert engine.searches.find(ticket) is search
    with acting(bob):
        assert engine.searches.find(ticket) is None
    until(lambda: search.over)


def test_a_search_that_nobody_watches_for_long_pauses_and_can_go_on(
    page, engine, held, monkeypatch
):
    job, ticket, found = begun(page, engine)
    with monkeypatch.context() as patch:
        patch.setattr(lasting_jobs, "OWNER_AWAY", 0.0)
        job.close()
        until(lambda: engine.queue.sizes == (0, 0))  # though it was held in the middle of a batch
    (back,) = handler(page, search_events, "attach")("en", ticket)
    assert state(back).phase == "paused"
    assert state(back).candidates == found.candidates
    assert said(back, "resume-search")["visible"] is True


def test_a_paused_search_goes_on_and_measures_nothing_twice(page, engine, measured, held):
    job, _, found = begun(page, engine)
    told = handler(page, search_events, "pause")("en", found)
    assert "Pausing" in said(told, "search-status")
    paused, _ = ended(job)
    assert paused.phase == "paused"
    assert 0 < len(paused.candidates) < 10
    held.set()
    whole, _ = ended(handler(page, search_events, "resume")("en", paused))
    assert whole.phase == "over"
    assert whole.candidates[: len(paused.candidates)] == paused.candidates
    assert len(measured) == len(set(measured)) == len(whole.candidates) == 10


def test_a_stopped_search_is_found_again_by_the_same_settings(page, engine, measured, held):
    job, _, found = begun(page, engine)
    handler(page, search_events, "stop")("en", found)
    stopped, updates = ended(job)
    held.set()
    assert stopped.phase == "over"
    assert "kept" in said(updates[-1], "search-status")
    again, _ = ended(begin(page, engine))  # as after a reload: nothing is left of the state
    assert again.candidates[: len(stopped.candidates)] == stopped.candidates
    assert len(measured) == len(set(measured)) == 10
    ended(begin(page, engine))
    assert len(measured) == 10


def test_a_paused_search_may_be_ended(page, engine):
    paused = Found("paused", total=25)
    over = handler(page, search_events, "stop")("en", paused)
    assert state(over).phase == "over"
    assert handler(page, search_events, "pause")("en", state(over)) == gr.skip()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("constraints", "quality >= 0.5\nqualty >= 0.7", "did you mean 'quality'"),
        ("constraints", "quality > .7", "not a constraint"),
        ("objectives", ["refusal_rate@nowhere.jsonl"], "nowhere.jsonl"),
        ("target", "low", "type a number"),
        ("trials", "2.5", "whole number"),
        ("minutes", "-1", "above 0"),
        ("samples", -3, "1 or more"),
    ],
)
def test_a_broken_setting_is_said_at_its_control(folders, name, value, words):
    wrong = search_panel.problems("en", *settings(**{name: value}))
    assert wrong.keys() == {name}
    assert words in wrong[name]
    assert search_panel.problems("en", *settings()) == {}


@pytest.mark.parametrize(
    ("changes", "strategy", "words"),
    [
        ({"ablation_on": False}, "grid", "no edit to search"),
        ({"ablation_on": False, "merge_on": True}, "grid", "for ablations"),
        ({"peak": None}, "tpe", "peak"),
    ],
)
def test_what_cannot_be_searched_is_said_at_the_button(page, engine, changes, strategy, words):
    values = [*draft(engine, **changes), *settings(strategy=strategy), Found()]
    updates = list(handler(page, search_events, "run")(*values))
    assert words in said(updates[-1], "search-status")


def test_settings_that_a_strategy_does_not_have_change_nothing():
    values = dict(zip(SETTINGS, settings(seed=7, start="signal", prune=False), strict=True))
    assert search_panel.spec(*values.values()) == search_panel.spec(*settings())
    many = search_panel.spec(*{**values, "strategy": "tpe"}.values())
    assert (many.seed, many.start, many.prune) == (7, "signal", False)


def test_a_candidate_goes_into_the_controls(page, engine):
    found, _ = ended(begin(page, engine, trials="5"))
    third = found.candidates[2]
    update = handler(page, search_choices, "use")(*draft(engine), found, str(third.number))
    value = {getattr(k, "elem_id", None): v for k, v in update.items()}
    assert value["peak"].value == third.params["peak"]
    assert value["width"].value == third.params["width"]
    assert value["profile"] == "custom"
    assert "Apply" in value["search-told"]


def test_the_best_become_variants_to_chat_with_at_once(page, engine):
    found, _ = ended(begin(page, engine))
    known = Variants().add(engine.first_recipe())
    board = ({}, [], "", "all", "any", "")
    update = handler(page, search_choices, "keep")(*draft(engine, known=known), found, 3, *board)
    after = next(v for v in update.values() if isinstance(v, Variants))
    assert after.current == known.current
    added = [v for v in after.items if v not in known.items]
    values = {e.recipe.digest(): e.value(found.aim.objectives[0]) for e in found.done}
    assert len(added) == 3
    assert added[0].recipe.digest() == found.best.recipe.digest()
    enough = sum(value <= 0.02 for value in values.values())
    assert sum(values[v.recipe.digest()] <= 0.02 for v in added) == min(3, enough)
    for side in ("picker-left", "picker-right"):
        values = [value for _, value in said(update, side).choices]
        assert all(f"variant:{v.name}" in values for v in added)
    right = said(update, "picker-right").value
    recipe = chat_events.recipe_of(right, after)
    assert recipe.digest() == found.best.recipe.digest()
    asked = [[{"role": "user", "content": "Hello"}]]
    assert list(engine.chat(engine.loaded.key, [recipe], asked, 4, 0.0))[-1][0]
    again = Variants.restored(after.saved(), "demo")
    assert [v.name for v in again.items] == [v.name for v in after.items]


def test_a_scan_of_the_layers_ends_in_a_bell_to_use(page, engine):
    found, _ = ended(begin(page, engine, strategy="sensitivity", samples=8, trials=""))
    made, effects, _ = found.bell
    assert len(found.candidates) == len(effects) == engine.loaded.layers
    assert found.pick("") == BELL
    shown = handler(page, search_events, "look")("en", found, "", "own", found.aim.objectives[0])
    bars = numbers(said(shown, "search-plot"), "bar")
    assert dict(zip(bars["x"], bars["y"], strict=True)) == pytest.approx(dict(enumerate(effects)))
    update = handler(page, search_choices, "use")(*draft(engine), found, "")
    assert said(update, "peak").value == made.edits[0].weights.peak


def test_many_settings_at_once_show_their_importance(page, engine):
    found, _ = ended(begin(page, engine, strategy="tpe", trials="10", samples=4))
    look = handler(page, search_events, "look")
    axes = numbers(said(look("en", found, "", "own", ""), "search-plot"), "parcoords")
    metrics = {*found.aim.objectives, found.aim.decides}
    assert len(axes["dimensions"]) == len(found.candidates[0].params) + len(metrics)
    assert found.own is found.candidates[0]
    bars = numbers(said(look("en", found, "", "importance", ""), "search-plot"), "bar")
    assert sum(bars["x"]) == pytest.approx(1, abs=0.01)


def test_the_picked_one_is_measured_on_prompts_that_no_candidate_saw(page, engine):
    found, _ = ended(begin(page, engine, trials="5"))
    check = handler(page, search_choices, "check")
    assert check.__module__ == search_choices.__name__
    picked = found.done[0]
    window = SimpleNamespace(session_hash="w")
    updates = list(check("en", window, engine.loaded, found, str(picked.number)))
    told = said(updates[-1], "search-told")
    alone = Evaluation(("refusal_rate",), samples=6, max_new_tokens=16)
    job = engine.evaluate(engine.loaded.key, picked.recipe, alone)
    (result,) = finish(job)
    assert result.prompts == "demo/harmful_heldout"
    for value in (result.base, result.edited):
        assert f"{value.value * 100:.1f} %" in told
    assert "(n 6)" in told


def test_on_a_space_a_window_searches_on_its_own_and_leaves_nothing(page, engine, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    found, updates = ended(begin(page, engine, trials="5"))
    kept = [v for u in updates for k, v in u.items() if isinstance(k, gr.BrowserState)]
    assert found.folder.is_dir()
    other, _ = ended(begin(page, engine, trials="5"))
    assert other.folder != found.folder
    assert not list(data_dir().glob("searches*"))
    engine.searches.forget(kept[0])
    assert not found.folder.exists()
    assert other.folder.is_dir()


def test_the_remaining_time_goes_by_the_rate_of_this_job(monkeypatch):
    now = SimpleNamespace(monotonic=lambda: now.time, time=100.0)
    monkeypatch.setattr(html, "time", now)
    clock = html.Clock()
    clock.bar("en", Progress("search", 20, 40))  # half of it was done by an earlier call
    now.time += 10
    assert "about 30 s" in clock.bar("en", Progress("search", 25, 40))
    now.time += 4  # nothing finished since
    assert "about 26 s" in clock.bar("en", Progress("search", 25, 40))
    limited = html.Clock(limit=20)
    limited.bar("en", Progress("search", 0, 40))
    now.time += 10
    assert "about 10 s" in limited.bar("en", Progress("search", 5, 40))


def test_another_recipe_in_the_controls_is_another_search(page, engine, measured):
    first, _ = ended(begin(page, engine, trials="5"))
    form, extras = show(with_strength(engine.first_recipe(), 0.4))
    given = ["en", engine.loaded, extras, None, Variants(), "evidence", "budget", *form]
    assert Draft.of(*given).recipe().edits[0].weights.strength == 0.4
    values = [*given, *settings(trials="5"), first]
    second, _ = ended(handler(page, search_events, "run")(*values))
    assert len(measured) == 10
    assert {e.recipe.edits[0].weights.strength for e in second.candidates} == {0.4}
    resumed = replace(first, phase="paused")  # goes on with what it was, whatever the form says
    again, _ = ended(handler(page, search_events, "resume")("en", resumed))
    assert [e.number for e in again.candidates] == [e.number for e in first.candidates]
    assert len(measured) == 10
