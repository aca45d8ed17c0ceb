"""The studio's numbers against other people's programs, on the demo and its own items.

Knows three ways to the same edited model: live in the studio, written into weights by plain torch,
and those weights read by lm-evaluation-harness, transformers and rouge-score. What they share is a
model, a list of items and nothing else.
"""

import copy
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from sst_ui.data.prompt_sets import LETTERS
from sst_ui.data.prompt_sets import load as load_prompts
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.evaluate.evaluate import MetricResult, evaluate
from sst_ui.jobs.evaluate.observations import observe, prepare
from sst_ui.maths.kernel import profile
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.runtime.host import Host, load
from sst_ui.paths import DEMO
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, Evaluation, ModelSpec, Recipe
from tests import harness

QUESTIONS, PLAIN = "demo/multiple_choice", "demo/plain"
CLOSE = 1e-3
# The shipped edit, and one so strong that it costs a third of the right letters.
EDITS = {"default": ("default", 1.0, 1.0), "harsh": ("broad", 2.0, 4.0)}


@dataclass(frozen=True)
class Case:
    """One edited model: as live edits of the base, and exported as a folder of its own."""

    name: str
    base: Host
    edits: tuple[RowEdit, ...]
    folder: Path
    exported: Host


@pytest.fixture(scope="module", params=EDITS)
def case(request, host, tmp_path_factory) -> Case:
    name, strength, factor = EDITS[request.param]
    weights = replace(profile(name), strength=strength)
    edits = finish(resolve(host, Recipe(edits=(Ablation(weights=weights),))))
    edits = tuple(replace(edit, alpha=factor * edit.alpha) for edit in edits)
    folder = tmp_path_factory.mktemp(request.param)
    export(edits, folder)
    exported = finish(load(ModelSpec(id=str(folder), dtype="float32")))
    return Case(request.param, host, edits, folder, exported)


def export(edits: tuple[RowEdit, ...], folder: Path) -> None:
    """The demo with W' = W − α r̂ (r̂ᵀ W) in its weights, as any program would load it."""
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float64)
    for edit in edits:
        for number, layer in enumerate(model.model.layers):
            r = edit.directions.vectors[number, 0].double()
            assert float(r.norm()) == pytest.approx(1, abs=1e-6)
            for kind, linear in enumerate((layer.self_attn.o_proj, layer.mlp.down_proj)):
                weight = linear.weight.data  # [hidden, in]
                weight -= float(edit.alpha[number, kind]) * torch.outer(r, r @ weight)
    model.float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / name, folder / name)


def measured(host: Host, edits: tuple[RowEdit, ...], *metrics: str) -> dict[str, MetricResult]:
    evaluation = Evaluation(metrics=metrics, preset="full", max_new_tokens=24)
    return {result.name: result for result in finish(evaluate(host, edits, evaluation))}


def seen(host: Host, edits: tuple[RowEdit, ...] | None, reads: str, name: str) -> list:
    """What the metrics are made of, one observation a prompt: of the edited model, or the base."""
    task = prepare(host, reads, load_prompts(name), 1, name)
    base, rows = finish(observe(host, task, [] if edits is None else [edits]))
    return [shown.observation for shown in (rows[0] if rows else base)]


# --- multiple choice --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters(case):
    """The harness on the same questions: its metrics, and a sample a question."""
    docs = [
        {  # the harness puts nothing between a chat and a choice, and the demo begins with a space
            "user": p.user,
            "answer": p.answer,
            "letters": [f" {letter}" for letter in LETTERS[: len(p.choices)]],
        }
        for p in load_prompts(QUESTIONS).prompts
    ]
    model = harness.language_model(case.folder)
    metrics, samples = harness.run(
        model,
        "multiple_choice",
        docs,
        chat=True,
        doc_to_text=lambda doc: doc["user"],
        doc_to_target=lambda doc: doc["answer"],
        doc_to_choice=lambda doc: doc["letters"],
    )
    return model, metrics, samples


def test_the_harness_reads_the_same_tokens(case, letters):
    model, _, samples = letters
    for prompt, sample in zip(load_prompts(QUESTIONS).prompts, samples, strict=True):
        for context, letter in sample["arguments"]:
            ours = case.base.encode(prompt.messages())
            assert model.tok_encode(context) == ours
            whole = model.tok_encode(context + letter)  # one more token: a space and the letter
            assert whole[:-1] == ours
            assert case.base.decode(whole[-1:]) == letter


def test_every_letter_has_the_likelihood_that_the_harness_finds(case, letters):
    """The studio takes the likelier of a letter with and without a space before it.

    In the demo's vocabulary text only ever gives the one with a space, so that the harness is asked
    for the other by its token. It matters where an edit has broken the model, and hardly there.
    """
    model, _, samples = letters
    spaced = np.array([[logprob for ((logprob, _),) in sample["resps"]] for sample in samples])
    bare = [
        (None, model.tok_encode(context), [model.tokenizer.convert_tokens_to_ids(letter.strip())])
        for sample in samples
        for context, letter in sample["arguments"]
    ]
    bare = [logprob for logprob, _ in model._loglikelihood_tokens(bare, disable_tqdm=True)]
    theirs = np.maximum(spaced, np.reshape(bare, spaced.shape))  # [150, 4]
    assert (theirs > spaced + CLOSE).mean() < 0.01
    for found in (
        seen(case.base, case.edits, "choice", QUESTIONS),
        seen(case.exported, None, "choice", QUESTIONS),
    ):
        np.testing.assert_allclose(np.array(found), theirs, atol=CLOSE, rtol=0)
    base = np.array(seen(case.base, None, "choice", QUESTIONS))
    assert np.abs(base - theirs).max() > 100 * CLOSE  # another model would not have passed


def test_as_many_questions_are_right_as_in_the_harness(case, letters):
    _, metrics, samples = letters
    live = measured(case.base, case.edits, "multiple_choice")["multiple_choice"]
    alone = measured(case.exported, (), "multiple_choice")["multiple_choice"]
    assert live.edited.value == pytest.approx(metrics["acc"], abs=CLOSE)
    assert alone.base.value == pytest.approx(metrics["acc"], abs=CLOSE)
    assert [item.edited_score for item in live.items] == [sample["acc"] for sample in samples]
    if case.name == "harsh":
        assert live.edited.value < live.base.value - 0.2  # there was something to agree on


# --- perplexity -------------------------------------------------------------------------------


def perplexity(logprobs: list[float], tokens: list[int]) -> float:
    """exp of the mean over texts of the mean negative log-likelihood of a token."""
    return math.exp(-np.mean(np.array(logprobs) / np.array(tokens)))


def test_perplexity_is_the_harnesss_without_a_bos(case):
    """A text's first token is context in the studio; so it is the harness's context here.

    Its `loglikelihood_rolling` would put a prefix token (EOS, for want of a BOS) in front of the
    text and count the first token, too: another question, see the next test.
    """
    texts = [prompt.text for prompt in load_prompts(PLAIN).prompts]
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    docs, tokens = [], []
    for text in texts:
        encoded = tokenizer(text, return_offsets_mapping=True)
        end = encoded["offset_mapping"][0][1]
        docs.append({"first": text[:end], "rest": text[end:]})
        tokens.append(len(encoded["input_ids"]) - 1)
    model = harness.language_model(case.folder)
    _, samples = harness.run(
        model,
        "loglikelihood",
        docs,
        chat=False,
        doc_to_text=lambda doc: doc["first"],
        doc_to_target=lambda doc: doc["rest"],
    )
    theirs = [sample["resps"][0][0][0] for sample in samples]
    ours = [float(found.sum()) for found in seen(case.base, case.edits, "text", PLAIN)]
    np.testing.assert_allclose(ours, theirs, atol=CLOSE, rtol=0)
    live = measured(case.base, case.edits, "perplexity")["perplexity"]
    alone = measured(case.exported, (), "perplexity")["perplexity"]
    assert live.edited.value == pytest.approx(perplexity(theirs, tokens), abs=CLOSE)
    assert alone.base.value == pytest.approx(perplexity(theirs, tokens), abs=CLOSE)
    assert abs(live.base.value - live.edited.value) > CLOSE


def test_perplexity_is_the_harnesss_rolling_one_with_a_bos(case):
    """With a tokenizer that puts BOS before a text, both condition on it and count all the rest.

    `add_bos_token=False` keeps the harness from writing BOS twice: as the prefix of its rolling
    window and again with the text's own tokens, where it would be counted.
    """
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    bos = "<|system|>"
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32)
    with_bos = Host(ModelSpec(id=str(case.folder)), model, copy.deepcopy(tokenizer))
    assert with_bos.template.adds_bos
    texts = [prompt.text for prompt in load_prompts(PLAIN).prompts]
    metrics, samples = harness.run(
        harness.language_model(case.folder, tokenizer=tokenizer, add_bos_token=False),
        "loglikelihood_rolling",
        [{"text": text} for text in texts],
        chat=False,
        doc_to_text=lambda doc: "",
        doc_to_target=lambda doc: doc["text"],
    )
    theirs = [sample["resps"][0][0] for sample in samples]
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    found = seen(with_bos, None, "text", PLAIN)
    np.testing.assert_allclose([x.sum() for x in found], theirs, atol=CLOSE, rtol=0)
    ours = measured(with_bos, (), "perplexity")["perplexity"]
    assert ours.base.value == pytest.approx(perplexity(theirs, tokens), abs=CLOSE)
    # and its own sum, over the bytes of all texts, from our likelihoods
    size = sum(len(text.encode()) for text in texts)
    by_byte = math.exp(-sum(float(x.sum()) for x in found) / size)
    assert by_byte == pytest.approx(metrics["byte_perplexity"], abs=CLOSE)


# --- divergence and reading -------------------------------------------------------------------


def test_kl_is_that_of_transformers_in_float64(case):
    prompts = load_prompts("demo/harmless_heldout").take(16).prompts
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        for folder in (DEMO, case.folder)
    )
    first, mean = [], []
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        # the base's own greedy answer, the end token included where it comes
        text = before.generate(ids, max_new_tokens=16, do_sample=False)
        with torch.no_grad():
            p, q = (m(text).logits[0, ids.shape[1] - 1 : -1] for m in (before, after))
        p, q = p.log_softmax(-1), q.log_softmax(-1)  # [T, vocabulary]
        kl = (p.exp() * (p - q)).sum(-1)  # [T] nats
        first.append(float(kl[0]))
        mean.append(float(kl.mean()))
    evaluation = Evaluation(metrics=("kl_1", "kl_16"), samples=len(prompts))
    one, many = finish(evaluate(case.base, case.edits, evaluation))
    assert [item.edited_score for item in one.items] == pytest.approx(first, rel=CLOSE, abs=2e-6)
    assert [item.edited_score for item in many.items] == pytest.approx(mean, rel=CLOSE, abs=2e-6)
    assert one.edited.value == pytest.approx(np.mean(first), rel=CLOSE)
    assert many.edited.value == pytest.approx(np.mean(mean), rel=CLOSE)
    assert many.edited.value > 5e-5


def test_reading_is_rouge_l_by_rouge_score(case):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    found = measured(case.base, case.edits, "reading")["reading"]
    prompts = [prompt for prompt in load_prompts("demo/reading").prompts if prompt.answerable]
    assert [item.prompt for item in found.items] == [prompt.user for prompt in prompts]
    for answer, score in (("base", "base_score"), ("edited", "edited_score")):
        expected = [
            scorer.score(prompt.answer, getattr(item, answer))["rougeL"].fmeasure
            for prompt, item in zip(prompts, found.items, strict=True)
        ]
        assert [getattr(item, score) for item in found.items] == pytest.approx(expected, abs=1e-12)
    assert found.edited.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert 0 < found.edited.value < 1
