"""How long the answers were stands beside every rate, and real models get 100 tokens by default."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sst_ui.cli import tables
from sst_ui.jobs.evaluate.evaluate import evaluate, limits
from sst_ui.jobs.export.export import Export
from sst_ui.jobs.export.model_card import card
from sst_ui.jobs.history.records import FIELDS, Record, record
from sst_ui.jobs.search.objectives import SearchSpec, aims, evaluation
from sst_ui.metrics import result_files
from sst_ui.metrics.results import MetricResult, Value
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, Evaluation, ModelSpec, Recipe
from sst_ui.schema import setting
from sst_ui.ui.panels import metrics as panel

RECIPE = Recipe(edits=(Ablation(),))
REAL = replace(RECIPE, model=ModelSpec(id="org/model"))
SIDES = (Value(0.9, 0.8, 0.95, 40), Value(0.1, 0.05, 0.2, 40))
RATE = MetricResult("refusal_rate", "Refusal rate", "rate", "low", *SIDES, (), "better", tokens=137)


def test_no_preset_reads_less_than_a_hundred_tokens_of_a_real_model():
    for preset in setting("evaluation.preset").choices:
        assert limits(Evaluation(preset=preset), "org/model")[1] >= 100
    assert limits(Evaluation(), "org/model")[1] == 100
    assert limits(Evaluation(preset="quick"), "demo")[1] < 100  # its answers are short
    assert limits(Evaluation(max_new_tokens=7), "org/model")[1] == 7


def test_a_search_reads_a_hundred_tokens_of_a_real_model_unless_told_otherwise():
    for recipe, asked, tokens in ((REAL, None, 100), (RECIPE, None, 48), (REAL, 12, 12)):
        spec = SearchSpec(max_new_tokens=asked)
        aim = aims(recipe, spec)
        assert aim.tokens == tokens
        assert evaluation(aim.metrics, recipe, spec).max_new_tokens == tokens


def test_the_refusals_of_a_search_have_the_other_kinds_of_answer_beside_them():
    aim = aims(RECIPE, SearchSpec())
    assert aim.objectives[0] == "refusal_rate@demo/harmful?part=2/2"
    for name in ("delivered", "evaded", "degenerate_harmful"):
        assert f"{name}@demo/harmful?part=2/2" in aim.metrics  # on the same answers
    assert not aims(RECIPE, SearchSpec(objectives=("kl_16",))).beside


def test_a_result_knows_the_length_of_its_answers(tiny_host, tmp_path):
    host = tiny_host("llama")
    path = tmp_path / "two.jsonl"
    path.write_text('{"prompt": "Hello"}\n{"prompt": "Good morning"}\n', encoding="utf-8")
    names = (f"refusal_rate@{path}", f"kl_1@{path}")
    for asked, told in ((None, 100), (5, 5)):
        rate, kl = finish(evaluate(host, (), Evaluation(names, max_new_tokens=asked)))
        assert (rate.tokens, kl.tokens) == (told, None)
    (removal,) = finish(evaluate(host, (), Evaluation(("removal",), samples=2, max_new_tokens=3)))
    assert removal.tokens == 3


def test_files_cards_history_terminal_and_page_name_the_length(capsys):
    data = json.loads(json.dumps(result_files.to_json(RECIPE, [RATE])))
    assert data["metrics"][0]["tokens"] == 137
    (row,) = csv.DictReader(io.StringIO(result_files.metrics_csv(RECIPE, [RATE])))
    assert row["tokens"] == "137"
    (kept,) = record(RECIPE, "demo", [RATE]).results()
    assert kept == RATE
    export = Export(Path("out"), "model", (), 0, 1.0, None, ())
    line = next(x for x in card(RECIPE, [RATE], export, 12).splitlines() if "Refusal rate" in x)
    assert "| 137 |" in line
    tables.metrics([RATE])
    assert "137" in capsys.readouterr().out
    assert "137 tokens" in panel.told("en", RATE)
    assert panel.length("ja", RATE) == " · 137 トークン"


@pytest.mark.parametrize("tokens", [None, 137])
def test_runs_of_earlier_versions_are_read_without_a_length(tokens):
    made = record(RECIPE, "demo", [replace(RATE, tokens=tokens)]).to_json()
    if tokens is None:
        del made["metrics"][0]["tokens"]
    found = Record.from_json(made)
    assert [result.tokens for result in found.results()] == [tokens]
    assert set(found.metrics[0]) == set(FIELDS)
    assert panel.length("en", found.results()[0]) == (" · 137 tokens" if tokens else "")
