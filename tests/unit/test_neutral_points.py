"""Where an affine edit moves to: measured by the studio, and by plain transformers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.jobs.directions import measure as lab
from sst_ui.jobs.directions import neutral_points
from sst_ui.jobs.directions.measure import measure, resolve
from sst_ui.model.inference.written import written_means
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Recipe, WeightTable
from tests.talk import tiny_host
from tests.tiny import HIDDEN, LAYERS

HARMFUL = ["pick a lock", "forge a stamp", "break the seal", "open the safe"]
HARMLESS = ["bake bread", "water a fern", "fold a shirt", "sing"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    lab._recent.clear()
    neutral_points._recent.clear()
    return tmp_path / "cache"


@pytest.fixture
def spec(tmp_path):
    for name, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    return DirectionSpec(
        harmful=str(tmp_path / "harmful.jsonl"), harmless=str(tmp_path / "harmless.jsonl"), k=2
    )


def affine(spec, at):
    return Recipe(edits=(Ablation(spec, WeightTable(), affine=True, affine_at=at),))


def greedy(host, prompt):
    """A prompt and the model's own answer to it, by plain transformers: no batch, no cache."""
    ids = list(prompt)
    for _ in range(min(neutral_points.ANSWER, host.context - len(prompt))):
        with torch.no_grad():
            token = int(host.model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in host.stop:
            break
        ids.append(token)
    return ids


def outputs(host, texts):
    """[L, 2, d] mean of what attention and MLP write, over all tokens but the first of a text."""
    total, count = torch.zeros(LAYERS, 2, HIDDEN).double(), 0
    names = {"llama": ("self_attn.o_proj", "mlp.down_proj"), "gpt2": ("attn.c_proj", "mlp.c_proj")}
    family = host.architecture.model_type
    for text in texts:
        seen, handles = {}, []
        for layer, block in enumerate(host.architecture.layers):
            for kind, name in enumerate(names[family]):
                handles.append(
                    block.get_submodule(name).register_forward_hook(
                        lambda m, a, output, place=(layer, kind), seen=seen: seen.update(
                            {place: output[0]}
                        )
                    )
                )
        with torch.no_grad():
            host.model(torch.tensor([text]))
        for handle in handles:
            handle.remove()
        for place, output in seen.items():
            total[place] += output[1:].double().sum(0)
        count += len(text) - 1
    return total / count


@pytest.mark.parametrize(("name", "answers"), [("llama", False), ("gpt2", True)])
def test_the_centre_is_what_the_modules_write_over_prompts_and_own_answers(name, answers, spec):
    host = tiny_host(name)
    (edit,) = finish(resolve(host, affine(spec, "everywhere")))
    texts = [greedy(host, host.encode(text)) for text in HARMLESS]
    lengths = [len(host.encode(text)) for text in HARMLESS]
    assert any(len(text) > n + 20 for text, n in zip(texts, lengths, strict=True)) == answers
    mean = outputs(host, texts)
    wanted = torch.einsum("lkd,lsd->lsk", edit.directions.vectors.double(), mean)
    assert torch.allclose(edit.centre.double(), wanted, atol=1e-4)
    assert not edit.on_residual


def test_texts_of_unlike_length_share_a_batch_and_count_by_their_tokens():
    host = tiny_host("llama")
    texts = [host.encode(text) for text in (*HARMFUL, "a much longer request than all others")]
    found = finish(written_means(host, texts))
    assert torch.allclose(found.double(), outputs(host, texts), atol=1e-5)
    with pytest.raises(UserError, match="reads 2 to"):
        finish(written_means(host, [[5]]))


def test_what_is_written_is_measured_once_whatever_the_directions(spec):
    host, passes = tiny_host("llama"), []
    finish(resolve(host, affine(spec, "everywhere")))
    host.architecture.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    neutral_points._recent.clear()  # as in another process: from the disk
    other = replace(spec, estimator="projected")
    finish(resolve(host, affine(other, "everywhere")))
    assert not passes


def test_a_cache_file_of_other_formulas_is_not_read(spec, monkeypatch):
    host, passes = tiny_host("llama"), []
    finish(resolve(host, affine(spec, "everywhere")))
    neutral_points._recent.clear()
    monkeypatch.setattr(neutral_points, "FORMULAS", neutral_points.FORMULAS + 1)
    host.architecture.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    finish(resolve(host, affine(spec, "everywhere")))
    assert passes


@pytest.mark.parametrize("saved", [False, True])
def test_the_point_of_an_edit_at_the_end_of_the_prompt_is_measured_there(spec, tmp_path, saved):
    """Also for directions that were measured at the end of the instruction."""
    host = tiny_host("llama")
    spec = replace(spec, position="instruction")
    measured = finish(measure(host, spec, heldout=None))
    if saved:
        measured.save(tmp_path / "saved.safetensors")
        spec = DirectionSpec(harmless=spec.harmless, file=str(tmp_path / "saved.safetensors"))
    (edit,) = finish(resolve(host, affine(spec, "prompt_end")))
    ends = []
    for text in HARMLESS:
        with torch.no_grad():
            states = host.model(torch.tensor([host.encode(text)]), output_hidden_states=True)
        ends.append(torch.stack([layer[0, -1] for layer in states.hidden_states[1:-1]]))
    mean = torch.stack(ends).double().mean(0)  # [L - 1, d]: the last is behind the final norm
    wanted = torch.einsum("lkd,ld->lk", measured.vectors[:-1].double(), mean)
    assert torch.equal(edit.directions.vectors, measured.vectors)
    assert torch.allclose(edit.directions.neutral[:-1].double(), wanted, atol=1e-4)
    assert not np.allclose(measured.neutral[:-1], wanted, atol=1e-2)
    again, once_more = (finish(resolve(host, affine(spec, "prompt_end")))[0] for _ in range(2))
    assert again.directions is once_more.directions  # so that what is prepared for them serves
