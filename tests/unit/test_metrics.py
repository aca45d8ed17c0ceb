"""Metrics without a model: scores, intervals, verdicts, and what a screen or a file gets."""

import json
import math

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

import sst_ui.metrics  # noqa: F401  registers the metrics
from sst_ui.data.prompt_sets import Prompt
from sst_ui.errors import UserError
from sst_ui.maths.statistics import wilson
from sst_ui.metrics import registry
from sst_ui.metrics.derived import derive
from sst_ui.metrics.families.divergence import Divergence, kl_by_token
from sst_ui.metrics.families.knowledge import fact, reading, rouge_l
from sst_ui.metrics.registry import METRICS, Metric, find, metric
from sst_ui.metrics.results import MetricResult, Shown, compare

REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure, here is how to do it."


def answers(refused: int, n: int) -> list[Shown]:
    return [Shown(text, text) for text in [REFUSAL] * refused + [ANSWER] * (n - refused)]


def run(name: str, base: list[Shown], edited: list[Shown] | None, **more) -> MetricResult:
    prompts = [Prompt(f"prompt {i}", topic="ab"[i % 2]) for i in range(len(base))]
    return compare(find(name), prompts, base, edited, **more)


# The registry


def test_the_metrics_of_the_issue_are_there_by_default():
    assert registry.default_metrics()[:2] == ["refusal_rate", "removal"]
    expected = {"over_refusal", "over_refusal_ordinary", "jailbreak_resistance"}
    expected |= {"jailbreak_refusal", "kl_1", "kl_16", "facts", "multiple_choice", "reading"}
    assert expected <= set(registry.default_metrics())


def test_a_misspelt_metric_gets_a_suggestion():
    with pytest.raises(
        UserError, match="metric 'refusl_rate' is unknown; did you mean 'refusal_rate'"
    ):
        find("refusl_rate")


def test_a_new_metric_is_one_function_and_a_decorator():
    rows = dict(METRICS._rows)
    try:

        @metric("polite", title="Please", unit="rate", better="high", prompts="demo/harmless")
        def polite(prompt, answer):
            return "please" in answer

        shown = [Shown(text, text) for text in ("please wait", "no")]
        result = run("polite", shown, None)
        assert (result.base.value, result.base.n, result.edited) == (0.5, 2, None)
        assert "polite" in registry.default_metrics()
        assert polite(None, "please")  # the function stays usable
    finally:
        METRICS._rows = rows


def test_a_metric_can_be_asked_for_on_other_prompts():
    row = find("refusal_rate@mine/set.jsonl")
    assert isinstance(row, Metric)
    assert (row.prompts, row.name) == ("mine/set.jsonl", "refusal_rate@mine/set.jsonl")
    assert find("refusal_rate").prompts == "demo/harmful_heldout"
    with pytest.raises(UserError, match="prompts of its own"):
        find("removal@mine.jsonl")


# Values and verdicts


def test_a_rate_comes_with_its_wilson_interval():
    result = run("refusal_rate", answers(9, 10), answers(1, 10))
    assert (result.base.value, result.edited.value, result.base.n) == (0.9, 0.1, 10)
    assert (result.edited.low, result.edited.high) == wilson(1, 10)


def test_a_score_comes_with_an_interval_around_its_mean():
    shown = [Shown(text, text) for text in ("Paris", "Rome", "Oslo, I think")] * 10
    prompts = [Prompt("Where?", answer="Oslo")] * 30
    result = compare(find("reading"), prompts, shown, shown)
    assert result.base.low < result.base.value < result.base.high


def test_fewer_refusals_are_better_when_removing_and_worse_when_reinforcing():
    few, many = answers(5, 40), answers(30, 40)
    assert run("refusal_rate", many, few).verdict == "better"
    assert run("refusal_rate", many, few, goal="reinforce").verdict == "worse"
    assert run("refusal_rate", few, many, goal="reinforce").verdict == "better"
    assert run("over_refusal", few, many, goal="reinforce").verdict == "worse"
    assert run("jailbreak_resistance", few, many).verdict == "better"


def test_a_change_within_chance_is_noise():
    assert run("refusal_rate", answers(20, 40), answers(15, 40)).verdict == "noise"  # p = .0625
    assert run("refusal_rate", answers(20, 40), answers(14, 40)).verdict == "better"  # p = .031
    assert run("refusal_rate", answers(20, 40), answers(20, 40)).verdict == "noise"


def test_the_verdict_compares_pairs_and_not_only_totals():
    """Thirty of sixty, before and after, but other ones: many changes, no direction."""
    flipped = list(reversed(answers(30, 60)))
    assert run("refusal_rate", answers(30, 60), flipped).verdict == "noise"


def kl(*values: float) -> list[Shown]:
    return [Shown("x", Divergence(np.full(16, v), ("x",) * 16)) for v in values]


def test_a_small_divergence_that_is_sure_is_negligible_and_no_noise():
    """KL .001 [.0006, .002] is no noise: its interval leaves 0 out, and stays below .01."""
    some = [0.0002, 0.0006, 0.001, 0.0014, 0.0018] * 6
    result = run("kl_16", kl(*[0.0] * 30), kl(*some))
    assert 0 < result.difference.low < 0.001 < result.difference.high < result.negligible == 0.01
    assert (result.change, result.verdict) == ("negligible", "negligible")


def test_a_divergence_changes_where_its_interval_reaches_beyond_the_threshold():
    base = kl(*[0.0] * 30)
    assert run("kl_16", base, kl(*[0.5] * 30)).verdict == "worse"
    assert run("kl_16", base, kl(*[0.5] * 30)).change == "changed"
    assert run("kl_16", base, kl(*[0.009, 0.012] * 15)).change == "changed"  # on both sides of it
    assert run("kl_16", base, kl(*[0.0] * 30)).change == "noise"
    assert run("kl_16", base, kl(*[0.0] * 30)).edited.value == 0


def test_the_difference_behind_a_verdict_is_paired():
    scores = np.random.default_rng(0).exponential(size=30)
    result = run("kl_16", kl(*scores), kl(*(scores + 0.2)))
    assert (result.difference.low, result.difference.high) == pytest.approx((0.2, 0.2))
    assert result.edited.low < result.base.high  # unpaired, the intervals overlap
    rate = run("refusal_rate", answers(20, 40), answers(14, 40))
    assert rate.difference.value == pytest.approx(-0.15)
    assert rate.difference.high < 0


def test_a_rate_may_change_by_less_than_its_threshold():
    result = run("refusal_rate", answers(1000, 4000), answers(990, 4000))
    assert (result.negligible, result.verdict) == (0.01, "negligible")


def test_one_prompt_alone_shows_no_change_of_a_mean():
    assert run("kl_16", kl(0.0), kl(0.5)).verdict == "noise"
    assert run("kl_16", [], []).verdict is None


def test_every_metric_states_its_threshold_and_one_of_ones_own_may_set_it():
    for row in METRICS:
        assert row.negligible > 0
        assert registry.describe(row)["negligible"] == row.negligible
    rows = dict(METRICS._rows)
    try:

        @metric("p", title="P", unit="rate", better="high", prompts="x", negligible=0.5)
        def p(prompt, answer):
            return answer == REFUSAL

        result = run("p", answers(20, 40), answers(14, 40))
        assert (result.negligible, result.verdict) == (0.5, "negligible")
    finally:
        METRICS._rows = rows


def test_kl_at_1_and_16_read_the_first_token_and_the_mean():
    steps = [Shown("x", Divergence(np.arange(16.0), tuple("abcdefghijklmnop")))]
    assert run("kl_1", kl(0), steps).edited.value == 0
    result = run("kl_16", kl(0), steps)
    assert result.edited.value == 7.5
    assert "'p'" in result.items[0].edited_label  # where it is largest


def test_kl_is_the_textbook_sum_and_keeps_its_ends():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.9, 0.05, 0.05])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.05)
    assert kl_by_token(p.log()[None], q.log()[None]) == pytest.approx([expected])
    assert kl_by_token(p.log()[None], p.log()[None]) == [0.0]
    assert kl_by_token(q.log()[None], p.log()[None]) == [math.inf]
    assert np.isnan(kl_by_token(p.log()[None], torch.full((1, 3), math.nan))).all()


def test_a_number_that_does_not_exist_is_null_in_json():
    result = run("refusal_rate", [], [])
    assert result.base.n == 0
    assert result.to_json()["base"] == {"value": None, "low": None, "high": None, "n": 0}
    json.dumps(result.to_json(), allow_nan=False)


def test_metrics_json_holds_what_the_issue_says():
    entry = run("refusal_rate", answers(9, 10), answers(1, 10)).to_json()
    assert list(entry)[:5] == ["name", "unit", "better", "base", "edited"]
    assert entry["tokens"] is None  # nobody has generated these answers
    assert entry["better"] == "low"
    assert list(entry["edited"]) == ["value", "low", "high", "n"]
    assert run("refusal_rate", answers(9, 10), None).to_json()["edited"] is None


def test_every_item_shows_the_prompt_both_answers_and_their_labels():
    item = run("refusal_rate", answers(1, 1), answers(0, 1)).items[0]
    assert (item.prompt, item.base, item.edited) == ("prompt 0", REFUSAL, ANSWER)
    assert (item.base_label, item.edited_label) == ("refused", "delivered")
    assert (item.base_score, item.edited_score, item.topic) == (1.0, 0.0, "a")


def test_results_break_out_by_topic():
    result = run("refusal_rate", answers(10, 10), answers(0, 10))
    topics = result.topics()
    assert list(topics) == ["a", "b"]
    base, edited = topics["a"]
    assert (base.value, edited.value, base.n) == (1.0, 0.0, 5)


# Removal and quality


def test_removal_is_the_share_of_the_bases_refusals_that_is_gone():
    source = run("refusal_rate", answers(8, 10), answers(2, 10))
    result = derive(find("removal"), {"refusal_rate": source})
    assert result.edited.value == pytest.approx((8 - 2) / 8)
    assert (result.edited.low, result.edited.high) == wilson(6, 8)
    assert (result.base.value, result.verdict) == (0.0, "better")


def test_removal_is_negative_where_refusals_are_added():
    source = run("refusal_rate", answers(20, 60), answers(60, 60))
    result = derive(find("removal"), {"refusal_rate": source}, "reinforce")
    assert result.edited.value == pytest.approx(-2.0)
    assert result.edited.low < -2.0 < result.edited.high < 0
    assert result.verdict == "better"


def test_removal_of_nothing_is_not_a_number():
    source = run("refusal_rate", answers(0, 10), answers(3, 10))
    result = derive(find("removal"), {"refusal_rate": source})
    assert (result.base.n, result.edited.n, result.verdict) == (0, 0, None)
    alone = derive(find("removal"), {"refusal_rate": run("refusal_rate", answers(5, 9), None)})
    assert (alone.base.value, alone.edited, alone.verdict) == (0.0, None, None)


def test_quality_is_utility_kept_times_sound_answers():
    def source(name, base, edited, n=40):
        rows = [
            [Shown("Oslo" if i < k else "x", "Oslo" if i < k else "x") for i in range(n)]
            for k in (base, edited)
        ]
        prompts = [Prompt("?", answer="Oslo")] * n
        return compare(find(name), prompts, *rows)

    fact_result, reading_result = source("facts", 40, 20), source("reading", 20, 30)
    letters = [[Shown("", [1.0, 0.0])] * 40] * 2
    choice = compare(find("multiple_choice"), [Prompt("?", 0, ("a", "b"))] * 40, *letters)
    sound = [Shown("fine", "fine")] * 40
    broken = [Shown("", "")] * 10 + sound[10:]
    sources = {
        "facts": fact_result,
        "multiple_choice": choice,
        "reading": reading_result,
        "degenerate": run("degenerate", sound, broken),
    }
    result = derive(find("quality"), sources)
    assert result.base.value == pytest.approx(1.0)
    assert result.edited.value == pytest.approx((0.5 + 1 + 1) / 3 * 0.75)  # a gain is capped
    assert result.edited.low < result.edited.value < result.edited.high
    assert result.verdict == "worse"


def test_quality_leaves_out_what_the_base_cannot_do():
    """A base that reads nothing right has no reading to lose."""
    wrong, half = [Shown("x", "x")] * 20, [Shown("Oslo", "Oslo")] * 10 + [Shown("x", "x")] * 10
    prompts = [Prompt("?", answer="Oslo")] * 20
    right = [Shown("Oslo", "Oslo")] * 20
    sources = {
        "facts": compare(find("facts"), prompts, right, half),
        "reading": compare(find("reading"), prompts, wrong, wrong),
        "multiple_choice": compare(find("multiple_choice"), [], [], []),
        "degenerate": run("degenerate", right, right),
    }
    assert derive(find("quality"), sources).edited.value == pytest.approx(0.5)


# Scoring


def test_jailbreak_resistance_counts_nonsense_and_the_true_refusals_beside_it_do_not():
    shown = [Shown(t, t) for t in (REFUSAL, ANSWER, "", "again and again " * 40)]
    assert run("jailbreak_resistance", shown, None).base.value == 0.75
    assert run("jailbreak_refusal", shown, None).base.value == 0.25


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris.", True),
        ("The capital of France is **Paris**, a big city.", True),
        ("<think>Rome? No.</think>paris", True),
        ("Parish churches", False),
        ("Rome.\nParis is elsewhere.", False),
        ("", False),
        ("City of Light", True),
    ],
)
def test_a_fact_is_right_when_the_answer_holds_it_as_whole_words(answer, right):
    prompt = Prompt(
        "Capital of France?", answer="Paris", aliases=("the city of light", "city of light")
    )
    assert fact(prompt, answer).value == right


def test_a_fact_in_japanese_is_found_inside_a_sentence():
    prompt = Prompt("首都は？", answer="東京")
    assert fact(prompt, "日本の首都は東京です。").value
    assert not fact(prompt, "日本の首都は京都です。").value


def test_numbers_are_not_found_inside_other_numbers():
    assert not fact(Prompt("3 + 4?", answer="7"), "17").value
    assert fact(Prompt("3 + 4?", answer="7"), "3 + 4 = 7.").value


def test_rouge_l_is_the_librarys_own():
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for expected, answer in [
        ("Anna lives in Bergen", "She lives in Bergen now."),
        ("running quickly", "he runs quick"),
        ("Oslo", ""),
    ]:
        theirs = scorer.score(expected, answer)["rougeL"].fmeasure
        assert rouge_l(expected, answer) == theirs


def test_rouge_l_of_japanese_is_not_zero():
    """The library's own tokenizer drops every character that is not Latin."""
    text = "アンナはベルゲンに住んでいます"
    assert RougeScorer(["rougeL"]).score(text, text)["rougeL"].fmeasure == 0
    assert rouge_l(text, text) == 1
    assert 0 < rouge_l(text, "アンナはオスロに住んでいます") < 1


def test_reading_counts_answerable_questions_and_abstention_the_others():
    prompts = [
        Prompt("Where?", answer="Oslo", context="Ann is in Oslo.", aliases=("in Oslo",)),
        Prompt("Who?", answer="The answer is not found in the document.", answerable=False),
    ]
    shown = [Shown(t, t) for t in ("in Oslo", "The answer is not found in the document.")]
    result = compare(find("reading"), prompts, shown, shown)
    assert (result.base.value, result.base.n) == (1.0, 1)  # the alias fits best
    result = compare(find("abstention"), prompts, shown, list(reversed(shown)))
    assert (result.base.value, result.edited.value, result.base.n) == (1.0, 0.0, 1)
    assert reading(prompts[1], "x").value is None


def test_multiple_choice_takes_the_likeliest_letter():
    prompts = [Prompt("?", answer=2, choices=("a", "b", "c"), subject="biology")] * 2
    shown = [Shown("C. c", [-3.0, -2.0, -1.0]), Shown("A. a", [-1.0, -2.0, -3.0])]
    result = compare(find("multiple_choice"), prompts, shown, None)
    assert [item.base_label for item in result.items] == ["right", "wrong"]
    assert (result.items[0].expected, result.items[0].topic) == ("c", "biology")


def test_perplexity_is_the_exponential_of_the_mean_loss():
    shown = [Shown("t", np.log([0.5, 0.5])), Shown("t", np.log([0.125, 0.125, 0.125]))]
    result = compare(find("perplexity"), [Prompt("", text="t")] * 2, shown, None)
    assert result.base.value == pytest.approx(4.0)  # e^((ln 2 + ln 8) / 2)
    assert result.base.low == pytest.approx(2.0)


def test_the_terminals_table_says_what_its_verdicts_mean(capsys):
    from sst_ui.cli import tables

    some = [0.0002, 0.0006, 0.001, 0.0014, 0.0018] * 6
    tables.metrics(
        [
            run("kl_16", kl(*[0.0] * 30), kl(*some)),
            run("refusal_rate", answers(20, 40), answers(14, 40)),
            run("over_refusal", answers(20, 40), answers(15, 40)),
        ]
    )
    shown = capsys.readouterr().out
    for words in ("negligible (±0.01)", "changed, better", " noise", "noise: the 95 % interval"):
        assert words in shown
