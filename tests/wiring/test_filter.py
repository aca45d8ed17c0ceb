"""The filter's wiring without a browser: from its controls to the curve and the applied edit."""

from dataclasses import replace

import gradio as gr
import numpy as np
import pytest

from sst_ui.jobs.directions.filtering import filters
from sst_ui.jobs.directions.measure import measure
from sst_ui.model.hooks.live_edits import RowFilter
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Filter, Merge, Recipe, WeightTable
from sst_ui.ui import page as studio
from sst_ui.ui.events import draw_draft
from sst_ui.ui.events import filter as filter_events
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.state.form import show
from sst_ui.ui.state.window import Variants, title
from sst_ui.ui.widgets.texts import LANGUAGES

SPEC = DirectionSpec(samples=24)
EDIT = Ablation(SPEC, operation="filter", filter=Filter(answers=0))


@pytest.fixture(scope="module")
def screen(engine):
    with gr.Blocks():
        return studio.panels(engine)


@pytest.fixture(scope="module")
def measured(engine):
    finish(engine.measure_edit(engine.loaded.key, (), EDIT))


@pytest.fixture
def passes(engine):
    """A list that grows by one with every forward pass of the model."""
    counted = []
    decoder = engine.host(engine.loaded.key).architecture.decoder
    handle = decoder.register_forward_pre_hook(lambda *_: counted.append(1))
    yield counted
    handle.remove()


def draft(engine, edit, language="en") -> Draft:
    form, extras = show(Recipe(edits=(edit,)))
    return Draft(language, engine.loaded, extras, Variants(), "evidence", form)


def drawn(screen, engine, now):
    """The predicted lines by name, and the readout."""
    updates = draw_draft.draw(screen.editor.drawing, engine, now)
    predicted = updates[screen.figures.curve]["predicted"]
    lines = {line["name"]: np.array(line["values"], dtype=float) for line in predicted}
    return lines, updates[screen.left.weights.filter.readout]["value"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_curve_shows_what_the_filter_is_predicted_to_do(screen, engine, measured, language):
    lines, words = drawn(screen, engine, draft(engine, EDIT, language))
    host = engine.host(engine.loaded.key)
    told = finish(filters(host, EDIT, finish(measure(host, SPEC)))).forecast(EDIT)
    removed, moved = lines.values()
    assert np.allclose(removed, told.removed, equal_nan=True)
    assert np.allclose(moved, told.moved, equal_nan=True)
    assert f"{told.total_removed:.1%}" in words
    assert f"{told.total_moved:.2%}" in words
    plain, words = drawn(screen, engine, draft(engine, replace(EDIT, operation="ablate"), language))
    assert plain == {}
    assert words == ""


def test_before_it_is_measured_the_readout_says_what_to_press(screen, engine):
    other = replace(EDIT, directions=replace(SPEC, samples=25))
    lines, words = drawn(screen, engine, draft(engine, other))
    assert "Measure" in words
    assert lines == {}


def test_the_budget_slider_asks_no_model_and_keeps_its_promise(screen, engine, measured, passes):
    within = replace(EDIT, filter=replace(EDIT.filter, budget=0.5))
    now = draft(engine, within)
    last = 1.0
    for place in (-1.0, -2.0, -3.0):
        updates = filter_events.slide(screen.editor, "filter_budget", engine, now, place)
        number = updates[screen.editor.controls.form.filter_budget]
        assert number == pytest.approx(10**place)
        edit = replace(EDIT, filter=replace(EDIT.filter, budget=number))
        told = engine.forecast(engine.loaded.key, (), edit)
        assert told.total_moved <= number
        assert told.total_removed < last
        last = told.total_removed
        assert f"{told.total_moved:.2%}" in updates[screen.left.weights.filter.readout]["value"]
    assert not passes


def test_a_kl_budget_is_predicted_from_the_last_one_that_was_measured(
    screen, engine, measured, passes
):
    def at(kl):
        return replace(EDIT, filter=replace(EDIT.filter, kl=kl))

    finish(engine.resolve(engine.loaded.key, Recipe(edits=(at(1e-4),))))
    passes.clear()
    first = engine.forecast(engine.loaded.key, (), at(1e-4))
    words = drawn(screen, engine, draft(engine, at(1e-4)))[1]
    assert f"{first.total_moved:.2%}" in words
    less = engine.forecast(engine.loaded.key, (), at(2e-5))
    assert less.mu > first.mu
    assert less.total_moved < first.total_moved
    assert not passes


def test_weights_move_the_prediction_and_negative_ones_turn_it(screen, engine, measured, passes):
    strong = replace(EDIT, weights=WeightTable(strength=0.5))
    less = drawn(screen, engine, draft(engine, strong))
    assert less[1] != drawn(screen, engine, draft(engine, EDIT))[1]
    back = replace(EDIT, weights=WeightTable(strength=-1.0))
    assert "add" in drawn(screen, engine, draft(engine, back))[1]
    assert engine.forecast(engine.loaded.key, (), back).total_removed < 0
    assert not passes


def test_what_is_applied_is_what_was_predicted(engine, measured):
    recipe = Recipe(model=engine.loaded.spec, edits=(EDIT,))
    (row,) = finish(engine.resolve(engine.loaded.key, recipe))
    told = engine.forecast(engine.loaded.key, (), EDIT)
    assert isinstance(row, RowFilter)
    assert (row.mu, row.removed, row.moved) == (told.mu, told.total_removed, told.total_moved)
    assert engine.check(engine.loaded.key, (row,)).max_error < 0.02
    assert "filter μ 1" in title(recipe)


def test_only_a_filter_shows_its_controls_and_only_those_that_count(screen):
    panel = screen.left.weights.filter
    for operation, goal, there in (
        ("filter", "price", {"goal", "mu"}),
        ("filter", "budget", {"goal", "budget"}),
        ("ablate", "price", set()),
        ("add", "budget", set()),
    ):
        seen = studio.weights.shown(panel, operation, goal)
        assert {name for name, row in panel.rows.items() if seen[row]["visible"]} == there


def test_a_filter_behind_a_merge_is_another_filter(engine, measured):
    """It is solved on the merged model: what was measured on the base does not count for it."""
    merge = Merge("a", "b")
    assert engine.forecast(engine.loaded.key, (), EDIT) is not None
    assert engine.forecast(engine.loaded.key, (merge,), EDIT) is None


def test_a_budget_that_nothing_keeps_is_said_beside_the_slider(screen, engine, measured):
    impossible = replace(EDIT, filter=replace(EDIT.filter, budget=1e-30))
    lines, words = drawn(screen, engine, draft(engine, impossible))
    assert "give a larger one" in words
    assert lines == {}
