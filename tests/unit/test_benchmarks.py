"""The benchmarks run, and compare ways that give the same answer. Their numbers are not tested."""

import json

import pytest

from benchmarks import live_edit, sweep
from benchmarks.peak import Peak
from sst_ui.lab.evaluate import Value
from sst_ui.lab.sweep import COLUMNS, Row
from sst_ui.paths import DEMO


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
