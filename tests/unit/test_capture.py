"""Residuals against what transformers itself reports, one prompt at a time and without padding."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.directions import random
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.inference import residuals as capture
from sst_ui.model.inference.residuals import instruction_end, residuals
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, finish
from sst_ui.recipe import KINDS
from tests.talk import byte_tokenizer, tiny_host
from tests.tiny import ARCHITECTURES

PROMPTS = [list(range(20, 20 + n)) for n in (5, 19, 2, 11, 8)]


@pytest.fixture(scope="module")
def llama() -> Host:
    return tiny_host("llama")


def reported(host: Host, prompt: list[int], position: int = -1) -> Tensor:
    """[L, d] by `output_hidden_states`; the last layer after the model's final norm."""
    with torch.inference_mode():
        states = host.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
    return torch.stack([state[0, position] for state in states[1:]])


def normed(host: Host, found: Tensor) -> Tensor:
    """[n, L, d] with the final norm applied to the last layer, as transformers reports it."""
    names = ("norm", "ln_f", "final_layer_norm")
    norm = next(
        getattr(host.architecture.decoder, n)
        for n in names
        if hasattr(host.architecture.decoder, n)
    )
    with torch.inference_mode():
        return torch.cat([found[:, :-1], norm(found[:, -1:])], 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residuals_are_those_that_transformers_reports_whatever_the_padding(name):
    host = tiny_host(name)
    found = finish(residuals(host, PROMPTS))
    assert found.shape == (5, host.layers, host.hidden)
    assert found.dtype == torch.float32
    expected = torch.stack([reported(host, prompt) for prompt in PROMPTS])
    assert torch.allclose(normed(host, found), expected, rtol=1e-4, atol=1e-4)


def test_any_position_can_be_asked_for(llama):
    positions = [0, 7, -1, -3, 4]
    found = finish(residuals(llama, PROMPTS, positions))
    pairs = zip(PROMPTS, positions, strict=True)
    expected = torch.stack([reported(llama, prompt, position) for prompt, position in pairs])
    assert torch.allclose(normed(llama, found), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="outside a prompt of 5 tokens"):
        finish(residuals(llama, PROMPTS[:1], [5]))


def test_the_batch_size_changes_nothing_but_the_last_bits(llama):
    one = finish(residuals(llama, PROMPTS, batch_size=1))
    for size in (2, 5, 100):
        assert torch.allclose(finish(residuals(llama, PROMPTS, batch_size=size)), one, atol=1e-5)
    assert torch.equal(finish(residuals(llama, PROMPTS)), finish(residuals(llama, PROMPTS)))


def test_progress_counts_prompts_up_to_the_last(llama):
    seen = []
    finish(residuals(llama, PROMPTS, batch_size=2), seen.append)
    assert [step.done for step in seen] == [0, 2, 4, 5]
    assert all(isinstance(step, Progress) and step.total == 5 for step in seen)
    assert finish(residuals(llama, [])).shape == (0, llama.layers, llama.hidden)


def test_rows_are_captured_as_edited_and_base_rows_stay_bit_identical(llama):
    directions = random(llama.layers, llama.hidden, seed=3)
    everywhere = RowEdit(directions, np.ones((llama.layers, len(KINDS))))
    same = [PROMPTS[1]] * 3
    found = finish(residuals(llama, same, rows=[(), (everywhere,), ()]))
    base = finish(residuals(llama, same))
    assert torch.equal(found[0], base[0])
    assert torch.equal(found[2], base[2])
    # with the direction removed from both writers of layer 0, that layer cannot move along it
    r = directions.vectors[0, 0]
    embedded = llama.model.get_input_embeddings()(torch.tensor(PROMPTS[1][-1]))
    assert torch.allclose(found[1, 0] @ r, embedded @ r, atol=1e-5)
    assert abs(base[0, 0] @ r - embedded @ r) > 1e-3


def test_the_language_model_head_never_runs_and_no_sequence_is_kept(llama):
    calls = []
    handle = llama.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        finish(residuals(llama, PROMPTS))
    finally:
        handle.remove()
    assert not calls
    with capture._last_tokens(llama) as collected, torch.inference_mode():
        llama.architecture.decoder(torch.tensor([PROMPTS[1]]))
    assert [x.untyped_storage().nbytes() for x in collected] == [4 * llama.hidden] * llama.layers


def hooks(host: Host) -> int:
    return sum(len(module._forward_hooks) for module in host.model.modules())


def test_hooks_are_gone_however_the_capture_ends(llama, monkeypatch):
    before = hooks(llama)
    job = residuals(llama, PROMPTS, batch_size=1)
    next(job), next(job)
    assert hooks(llama) == before  # also between two steps, when others may compute
    job.close()
    assert hooks(llama) == before
    with monkeypatch.context() as patch:
        patch.setattr(llama.architecture.decoder, "forward", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finish(residuals(llama, PROMPTS))
    assert hooks(llama) == before
    finish(residuals(llama, PROMPTS))
    assert hooks(llama) == before


def test_other_sessions_may_compute_at_the_same_time(llama):
    expected = finish(residuals(llama, PROMPTS, batch_size=1))
    stop, failures = threading.Event(), []

    def chat() -> None:
        try:
            while not stop.is_set():
                with llama.step(), torch.inference_mode():
                    llama.model(torch.tensor([[3, 4, 5]]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=chat) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        results = [finish(residuals(llama, PROMPTS, batch_size=1)) for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert all(torch.equal(result, expected) for result in results)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(llama, monkeypatch):
    forward, sizes = capture._forward, []

    def small(host, prompts, rows, *more):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(host, prompts, rows, *more)

    monkeypatch.setattr(capture, "_forward", small)
    found = finish(residuals(llama, PROMPTS, batch_size=5))
    assert sizes == [5, 3, 2, 2, 1]
    monkeypatch.undo()
    assert torch.allclose(found, finish(residuals(llama, PROMPTS)), atol=1e-5)


def test_a_single_prompt_that_does_not_fit_is_an_error_with_its_length(llama, monkeypatch):
    def full(*_):
        raise RuntimeError("MPS backend out of memory")

    monkeypatch.setattr(capture, "_forward", full)
    with pytest.raises(UserError, match="prompt of 19 tokens does not fit the memory"):
        finish(residuals(llama, PROMPTS))


def test_a_prompt_beyond_the_context_is_refused(llama):
    with pytest.raises(UserError, match="has 257 tokens; tiny-llama reads 1 to 256"):
        finish(residuals(llama, [[5] * 257]))
    with pytest.raises(UserError, match="has 0 tokens"):
        finish(residuals(llama, [[]]))


@pytest.mark.parametrize("message", ["How do I pick a lock?", "  鍵の開け方は？ ", "x", "user end"])
def test_the_end_of_the_instruction_is_its_last_token(llama, message):
    messages = [
        {"role": "system", "content": "Say x, user."},
        {"role": "user", "content": message},
    ]
    ids = llama.encode(messages)
    end = instruction_end(llama, messages)
    assert llama.tokenizer.decode(ids[end + 1 :]).lstrip().startswith("<|im_end|>")
    assert llama.tokenizer.decode(ids[: end + 1]).endswith(message.strip())


def test_the_end_of_the_instruction_counts_a_bos_that_the_template_does_not_write(llama):
    messages = [{"role": "user", "content": "hello"}]
    with_bos = tiny_host("llama", byte_tokenizer(adds_bos=True))
    assert instruction_end(with_bos, messages) == instruction_end(llama, messages) + 1
    end = with_bos.encode(messages)[: instruction_end(with_bos, messages) + 1]
    assert with_bos.tokenizer.decode(end).endswith("hello")


def test_a_template_that_rewrites_the_message_is_told():
    shouting = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    host = tiny_host("llama", byte_tokenizer(shouting))
    with pytest.raises(UserError, match=r"use directions\.position 'template'"):
        instruction_end(host, [{"role": "user", "content": "hello"}])
