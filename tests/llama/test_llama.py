"""Exported GGUF files in llama.cpp itself (node-llama-cpp): its tokens and its logits are ours.

llama.cpp is asked once about all files. Without node or the package the tests are skipped, and say
what brings it.
"""

import json
import subprocess
from dataclasses import dataclass

import pytest
import torch

from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.export.export import export
from sst_ui.jobs.export.gguf_compare import TEXTS, chats
from sst_ui.jobs.export.gguf_tokens import FileTokenizer
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.inference.logprobs import teacher_forced
from sst_ui.model.runtime.host import Host, load
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, ModelSpec, Recipe
from tests import vocabularies as v
from tests.llama import install
from tests.talk import byte_tokenizer
from tests.tiny import tiny

pytest.importorskip("gguf")
pytestmark = pytest.mark.skipif(bool(install.missing()), reason=install.missing() or "it is here")
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8}  # fmt: skip
# name -> (architecture of tests/tiny.py, its settings, tokenizer); 3 rows more than tokens
MODELS = {
    "gpt2": ("llama", {}, v.byte_level),
    "gpt2, BOS": ("llama_wide", {}, lambda: v.byte_level(bos=True)),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}, lambda: v.byte_level("llama3", bos=True)),
    "llama 3, merges": ("llama_bias", {}, lambda: v.byte_level("llama3", whole=False)),
    "qwen 2": ("qwen2", {}, lambda: v.byte_level("qwen2", composed=True)),
    "qwen 3": ("qwen3", {}, lambda: v.byte_level("qwen2", composed=True)),
    "qwen 3, wide": ("qwen3", {"head_dim": 16}, byte_tokenizer),
    "smollm": ("llama_tied", {}, lambda: v.byte_level("smollm")),
    "mistral, wide": ("mistral", {"head_dim": 16}, lambda: v.byte_level("llama3", bos=True)),
    "llama 2": ("llama_narrow", {}, lambda: v.pieces("Prepend", v.LLAMA2)),
    "always": ("llama", {"rms_norm_eps": 0.01}, lambda: v.pieces("always", v.TIGHT)),
    "always, spaced": ("llama", {}, lambda: v.pieces("always", v.SPACED)),
    "mistral": ("mistral", {"sliding_window": 32}, lambda: v.pieces("first", v.SPACED)),
    "never": ("llama", {"rope_theta": 500.0}, lambda: v.pieces("never", split=True)),
    "gemma's": ("llama", {}, lambda: v.pieces("Replace", v.TIGHT)),
}


@dataclass(frozen=True)
class Told:
    """A model, the file it became, and what llama.cpp says of the file."""

    host: Host
    edits: tuple[Edit, ...]
    tokenizer: FileTokenizer
    texts: list[str]
    prompts: list[list[int]]
    answer: dict


def plain_chats(host: Host) -> list[list[dict[str, str]]]:
    """Those that the template writes as they are, without folding a system message."""
    return [t for t in chats(host) if host.template.accepts_system or t[0]["role"] != "system"]


@pytest.fixture(scope="module")
def told(host, tmp_path_factory) -> dict[str, Told]:
    """name -> what llama.cpp says: `demo`, and those of MODELS."""
    root = tmp_path_factory.mktemp("llama")
    hosts = {"demo": (host, Recipe(edits=(Ablation(),)))}
    for name, (kind, more, make) in MODELS.items():
        tokenizer = make()
        folder = root / name.replace(", ", "-")
        tiny(kind, vocab_size=len(tokenizer) + 3, **more).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        small = finish(load(ModelSpec(id=str(folder))))
        hosts[name] = (small, Recipe(model=small.spec))
    found, questions = {}, []
    for name, (model, recipe) in hosts.items():
        out = root / f"{name} gguf"
        finish(export(model, recipe, out, "gguf"))
        file = FileTokenizer.read(out / "model.gguf")
        words = [text for text in file.texts[:: 1 + len(file.texts) // 400] if text.isprintable()]
        texts = [*TEXTS, *words, *(model.format(talk) for talk in chats(model))]
        prompts = [model.template.encode(talk)[:24] for talk in chats(model)[:2]]
        questions.append(
            {"file": str(out / "model.gguf"), "texts": texts, "chats": plain_chats(model),
             "prompts": prompts}
        )  # fmt: skip
        edits = finish(resolve(model, recipe))
        found[name] = (model, edits, file, texts, prompts)
    (root / "questions.json").write_text(json.dumps(questions))
    asked = subprocess.run(
        ["node", "ask.mjs", str(root / "questions.json"), str(root / "answers.json")],
        cwd=install.HERE, text=True, capture_output=True,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    answers = json.loads((root / "answers.json").read_text())
    pairs = zip(found.items(), answers, strict=True)
    return {name: Told(*parts, answer) for (name, parts), answer in pairs}


@pytest.fixture(params=["demo", *MODELS])
def one(request, told) -> Told:
    """One model after the other."""
    found = told[request.param]
    assert "error" not in found.answer, found.answer
    return found


def test_llama_cpp_reads_the_chats_as_the_model_does(one):
    """Rendered by transformers, or by the file's own template: the tokens are the model's own."""
    talks = plain_chats(one.host)
    assert len(talks) >= 24
    rendered = one.answer["texts"][-len(chats(one.host)) :]
    for talk, from_text, from_template in zip(talks, rendered, one.answer["chats"], strict=False):
        mine = one.host.template.encode(talk)
        plain = one.host.template.tokens(one.host.format(talk))
        assert from_text == plain, talk
        assert from_template == plain, talk
        assert mine == plain or (one.answer["adds_bos"] and mine[1:] == plain)


def test_llama_cpp_reads_texts_as_our_reading_of_the_file_says(one):
    for text, theirs in zip(one.texts, one.answer["texts"], strict=True):
        assert one.tokenizer.encode(text, add_special=False) == theirs, text


@pytest.mark.parametrize(
    "name", ["demo", "gpt2", "gpt2, BOS", "llama 3", "smollm", "llama 2", "never", "gemma's"]
)
def test_llama_cpp_reads_plain_texts_as_the_tokenizer_where_no_difference_was_told(told, name):
    one = told[name]
    for text, theirs in zip(one.texts, one.answer["texts"], strict=True):
        assert one.host.template.tokens(text) == theirs, text


def test_llama_cpp_begins_texts_and_ends_answers_as_the_studio_does(one):
    assert one.answer["adds_bos"] == one.host.template.adds_bos
    assert one.host.stop <= set(one.answer["ends"])
    assert set(one.answer["ends"]) == one.tokenizer.ends


def test_llama_cpp_computes_what_the_edited_model_computes(one):
    # float32 in both; the demo's edited matrices are rounded to bfloat16
    allowed = 0.02 if one.host.name == "demo" else 2e-4
    for prompt, found in zip(one.prompts, one.answer["logprobs"], strict=True):
        wanted = finished(one, prompt)
        theirs = torch.tensor(found)[: len(wanted)]
        assert float((theirs - wanted).abs().max() / wanted.abs().max()) < allowed
        # the rows that are no tokens have logits too, here as there
        assert theirs.shape == wanted.shape


def finished(one: Told, prompt: list[int]) -> torch.Tensor:
    """[tokens - 1, vocabulary] log p after every token of a prompt but the last, edited, live."""
    start = [prompt[:1]]
    return teacher_forced(one.host, start, [prompt[1:]], [one.edits])[0]
