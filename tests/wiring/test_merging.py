"""The merge's wiring without a browser: from the controls to the point, the chat and the table."""

from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui import recipe as recipes
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.merge.merge import combine
from sst_ui.maths.merge import subspace
from sst_ui.maths.merge.registry import METHODS
from sst_ui.paths import DEMO
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Ablation, Evaluation, Merge, Recipe, WeightTable
from sst_ui.ui import page as studio
from sst_ui.ui.events import apply as apply_events
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import draw_merge, edit, merge_methods
from sst_ui.ui.events.draw_draft import Draft, draw
from sst_ui.ui.panels import merge_plots
from sst_ui.ui.panels.chat import EDITED, MERGED, UTILITY
from sst_ui.ui.services import merge_forecasts
from sst_ui.ui.services.merge_forecasts import Line
from sst_ui.ui.state.form import Extras, show
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.texts import LANGUAGES
from tests.wiring.test_results import handler

UTILITY_ADAPTER, SAFETY_ADAPTER = (str(DEMO / "adapters" / n) for n in ("utility", "safety"))
ASKED = [{"role": "user", "content": prompt_sets.load("demo/jailbreak").prompts[0].user}]


@pytest.fixture(scope="module")
def merge() -> Merge:
    return Merge(UTILITY_ADAPTER, SAFETY_ADAPTER, budget=5e-4, samples=4)


@pytest.fixture(scope="module")
def pair(engine, merge):
    return finish(engine.merges.prepare(engine.loaded.key, merge))


@pytest.fixture(scope="module")
def screen(engine):
    with gr.Blocks():
        return studio.panels(engine)


def ident(component):
    return getattr(component, "elem_id", None)


def draft(engine, *edits, view="budget") -> Draft:
    form, extras = show(Recipe(edits=edits))
    return Draft("en", engine.loaded, extras, Variants(), "evidence", form, view)


def drawn(screen, engine, now: Draft) -> dict:
    return draw_merge.draw(screen.left.merge, screen.figures.merge, engine, now, now.recipe())


def test_a_forecast_is_what_the_merge_then_records(engine, merge, pair):
    host, key = engine.host(engine.loaded.key), engine.loaded.key
    names = ("sst", "sst_topk", "sst_residual", "sst_layerwise", "sst_ranks", "sst_staged",
             "sst_adaptive", "sst_combined", "linear")  # fmt: skip
    for name in names:
        spec = replace(merge, method=name, budget=None, weights=WeightTable(width=0.2))
        own = finish(engine.merges.prepare(key, spec))
        assert (own is pair) == (own.stakes is None)  # others need no statistics of their own
        found = engine.merges.forecast(key, spec)
        outcome = combine(host, own, spec)
        records = outcome.records.values()
        assert found.chosen.cost == pytest.approx(sum(r.kl for r in records), rel=1e-6), name
        assert found.parameters == outcome.parameters


def test_the_curve_over_the_price_is_that_of_the_method(engine, merge, pair):
    key = engine.loaded.key
    for name, bend in (("sst_ranks", subspace.above), ("sst", subspace.soft)):
        found = engine.merges.forecast(key, replace(merge, method=name))
        every = engine.merges.spectra(key, merge)
        expected = [subspace.total(every, bend(mu)) for mu in found.curve.mus[20:23]]
        curve = zip(found.curve.kl, found.curve.residual, found.curve.kept, strict=True)
        assert list(curve)[20:23] == [pytest.approx(point) for point in expected]


def test_the_budget_is_kept_and_the_curve_is_that_of_the_maths(engine, merge, pair):
    found = engine.merges.forecast(engine.loaded.key, merge)
    exact = combine(engine.host(engine.loaded.key), pair, merge).parameters["mu"]
    assert found.chosen.cost <= merge.budget
    assert found.parameters["mu"] == pytest.approx(exact, rel=5e-3)
    spectra = engine.merges.spectra(engine.loaded.key, merge)
    mus = found.curve.mus[20:23]
    expected = [subspace.total(spectra, subspace.soft(mu)) for mu in mus]
    curve = zip(found.curve.kl, found.curve.residual, found.curve.kept, strict=True)
    assert list(curve)[20:23] == [pytest.approx(point) for point in expected]


def test_moving_the_budget_moves_the_point_without_the_model(
    engine, merge, pair, screen, monkeypatch
):
    host = engine.host(engine.loaded.key)
    drawn(screen, engine, draft(engine, merge))  # spectra and curve are there
    monkeypatch.setattr(host, "model", None)
    points = []
    for budget in (1e-5, 1e-4, 1e-3):
        figure = drawn(screen, engine, draft(engine, replace(merge, budget=budget)))
        chosen = next(t for t in figure[screen.figures.merge].data if t.name == "chosen")
        points.append((chosen.x[0], chosen.y[0]))
    assert points[0][0] < points[1][0] <= points[2][0]  # dearer ...
    assert points[0][1] > points[1][1] >= points[2][1]  # ... and more of the safety is there


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("view", ["budget", "spectrum", "kept"])
@pytest.mark.parametrize("method", ["sst", "sst_topk", "sst_ranks", "ties"])
def test_every_view_is_drawn_for_every_kind_of_method(
    engine, merge, pair, screen, view, method, language
):
    spec = merge if method == "sst" else replace(merge, method=method, budget=None)
    now = replace(draft(engine, spec, view=view), language=language)
    traces = drawn(screen, engine, now)[screen.figures.merge].data
    assert bool(traces) == ((method, view) != ("ties", "kept"))  # TIES keeps no share of it


def test_before_the_statistics_the_figure_says_what_to_press(engine, merge, screen):
    fresh = replace(merge, samples=3)
    assert "Predict" in str(drawn(screen, engine, draft(engine, fresh))[screen.left.merge.readout])


def test_a_measured_merge_lies_on_the_figure(engine, merge, pair, screen):
    key = engine.loaded.key
    point = finish(engine.merges.measure(key, merge))
    assert point.cost > 0  # unlike the utility adapter alone
    assert engine.merges.cost(key, merge) is point
    figure = drawn(screen, engine, draft(engine, merge))[screen.figures.merge]
    (diamond,) = (t for t in figure.data if t.name == "measured")
    assert (diamond.x[0], diamond.y[0]) == pytest.approx((point.cost, point.residual))


def test_the_utility_adapter_alone_costs_nothing(engine, merge, pair):
    nothing = replace(merge, budget=None, weights=replace(merge.weights, strength=0.0))
    assert finish(engine.merges.measure(engine.loaded.key, nothing)).cost == pytest.approx(
        0, abs=1e-6
    )


def test_the_columns_answer_as_utility_merged_and_merged_then_ablated(engine, merge, pair):
    known = Variants().add(Recipe(edits=(merge, *engine.first_recipe().edits)))
    offered = [value for _, value in chat_events.choices("en", known)]
    assert offered[:4] == ["base", UTILITY, MERGED, EDITED]
    chosen = [chat_events.recipe_of(name, known) for name in (UTILITY, MERGED, EDITED)]
    assert [len(recipe.edits) for recipe in chosen] == [1, 1, 2]
    rows = [None, *chosen]
    *_, answers = engine.chat(engine.loaded.key, rows, [ASKED] * 4, 24, 0.0)
    assert len(answers) == 4
    assert answers[2] != answers[0]  # the safety adapter's refusal, against the base's answer
    plain = Variants().add(engine.first_recipe())
    assert UTILITY not in [value for _, value in chat_events.choices("en", plain)]


def test_the_probe_reads_a_merge_along_the_default_direction(engine, merge, pair):
    base, edited = engine.probes(engine.loaded.key, [None, Recipe(edits=(merge,))], ASKED)
    assert base.shape == edited.shape == (engine.loaded.layers,)
    assert abs(edited - base).max() > 1e-3


def test_a_decade_slider_and_its_number_say_the_same(page, screen):
    for name, slider in screen.left.merge.decades.items():
        for place in (slider.minimum, (slider.minimum + slider.maximum) / 2, slider.maximum):
            number = studio.merge_panel.dialled(name, place)
            back = studio.merge_panel.decade(number, slider.minimum, slider.maximum)
            assert back == pytest.approx(place, abs=0.16), name


@pytest.mark.parametrize("method", METHODS.names())
def test_exactly_the_controls_of_the_method_are_shown(screen, method):
    seen = studio.merge_panel.shown(screen.left.merge, method, "parameters", "flat")
    there = {
        n for n, row in screen.left.merge.rows.items() if n[:2] == "p_" and seen[row]["visible"]
    }
    expected = {p.name for p in METHODS[method].parameters} - {"target", "mode"}
    assert there == {f"p_{name}" for name in expected}


def test_an_adapter_that_is_not_there_is_a_message(engine, merge):
    gone = replace(merge, utility="no/such/folder/at/all")
    with pytest.raises(UserError, match="no/such/folder"):
        finish(engine.resolve(engine.loaded.key, Recipe(edits=(gone,))))


def test_the_table_fills_line_by_line_and_a_row_can_be_used(engine, merge, pair):
    few = Evaluation(("refusal_rate", "multiple_choice"), samples=3, max_new_tokens=4)
    lines = [
        part for part in engine.merges.compare(engine.loaded.key, merge, few, ("sst", "ties"))
        if isinstance(part, Line)
    ]  # fmt: skip
    names = [line.name for line in lines]
    assert set(names) == {"base", "utility", "safety", "sst", "ties"}
    by_name = {line.name: line for line in lines}
    assert by_name["sst"].spec == merge
    assert by_name["sst"].predicted == pytest.approx(merge.budget, rel=1e-2)
    for language in LANGUAGES:
        html = merge_methods.render(language, lines, merge)
        assert html.count("data-pick") == len(lines) - 3
        assert html.count("current") == 1
    assert "n 3" in html


def test_a_long_prediction_shows_a_first_one_and_ends_with_that_of_all_prompts(
    page, engine, merge, monkeypatch
):
    monkeypatch.setattr(merge_forecasts, "FIRST", 2)
    asked, key = replace(merge, samples=7), engine.loaded.key
    form, extras = show(Recipe(edits=(asked,)))
    values = ["en", engine.loaded, extras, None, Variants(), "evidence", "budget", *form]
    updates = list(
        handler(page, apply_events, "predict")(
            values[0], SimpleNamespace(session_hash="w"), *values[1:]
        )
    )
    told = [str(v) for u in updates for k, v in u.items() if ident(k) == "merge-readout"]
    assert ["first prediction from 2 prompts" in text for text in told] == [True, False]
    whole = finish(engine.merges.prepare(key, asked))
    assert engine.merges.pair(key, asked) is whole
    exact = combine(engine.host(key), whole, asked).parameters["mu"]
    assert engine.merges.forecast(key, asked).parameters["mu"] == pytest.approx(exact, rel=5e-3)
    steps = list(engine.merges.predict(key, asked))  # known by now: nothing is looked at first
    assert not any(isinstance(step, merge_forecasts.First) for step in steps)


def test_how_far_a_prediction_is_counts_the_whole_of_it(engine, merge, monkeypatch):
    monkeypatch.setattr(merge_forecasts, "FIRST", 2)
    job = engine.merges.predict(engine.loaded.key, replace(merge, samples=6))
    shares = [s.overall for s in job if isinstance(s, Progress) and s.overall is not None]
    assert shares == sorted(shares)
    assert shares[0] < 0.2
    assert shares[-1] == 1


def test_the_table_has_first_numbers_of_every_method_before_it_has_all(
    engine, merge, pair, monkeypatch
):
    monkeypatch.setattr(merge_forecasts, "SAMPLES", 1)
    asked = Evaluation(("refusal_rate",), samples=3, max_new_tokens=4)
    parts = list(engine.merges.compare(engine.loaded.key, merge, asked, ("sst", "ties")))
    lines = [part for part in parts if isinstance(part, Line)]
    names = {"base", "utility", "safety", "sst", "ties"}
    assert {line.name for line in lines[:5]} == {line.name for line in lines[5:]} == names
    assert [dict(line.values)["refusal_rate"].n for line in lines] == [1] * 5 + [3] * 5
    assert [line.first for line in lines] == [True] * 5 + [False] * 5
    shares = [p.overall for p in parts if isinstance(p, Progress) and p.overall is not None]
    assert shares == sorted(shares)
    plain = [p for p in engine.merges.compare(
        engine.loaded.key, merge, replace(asked, samples=2), ("sst", "ties")
    ) if isinstance(p, Line)]  # fmt: skip
    assert len(plain) == 5, "so few prompts need no first numbers"
    for language in LANGUAGES:
        words = "1 prompts of each set" if language == "en" else "1 件"
        assert words in merge_methods.render(language, lines[:5], merge)
        assert words not in merge_methods.render(language, lines[5:], merge)


def test_a_fresh_window_only_ablates(engine):
    form, extras = show(engine.first_recipe())
    assert (form.ablation_on, form.merge_on) == (True, False)
    assert extras == Extras(extras.curve, extras.overrides)
    text = recipes.to_yaml(replace(engine.first_recipe(), edits=(Ablation(),)))
    assert "utility" not in text


@pytest.mark.parametrize(
    ("strength", "goal", "words", "warned"),
    [
        (1.0, "auto", ("strength 1.00", "removed again", "fewer refusals as better"), True),
        (1.0, "remove", ("removed again", "fewer refusals as better"), False),
        (1.0, "reinforce", ("removed again", "against the goal"), True),
        (-0.5, "auto", ("strength −0.50", "refuses more", "more refusals as better"), False),
        (-0.5, "remove", ("refuses more", "against the goal"), True),
        (1.0, "measure", ("removed again", "No change counts"), False),
        (0.0, "auto", ("edits no layer",), False),
    ],
)
def test_what_an_ablation_does_to_a_merge_is_said_above_apply(
    screen, engine, merge, strength, goal, words, warned
):
    both = draft(engine, merge, Ablation(weights=WeightTable(strength=strength)))
    now = replace(both, form=both.form._replace(metric_goal=goal))
    line = screen.editor.drawing.pair
    said = draw(screen.editor.drawing, engine, now)[line]
    for part in words:
        assert part in said
    assert ("notice warn" in said) == warned
    for name in ("ablation_on", "merge_on"):  # one click leaves one of them out
        left = edit.leave_out(screen.editor, engine, now, SimpleNamespace(pick=name))
        assert left[getattr(screen.editor.controls.form, name)] is False
        assert left[line] == ""
        kept = recipes.from_yaml(left[screen.editor.drawing.text]).edits
        assert [type(each) for each in kept] == [Merge if name == "ablation_on" else Ablation]
    assert edit.leave_out(screen.editor, engine, now, SimpleNamespace(pick="strength")) == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_more_than_the_whole_safety_edit_is_marked_and_explained(language):
    shares = {("q", 0): 0.5, ("q", 1): 1.264, ("o", 0): 1.004, ("o", 1): 1.0}
    drawn = merge_plots.kept(language, shares)
    (cells,) = drawn.data
    assert [list(row) for row in cells.text] == [["50", "126▲"], ["100", "100"]]
    (why,) = drawn.layout.annotations
    assert "100 %" in why.text
    assert cells.customdata[0][1].removeprefix("<br>") in why.text
    assert cells.customdata[0][0] == ""
    plain = merge_plots.kept(language, {**shares, ("q", 1): 0.9})
    assert not plain.layout.annotations
    many = merge_plots.kept(language, {("q", layer): 0.5 for layer in range(40)})
    assert many.data[0].texttemplate is None, "no room for numbers that can be read"


@pytest.mark.parametrize("ground", [(255, 255, 255), (24, 28, 34)])
def test_the_numbers_of_the_map_are_legible_on_both_of_its_colours(ground):
    """By WCAG's formula, for the page's own text colours (light on dark, dark on light)."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    text = (31, 41, 55) if ground[0] == 255 else (243, 244, 246)
    (cells,) = merge_plots.kept("en", {("q", 0): 0.0, ("q", 1): 1.0}).data
    for _, colour in cells.colorscale:
        *rgb, alpha = (float(c) for c in colour.removeprefix("rgba(").rstrip(")").split(","))
        seen = [alpha * c + (1 - alpha) * g for c, g in zip(rgb, ground, strict=True)]
        low, high = sorted((luminance(seen), luminance(text)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour
