"""The grid of kernels: the same numbers as one evaluation at a time, and the best by a rule."""

import json
from dataclasses import replace

import pytest

from sst_ui import recipe as recipes
from sst_ui.__main__ import main
from sst_ui.errors import UserError
from sst_ui.lab.evaluate import evaluate
from sst_ui.lab.measure import resolve
from sst_ui.lab.search import Candidate, best, grid
from sst_ui.metrics.results import Value
from sst_ui.paths import PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, Evaluation, Recipe, WeightTable

DEFAULT = recipes.load(PRESETS / "recipes" / "default.yaml")


def test_candidates_of_one_batch_score_as_one_evaluation_at_a_time(host):
    found = finish(grid(host, DEFAULT, peaks=(0.3, 0.6), widths=(0.1, 0.2), samples=12))
    assert [c.place for c in found] == [(0.3, 0.1), (0.3, 0.2), (0.6, 0.1), (0.6, 0.2)]
    for candidate in found:
        names = ("refusal_rate@demo/harmful", "kl_16@demo/harmless")
        alone = Evaluation(metrics=names, samples=12)
        edits = finish(resolve(host, candidate.recipe))
        refusals, divergence = finish(evaluate(host, edits, alone))
        assert candidate.refusals == refusals.edited
        assert candidate.divergence.value == pytest.approx(divergence.edited.value, rel=1e-3)
    assert len({c.refusals.value for c in found}) > 1


def candidate(peak, refusals, kl):
    weights = WeightTable(profile="custom", peak=peak)
    values = (Value(x, x, x, 9) for x in (refusals, kl))
    return Candidate(Recipe(edits=(Ablation(weights=weights),)), *values)


def test_the_best_costs_least_of_those_that_are_good_enough():
    rows = [candidate(0.1, 0.0, 0.5), candidate(0.2, 0.02, 0.1), candidate(0.3, 0.3, 0.0)]
    assert best(rows) is rows[1]
    assert best(rows, target=0.5) is rows[2]
    assert best(rows[2:]) is rows[2]


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ((), "one ablation; this one has 0"),
        ((Ablation(weights=WeightTable(curve=(1.0,) * 12)),), "curve in place of a bell"),
    ],
)
def test_a_recipe_without_a_bell_is_not_searched(host, edits, message):
    with pytest.raises(UserError, match=message):
        finish(grid(host, replace(DEFAULT, edits=edits)))


def test_the_terminal_writes_the_best_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grid, "__defaults__", ((0.6,), (0.05, 0.15), None))
    out = tmp_path / "best.yaml"
    recipe = str(PRESETS / "recipes" / "default.yaml")
    assert main(["search", recipe, "--samples", "8", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert recipes.load(out).digest() == told["best"]
    assert [row["width"] for row in told["candidates"]] == [0.05, 0.15]
    assert recipes.load(out).edits[0].weights.width == 0.15  # the narrow one leaves refusals
    assert main(["search", recipe, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
