"""An evaluation against independent computations: edited weights in float64, generation on its own.

Most of it runs on a random model of three layers: its answers are noise, but the same noise.
"""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sst_ui.data.prompt_sets import load as load_prompts
from sst_ui.errors import UserError
from sst_ui.jobs.evaluate import answer_labels, observations, observers
from sst_ui.jobs.evaluate.evaluate import MetricResult, evaluate
from sst_ui.jobs.purpose import goal
from sst_ui.maths.directions import random
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.inference import generate as generating
from sst_ui.model.inference.generate import logprobs
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation
from tests.talk import answers, every_pass

WORDS = ["alpha", "bear", "cat", "dog", "egg", "fish", "goat", "hat", "ink", "jar"]


@pytest.fixture(autouse=True)
def nothing_remembered():
    observations.forget()


@pytest.fixture
def small(tiny_host):
    return tiny_host("llama")


@pytest.fixture
def write(tmp_path):
    def _write(name, *lines):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines))
        return str(path)

    return _write


@pytest.fixture
def chats(write):
    """Ten prompts of different length."""
    return write("chats", *({"prompt": f"{w} " * (i + 1)} for i, w in enumerate(WORDS)))


def test_an_evaluation_that_does_not_fit_the_memory_says_so_and_goes_on(small, chats, monkeypatch):
    wanted = Evaluation(metrics=(f"refusal_rate@{chats}",), max_new_tokens=4)
    expected = finish(evaluate(small, edits(small), wanted))
    observations.forget()
    real = generating.forward

    def tight(host, batch, *args, **settings):
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError
        return real(host, batch, *args, **settings)

    every_pass(monkeypatch, tight)
    heard = []
    assert finish(evaluate(small, edits(small), wanted), heard.append) == expected
    said = [step.warning for step in heard if isinstance(step, Progress) and step.warning]
    assert "do not fit the memory; going on with" in said[-1]


def edits(host, alpha: float = 1.0, seed: int = 0) -> tuple[RowEdit, ...]:
    directions = random(host.layers, host.hidden, 1, seed)
    return (RowEdit(directions, np.full((host.layers, 2), alpha)),)


def run(host, edit, *metrics: str, tokens: int = 8, samples=None) -> dict[str, MetricResult]:
    evaluation = Evaluation(metrics=metrics, max_new_tokens=tokens, samples=samples)
    return {r.name.partition("@")[0]: r for r in finish(evaluate(host, edit, evaluation))}


def rewritten(host, edit):
    """A copy of the model in float64 with the edit in its weights: W − α r̂ (r̂ᵀ W)."""
    model = copy.deepcopy(host.model)
    for hooked in model.modules():
        hooked._forward_hooks.clear()
        hooked._forward_pre_hooks.clear()
    model.double()
    for number, layer in enumerate(model.model.layers):
        r = edit[0].directions.vectors[number, 0].double()
        for kind, linear in enumerate((layer.self_attn.o_proj, layer.mlp.down_proj)):
            weight = linear.weight.data
            weight -= edit[0].alpha[number, kind] * torch.outer(r, r @ weight)
    return model


def plain(host):
    return rewritten(host, edits(host, 0.0))


def test_kl_agrees_with_rewritten_weights_in_float64(small, chats):
    edit = edits(small, 1.3)
    found = run(small, edit, f"kl_1@{chats}", f"kl_16@{chats}")
    before, after = plain(small), rewritten(small, edit)
    first, mean = [], []
    for prompt in load_prompts(chats).prompts:
        ids = small.encode(prompt.messages())
        start = len(ids)
        for _ in range(16):  # greedy, without a cache
            ids.append(int(before(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in small.stop:
                break
        text = torch.tensor([ids[:-1]])
        p, q = (m(text).logits[0, start - 1 :].log_softmax(-1) for m in (before, after))
        kl = (p.exp() * (p - q)).sum(-1)
        first.append(float(kl[0]))
        mean.append(float(kl.mean()))
    assert [i.edited_score for i in found["kl_1"].items] == pytest.approx(first, rel=1e-3)
    assert [i.edited_score for i in found["kl_16"].items] == pytest.approx(mean, rel=1e-3)
    assert found["kl_16"].edited.value == pytest.approx(np.mean(mean), rel=1e-3)
    assert found["kl_16"].base.value == 0
    assert found["kl_16"].verdict == "worse"


def test_both_answers_are_those_of_each_model_on_its_own(small, chats):
    edit = edits(small, 1.5)
    found = run(small, edit, f"refusal_rate@{chats}")["refusal_rate"]
    alone = [small.encode(p.messages()) for p in load_prompts(chats).prompts]
    for row, field in (((), "base"), (edit, "edited")):
        texts = [finish(answers(small, [ids], [row], 8))[0].strip() for ids in alone]
        assert [getattr(item, field) for item in found.items] == texts
    assert any(item.base != item.edited for item in found.items)


def test_strength_0_changes_nothing_at_all(small, chats):
    found = run(small, edits(small, 0.0), f"kl_16@{chats}", f"refusal_rate@{chats}")
    assert found["kl_16"].edited.value == 0.0
    for result in found.values():
        assert all(i.base == i.edited and i.base_score == i.edited_score for i in result.items)
        assert (result.base, result.verdict) == (result.edited, "noise")


def test_without_edits_only_the_base_is_measured(small, chats):
    found = run(small, (), f"refusal_rate@{chats}", f"kl_1@{chats}")
    for result in found.values():
        assert (result.edited, result.verdict) == (None, None)
        assert all(item.edited is None for item in result.items)
        assert result.base.n == 10


def test_letters_are_read_from_the_first_token_by_likelihood(small, write):
    questions = write(
        "questions",
        *(
            {"prompt": w, "choices": WORDS[i : i + 4], "answer": i % 4}
            for i, w in enumerate(WORDS[:6])
        ),
    )
    edit = edits(small)
    found = run(small, edit, f"multiple_choice@{questions}")["multiple_choice"]
    prompts = load_prompts(questions).prompts
    letters = [small.tokens(letter)[0] for letter in "ABCD"]
    for row, field in (((), "base"), (edit, "edited")):
        encoded = [small.encode(p.messages()) for p in prompts]
        best = logprobs(small, encoded, [row] * 6)[:, letters].argmax(1)
        expected = [f"{'ABCD'[b]}. {p.choices[b]}" for b, p in zip(best, prompts, strict=True)]
        assert [getattr(item, field) for item in found.items] == expected
    assert found.items[0].prompt == "alpha\nA. alpha\nB. bear\nC. cat\nD. dog\nAnswer:"


def test_worked_examples_go_before_the_question_as_turns(small, write):
    path = write(
        "some",
        {"prompt": "egg", "choices": ["x", "y"], "answer": 1, "subject": "a"},
        {"prompt": "fish", "choices": ["x", "y"], "answer": 0, "subject": "b"},
    )
    shots = write(
        "shots",
        {"prompt": "cat", "choices": ["p", "q"], "answer": 0, "subject": "a"},
        {"prompt": "dog", "choices": ["p", "q"], "answer": 1, "subject": "b"},
    )
    few = f"{path}?shots=1&shots_file={shots}"
    found = run(small, (), f"multiple_choice@{few}")["multiple_choice"]
    turns = [
        {"role": "user", "content": "dog\nA. p\nB. q\nAnswer:"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "fish\nA. x\nB. y\nAnswer:"},
    ]
    after = logprobs(small, [small.encode(turns)])[0]
    letters = [after[small.tokens(letter)[0]] for letter in "AB"]
    assert found.items[1].base == ("A. x", "B. y")[int(letters[1] > letters[0])]
    assert list(found.topics()) == ["a", "b"]


def test_perplexity_is_that_of_the_rewritten_model(small, write):
    texts = write("texts", *({"text": " ".join(WORDS[i:])} for i in range(5)))
    edit = edits(small, 1.2)
    found = run(small, edit, f"perplexity@{texts}")["perplexity"]
    losses = []
    for prompt in load_prompts(texts).prompts:
        ids = torch.tensor([small.tokens(prompt.text)])
        losses.append(float(rewritten(small, edit)(ids, labels=ids).loss))
    assert found.edited.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)


def test_metrics_on_the_same_prompts_share_one_pass(small, chats, monkeypatch):
    passes = []
    real = observers.replies
    monkeypatch.setattr(observers, "replies", lambda *a, **k: passes.append(1) or real(*a, **k))
    run(small, edits(small), f"jailbreak_resistance@{chats}", f"jailbreak_refusal@{chats}")
    assert len(passes) == 1


def test_base_and_edited_share_their_batches_and_the_base_is_not_asked_twice(
    small, chats, monkeypatch
):
    batches = []
    real = observers.replies

    def spy(host, prompts, rows, *rest, **more):
        batches.append([bool(row) for row in rows])
        return real(host, prompts, rows, *rest, **more)

    monkeypatch.setattr(observers, "replies", spy)
    first = run(small, edits(small, 1.0), f"refusal_rate@{chats}")["refusal_rate"]
    assert batches[0] == [False, True] * 10
    second = run(small, edits(small, 1.5, seed=1), f"refusal_rate@{chats}")["refusal_rate"]
    assert batches[1] == [True] * 10
    assert [i.base for i in second.items] == [i.base for i in first.items]
    observations.forget()
    fresh = run(small, edits(small, 1.5, seed=1), f"refusal_rate@{chats}")["refusal_rate"]
    assert fresh.items == second.items


def test_divergence_goes_along_answers_that_are_known_already(small, chats, monkeypatch):
    edit = edits(small, 1.3)
    alone = run(small, edit, f"kl_16@{chats}", tokens=24)["kl_16"]
    observations.forget()
    run(small, (), f"refusal_rate@{chats}", tokens=24)

    def generating(*_, **__):
        raise AssertionError("the base's answers are known")

    monkeypatch.setattr(observers, "replies", generating)
    assert run(small, edit, f"kl_16@{chats}", tokens=24)["kl_16"] == alone


def test_refusal_log_odds_are_those_of_the_softmax_in_float64(small, chats, monkeypatch):
    monkeypatch.setattr(observers, "openers", lambda: ("I", "Sorry"))
    edit = edits(small, 1.4)
    found = run(small, edit, f"refusal_logodds@{chats}")["refusal_logodds"]
    model = rewritten(small, edit)
    first = {ids[0] for word in ("I", " I", "Sorry") if (ids := small.tokens(word))}
    first -= {small.tokens(" I")[0]} if len(small.tokens(" I")) > 1 else set()
    for prompt, item in zip(load_prompts(chats).prompts, found.items, strict=True):
        logits = model(torch.tensor([small.encode(prompt.messages())])).logits[0, -1]
        p = logits.softmax(-1)[sorted(first)].sum()
        assert item.edited_score == pytest.approx(float(torch.log(p / (1 - p))), abs=1e-4)


def test_reasoning_is_scored_apart(write):
    from sst_ui.metrics.registry import METRICS
    from sst_ui.metrics.text.answer import Answer

    thought = "<think>I cannot help with that.</think>"
    inner, outer = METRICS["reasoning_refusal"].score, METRICS["refusal_rate"].score
    helps, refuses = Answer(f"{thought}Sure, here is how."), Answer("I can't help with that.")
    assert (inner(None, helps).value, outer(None, helps).value) == (True, False)
    assert (inner(None, refuses).value, outer(None, refuses).value) == (None, True)


def test_people_have_the_last_word_then_the_judge_then_the_phrases(small, chats, tmp_path):
    class Judge:
        digest, name, asked = "a judge", "a judge", 0

        def labels(self, pairs):
            Judge.asked += len(pairs)
            yield Progress("judge", 0, 1)
            return ["refused"] * len(pairs)

    answer_labels._judges.put("a judge", Judge())
    plain = run(small, (), f"refusal_rate@{chats}")["refusal_rate"]
    path = tmp_path / "labels.jsonl"
    item = plain.items[3]
    path.write_text(json.dumps({"prompt": item.prompt, "answer": item.base, "label": "delivered"}))
    wanted = Evaluation(
        (f"refusal_rate@{chats}",), max_new_tokens=8, judge="a judge", labels=str(path)
    )
    (found,) = finish(evaluate(small, (), wanted))
    assert [i.base_label for i in found.items] == [
        "delivered" if n == 3 else "refused" for n in range(10)
    ]
    assert found.base.value == 0.9
    assert found.note == "labelled by a judge"
    assert Judge.asked == 10
    finish(evaluate(small, (), wanted))
    assert Judge.asked == 10  # what it said of an answer is remembered


def test_longer_answers_are_not_confused_with_remembered_shorter_ones(small, chats):
    short = run(small, (), f"refusal_rate@{chats}", tokens=2)["refusal_rate"]
    long = run(small, (), f"refusal_rate@{chats}", tokens=12)["refusal_rate"]
    assert any(len(b.base) > len(a.base) for a, b in zip(short.items, long.items, strict=True))


def test_finished_metrics_survive_a_cancelled_evaluation(small, chats, write):
    other = write("other", {"prompt": "one"}, {"prompt": "two"})
    names = (f"refusal_rate@{other}", f"over_refusal@{chats}")
    job = evaluate(small, edits(small), Evaluation(metrics=names, max_new_tokens=8))
    finished, steps = [], 0
    for part in job:
        if isinstance(part, MetricResult):
            finished.append(part)
        elif finished:
            steps += 1
            job.close()
            break
    assert steps == 1
    assert [r.name for r in finished] == [names[0]]
    assert finished[0].edited.n == 2
    json.dumps(finished[0].to_json(), allow_nan=False)
    # the model is free and as it was: the same evaluation, begun anew, finishes
    assert len(finish(evaluate(small, edits(small), Evaluation(names, max_new_tokens=8)))) == 2


def test_progress_names_the_metric_and_its_step(small, chats, write):
    other = write("other", {"prompt": "one"})
    names = (f"refusal_rate@{other}", f"kl_1@{chats}")
    parts = []
    finish(evaluate(small, edits(small), Evaluation(names, max_new_tokens=4)), parts.append)
    steps = [part for part in parts if isinstance(part, Progress)]
    assert {s.stage for s in steps} == {
        "Refusal rate (other.jsonl)",
        "KL divergence, first token (chats.jsonl)",
        "labels",  # of the answers that the first one reads
    }
    assert (steps[0].step, steps[0].steps) == (1, 2)
    assert (steps[-1].step, steps[-1].overall) == (2, 1.0)
    shares = [step.overall for step in steps]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert steps[-1].done == steps[-1].total == 10


def test_a_derived_metric_brings_its_source_but_does_not_show_it(small, monkeypatch, chats):
    monkeypatch.setattr(
        "sst_ui.jobs.evaluate.apart.prompt_sets.load", lambda *_: load_prompts(chats)
    )
    results = finish(evaluate(small, edits(small), Evaluation(("removal",), max_new_tokens=4)))
    assert [r.name for r in results] == ["removal"]


def test_results_come_in_the_order_asked_for_and_once(small, chats):
    names = [f"{n}@{chats}" for n in ("over_refusal", "kl_16", "refusal_rate", "kl_16")]
    results = finish(evaluate(small, (), Evaluation(tuple(names), max_new_tokens=4)))
    assert [r.name for r in results] == names[:3]


def test_samples_take_part_of_the_prompts(small, chats):
    assert run(small, (), f"refusal_rate@{chats}", samples=4)["refusal_rate"].base.n == 4


def test_a_negative_strength_means_that_refusal_is_wanted(small, chats):
    assert goal(edits(small, -1.0)) == "reinforce"
    assert goal(edits(small, 1.0)) == goal(()) == "remove"
    found = run(small, edits(small, -1.0), f"refusal_rate@{chats}")["refusal_rate"]
    assert found.better == "high"


@pytest.mark.parametrize(
    ("metric", "line", "message"),
    [
        ("refusal_rate", {"prompt": "long " * 400}, "prompt 2.*tokens.*shorten"),
        ("refusal_rate", {"text": "plain"}, "prompt 2 is plain text"),
        ("perplexity", {"prompt": "x"}, "has no 'text'"),
        ("multiple_choice", {"prompt": "x"}, "prompt 1 has no 'choices'"),
        ("refusal_rate", {"promt": "x"}, 'line 2 lacks "prompt"'),
    ],
)
def test_bad_prompts_are_found_before_anything_is_computed(small, write, metric, line, message):
    path = write("bad", {"prompt": "fine"}, line)
    small.step = None  # any forward pass would fail
    with pytest.raises(UserError, match=message):
        run(small, edits(small), f"kl_1@{path}", f"{metric}@{path}")


def test_prompts_that_the_directions_came_from_are_said_not_to_be_held_out(small, chats, write):
    other = write("other", {"prompt": "one"})
    (edit,) = edits(small)
    meta = {
        "harmful": f"{chats} (10 prompts, 0123456789ab)",
        "harmless": "demo/harmless (5 prompts)",
    }
    seen = replace(edit, directions=replace(edit.directions, meta=meta))
    names = (f"refusal_rate@{chats}", f"refusal_rate@{other}")
    one, two = finish(evaluate(small, (seen,), Evaluation(names, max_new_tokens=2)))
    assert "not held out" in one.note
    assert two.note == ""


def test_unknown_names_are_found_before_anything_is_computed(small):
    with pytest.raises(UserError, match="did you mean 'facts'"):
        run(small, (), "fact")
    with pytest.raises(UserError, match="prompt set 'demo/harmfull' is unknown"):
        run(small, (), "refusal_rate@demo/harmfull")


def test_a_model_that_computes_no_numbers_is_an_error_and_not_an_unchanged_model(
    small, chats, monkeypatch
):
    real = observers.teacher_forced

    def broken(*arguments):
        return [table * float("nan") for table in real(*arguments)]

    monkeypatch.setattr(observers, "teacher_forced", broken)
    with pytest.raises(UserError, match="NaN; lower the strength"):
        run(small, edits(small), f"kl_1@{chats}")


def test_the_default_evaluation_of_the_demo_finds_something_everywhere(host):
    edit = edits(host, 0.5)
    results = finish(evaluate(host, edit, Evaluation(samples=6, max_new_tokens=16)))
    assert len(results) >= 11
    for result in results:
        assert result.base.n > 0 or result.name in ("removal", "abstention"), result.name
        assert result.edited is not None
    kl = next(r for r in results if r.name == "kl_1")
    assert 0 < kl.edited.value < 1  # a random direction matters little
