"""First numbers within a minute: the stages of a long evaluation, and how fast a model is."""

from dataclasses import replace
from itertools import pairwise

import pytest

from sst_ui.jobs.evaluate import speed, stages
from sst_ui.jobs.evaluate.evaluate import evaluate, limits
from sst_ui.jobs.evaluate.speed import Speed
from sst_ui.jobs.evaluate.stages import Work, plan, seconds, works
from sst_ui.metrics.registry import default_metrics
from sst_ui.progress import finish
from sst_ui.recipe import Evaluation

WORK = (
    Work("answer", ("refusal_rate", "delivered", "evaded", "degenerate_harmful"), 160, 40.0),
    Work("answer", ("over_refusal",), 120, 40.0),
    Work("answer", ("over_refusal_ordinary", "degenerate"), 128, 40.0),
    Work("answer", ("jailbreak_resistance", "jailbreak_refusal"), 140, 60.0),
    Work("divergence", ("kl_1", "kl_16"), 128, 40.0),
    Work("answer", ("facts",), 159, 35.0),
    Work("choice", ("multiple_choice",), 150, 90.0),
    Work("answer", ("reading", "abstention"), 120, 120.0),
)
SPEEDS = [Speed(s / 4, s) for s in (1e-5, 1e-3, 4e-3, 8e-3, 3e-2, 0.3)]
SMALL = Speed(0.002, 0.006)  # of 135 million parameters on two cores


@pytest.mark.parametrize("speed_", SPEEDS)
@pytest.mark.parametrize("wanted", [
    Evaluation(), Evaluation(preset="full"), Evaluation(samples=12, max_new_tokens=40),
    Evaluation(samples=3, max_new_tokens=9), Evaluation(metrics=("facts",), labels="l.jsonl"),
])  # fmt: skip
def test_the_last_stage_is_what_was_asked_for_and_each_is_larger_than_the_one_before(
    wanted, speed_
):
    found = plan(wanted, "m", "remove", speed_, WORK)
    assert found[-1].evaluation is wanted
    assert (found[-1].prompts, found[-1].tokens) == limits(wanted, "m")
    for before, after in pairwise(found):
        assert before.seconds * 4 <= after.seconds
        assert before.prompts <= (after.prompts or 999)
        assert before.tokens <= after.tokens
        assert (before.evaluation.samples, before.evaluation.max_new_tokens) == (
            before.prompts, before.tokens,
        )  # fmt: skip
        same = replace(before.evaluation, metrics=wanted.metrics, samples=wanted.samples,
                       max_new_tokens=wanted.max_new_tokens)  # fmt: skip
        assert same == wanted


def test_what_is_quick_has_one_stage_and_the_demo_always():
    assert len(plan(Evaluation(), "m", "remove", SPEEDS[0], WORK)) == 1
    assert len(plan(Evaluation(), "demo", "remove", SPEEDS[-1], WORK)) == 1
    assert len(plan(Evaluation(), "m", "remove", SMALL, WORK)) > 1


def test_a_faster_model_begins_with_no_less():
    firsts = [plan(Evaluation(), "m", "remove", each, WORK)[0] for each in SPEEDS]
    sizes = [((first.prompts or 999), first.tokens) for first in firsts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == (200, 100)
    assert sizes[-1] == (8, 32)


def test_all_metrics_of_a_small_model_come_within_the_minute():
    first, *_, last = plan(Evaluation(), "m", "remove", SMALL, WORK)
    assert first.seconds <= 60 < 600 < last.seconds
    assert first.seconds == seconds(WORK, SMALL, first.prompts, first.tokens)
    assert set(first.evaluation.metrics) == set(default_metrics())


@pytest.mark.parametrize(
    ("goal", "leading"),
    [
        ("remove", ["refusal_rate", "removal", "delivered"]),
        ("reinforce", ["jailbreak_resistance", "jailbreak_refusal", "refusal_rate"]),
        ("measure", ["refusal_rate", "removal", "delivered"]),
    ],
)
def test_the_goals_own_metrics_come_first(goal, leading):
    found = plan(Evaluation(), "m", goal, SMALL, WORK)
    assert list(found[0].evaluation.metrics[:3]) == leading
    wanted = Evaluation(metrics=("facts", "quality", f"{leading[0]}@mine.jsonl"))
    mine = plan(wanted, "m", goal, Speed(1, 1), WORK)[0].evaluation.metrics
    assert mine == (f"{leading[0]}@mine.jsonl", "quality", "facts")


def test_answers_that_end_early_count_for_less():
    assert Speed(1, 1).length(100) == 100
    assert 20 < Speed(1, 1, usual=25).length(100) < 25


def test_the_speed_is_measured_once_and_corrected_by_evaluations(tiny_host):
    host = tiny_host("llama")
    begun = finish(speed.measure(host))
    assert begun.prompt > 0
    assert begun.token > 0
    steps = []
    assert finish(speed.measure(host), steps.append) is begun
    assert steps == []
    speed._known[host] = slow = Speed(100.0, 100.0)
    wanted = Evaluation(metrics=("refusal_rate",), samples=2, max_new_tokens=4)
    finish(evaluate(host, (), wanted))
    assert finish(speed.measure(host)).token == pytest.approx(slow.token / 2, rel=0.01)


def test_the_work_is_that_of_the_evaluation(tiny_host):
    wanted = Evaluation(metrics=("removal", "kl_16", "over_refusal"), samples=20)
    found = works(tiny_host("llama"), wanted)
    assert [(each.reads, each.metrics) for each in found] == [
        ("answer", ("refusal_rate",)), ("divergence", ("kl_16",)), ("answer", ("over_refusal",)),
    ]  # fmt: skip
    assert {each.prompts for each in found} == {20}
    assert all(each.tokens > 1 for each in found)


def test_every_metric_of_an_order_is_one():
    for goal, names in stages._rules()["order"].items():
        assert set(names) <= set(default_metrics()), goal
