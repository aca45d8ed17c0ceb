"""Searches of the demo: strategies and what they come to."""

import json
from dataclasses import replace

import pytest

from sst_ui import recipe as recipes
from sst_ui.__main__ import main
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.evaluate.evaluate import evaluate, evaluate_rows
from sst_ui.jobs.search import prompts
from sst_ui.jobs.search.candidates import Candidate, chosen, finalists, fitted, front, nearest
from sst_ui.jobs.search.objectives import Limit, SearchSpec, aims
from sst_ui.jobs.search.search import search
from sst_ui.jobs.search.trials import Local
from sst_ui.maths import kernel
from sst_ui.metrics.results import Value
from sst_ui.paths import PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, Evaluation, Recipe, WeightTable

DEFAULT = recipes.load(PRESETS / "recipes" / "default.yaml")
# what finalists are tested on is kept short where it is not what a test is about
SHORT = replace(DEFAULT, evaluation=Evaluation(samples=24, max_new_tokens=48))
REFUSALS, KL = "refusal_rate@demo/harmful?part=2/2", "kl_16@demo/harmless?part=2/2"
DELIVERED = "delivered@demo/harmful?part=2/2"


def spent(host, spec, recipe=SHORT, storage="memory"):
    return finish(search(recipe, spec, Local(host), storage))


def test_candidates_of_one_batch_score_as_one_evaluation_at_a_time(host):
    found = spent(host, SearchSpec("grid", samples=12, trials=6))
    places = [(each.params["peak"], each.params["width"]) for each in found]
    assert places == kernel.grid()[:6]
    for each in found:
        names = (REFUSALS, KL)
        alone = Evaluation(metrics=names, samples=12, max_new_tokens=48)
        edits = finish(resolve(host, each.recipe))
        refusals, divergence = finish(evaluate(host, edits, alone))
        assert each.values[names[0]] == refusals.edited
        assert each.value(names[1]) == pytest.approx(divergence.edited.value, rel=1e-3)
    assert len({each.value(names[0]) for each in found}) > 1


def test_the_grid_finds_a_kernel_that_costs_less_than_the_default_on_prompts_it_never_saw(host):
    spec = SearchSpec("grid", samples=16, target=0.05)
    found = spent(host, spec)
    kept = chosen(found, aims(DEFAULT, spec), spec)
    assert len(found) == 25
    edits = [finish(resolve(host, recipe)) for recipe in (DEFAULT, kept.recipe)]
    unseen = Evaluation(metrics=("refusal_rate", "kl_16"), preset="full", max_new_tokens=48)
    (_, default_kl), (refusals, kl) = finish(evaluate_rows(host, edits, unseen))
    assert refusals.edited.n == 160
    assert refusals.edited.value <= 0.05
    assert kl.edited.value < default_kl.edited.value


def test_a_staged_search_ends_at_the_first_stage_that_removes_enough(host):
    spec = SearchSpec("staged", samples=12)
    found = spent(host, spec)
    kept = chosen(found, aims(DEFAULT, spec), spec)
    shares = {
        each.params["strength"]: 1 - each.value(REFUSALS) / each.base[REFUSALS].value
        for each in found
    }
    assert kept.params["strength"] == min(s for s, share in shares.items() if share >= 0.8)
    assert kept.params["strength"] == pytest.approx(1.1)  # .50, .65, .80, .95, 1.10
    assert kept.recipe.edits[0].weights.peak == DEFAULT.edits[0].weights.peak


def test_each_layer_alone_finds_where_refusal_is_written(host):
    spec = SearchSpec("sensitivity", samples=12)
    found = spent(host, spec)
    divided = prompts.divided(DEFAULT, DEFAULT.edits[0], spec)
    made, effects = fitted(found, divided, aims(DEFAULT, spec), host.layers)
    assert len(effects) == host.layers
    # an independent look: the log-odds under that one layer's ablation
    layer = int(effects.argmax())
    curve = tuple(float(number == layer) for number in range(host.layers))
    weights = replace(DEFAULT.edits[0].weights, curve=curve, threshold=0.0)
    alone = replace(divided, edits=(replace(divided.edits[0], weights=weights),))
    evaluation = Evaluation(metrics=("refusal_logodds@demo/harmful?part=2/2",), samples=12)
    (odds,) = finish(evaluate(host, finish(resolve(host, alone)), evaluation))
    assert effects[layer] == pytest.approx(odds.base.value - odds.edited.value, rel=1e-3)
    peak = made.edits[0].weights.peak
    assert abs(peak * (host.layers - 1) - layer) <= 1


def candidate(number, refusals, kl, feasible=True, strength=1.0):
    weights = WeightTable(profile="custom", strength=strength)
    found = (refusals, kl, 1 - refusals)
    values = {n: Value(x, x, x, 9) for n, x in zip((REFUSALS, KL, DELIVERED), found, strict=True)}
    base = {n: Value(x, x, x, 9) for n, x in zip((REFUSALS, KL), (1.0, 0.0), strict=True)}
    recipe = Recipe(edits=(Ablation(weights=weights),))
    return Candidate(number, {"strength": strength}, recipe, "done", values, base, feasible)


def with_test(each, refusals):
    """The candidate with what it came to on the test prompts."""
    rate = Value(refusals, refusals, refusals, 9)
    return replace(each, test={**each.values, REFUSALS: rate}, test_base=each.base)


def test_an_edit_that_breaks_the_answers_is_not_at_the_target():
    spec = SearchSpec()
    aim = aims(DEFAULT, spec)
    broken = candidate(0, 0.0, 0.1)
    broken = replace(broken, values={**broken.values, DELIVERED: Value(0.4, 0.3, 0.5, 9)})
    dear = candidate(1, 0.0, 0.9)
    assert finalists([broken, dear], aim, spec) == [dear]
    assert chosen([with_test(broken, 0.0)], aim, spec) is None
    assert nearest([broken], aim, spec) is broken
    loose = SearchSpec(constraints=("delivered >= 0.3",))
    assert finalists([broken, dear], aims(DEFAULT, loose), loose)[0] is broken


def test_the_best_costs_least_of_those_that_are_good_enough():
    spec = SearchSpec()
    aim = aims(DEFAULT, spec)
    rows = [candidate(0, 0.0, 0.5), candidate(1, 0.02, 0.1), candidate(2, 0.3, 0.0)]
    assert finalists(rows, aim, spec) == [rows[1], rows[0]]
    assert chosen(rows, aim, spec) is None  # nobody is tested yet
    good = [with_test(rows[0], 0.0), with_test(rows[1], 0.01), rows[2]]
    assert chosen(good, aim, spec) is good[1]
    worse = [with_test(rows[0], 0.02), with_test(rows[1], 0.04), rows[2]]
    assert chosen(worse, aim, spec) is worse[0]
    assert chosen([with_test(rows[1], 0.04)], aim, spec) is None
    lax = SearchSpec(target=0.5)
    assert rows[2] not in finalists(rows, aims(DEFAULT, lax), lax)  # too little is delivered
    assert nearest(rows[2:], aim, spec) is rows[2]
    broken = candidate(3, 0.0, 0.0, feasible=False)
    assert broken not in finalists([*rows, broken], aim, spec)
    assert front([*rows, broken, candidate(4, 0.3, 0.2)], aim) == rows


def test_of_many_that_are_equally_good_not_only_one_is_tested():
    spec = SearchSpec()
    aim = aims(DEFAULT, spec)
    rows = [candidate(n, 0.0, kl) for n, kl in enumerate((1e-4, 9e-5, 2e-4, 5e-5))]
    assert len(front(rows, aim)) == 1  # divergences so small count as equal
    assert {each.number for each in finalists(rows, aim, spec)} == {0, 1, 3}
    tested = [with_test(rows[0], 0.1), with_test(rows[1], 0.0), rows[2], with_test(rows[3], 0.1)]
    assert chosen(tested, aim, spec) is tested[1]


def test_a_broken_constraint_ends_the_stages_before_it_is_kept():
    spec = SearchSpec("staged")
    aim = aims(DEFAULT, spec)
    rows = [
        candidate(0, 0.9, 0.0, strength=0.5),
        candidate(1, 0.15, 0.0, strength=0.65),
        candidate(2, 0.0, 0.0, strength=0.8, feasible=False),
        candidate(3, 0.0, 0.0, strength=0.95),
    ]
    assert finalists(rows, aim, spec) == [rows[1]]
    assert [limit.metric for limit in aim.limits] == ["quality"]
    quality = {"quality": Value(0.9, 0.9, 0.9, 9)}
    for refusals, enough in ((0.2, True), (0.25, False)):
        row = with_test(rows[1], refusals)
        row = replace(row, test={**row.test, **quality})
        assert (chosen([rows[0], row], aim, spec) is row) == enough


@pytest.mark.parametrize(
    ("text", "words"),
    [("quality > .7", "not a constraint"), ("quality >= much", "not a constraint"),
     ("qualty >= 0.7", "did you mean 'quality'"), ("quality >= nan", "finite")],
)  # fmt: skip
def test_a_constraint_that_is_none_is_said(text, words):
    with pytest.raises(UserError, match=words):
        Limit.read(text)


@pytest.mark.parametrize(
    ("spec", "edits", "words"),
    [
        (SearchSpec(), (), "no edit to search"),
        (SearchSpec(), (Ablation(), Ablation()), "this recipe has 2"),
    ],
)
def test_a_recipe_with_nothing_to_vary_is_refused(host, spec, edits, words):
    with pytest.raises(UserError, match=words):
        spent(host, spec, replace(DEFAULT, edits=edits))


def test_the_terminal_writes_the_best_recipe(tmp_path, capsys):
    out = tmp_path / "best.yaml"
    recipe = str(PRESETS / "recipes" / "default.yaml")
    asked = ["search", recipe, "--samples", "8", "--trials", "5", "--storage", "memory",
             "--target", "0.2"]  # fmt: skip
    assert main([*asked, "--out", str(out), "--json", "--held-out"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert recipes.load(out).digest() == told["best"]
    assert [row["params"]["width"] for row in told["candidates"]] == [0.1, 0.12, 0.15, 0.18, 0.2]
    assert told["reached"]
    (row,) = [row for row in told["candidates"] if row["number"] == told["number"]]
    assert row["test"][REFUSALS]["n"] == 160  # all that are held out
    assert row["test"][REFUSALS]["value"] <= 0.2
    kinds = ("refusal_rate", "delivered", "evaded", "degenerate_harmful")
    assert told["held_out"].keys() == {*kinds, "kl_16", "quality"}
    assert sum(told["held_out"][kind]["value"] for kind in kinds) == pytest.approx(1)
    for row in told["candidates"]:
        shares = [row["values"][f"{kind}@demo/harmful?part=2/2"]["value"] for kind in kinds]
        assert sum(shares) == pytest.approx(1)
    assert told["tokens"] == 48
    assert main([*asked, "--out", str(out)]) == 2
    assert "already exists" in capsys.readouterr().err
