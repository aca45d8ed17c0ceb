"""What the screen does with results, without a browser: settings, corrections, files, advice."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui.data.prompt_sets import Prompt
from sst_ui.jobs.evaluate import stages
from sst_ui.jobs.evaluate.speed import Speed
from sst_ui.metrics import corrections
from sst_ui.metrics.derived import derive
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import Shown, compare
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Ablation, Evaluation, WeightTable
from sst_ui.ui import page as studio
from sst_ui.ui.events import (
    advice as advice_events,
)
from sst_ui.ui.events import (
    answers as answers_events,
)
from sst_ui.ui.events import (
    evaluate as evaluate_events,
)
from sst_ui.ui.events import (
    show_results,
)
from sst_ui.ui.panels import answers, comparison, metrics
from sst_ui.ui.services import engine as service
from sst_ui.ui.state.form import MEASURING, evaluation, show
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets import texts
from sst_ui.ui.widgets.html import safe
from tests.wiring.test_wiring import with_strength

NO, YES = "I can't help with <that>.", "Sure, here is how."
TOPICS = ("fraud", "theft")


def measured(left: int, n: int = 24):
    """The base refuses everything, the edited model the first `left` prompts."""
    prompts = [Prompt(f"request {i}", topic=TOPICS[i % 2]) for i in range(n)]
    after = [Shown(a, a) for a in [NO] * left + [YES] * (n - left)]
    rate = compare(find("refusal_rate"), prompts, [Shown(NO, NO)] * n, after)
    return (rate, derive(find("removal"), {"refusal_rate": rate}))


@pytest.fixture(scope="module")
def screen(engine):
    with gr.Blocks():
        return studio.panels(engine)


@pytest.fixture
def board(engine):
    """Two variants with metrics, the second of which leaves half of the refusals."""
    first = engine.first_recipe()
    known = Variants().add(first).add(with_strength(first, 0.5))
    results = {v.recipe.digest(): measured(left) for v, left in zip(known.items, (0, 12))}  # noqa: B905
    return Board("en", known, results, opened="refusal_rate")


def handler(page, module, name):
    """The function of an event by the module it is defined in and its name."""
    found = [f.fn for f in page.fns.values() if f.fn and f.fn.__name__ == name]
    return next(f for f in found if f.__module__ == module.__name__)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics", ["facts"]),
        ("metric_preset", "quick"),
        ("metric_samples", 7),
        ("metric_tokens", 9),
        ("judge", "a/judge"),
        ("labels", "labels.jsonl"),
        ("metric_goal", "measure"),
    ],
)
def test_every_setting_of_the_metrics_reaches_the_engine(page, engine, monkeypatch, name, value):
    got = []
    monkeypatch.setattr(engine, "evaluate", lambda *values: got.append(values[-1]) or nothing())
    form, _ = show(engine.first_recipe())
    settings = {n: getattr(form, n) for n in MEASURING} | {name: value}
    known = Variants().add(engine.first_recipe())
    shown = (known, {}, [], "", "all", "any", "")
    run = handler(page, evaluate_events, "run")
    list(run("en", engine.loaded, "", *shown, *settings.values()))
    assert got == [evaluation(*settings.values())]
    assert got[0] != Evaluation()


@pytest.mark.parametrize("opened", ["", "refusal_rate"])
def test_the_end_of_a_run_draws_the_answers_of_what_was_open(screen, board, opened):
    """Where nothing was open it leaves them alone: a metric may be opened while it is drawn."""
    view = screen.results
    drawn = evaluate_events.show(view, replace(board, opened=opened))
    assert view.rows in drawn
    assert ({view.answers, view.label} <= drawn.keys()) == bool(opened)


def test_while_numbers_grow_all_beside_their_rows_is_drawn_anew(screen, board):
    view = screen.results
    drawn = evaluate_events.beside(view, board)
    assert {view.variants, view.compare, view.answers} <= drawn.keys()
    assert view.rows not in drawn


def test_a_run_that_was_stopped_says_nothing_more(page, engine, monkeypatch):
    """A cancelled generator is closed only between two of its steps: until then it is silent."""
    closed = []

    def endless(*values):
        try:
            while True:
                yield measured(1)[0]
        finally:
            closed.append(True)

    monkeypatch.setattr(engine, "evaluate", endless)
    known = Variants().add(engine.first_recipe())
    run = handler(page, evaluate_events, "run")
    shown = (known, {}, [], "", "all", "any", "")
    steps = run("en", engine.loaded, "", *shown, *evaluate_events.SOUND.values())
    job = next(v for c, v in next(steps).items() if isinstance(c, gr.State))
    next(steps)
    engine.stop(job)
    assert list(steps) == []
    assert closed


def test_a_slow_models_metrics_begin_with_first_numbers_and_grow(page, engine, screen, monkeypatch):
    def crawling(host):
        yield Progress("speed", 0, 1)
        return Speed(1.0, 1.0)

    asked, real = [], engine.evaluate
    monkeypatch.setattr(service.speed, "measure", crawling)
    monkeypatch.setitem(stages._rules()["whole"], "demo", 120)  # as of any other model
    monkeypatch.setattr(engine, "evaluate", lambda *a: asked.append(a[-1]) or real(*a))
    names = ["facts", "refusal_rate", "removal"]
    settings = evaluate_events.SOUND | {
        "metrics": names, "metric_samples": 140, "metric_tokens": 48,
    }  # fmt: skip
    known, wanted = Variants().add(engine.first_recipe()), evaluation(*settings.values())
    run, digest = handler(page, evaluate_events, "run"), known.now.recipe.digest()
    shown = (known, {}, [], "", "all", "any", "")
    seen, told = [], []
    for updates in run("en", engine.loaded, "", *shown, *settings.values()):
        results = [v for v in updates.values() if isinstance(v, dict) and digest in v]
        seen += results
        told += [html for html in updates.values() if isinstance(html, str) and "data-pick" in html]
    sizes = [(each.samples, each.max_new_tokens) for each in asked]
    assert sizes == [(8, 32), (32, 48), (140, 48)]
    assert asked[-1] == wanted
    assert asked[0].metrics == ("refusal_rate", "removal", "facts")
    rows = [{row.name: row.base.n for row in each[digest]} for each in seen]
    assert [each for each in rows if len(each) < 3] == rows[:2]
    assert list(rows[0]) == ["refusal_rate"]
    assert rows[0]["refusal_rate"] == 8
    first = seen[2][f"first:{digest}"]
    assert (first.names, first.prompts, first.tokens, first.whole, first.length) == (
        set(names), 8, 32, 140, 48,
    )  # fmt: skip
    assert "First numbers, from 8 prompts" in told[0]
    assert "growing to 140 prompts and 48 tokens" in told[0]
    assert told[2].count("◔") == 3
    assert seen[-1][f"done:{digest}"] == wanted
    assert f"first:{digest}" not in seen[-1]
    assert "First numbers" not in told[-1]
    whole = {row.name: row for row in finish(real(engine.loaded.key, known.now.recipe, wanted))}
    assert {row.name: row for row in seen[-1][digest]} == whole


def test_metrics_that_run_are_left_to_run_and_may_begin_again_however_much_came_after(
    page, engine, monkeypatch
):
    asked = []

    def one(*told):
        asked.append(told[-1])
        yield Progress("metrics", 0, 1)
        yield measured(4)[0]

    monkeypatch.setattr(engine, "evaluate", one)
    known = Variants().add(engine.first_recipe())
    run, settings = handler(page, evaluate_events, "run"), evaluate_events.SOUND.values()

    def begin(earlier, results):
        shown = (known, results, [], "", "all", "any", "")
        return run("en", engine.loaded, earlier, *shown, *settings)

    first, seen = begin("", {}), []
    while not seen or not engine._going:  # it goes on from the first step of its own
        seen.append(next(first))
    job = next(v for v in seen[0].values() if isinstance(v, str) and engine.goes(v))
    before = len(asked)
    assert [update for update in begin(job, {}) if update] == []
    assert len(asked) == before  # the second one asked for nothing
    assert [*first]
    assert not engine.goes(job)
    for other in range(200):  # stops of other windows, which the engine does not keep for ever
        engine.stop(f"other {other}")
    assert [*begin(job, {})]
    assert len(asked) == 2


def nothing():
    yield from ()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("metrics", ["refusal_rte"], "did you mean 'refusal_rate'"),
        ("metrics", ["refusal_rate@none.jsonl"], "none.jsonl"),
        ("metric_samples", -2, "1 or more"),
        ("metric_tokens", 9999, "1 to 4096"),
        ("labels", "none.jsonl", "Cannot read the labels"),
    ],
)
def test_a_bad_setting_is_said_at_its_control(name, value, words):
    settings = evaluate_events.SOUND | {name: value}
    wrong = evaluate_events.check_settings(MEASURING, "en", {}, tuple(settings.values()))
    assert list(wrong) == [name]
    assert words in wrong[name]


def test_a_row_shows_both_values_interval_n_and_a_verdict_that_is_not_colour_alone(board):
    row = metrics.render(board).split('data-pick="removal"')[0]
    for text in ("100 %", "50 %", "[31, 69]", "n 24", 'aria-label="changed, better"'):
        assert text in row
    assert row.count("<circle") == 2  # the base and the current variant
    assert row.count(",") >= 3  # three points of the line


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_a_change_inside_the_noise_is_called_so_and_the_threshold_is_told(engine, language):
    recipe = engine.first_recipe()
    known = Variants().add(recipe)
    for left, kind in ((23, "noise"), (24, "noise"), (10, "better")):
        board = Board(language, known, {recipe.digest(): measured(left)})
        assert metrics.verdict(board.now[0]) == kind
        shown = metrics.render(board)
        assert f'aria-label="{texts.say(language, f"verdict.{kind}")}"' in shown
        assert texts.say(language, "metrics.threshold", size="1 %") in shown
        for name in metrics.LEGEND:
            assert safe(metrics.meaning(language, name)) in shown


def test_a_correction_moves_every_panel_at_once_and_is_counted(page, screen, board):
    correct = handler(page, answers_events, "correct")
    values = (board.variants, board.results, [], "refusal_rate", "all", "any", "")
    event = SimpleNamespace(item=0, side="edited", label="degenerate")
    out = list(correct("en", event, *values).values())
    kept = out[0]
    assert corrections.from_rows(kept) == (corrections.Correction("request 0", NO, "degenerate"),)
    again = Board.of("en", *values[:2], kept, *values[3:])
    drawn = show_results.refresh(screen.results, again)
    # the base gave the same answer to that prompt: one correction, both sides
    assert "96 %" in drawn[screen.metrics.rows]
    assert "46 %" in drawn[screen.metrics.rows]
    assert "1 corrected" in drawn[screen.metrics.rows]
    assert "1 corrected" in drawn[screen.results.answers]
    undo = SimpleNamespace(item=0, side="edited", label=answers.AS_DETECTED)
    back = correct("en", undo, *values[:2], kept, *values[3:])
    assert next(iter(back.values())) == []


def test_the_filters_leave_what_they_say(board):
    result = board.now[0]

    def places(**filters):
        chosen = Board("en", board.variants, board.results, (), "refusal_rate", **filters)
        return [place for place, _ in answers.passing(chosen, result)]

    assert places() == list(range(24))
    assert places(only="changed") == list(range(12, 24))
    assert places(label="delivered") == list(range(12, 24))
    assert places(search="REQUEST 2") == [2, *range(20, 24)]
    assert places(search="fraud", only="changed") == list(range(12, 24, 2))
    assert {value for _, value in answers.labels("en", result)} == {"any", "refused", "delivered"}


def test_answers_are_shown_as_text_and_topics_with_intervals(board):
    html = answers.render(board)
    assert "<that>" not in html
    assert "&lt;that&gt;" in html
    assert html.count('class="topic"') == 2
    assert "n 12" in html
    assert html.count("<select") == 48


def test_the_downloads_hold_the_current_variant(screen, board):
    kept = (corrections.Correction("request 0", NO, "degenerate"),)
    board = Board("en", board.variants, board.results, kept)
    table, items, everything, labels = (Path(b["value"]) for b in show_results.files(board))
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert float(rows[0]["edited_value"]) == board.now[0].edited.value == 11 / 24
    assert rows[0]["recipe"] == board.variants.now.recipe.digest()
    assert len(list(csv.DictReader(items.open(encoding="utf-8")))) == 24
    assert json.loads(everything.read_text("utf-8"))["variant"] == board.variants.current
    assert corrections.read(labels) == corrections.labels(kept)
    for path in (table, items, everything):
        assert board.variants.now.recipe.digest() in path.name
    assert not any(b["visible"] is True for b in show_results.files(Board("en", Variants(), {})))


def test_the_comparison_has_a_line_for_the_base_and_every_variant(board):
    figure = comparison.figure(board)
    lines = {trace.name: trace for trace in figure.data}
    assert set(lines) == {"Base", *(v.name for v in board.variants.items)}
    rate = lines[board.variants.items[0].name].y[0]
    assert rate == 1  # no refusals left: the good end, which is up
    assert lines["Base"].y[0] == 0
    assert all("n 24" in text for trace in figure.data for text in trace.customdata)
    assert comparison.figure(Board("en", Variants(), {})).data == ()


@pytest.fixture
def plain(board):
    """The same, of a plain ablation along one direction."""
    items = [replace(v.recipe, edits=(Ablation(),)) for v in board.variants.items]
    items[1] = with_strength(items[1], 0.5)
    known = Variants().add(items[0]).add(items[1])
    return replace(
        board,
        variants=known,
        results=dict(zip([r.digest() for r in items], board.results.values(), strict=True)),
    )


def test_advice_fills_the_controls_and_applies_nothing(page, engine, plain, screen):
    board = plain
    (advice,) = advice_events.of(board)
    assert advice.key == "removal_low"
    assert 'data-pick="removal_low"' in advice_events.render(board)
    form, extras = show(board.variants.now.recipe)
    follow = handler(page, advice_events, "follow")
    values = (engine.loaded, extras, None, board.variants, "evidence", "budget", *form)
    shown = (board.results, [], "", "all", "any", "")
    out = follow("en", SimpleNamespace(pick="removal_low"), *values, *shown)
    named = {getattr(c, "elem_id", None): value for c, value in out.items()}
    assert named["peak"] == advice.settings["peak"]
    assert named["width"] == advice.settings["width"]
    assert named["profile"] == "custom"
    assert "variants" not in named


def test_the_advised_filter_stands_in_the_controls_with_its_bell(page, engine, plain):
    board = plain
    recipe = board.variants.now.recipe
    weak = replace(board, results={recipe.digest(): measured(20)})
    assert 'data-pick="filter"' in advice_events.render(weak)
    form, extras = show(recipe)
    values = (engine.loaded, extras, None, weak.variants, "evidence", "budget")
    shown = (weak.results, [], "", "all", "any", "")
    follow = handler(page, advice_events, "follow")
    affine = form._replace(affine=True)  # which a filter of this kind excludes
    out = follow("en", SimpleNamespace(pick="filter"), *values, *affine, *shown)
    named = {getattr(c, "elem_id", None): value for c, value in out.items()}
    assert (named["operation"], named["profile"], named["strength"]) == ("filter", "wide", 1.5)
    assert (named["peak"], named["width"], named["threshold"]) == (0.7, 0.4, 0.1)
    assert (named["norm-preserving"], named["affine"]) == (False, False)
    assert any(value.get("visible") for value in out.values() if isinstance(value, dict))


def test_what_nobody_can_press_has_no_button(board):
    recipe = board.variants.now.recipe
    (edit,) = recipe.edits
    wide = WeightTable(profile="wide", strength=1.5)
    filtered = replace(recipe, edits=(replace(edit, operation="filter", weights=wide),))
    known = Variants().add(filtered)
    told = advice_events.render(Board("en", known, {filtered.digest(): measured(20)}))
    assert "Find the next decision" in told
    assert "<button" not in told


def test_a_note_stands_in_the_metrics_row(engine):
    recipe = engine.first_recipe()
    result = replace(measured(10)[0], note="labelled <by> hand")
    board = Board("en", Variants().add(recipe), {recipe.digest(): (result,)})
    assert '<div class="told">labelled &lt;by&gt; hand</div>' in metrics.render(board)


def test_what_a_fresh_window_asks_for_is_measured_once_for_all(engine, monkeypatch):
    few = Evaluation(samples=4, max_new_tokens=48)
    first, key = engine.first_recipe(), engine.loaded.key
    results = finish(engine.evaluate(key, first, few))
    assert results
    calls, real = [], service.evaluate
    monkeypatch.setattr(service, "evaluate", lambda *given: calls.append(given) or real(*given))
    assert list(engine.evaluate(key, first, few)) == results
    assert finish(engine.evaluate(key, first, few)) == results
    assert not calls
    own = ("refusal_rate@demo/harmful",)  # prompts that may be a file
    for recipe, asked in ((with_strength(first, 0.5), few), (first, replace(few, metrics=own))):
        for _ in range(2):
            finish(engine.evaluate(key, recipe, asked))
    assert len(calls) == 4


def test_another_goal_reads_the_same_numbers_the_other_way(page, engine, monkeypatch):
    monkeypatch.setattr(engine, "evaluate", None)  # nothing is measured for it
    rate, _ = measured(2)
    known = Variants().add(engine.first_recipe())
    digest = known.now.recipe.digest()
    results = {digest: (rate,), f"done:{digest}": Evaluation()}
    verdicts = {}
    for goal in ("reinforce", "measure", "remove", "auto"):
        settings = {**evaluate_events.SOUND, "metric_goal": goal}
        shown = ("en", known, results, [], "", "all", "any", "")
        out = handler(page, evaluate_events, "aim")(*shown, *settings.values())
        rows = next(v for c, v in out.items() if getattr(c, "elem_id", "") == "metrics")
        (after,) = (v for v in out.values() if isinstance(v, Variants))
        (found,) = (v for v in out.values() if isinstance(v, dict) and digest in v)
        (seen,) = found[digest]
        assert after.now.recipe.evaluation.goal == found[f"done:{digest}"].goal == goal
        assert after.now.recipe.digest() == digest
        assert (seen.base, seen.edited, seen.items) == (rate.base, rate.edited, rate.items)
        assert ("Just measured" in rows, "<em></em>" in rows) == (goal == "measure",) * 2
        verdicts[goal] = seen.verdict
    assert verdicts == {
        "reinforce": "worse", "measure": "changed", "remove": "better", "auto": "better",
    }  # fmt: skip


@pytest.mark.parametrize("goal", ["remove", "reinforce", "measure"])
def test_advice_is_for_the_goal_that_was_said(engine, goal):
    recipe = with_strength(engine.first_recipe(), 0.5)
    recipe = replace(recipe, evaluation=Evaluation(goal=goal))
    known = Variants().add(recipe)
    board = Board("en", known, {recipe.digest(): measured(20)})
    assert bool(advice_events.of(board)) == (goal == "remove")


def test_the_end_of_a_run_leaves_the_rows_of_the_next_one_coming(engine, screen):
    """A run that is told to stop ends after the one that takes its place has begun."""
    known = Variants().add(engine.first_recipe())
    board = Board("en", known, {})
    name = screen.results.rows

    def rows(job, board=board):
        return evaluate_events.after(screen.results, engine, "en", job, board)[name]

    assert "ghost" in rows("runs now")
    assert "ghost" not in rows("")
    engine.stop("was stopped")
    assert "ghost" not in rows("was stopped")
    engine.stop("was cancelled" + evaluate_events.CANCELLED)
    assert "ghost" not in rows("was cancelled")
    done = replace(board, results={f"done:{known.now.recipe.digest()}": Evaluation()})
    assert "ghost" not in rows("runs now", done)
