"""The rules of thumb after a run: who gets which advice, and that it is in every language."""

from dataclasses import replace

import pytest
import torch

from sst_ui.data.prompt_sets import Prompt
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import control
from sst_ui.maths.directions import random
from sst_ui.metrics.advice import advise
from sst_ui.metrics.derived import derive
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import Shown, Value, compare
from sst_ui.recipe import Ablation, DirectionSpec, ModelSpec, Recipe, WeightTable
from sst_ui.ui.events import advice as advice_events
from sst_ui.ui.events.draw_draft import Draft, with_profile
from sst_ui.ui.services.engine import Engine, _name
from sst_ui.ui.state.form import show
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets import texts

NO, YES = "I can't help with that.", "Sure, here is how to do it."


def refusals(left: dict[str, int], n: int = 12, name: str = "refusal_rate", base: str = NO):
    """`left[topic]` of n prompts of each topic are refused by the edited model, in the order."""
    prompts = [Prompt(f"{topic} {i}", topic=topic) for topic in left for i in range(n)]
    after = [NO if i < left[topic] else YES for topic in left for i in range(n)]
    shown = [Shown(a, a) for a in after]
    return compare(find(name), prompts, [Shown(base, base)] * len(prompts), shown)


def with_removal(rate):
    return [rate, derive(find("removal"), {"refusal_rate": rate})]


def quality(value):
    known = Value(value, value, value, 50)
    return replace(refusals({"a": 0}), name="quality", items=(), edited=known)


def keys(results, goal="remove", **weights):
    return [a.key for a in advise(results, WeightTable(**weights), goal)]


def test_a_run_without_trouble_gets_no_advice():
    assert keys([*with_removal(refusals({"a": 0, "b": 1})), quality(0.98)]) == []
    assert keys([]) == []


def test_a_random_control_gets_no_advice():
    left = with_removal(refusals({"a": 6, "b": 6}))
    assert advise(left, WeightTable(), control=True) == []
    recipe = control(Recipe(edits=(Ablation(),)))
    known = Variants().add(recipe)
    board = Board("en", known, {recipe.digest(): left})
    assert "no layer shows evidence" in advice_events.render(board)
    assert "Try this" not in advice_events.render(board)
    assert advice_events.render(replace(board, results={})) == ""


def test_a_random_control_has_no_evidence_and_no_measured_profile():
    engine, spec = Engine(), DirectionSpec(estimator="random")
    stats = {"cohens_d": torch.tensor([0.1, 0.2, 0.3]), "norm": torch.ones(3)}
    engine._directions.put(_name("key", spec), replace(random(3, 8), stats=stats))
    assert set(engine.signals("key", spec)) == {"cohens_d", "norm"}
    assert engine.suggestion("key", spec) is None
    form, extras = show(Recipe(edits=(Ablation(spec),)))
    loaded = Loaded("key", "demo", ModelSpec(), 3)
    draft = Draft("en", loaded, extras, Variants(), "evidence", form._replace(profile="measured"))
    with pytest.raises(UserError, match="Random directions are a control"):
        with_profile(engine, draft)


def test_low_removal_asks_for_an_earlier_and_wider_kernel():
    (advice,) = advise(with_removal(refusals({"a": 6, "b": 6})), WeightTable())
    assert advice.key == "removal_low"
    assert 0.50 <= advice.settings["peak"] <= 0.55
    assert 0.18 <= advice.settings["width"] <= 0.20
    assert advice.values["removal"] == 0.5


def test_low_removal_with_that_kernel_already_asks_for_the_next_stage_of_strength():
    (advice,) = advise(
        with_removal(refusals({"a": 6, "b": 6})), WeightTable(peak=0.525, width=0.19, strength=0.5)
    )
    assert (advice.key, advice.settings) == ("removal_still_low", {"strength": 0.65})
    strongest = {"peak": 0.525, "width": 0.19, "strength": 2.0}
    assert keys(with_removal(refusals({"a": 6, "b": 6})), **strongest) == []


def test_an_ablation_that_hardly_removes_anything_asks_for_a_filter_too():
    stays = with_removal(refusals({"a": 9, "b": 9}))
    first, second = advise(stays, WeightTable())
    assert (first.key, second.key) == ("removal_low", "filter")
    assert second.settings == {"operation": "filter", "profile": "wide", "strength": 1.5}
    assert second.values["removal"] == 0.25


def test_a_filter_that_leaves_refusals_asks_for_the_wide_curve_and_then_for_rounds():
    stays = with_removal(refusals({"a": 9, "b": 9}))
    (advice,) = advise(stays, WeightTable(), operation="filter")
    assert (advice.key, advice.settings) == ("filter_wide", {"profile": "wide", "strength": 1.5})
    for strong in (
        WeightTable(profile="wide", strength=1.5),
        WeightTable("custom", 0.6, 0.5, 0, 2),
    ):
        (advice,) = advise(stays, strong, operation="filter")
        assert (advice.key, advice.settings) == ("filter_rounds", {})
    gone = with_removal(refusals({"a": 1, "b": 0}))
    assert advise(gone, WeightTable(), operation="filter") == []


def test_low_quality_asks_for_a_later_and_narrower_kernel_before_anything_else():
    results = [*with_removal(refusals({"a": 6, "b": 6})), quality(0.5)]
    first, second = advise(results, WeightTable())
    assert (first.key, second.key) == ("quality_low", "removal_low")
    assert 0.65 <= first.settings["peak"] <= 0.70
    assert 0.10 <= first.settings["width"] <= 0.12
    assert first.settings["threshold"] == 0.2
    assert keys([quality(0.7)]) == []
    assert keys([quality(float("nan"))]) == []


@pytest.mark.parametrize(
    ("left", "named"),
    [
        ({"fraud": 11, "theft": 0, "drugs": 1}, "fraud"),
        ({"fraud": 10, "theft": 12, "drugs": 0, "arms": 0, "spying": 0}, "theft, fraud"),
        ({"fraud": 5, "theft": 4, "drugs": 3}, None),  # within the noise of twelve prompts
        ({"fraud": 12, "theft": 12, "drugs": 12}, None),  # nothing went anywhere
        ({"fraud": 12}, None),  # no other topic to compare with
    ],
)
def test_a_topic_whose_refusals_stay_while_the_others_go_is_named(left, named):
    found = {a.key: a for a in advise([refusals(left)], WeightTable())}
    assert (found["topic_left"].values["topics"] if "topic_left" in found else None) == named


def test_a_topic_of_a_few_prompts_is_not_enough():
    assert keys([refusals({"fraud": 4, "theft": 0}, n=4)]) == []


def test_over_refusal_that_rose_with_a_negative_strength_asks_for_less_of_it():
    risen = refusals({"a": 9, "b": 9}, name="over_refusal", base=YES)
    (advice,) = advise([risen], WeightTable(strength=-1.0), "reinforce")
    assert (advice.key, advice.settings) == ("over_refusal", {"strength": -0.5})
    assert keys([risen], strength=1.0) == []
    few = [refusals({"a": 1, "b": 0}, name="over_refusal", base=YES)]
    assert keys(few, "reinforce", strength=-1.0) == []


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_every_advice_has_its_sentence_with_the_values_filled_in(language):
    risen = refusals({"a": 9, "b": 9}, name="over_refusal", base=YES)
    weak = WeightTable(strength=0.5)
    spread = with_removal(refusals({"a": 6, "b": 6}))
    given = [
        *advise([*spread, quality(0.5), refusals({"fraud": 12, "theft": 0})], weak),
        *advise([refusals({"fraud": 12, "theft": 0})], weak),
        *advise(spread, replace(weak, peak=0.525, width=0.19)),
        *advise([risen], WeightTable(strength=-1.0), "reinforce"),
        *advise(with_removal(refusals({"a": 9, "b": 9})), WeightTable()),
        *advise(spread, WeightTable(), operation="filter"),
        *advise(spread, WeightTable(profile="wide", strength=1.5), operation="filter"),
    ]
    assert {a.key for a in given} == {
        "quality_low", "removal_low", "removal_still_low", "topic_left", "over_refusal",
        "filter", "filter_wide", "filter_rounds",
    }  # fmt: skip
    for advice in given:
        told = texts.say(language, f"advice.{advice.key}", **advice.values)
        assert "{" not in told
        assert ("fraud" in told) == (advice.key == "topic_left")
