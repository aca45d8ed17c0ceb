"""The benchmarks run, and compare ways that give the same answer. Their numbers are not tested."""

import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from benchmarks import evaluate, live_edit, sweep
from benchmarks.peak import Peak
from benchmarks.plain import Plain
from sst_ui.data.prompts import load as load_prompts
from sst_ui.lab.evaluate import Value
from sst_ui.lab.measure import measure
from sst_ui.lab.sweep import COLUMNS, Row
from sst_ui.paths import DEMO
from sst_ui.progress import finish
from sst_ui.recipe import DirectionSpec


@pytest.fixture(scope="module")
def result() -> live_edit.Result:
    return live_edit.measure(
        "demo", DEMO, "cpu", "float32", repeats=1, tokens=4, memory=live_edit.in_here
    )


def test_the_live_edit_answers_like_rewritten_weights(result):
    assert result.difference < 1e-3


def test_every_way_is_timed_and_weighed(result):
    for measured in (result.change, result.first_token):
        assert set(measured) == set(live_edit.WAYS)
        assert all(seconds > 0 for seconds in measured.values())
    assert set(result.memory) == set(live_edit.WAYS)
    assert result.together > 0
    assert result.in_turn > 0


def test_loading_a_second_model_takes_more_memory_than_a_live_edit(result):
    assert result.memory["reload"] > result.memory["live"]


def test_the_table_has_a_row_for_every_measurement(result):
    table = live_edit.markdown([result])
    for row in ("slider to applied edit", "first token", "memory added", "tokens a second"):
        assert row in table
    columns = {line.count("|") for line in table.splitlines()}
    assert columns == {5}


def test_the_peak_counts_memory_that_was_given_back():
    torch = pytest.importorskip("torch")
    peak = Peak(torch.device("cpu"))
    block = torch.ones(50_000_000)  # 200 MB
    del block
    assert peak.added() > 150_000_000


def test_results_can_be_read_by_a_program(result, monkeypatch, capsys):
    monkeypatch.setattr(live_edit, "measure", lambda *_: result)
    assert live_edit.main(["--model", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["repeats"] == 1


def test_every_group_of_the_sweep_is_printed_beside_the_base():
    value = Value(0.5, 0.4, 0.6, 10)
    values = dict.fromkeys(COLUMNS, value)
    rows = [Row(group, f"a {group} row", values) for group in sweep.GROUPS]
    text = sweep.tables(rows)
    assert text.count("a base row") == text.count("### ") - 1 == 3
    assert "a overview row" in text
    assert all(f"a {group} row" in text for group in sweep.GROUPS)


def test_a_sweep_of_an_unknown_model_is_one_line_and_exit_code_2(capsys):
    assert sweep.main(["--model", "no/such/folder"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def evaluated() -> evaluate.Result:
    sizes = evaluate.Sizes(prompts=5, tokens=6, questions=4, repeats=1)
    return evaluate.measure("demo", DEMO, "cpu", "float32", sizes)


def test_the_studio_answers_like_generate_on_two_models(evaluated):
    assert evaluated.differ == {"studio": 0, "batch": 0}
    assert evaluated.letters_differ == 0


def test_answers_that_differ_are_counted():
    assert evaluate._differ([["a", "b"], ["c", "d"]], [["a", "x"], ["y", "d"]]) == 2


def test_an_edit_in_the_weights_of_the_plain_model_changes_its_answers(host):
    # a direction that matters: otherwise equal answers would say nothing of the edit
    directions = finish(measure(host, DirectionSpec(), heldout=None))
    prompts = [host.encode(p.messages()) for p in load_prompts("demo/harmful_heldout", 4).prompts]
    base, edited = Plain(DEMO, host, directions, strength=1.0).loop(prompts, 6)
    assert base != edited
    one, same = Plain(DEMO, host, directions, strength=0.0).batch(prompts, 6)
    assert one == same == base


def test_every_way_of_evaluating_is_timed(evaluated):
    assert tuple(evaluated.answers) == evaluate.WAYS
    assert tuple(evaluated.letters) == evaluate.WAYS[:3]
    assert min(*evaluated.answers.values(), *evaluated.letters.values()) > 0


def test_the_table_of_speeds_says_how_many_times_the_studios_they_are(evaluated):
    slow = {"studio": 2.0, "again": 1.0, "loop": 8.0, "batch": 4.0}
    table = evaluate.markdown([replace(evaluated, answers=slow)])
    assert "| prompts a second, both models | 2.5 | 5 (2×) | 0.62 (0.25×) | 1.2 (0.5×) |" in table
    assert "| answers unlike the loop's | 0 of 10 | | | 0 of 10 |" in table
    assert {line.count("|") for line in table.splitlines()} == {6}


def test_the_sizes_of_an_evaluation_benchmark_can_be_chosen(evaluated, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(evaluate, "measure", lambda *a, **_: asked.append(a[4]) or evaluated)
    sizes = ["--prompts", "9999", "--tokens", "3", "--questions", "2", "--repeats", "1"]
    assert evaluate.main(["--model", "demo", "--json", *sizes]) == 0
    assert asked == [evaluate.Sizes(160, 3, 2, 1)]  # there are no more prompts than that
    assert json.loads(capsys.readouterr().out)[0]["differ"] == {"studio": 0, "batch": 0}
    with pytest.raises(SystemExit):
        evaluate.main(["--prompts", "0"])


def test_untrained_models_are_compared_by_token(tiny, tmp_path):
    """Half the random model's vocabulary has no text; its answers must not all look alike."""
    folder = tmp_path / "random"
    tiny("llama", vocab_size=4096).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    sizes = evaluate.Sizes(prompts=2, tokens=4, questions=2, repeats=1)
    result = evaluate.measure("random", folder, "cpu", "float32", sizes, untrained=True)
    assert result.differ == {"studio": 0, "batch": 0}
