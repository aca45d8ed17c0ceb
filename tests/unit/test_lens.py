"""The logit lens against the model's own logits, and the residuals of every token against what
transformers reports."""

import numpy as np
import pytest
import torch

from sst_ui.maths.directions import random
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.inference.lens import lens, readout, streams
from sst_ui.progress import finish
from tests.talk import tiny_host
from tests.tiny import ARCHITECTURES, ODD
from tests.unit.test_deltas import random_deltas

TEXT = [int(n) for n in torch.randint(3, 200, (11,), generator=torch.Generator().manual_seed(3))]
PROMPT = 7


def edit(host, strength=1.0):
    alpha = np.full((host.layers, 2), strength)
    return (RowEdit(random(host.layers, host.hidden, seed=1), alpha),)


def logs(logits):
    """Log-probabilities in numpy."""
    numbers = logits.double().numpy()
    return numbers - np.log(np.exp(numbers).sum(-1, keepdims=True))


def own_logits(host, row):
    """[tokens, vocabulary] of the plain call of the model under these edits."""
    with host.step(host.live.compile([row]).ending([len(TEXT) - PROMPT + 1])):
        with torch.inference_mode():
            return host.model(torch.tensor([TEXT]), use_cache=False).logits[0]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *ODD, "llama_tied"])
def test_the_lens_of_the_last_layer_gives_the_models_own_logits(name):
    scaled = {"granite": {"logits_scaling": 3.0}, "gemma2": {"final_logit_softcapping": 2.0}}
    host = tiny_host(name, **scaled.get(name, {}))
    rows = [(), edit(host) if not host.live.account.problems else ()]
    found = streams(host, TEXT, PROMPT, rows, 6)
    assert found.shape == (host.layers, 2, 6, host.hidden)
    logits = readout(host, found[-1], rows)
    for place, row in enumerate(rows):
        expected = own_logits(host, row)[-6:]
        assert torch.allclose(logits[place], expected, rtol=1e-5, atol=1e-5)
    view = finish(lens(host, found, rows, top=3))
    assert view.tokens.shape == (2, host.layers, 6, 3)
    for place, row in enumerate(rows):
        shares = own_logits(host, row)[-6:].softmax(-1).topk(3)
        assert torch.equal(view.tokens[place, -1], shares.indices)
        assert torch.allclose(view.shares[place, -1], shares.values, rtol=1e-4, atol=1e-6)
    before, after = (logs(own_logits(host, row)[-6:]) for row in rows)
    nats = (np.exp(before) * (before - after)).sum(-1)
    assert np.allclose(view.kl[-1], nats, rtol=1e-3, atol=1e-5)
    assert (rows[1] == ()) == (view.kl.max() < 1e-6)


def test_residuals_are_those_that_transformers_reports_at_every_token():
    host = tiny_host("gemma2")
    found = streams(host, TEXT, PROMPT, [()], len(TEXT))
    with torch.inference_mode():
        out = host.model(torch.tensor([TEXT]), output_hidden_states=True)
        for layer in range(host.layers - 1):  # the last one is reported behind the final norm
            assert torch.allclose(found[layer, 0], out.hidden_states[layer + 1][0], atol=1e-5)
        behind = host.architecture.decoder.norm(found[-1, 0])
    assert torch.allclose(behind, out.hidden_states[-1][0], atol=1e-5)


def test_a_layer_in_the_middle_is_read_through_the_final_norm_and_the_head():
    host = tiny_host("llama")
    found = streams(host, TEXT, PROMPT, [()], 4)
    with torch.inference_mode():
        expected = host.model.lm_head(host.architecture.decoder.norm(found[1, 0]))
    assert torch.allclose(readout(host, found[1], [()])[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_an_adapter_of_the_head_counts_in_its_row_alone(name):
    host = tiny_host(name)
    (head,) = host.architecture.linears["lm_head"]
    rows = [(), (RowDelta({head: random_deltas(host.model)[head]}),)]
    found = streams(host, TEXT, PROMPT, rows, 3)
    logits = readout(host, found[-1], rows)
    for place, row in enumerate(rows):
        assert torch.allclose(logits[place], own_logits(host, row)[-3:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


def test_in_many_turns_the_lens_is_what_it_is_in_one(monkeypatch):
    host = tiny_host("qwen2")
    rows = [(), edit(host)]
    found = streams(host, TEXT, PROMPT, rows, 5)
    whole = finish(lens(host, found, rows))
    monkeypatch.setattr("sst_ui.model.inference.lens.LOGITS", 2 * host.vocabulary * 4)
    steps = list(lens(host, found, rows))
    assert [step.done for step in steps] == [0, 4, 8, 12, 15]
    parts = finish(lens(host, found, rows))
    assert torch.equal(whole.tokens, parts.tokens)
    assert torch.allclose(whole.kl, parts.kl, atol=1e-6)
