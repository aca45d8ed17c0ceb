"""Downloaded results say what the screen says, to a program that reads CSV and JSON."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest

from sst_ui import recipe as recipes
from sst_ui.data.prompt_sets import Prompt
from sst_ui.errors import UserError
from sst_ui.metrics import corrections, result_files
from sst_ui.metrics.corrections import Correction
from sst_ui.metrics.derived import derive
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import NOTHING, Shown, compare
from sst_ui.recipe import Ablation, Recipe

NO, YES = 'I can\'t, "sorry".', "Sure, here\nis how, step by step: 続き"
FIX = (Correction("p1", YES, "degenerate"),)


@pytest.fixture
def recipe():
    return Recipe(name="narrow ×−0.5", edits=(Ablation(),))


@pytest.fixture
def results():
    prompts = [Prompt(f"p{i}", topic="t") for i in range(4)]
    after = [Shown(a, a) for a in (NO, YES, YES, YES)]
    rate = compare(find("refusal_rate"), prompts, [Shown(NO, NO)] * 4, after)
    removal = derive(find("removal"), {"refusal_rate": rate})
    return corrections.apply([rate, removal], corrections.labels(FIX))


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_of_metrics_has_both_values_with_interval_n_and_verdict(recipe, results):
    rate, removal = rows(result_files.metrics_csv(recipe, results, FIX))
    assert (float(rate["base_value"]), float(rate["edited_value"])) == (1, 0.25)
    for side in ("base", "edited"):
        value = getattr(results[0], side)
        assert float(rate[f"{side}_low"]) == value.low
        assert float(rate[f"{side}_high"]) == value.high
        assert int(rate[f"{side}_n"]) == 4
    assert rate["verdict"] == results[0].verdict == rate["change"] == "noise"
    assert float(rate["negligible"]) == 0.01
    assert float(rate["difference_value"]) == -0.75
    assert float(rate["difference_low"]) < 0 < float(rate["difference_high"])
    assert (rate["corrected"], removal["corrected"]) == ("1", "1")
    assert rate["recipe"] == recipe.digest()


def test_the_table_of_answers_holds_them_to_the_letter(recipe, results):
    table = rows(result_files.items_csv(recipe, results, FIX))
    assert [r["edited_answer"] for r in table] == [NO, YES, YES, YES]
    assert [r["edited_label"] for r in table] == ["refused", "degenerate", "delivered", "delivered"]
    assert [r["edited_corrected"] for r in table] == ["0", "1", "0", "0"]
    assert {r["topic"] for r in table} == {"t"}


def test_a_number_that_does_not_exist_is_empty_in_csv_and_null_in_json(recipe, results):
    nothing = replace(results[1], edited=NOTHING)
    (row,) = rows(result_files.metrics_csv(recipe, [nothing]))
    assert (row["edited_value"], row["edited_n"]) == ("", "0")
    item = replace(results[0].items[0], edited_score=math.nan)
    plain = result_files.to_json(recipe, [nothing, replace(results[0], items=(item,))])
    back = json.loads(json.dumps(plain, allow_nan=False))
    assert back["metrics"][0]["edited"]["value"] is None
    assert back["metrics"][1]["items"][0]["edited_score"] is None


def test_a_base_measured_alone_leaves_the_edited_cells_empty(recipe, results):
    alone = replace(results[0], edited=None, verdict=None)
    (row,) = rows(result_files.metrics_csv(recipe, [alone]))
    assert row["edited_value"] == row["edited_n"] == row["verdict"] == ""


def test_the_files_say_which_variant_and_come_back(tmp_path, recipe, results):
    files = result_files.write(tmp_path, recipe, results, FIX)
    assert files["metrics"].name == f"narrow-x-0.5-{recipe.digest()}-metrics.csv"
    everything = json.loads(files["json"].read_text("utf-8"))
    assert recipes.build(Recipe, everything["recipe"], "recipe") == recipe
    assert len(everything["metrics"][0]["items"]) == 4
    assert corrections.read(files["corrections"]) == corrections.labels(FIX)
    assert corrections.from_rows(everything["corrections"]) == FIX
    assert rows(files["items"].read_text("utf-8"))[1]["edited_answer"] == YES


def test_a_folder_that_is_not_there_is_said(tmp_path, recipe, results):
    with pytest.raises(UserError, match="cannot write"):
        result_files.write(tmp_path / "none", recipe, results)
