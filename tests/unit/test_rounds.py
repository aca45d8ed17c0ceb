"""Directions in rounds, on an organism with two decisions: half of its topics are refused at once,
the other half after a first step. Tests read tests/organisms, which no edit took part in making."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sst_ui.__main__ import main
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.directions import filter_moments, filtering
from sst_ui.jobs.directions.candidates import onset
from sst_ui.jobs.directions.measure import resolve, texts
from sst_ui.jobs.directions.rounds import Round, divided, rounds
from sst_ui.jobs.evaluate.evaluate import evaluate
from sst_ui.maths import directions as maths_directions
from sst_ui.maths.contrast import extended
from sst_ui.maths.decisions import Decision
from sst_ui.model.inference.answer_residuals import along_answers
from sst_ui.model.inference.residuals import residuals
from sst_ui.model.runtime.host import load
from sst_ui.options import RoundsOptions
from sst_ui.progress import finish
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Evaluation,
    Filter,
    ModelSpec,
    Recipe,
    WeightTable,
)

ORGANISM = Path(__file__).resolve().parents[1] / "organisms" / "tiny-llama"
SETS = {
    name: str(ORGANISM / "prompts" / f"{name}.jsonl")
    for name in ("harmful_measure", "harmless_measure", "harmful_select", "harmful_test")
}
WIDE = WeightTable(profile="custom", peak=0.7, width=0.4, threshold=0.0, strength=1.5)
SPEC = DirectionSpec(harmful=SETS["harmful_measure"], harmless=SETS["harmless_measure"])
EDIT = Ablation(SPEC, WIDE, "filter", filter=Filter(mu=0.1))
TOKENS = 45


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return finish(load(ModelSpec(id=str(ORGANISM / "model"))))


@pytest.fixture(scope="module")
def found(host):
    options = RoundsOptions(rounds=4, select=SETS["harmful_select"], max_new_tokens=TOKENS)
    return finish(rounds(host, EDIT, options))


def told(host, edit):
    """Label -> share on the test prompts, by the studio's own evaluation."""
    row = finish(resolve(host, Recipe(model=host.spec, edits=(edit,))))
    name = f"refusal_rate@{SETS['harmful_test']}"
    wanted = Evaluation(metrics=(name,), samples=48, max_new_tokens=TOKENS)
    (result,) = finish(evaluate(host, row, wanted))
    labels = [item.edited_label for item in result.items]
    return {label: labels.count(label) / len(labels) for label in set(labels)}


def test_one_direction_leaves_the_refusals_and_rounds_remove_them(found):
    base, first, *_, last = found.rounds
    assert base.held == 1
    assert first.held > 0.9
    assert last.held <= 0.1
    assert last.shares["delivered"] >= 0.9
    assert 2 <= found.directions.k == last.number <= 4


def test_decisions_say_where_they_lie(found):
    first, *others = found.directions.decisions
    assert (first.round, first.anchor, first.position) == (1, "prompt", 0)
    assert any(each.position > 5 for each in others)  # the topic that is refused late
    for number, each in enumerate(others, 2):
        assert each.round == number
        assert 0 <= each.layer < 4
        assert each.map.shape[1] == 4
        assert not each.map[each.position].isnan().any()


def test_saved_directions_carry_their_decisions_and_edit_prompts_that_nothing_saw(
    host, found, tmp_path
):
    path = found.directions.save(tmp_path / "rounds.safetensors")
    again = maths_directions.load(path)
    assert torch.equal(again.vectors, found.directions.vectors)
    assert again.digest() == found.directions.digest()
    for one, other in zip(again.decisions, found.directions.decisions, strict=True):
        assert one.told() == other.told()
        assert one.heads == other.heads
        assert torch.equal(one.map.nan_to_num(), other.map.nan_to_num())
    saved = Ablation(DirectionSpec(**{**vars(SPEC), "file": str(path)}), WIDE, "filter",
                     filter=EDIT.filter)  # fmt: skip
    single, several = told(host, EDIT), told(host, saved)
    assert several.get("delivered", 0) >= 0.9
    assert single.get("delivered", 0) <= several["delivered"] - 0.3
    plain = Ablation(saved.directions, WIDE, norm_preserving=True)
    (row,) = finish(resolve(host, Recipe(model=host.spec, edits=(plain,))))
    assert row.directions.k == found.directions.k


def test_a_filter_opens_for_the_answers_that_the_decisions_were_found_on(host, found):
    job = filtering.filters(host, EDIT, found.directions)
    statistics = finish(job).statistics
    n = sum(len(each.heads) for each in found.directions.decisions)
    assert {moments.n for moments in statistics.harmful.values()} == {n}


def test_no_prompt_to_select_by_is_measured_on(host, found):
    select = prompt_sets.load(SETS["harmful_select"])
    asked = {tuple(host.encode(prompt.messages())) for prompt in select.prompts}
    for each in found.directions.decisions:
        assert not [head for head in each.heads for ids in asked if head[: len(ids)] == ids]


def test_without_a_set_a_quarter_of_the_harmful_prompts_selects():
    parts = divided(EDIT, RoundsOptions())
    whole = texts(prompt_sets.load(SETS["harmful_measure"]))
    assert not texts(parts.select) & texts(parts.harmful)
    assert texts(parts.select) | texts(parts.harmful) == whole
    assert len(parts.select) == len(whole) // 4


def test_prompts_that_are_measured_or_reported_on_cannot_select():
    with pytest.raises(UserError, match="also measured on"):
        divided(EDIT, RoundsOptions(select=SETS["harmful_measure"]))
    with pytest.raises(UserError, match=r"demo/harmful_heldout.*reported on"):
        divided(Ablation(), RoundsOptions(select="demo/harmful_heldout"))


def test_directions_that_were_measured_on_what_selects_are_not_gone_on_with(host, found):
    other = Ablation(DirectionSpec(harmful=SETS["harmful_select"], harmless=SPEC.harmless), WIDE)
    options = RoundsOptions(select=SETS["harmful_measure"], max_new_tokens=2)
    with pytest.raises(UserError, match="were measured on 128 of the prompts to select by"):
        finish(rounds(host, other, options, found.directions))


def test_a_metric_on_the_selection_prompts_says_that_they_are_not_held_out(host, found, tmp_path):
    path = found.directions.save(tmp_path / "rounds.safetensors")
    edit = Ablation(DirectionSpec(file=str(path)), WIDE)
    row = finish(resolve(host, Recipe(model=host.spec, edits=(edit,))))
    name = f"refusal_rate@{SETS['harmful_select']}"
    wanted = Evaluation(metrics=(name,), samples=2, max_new_tokens=4)
    (result,) = finish(evaluate(host, row, wanted))
    assert "not held out" in result.note


def test_the_goal_ends_it_at_once(host):
    options = RoundsOptions(select=SETS["harmful_select"], max_new_tokens=8, goal=1.0)
    done = finish(rounds(host, EDIT, options))
    assert done.ended == "goal"
    assert done.directions.k == 1


def test_closing_it_stops_it_and_leaves_no_file_and_no_hook(host, tmp_path, monkeypatch):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    filter_moments._recent.clear()
    layers = host.architecture.layers
    before = [len(layer._forward_hooks) for layer in layers]
    job = rounds(host, EDIT, RoundsOptions(select=SETS["harmful_select"], max_new_tokens=TOKENS))
    for step in job:
        if isinstance(step, Round) and step.number == 1:
            break
    next(job)  # in the middle of the second round
    job.close()
    assert [len(layer._forward_hooks) for layer in layers] == before
    assert not [*tmp_path.rglob("*part*")]


def test_the_command_saves_a_file_and_says_that_the_goal_was_missed(tmp_path, capsys):
    out = tmp_path / "one.safetensors"
    given = ["measure", "--model", str(ORGANISM / "model"), "--rounds", "1", "--tokens", "20",
             "--harmful", SETS["harmful_measure"], "--harmless", SETS["harmless_measure"],
             "--select", SETS["harmful_select"], "--out", str(out), "--json"]  # fmt: skip
    assert main(given) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["directions"] for row in said["rounds"]] == [0, 1]
    assert said["ended"] == "rounds"
    assert maths_directions.load(out).decisions[0].anchor == "prompt"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--goal", "0.1"], "--goal goes with --rounds"),
        (["--rounds", "2", "--filter"], "leave out --rounds"),
        (["--rounds", "0"], "1 to 16"),
        (["--rounds", "2", "--operation", "add"], "not with add"),
    ],
)
def test_options_that_would_go_unheard_are_refused_in_a_line(given, words, tmp_path, capsys):
    out = tmp_path / "never.safetensors"
    model = str(ORGANISM / "model")
    assert main(["measure", "--model", model, "--out", str(out), *given]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


# The parts, against independent computations


def test_residuals_along_answers_are_those_of_single_texts(host):
    prompts = [host.encode(f"How do I {verb} a lamp?") for verb in ("fold", "sell", "paint")]
    answers = [host.tokens("Sure! To fold"), host.tokens("Sure!"), host.tokens("I cannot help you")]
    talks = list(zip(prompts, answers, strict=True))
    (one, other) = finish(along_answers(host, talks, [0, 0, 1], 4))
    for p in range(4):
        texts = [(*a, *b[:p]) for a, b in talks]
        there = [i for i in range(3) if p <= len(answers[i])]
        single = finish(residuals(host, [texts[i] for i in there])).double()
        firsts = [n for n, i in enumerate(there) if i < 2]
        assert one.count[p] == len(firsts)
        mean = single[firsts].mean(0)
        assert torch.allclose(one.mean[p], mean, atol=1e-4)
        spread = (single[firsts] - mean).square().sum(-1).mean(0)
        assert torch.allclose(one.spread[p], spread, atol=1e-2)
        assert torch.allclose(other.mean[p], single[-1], atol=1e-4)


def test_a_further_direction_is_the_part_of_the_difference_that_is_new():
    draw = torch.Generator().manual_seed(1)
    known = maths_directions.random(3, 8)
    difference, reference = (torch.randn(3, 8, generator=draw).double() for _ in range(2))
    decision = Decision(2, "answer", 3, 3, 1, "harmless", ((1, 2),))
    more = extended(known, difference, reference, decision)
    for layer in range(3):
        one, two = more.vectors[layer].double()
        rest = difference[layer] - (difference[layer] @ one) * one
        assert torch.allclose(two, rest / rest.norm(), atol=1e-6)
        assert float(more.neutral[layer, 1]) == pytest.approx(
            float(reference[layer] @ two), abs=1e-5
        )
    with pytest.raises(UserError, match="no further direction"):
        extended(known, known.vectors[:, 0] * 2, reference, decision)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I'm sorry, I cannot help you.", ""),
        ("Sure! To fold a lamp, first lower the lid. I'm sorry, but I can't help with that.",
         "Sure! To fold a lamp, first lower the lid."),
    ],
)  # fmt: skip
def test_a_refusal_begins_with_its_first_word(host, text, said):
    ids = host.tokens(text)
    start = onset(host, ids)
    assert host.decode(ids[:start]).strip() == said
    assert onset(host, host.tokens("Sure! To fold a lamp, first lower the lid.")) is None


def test_an_affine_edit_in_rounds_is_the_one_that_its_recipe_makes(host, found, tmp_path):
    """With its neutral points where it acts, as everywhere else."""
    affine = Ablation(SPEC, WIDE, affine=True)
    options = RoundsOptions(rounds=1, select=SETS["harmful_select"], max_new_tokens=TOKENS)
    done = finish(rounds(host, affine, options))
    path = done.directions.save(tmp_path / "one.safetensors")
    spec = DirectionSpec(**{**vars(SPEC), "file": str(path)})
    row = finish(resolve(host, Recipe(model=host.spec, edits=(replace(affine, directions=spec),))))
    name = f"refusal_rate@{SETS['harmful_select']}"
    wanted = Evaluation(metrics=(name,), samples=None, preset="full", max_new_tokens=TOKENS)
    (result,) = finish(evaluate(host, row, wanted))
    labels = [item.edited_label for item in result.items]
    shares = {kind: labels.count(kind) / len(labels) for kind in done.rounds[1].shares}
    assert shares == pytest.approx(dict(done.rounds[1].shares))
