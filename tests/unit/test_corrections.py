"""A corrected label changes every number that read it and nothing else, and can be kept."""

import json
import math
from dataclasses import replace

import pytest

import sst_ui.metrics  # noqa: F401  registers the metrics
from sst_ui.data.prompt_sets import Prompt
from sst_ui.errors import UserError
from sst_ui.metrics import corrections
from sst_ui.metrics.corrections import Correction
from sst_ui.metrics.derived import derive
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import Shown, compare

NO, YES = "I can't help with that.", "Sure, here is how to do it."
N = 20


def result(name="refusal_rate", base=NO, edited=YES, goal="remove"):
    """Twenty prompts that the base answers one way and the edited model another, each in words."""
    prompts = [Prompt(f"request {i}", topic="ab"[i % 2]) for i in range(N)]
    before = [Shown(f"{base} {i}", f"{base} {i}") for i in range(N)]
    after = [Shown(f"{edited} {i}", f"{edited} {i}") for i in range(N)]
    return compare(find(name), prompts, before, after, goal)


@pytest.fixture
def results():
    rate, fine = result(), result("facts")
    assert rate.edited.value == 0
    return [rate, derive(find("removal"), {"refusal_rate": rate}), fine]


def fixed(count, label="refused", answer=YES):
    return corrections.labels(
        Correction(f"request {i}", f"{answer} {i}", label) for i in range(count)
    )


@pytest.mark.parametrize("count", [1, 5, 19])
def test_a_corrected_label_moves_value_interval_and_verdict(results, count):
    rate, removal, _ = corrections.apply(results, fixed(count))
    assert (rate.edited.value, rate.edited.n) == (count / N, N)
    for bound in (rate.edited.low, rate.edited.high):  # Wilson's bounds solve this equation
        spread = 1.959963985 * math.sqrt(bound * (1 - bound) / N)
        assert abs(count / N - bound) == pytest.approx(spread)
    assert rate.base == results[0].base
    chance = 2 * 0.5 ** (N - count)  # that all N - count changes go one way
    assert rate.verdict == ("better" if chance < 0.05 else "noise")
    assert removal.edited.value == pytest.approx(1 - count / N)


def test_the_corrected_item_says_so_and_the_others_stay(results):
    rate, *_ = corrections.apply(results, fixed(1))
    assert (rate.items[0].edited_label, rate.items[0].edited_score) == ("refused", 1)
    assert rate.items[1:] == results[0].items[1:]


def test_nothing_changes_without_corrections_or_with_those_of_other_answers(results):
    assert corrections.apply(results, {}) == tuple(results)
    other = corrections.labels([Correction("another request", YES, "refused")])
    again = corrections.apply(results, other)
    assert all(a is b for a, b in zip(again, results, strict=True))


def test_metrics_that_read_no_label_are_left_alone(results):
    assert corrections.apply(results, fixed(N))[2] is results[2]
    assert corrections.counts(results, fixed(3)) == {"refusal_rate": 3, "removal": 3, "facts": 0}


def test_resistance_counts_everything_but_compliance():
    resisting = result("jailbreak_resistance", base=NO, edited=YES)
    nonsense, *_ = corrections.apply([resisting], fixed(4, "degenerate"))
    assert nonsense.edited.value == 4 / N
    refusing, *_ = corrections.apply([result("jailbreak_refusal")], fixed(4, "degenerate"))
    assert refusing.edited.value == 0


def test_what_counts_as_better_stays_with_the_aim_of_the_edit():
    rate = result(base=YES, edited=NO, goal="reinforce")
    removal = derive(find("removal"), {"refusal_rate": rate}, "reinforce")
    again = corrections.apply([rate, removal], fixed(1, "delivered", NO))
    assert again[0].verdict == "better"
    assert [r.better for r in again] == [rate.better, removal.better] == ["high", "low"]


def test_a_base_measured_alone_is_corrected_too():
    alone = replace(result(), edited=None, verdict=None)
    alone = replace(
        alone, items=tuple(replace(i, edited=None, edited_score=None) for i in alone.items)
    )
    again, *_ = corrections.apply([alone], fixed(2, "delivered", NO))
    assert again.base.value == 1 - 2 / N
    assert again.edited is None


def test_the_same_metric_on_other_prompts_is_corrected():
    other = replace(result(), name="refusal_rate@mine.jsonl")
    assert corrections.apply([other], fixed(5))[0].edited.value == 5 / N


def test_an_answer_is_known_by_its_text_not_by_its_reasoning():
    assert corrections.key("a", "<think>hm</think> no") == corrections.key(" a ", "no")
    assert corrections.key("a", "no") != corrections.key("b", "no")


def test_a_correction_is_replaced_and_taken_back():
    one = corrections.correct((), "p", "a", "refused")
    two = corrections.correct(one, "p", "a", "degenerate")
    assert [c.label for c in two] == ["degenerate"]
    assert corrections.correct(two, "p", "a", None) == ()


def test_a_file_comes_back_as_it_was(tmp_path):
    kept = (Correction("頼み\n二行", "答え", "refused"), Correction("p", "a", "degenerate"))
    path = tmp_path / "labels.jsonl"
    path.write_text(corrections.to_jsonl(kept), encoding="utf-8")
    assert corrections.read(path) == corrections.labels(kept)
    assert [json.loads(line)["label"] for line in path.read_text("utf-8").splitlines()] == [
        "refused", "degenerate",
    ]  # fmt: skip
    assert corrections.from_rows(corrections.rows(kept)) == kept
    assert corrections.from_rows([{"label": "?"}, 3, *corrections.rows(kept)]) == kept
    assert corrections.from_rows("nonsense") == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', "line 2 is not JSON"),
        ("[]", "line 2 is not a correction"),
        ('{"prompt": "a", "answer": 3, "label": "refused"}', "line 2: answer is 3"),
        ('{"prompt": "a", "answer": "b", "label": "refusd"}', "line 2: .*did you mean 'refused'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "labels.jsonl"
    path.write_text(
        '{"prompt": "a", "answer": "b", "label": "degenerate"}\n' + line, encoding="utf-8"
    )
    with pytest.raises(UserError, match=words):
        corrections.read(path)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot read the labels"):
        corrections.read(tmp_path / "none.jsonl")
