"""The order of a search, with numbers from a formula in place of a model."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.purpose import purpose
from sst_ui.jobs.search.candidates import RULED_OUT, chosen, front, nearest
from sst_ui.jobs.search.objectives import SearchSpec, aims
from sst_ui.jobs.search.search import Opened, search
from sst_ui.jobs.search.space import beginnings, candidate, space, values
from sst_ui.jobs.search.trials import TOGETHER, Numbers
from sst_ui.maths import kernel
from sst_ui.metrics.results import Value
from sst_ui.paths import PRESETS
from sst_ui.progress import Progress, finish
from sst_ui.recipe import KINDS, Merge, Recipe

DEFAULT = recipes.load(PRESETS / "recipes" / "default.yaml")
MERGE = recipes.load(PRESETS / "recipes" / "merge.yaml")
LAYERS = 12
REFUSALS, KL = "refusal_rate@demo/harmful?part=2/2", "kl_16@demo/harmless?part=2/2"
SCORE = "refusal_score@demo/harmful?part=2/2"


class Formula:
    """Refusals fall and divergence rises with the strength; a peak away from .6 costs both."""

    layers, preserving, fused, name, workers = LAYERS, True, (), "formula", 1

    def __init__(self, broken=lambda recipe: ""):
        self.asked: list[tuple[str, frozenset]] = []  # (recipe, metrics) of every measurement
        self.broken = broken

    def numbers(self, recipes_, evaluation):
        yield Progress("formula", 0, 1)
        for place, recipe in enumerate(recipes_):
            self.asked.append((recipe.digest(), frozenset(evaluation.metrics)))
            if words := self.broken(recipe):
                yield place, Numbers(error=words)
                continue
            strength, peak = recipe.edits[0].weights.strength, recipe.edits[0].weights.peak
            known = self.formula(strength, peak)
            base = self.formula(0.0, 0.6)
            both = (
                {n: Value(*3 * (d[n.partition("@")[0]],), 9) for n in evaluation.metrics}
                for d in (known, base)
            )
            yield place, Numbers(*both)

    def formula(self, strength, peak):
        return {
            "refusal_rate": max(0.0, 1 - strength + abs(peak - 0.6)),
            "kl_16": 0.01 * strength**2 + abs(peak - 0.6),
            "refusal_score": 5 - 10 * strength + 10 * abs(peak - 0.6),
            "delivered": max(0.0, min(1.0, strength - abs(peak - 0.6))),
            "evaded": 0.0,
            "degenerate_harmful": 0.0,
            "quality": 1 - 0.25 * strength,
        }

    def bell(self, recipe, select):
        assert select == ("demo/harmful?part=2/2", "demo/harmless?part=2/2")  # not the test's
        yield Progress("formula", 0, 1)
        return {"peak": 0.55, "width": 0.1}


def spent(spec, measurer=None, recipe=DEFAULT, storage="memory"):
    return finish(search(recipe, spec, measurer or Formula(), storage))


def test_mlps_that_the_recipe_leaves_alone_stay_alone():
    """Of a mixture of experts a filter can edit attention only: else every second trial failed."""
    (edit,) = DEFAULT.edits
    spared = replace(edit, weights=replace(edit.weights, modules={"mlp": 0.0}))
    recipe = replace(DEFAULT, edits=(spared,))
    rows = space(recipe)
    assert not [name for name in rows if name.startswith("mlp")]
    assert {"mlp", "mlp_peak", "mlp_width"} <= space(DEFAULT).keys()
    for params in beginnings(recipe, rows, 12):
        (made,) = candidate(recipe, params, 12).edits
        alpha = kernel.table(made.weights, 12)
        assert (alpha[:, KINDS.index("mlp")] == 0).all()
        assert (alpha[:, KINDS.index("attention")] != 0).any()


def test_many_settings_at_once_find_better_than_where_they_began():
    spec = SearchSpec("tpe", trials=60)
    found, aim = spent(spec), aims(DEFAULT, spec)
    assert found[0].params["peak"] == pytest.approx(DEFAULT.edits[0].weights.peak)
    kept = chosen(found, aim, spec)
    assert kept in front(found, aim)
    assert kept.value(REFUSALS) <= 0.02
    assert kept.value(KL) <= found[0].value(KL)
    others = [each for each in found if each.state == "done" and each.value(REFUSALS) <= 0.02]
    assert kept.value(KL) == min(each.value(KL) for each in others)


def test_no_answers_are_generated_for_what_the_cheap_scores_rule_out():
    measurer = Formula()
    found = spent(SearchSpec("tpe", trials=60), measurer)
    pruned = [each for each in found if each.state == "pruned"]
    assert pruned
    answered = {digest for digest, metrics in measurer.asked if REFUSALS in metrics}
    for each in pruned:
        assert each.recipe.digest() not in answered
        assert each.note == RULED_OUT
        beating = [
            other for other in found
            if other.state == "done" and all(other.value(n) < each.value(n) for n in (SCORE, KL))
        ]  # fmt: skip
        assert len(beating) >= 3
    plain = spent(SearchSpec("tpe", trials=60, prune=False))
    assert {each.state for each in plain} == {"done"}


def test_the_same_seed_draws_the_same_and_another_does_not():
    first, again, other = (
        [each.params for each in spent(SearchSpec("tpe", trials=20, seed=seed))]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first[0] == other[0]  # the recipe's own
    assert first[1:] != other[1:]


def test_what_breaks_a_constraint_is_not_chosen():
    spec = SearchSpec("tpe", trials=40, constraints=("quality >= 0.72",), prune=False)
    found, aim = spent(spec), aims(DEFAULT, spec)
    broken = [each for each in found if not each.feasible]
    assert broken
    assert {each.feasible for each in found if each.value("quality") < 0.72} == {False}
    assert chosen(found, aim, spec).feasible
    assert not set(map(id, front(found, aim))) & set(map(id, broken))


def test_a_candidate_that_fails_costs_the_others_nothing():
    def broken(recipe):
        return "it computes NaN" if recipe.edits[0].weights.peak == 0.5 else ""

    found = spent(SearchSpec("grid"), Formula(broken))
    failed = [each for each in found if each.state == "failed"]
    assert len(found) == 25
    assert [each.params["peak"] for each in failed] == [0.5] * 5
    assert {each.note for each in failed} == {"it computes NaN"}


def test_stages_end_where_enough_is_gone_or_the_model_suffers():
    spec = SearchSpec("staged")
    found = spent(spec)
    assert len(found) == TOGETHER  # .50 to 1.10 share a batch; no further one is begun
    assert chosen(found, aims(DEFAULT, spec), spec).params["strength"] == pytest.approx(0.8)
    strict = replace(spec, constraints=("quality >= 0.81",))
    found = spent(strict)
    assert chosen(found, aims(DEFAULT, strict), strict) is None
    near = nearest(found, aims(DEFAULT, strict), strict)
    assert near.params["strength"] == pytest.approx(0.65)  # .80 would keep only .80


def test_stages_of_a_reinforced_refusal_go_down():
    weights = replace(DEFAULT.edits[0].weights, strength=-1.0)
    recipe = replace(DEFAULT, edits=(replace(DEFAULT.edits[0], weights=weights),))
    spec = SearchSpec("staged", trials=5)
    strengths = [each.params["strength"] for each in spent(spec, recipe=recipe)]
    assert strengths == pytest.approx([-0.5, -0.65, -0.8, -0.95, -1.1])
    assert aims(recipe, spec).lower[0] is False  # refusals are to rise


def test_a_search_is_for_what_the_weights_do_not_for_what_the_strength_says():
    weights = replace(DEFAULT.edits[0].weights, modules={"attention": -1.0, "mlp": -1.0})
    recipe = replace(DEFAULT, edits=(replace(DEFAULT.edits[0], weights=weights),))
    assert purpose(recipe, 24) == "reinforced"
    assert aims(recipe, SearchSpec("tpe")).lower[0] is False  # refusals are to rise
    drawn = space(recipe)  # factors from 0 up, so that the strength has to be negative
    assert drawn["attention"].low >= 0
    assert drawn["strength"].high < 0


def test_a_search_may_begin_at_the_measured_signal():
    first = spent(SearchSpec("tpe", trials=1, start="signal"))[0]
    assert (first.params["peak"], first.params["width"]) == (0.55, 0.1)
    with pytest.raises(UserError, match="no measured signal"):
        spent(SearchSpec("tpe", trials=1, start="signal"), recipe=MERGE)


def test_time_that_is_up_ends_it_and_the_same_call_goes_on(tmp_path, monkeypatch):
    storage = f"sqlite:///{tmp_path / 'study.sqlite'}"
    short = SearchSpec("grid", minutes=7.5)
    measurer = Formula()
    clock = SimpleNamespace(monotonic=lambda: 60.0 * len(measurer.asked))  # a minute a candidate
    monkeypatch.setattr("sst_ui.jobs.search.search.time", clock)
    first = spent(short, measurer, storage=storage)
    assert len(first) == 8
    whole = spent(replace(short, minutes=None), measurer, storage=storage)
    assert [each.number for each in whole[: len(first)]] == [each.number for each in first]
    assert len({(each.params["peak"], each.params["width"]) for each in whole}) == 25
    finished = [each.recipe.digest() for each in first]
    compared = [digest for digest, metrics in measurer.asked if REFUSALS in metrics]
    assert all(compared.count(digest) == 1 for digest in finished)


def test_a_merge_is_searched_by_price_safety_weight_and_modules():
    rows = space(MERGE)
    assert {"budget", "strength", "peak", "width", "module_q", "module_lm_head"} <= rows.keys()
    assert "k" not in rows
    topk = replace(MERGE.edits[0], method="sst_topk", parameters={})
    assert "k" in space(replace(MERGE, edits=(topk,)))
    own = values(MERGE, rows, LAYERS)
    made = candidate(MERGE, {**own, "budget": 1e-3, "module_q": 0.5}, LAYERS).edits[0]
    assert isinstance(made, Merge)
    assert (made.budget, made.weights.modules["q"]) == (1e-3, 0.5)
    assert "mu" not in made.parameters  # the budget chooses it
    assert (made.weights.peak, made.weights.strength) == (0.7, 2.0)
    aim = aims(MERGE, SearchSpec("tpe"))
    assert aim.objectives == (
        "refusal_rate@demo/sst_safety?part=2/2", "over_refusal@demo/sst_utility?part=2/2"
    )  # fmt: skip
    assert aim.lower == (False, True)
    with pytest.raises(UserError, match="grid is for ablations"):
        spent(SearchSpec("grid"), recipe=MERGE)


def test_a_filter_is_searched_by_its_price_or_by_its_budget():
    (plain,) = DEFAULT.edits
    assert "filtered" in space(DEFAULT)["way"].options  # a way of any ablation
    for named, other, settings in (("mu", "budget", {}), ("budget", "mu", {"budget": 0.01})):
        edit = replace(plain, operation="filter", filter=replace(plain.filter, **settings))
        recipe = replace(DEFAULT, edits=(edit,))
        rows = space(recipe)
        assert named in rows
        assert not {other, "norm_preserving"} & rows.keys()
        made = candidate(recipe, {**values(recipe, rows, LAYERS), named: 0.05}, LAYERS).edits[0]
        assert (made.operation, getattr(made.filter, named)) == ("filter", 0.05)


def test_candidates_of_an_ablation_say_what_was_drawn():
    drawn = {"peak": 0.5, "width": 0.2, "strength": 0.8, "threshold": 0.05, "attention": 0.5,
             "mlp": 1.2, "mlp_peak": 0.8, "mlp_width": 0.2, "way": "norm_preserving",
             "scope": "single", "layer": 0.5}  # fmt: skip
    made = candidate(DEFAULT, drawn, LAYERS).edits[0]
    weights = made.weights
    assert (weights.peak, weights.width, weights.strength, weights.threshold) == (
        0.5, 0.2, 0.8, 0.05,
    )  # fmt: skip
    assert dict(weights.modules) == {"attention": 0.5, "mlp": 1.2}
    assert (weights.peaks, weights.widths) == ({"mlp": 0.8}, {})  # the width is that of all
    assert made.norm_preserving
    assert (made.directions.scope, made.directions.layer) == ("single", round(0.5 * 11))


def test_a_search_tells_how_far_it_is():
    steps = list(search(DEFAULT, SearchSpec("grid", trials=7), Formula(), "memory"))
    opened = [step for step in steps if isinstance(step, Opened)]
    assert [each.total for each in opened] == [7]
    bars = [step for step in steps if isinstance(step, Progress) and step.stage == "search"]
    done = [bar.done for bar in bars]
    assert done == sorted(done)
    assert (bars[-1].done, bars[-1].total) == (7, 7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"trials": 0}, "trials is 0"), ({"minutes": math.nan}, "minutes"),
     ({"target": math.inf}, "finite"), ({"objectives": ("refusals",)}, "refusal_rate"),
     ({"constraints": ("quality",)}, "not a constraint")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_said(settings, words):
    with pytest.raises(UserError, match=words):
        SearchSpec(**settings)


def test_a_recipe_without_edits_is_not_searched():
    with pytest.raises(UserError, match="no edit to search"):
        spent(SearchSpec("grid"), recipe=Recipe())
