"""Rows that share layers and beginnings against the model reading one row at a time.

What is really computed is counted at the layers, so that the sharing cannot silently go away.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sst_ui.maths import directions
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.hooks.layer_sharing import Fork, fork
from sst_ui.model.hooks.live_edits import RowDelta, RowEdit
from sst_ui.model.inference import generate as generation
from sst_ui.model.inference import logprobs as score
from sst_ui.model.inference.generate import generate, logprobs, teacher_forced
from sst_ui.model.inference.prefill import ability, fitting
from sst_ui.model.inference.replies import replies
from sst_ui.progress import finish
from tests.talk import every_pass, tiny_host
from tests.tiny import ARCHITECTURES, EXPERTS, HIDDEN, VARIANTS

ALL = ARCHITECTURES + VARIANTS
DEEP, STEPS = 5, 6
FULL = ("llama", "qwen2", "gpt2", "gpt_neox", "olmo2", "mixtral")  # every layer sees every token
SLIDING = ("mistral", "gemma2", "gemma3", "gpt_oss")
FIRSTS = (DEEP, 2, 3, 1, 4, DEEP, DEEP)  # of `edited`, spelled out
CONTINUATIONS = ([7, 8, 9], [10], [11, 12, 13, 14])


def prompts(shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Three of unlike length, with so many tokens in common at the beginning."""
    draw = torch.Generator().manual_seed(seed)
    begin, *rest = (torch.randint(5, 250, (n,), generator=draw).tolist() for n in (shared, 9, 6, 8))
    return [begin + one for one in rest]


def cells(first: int, last: int = DEEP, size: float = 1.5) -> np.ndarray:
    alpha = np.zeros((DEEP, 2))
    alpha[first:last] = size
    return alpha


def delta(host, path: str, seed: int) -> RowDelta:
    weight = host.model.get_submodule(path).weight
    turned = "gpt2" in host.name and path != "lm_head"  # Conv1D: [in, out]
    out, inp = reversed(weight.shape) if turned else weight.shape
    draw = torch.Generator().manual_seed(seed)
    b, a = torch.randn(out, 2, generator=draw), torch.randn(2, inp, generator=draw)
    return RowDelta({path: Delta(0.2 * b, a)})


def edited(host) -> list[tuple]:
    """The base and six edits of it: plain, norm-preserving, affine and two deltas, and nothing."""
    one, two = (directions.random(DEEP, HIDDEN, 2, seed) for seed in (1, 2))
    norms = cells(3)
    if host.name.removeprefix("tiny-") in EXPERTS:
        norms[:, 1] = 0  # experts keep no norms in the live model
    inside = next(p for p in host.architecture.matrices if host.architecture.layer_of(p) == 4)
    (head,) = host.architecture.linears["lm_head"]
    head_delta = delta(host, head, 6) if head in host.architecture.matrices else RowDelta({})
    return [
        (),
        (RowEdit(one, cells(2)), RowEdit(two, cells(4))),
        (RowEdit(two, norms, norm_preserving=True),),
        (RowEdit(one, cells(1, 2, 0.7), affine=True),),
        (delta(host, inside, 5), RowEdit(two, cells(4))),
        (head_delta,),
        (RowEdit(one, cells(0, size=0.0)),),
    ]


def alone(host, text: list[int], row: tuple, said: int = 0) -> torch.Tensor:
    """[tokens, vocabulary] log-probabilities of one row, no batch, by the model itself; the last
    `said` tokens are no longer the prompt's."""
    with torch.no_grad(), host.live.applied(host.live.compile([row]).ending([said + 1])):
        return host.model(torch.tensor([text])).logits[0].log_softmax(-1)


@contextmanager
def counted(host):
    """[L] row-tokens that each layer computes meanwhile."""
    found = [0] * len(host.architecture.layers)

    def count(number):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            found[number] += x.shape[0] * x.shape[1]

        return hook

    layers = enumerate(host.architecture.layers)
    handles = [x.register_forward_pre_hook(count(n), with_kwargs=True) for n, x in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def crossed(asked: list, rows: list) -> tuple[list, list]:
    """Every prompt with every row, the rows of a prompt side by side."""
    return [x for x in asked for _ in rows], rows * len(asked)


@pytest.fixture(scope="module", params=ALL)
def host(request):
    return tiny_host(request.param, num_hidden_layers=DEEP)


@pytest.fixture(scope="module")
def llama():
    return tiny_host("llama", num_hidden_layers=DEEP)


@pytest.mark.parametrize("shared", [0, 20], ids=["", "one beginning"])
def test_shared_rows_have_the_likelihoods_of_each_alone(host, shared):
    rows, asked = edited(host), prompts(shared)
    found = logprobs(host, *crossed(asked, rows))
    texts, both = crossed(list(zip(asked, CONTINUATIONS, strict=True)), rows)
    forced = teacher_forced(host, [p for p, _ in texts], [c for _, c in texts], both)
    for (prompt, said), row, after, along in zip(texts, both, found, forced, strict=True):
        one = alone(host, prompt + said, row, len(said))
        torch.testing.assert_close(after, one[len(prompt) - 1], atol=3e-4, rtol=1e-4)
        torch.testing.assert_close(along, one[len(prompt) - 1 : -1], atol=3e-4, rtol=1e-4)
    base, *others = found[: len(rows)]
    changed = [float((other - base).abs().max()) for other in others]
    assert min(changed[:4]) > 0.01  # the edits do something; the last one is none
    assert changed[-1] < 1e-4


@pytest.mark.parametrize("shared", [0, 20], ids=["", "one beginning"])
def test_shared_rows_write_what_each_writes_alone(host, shared):
    rows, asked = edited(host), prompts(shared)
    found = finish(replies(host, *crossed(asked, rows), STEPS))
    expected = [
        finish(replies(host, [prompt], [row], STEPS))[0]
        for prompt, row in zip(*crossed(asked, rows), strict=True)
    ]
    assert [reply.tokens for reply in found] == [reply.tokens for reply in expected]
    assert len({reply.tokens for reply in expected[: len(rows)]}) > 1


def test_a_layer_computes_the_base_and_the_rows_that_are_edited_by_then(host):
    texts, rows = crossed(prompts(), edited(host))
    ability(host)  # the trial on random tokens is not counted
    per_prompt = [1 + sum(first <= layer for first in FIRSTS[1:]) for layer in range(DEEP)]
    assert per_prompt == [1, 2, 3, 4, 5]
    with counted(host) as found:
        logprobs(host, texts, rows)
    assert found == [3 * 9 * n for n in per_prompt]  # three prompts, padded to nine tokens
    with counted(host) as found:
        next(generate(host, texts, rows, 1), None)
    assert found == [3 * 9 * n for n in per_prompt]


@pytest.mark.parametrize("name", FULL)
def test_a_beginning_is_computed_once_for_each_edit(name):
    host = tiny_host(name, num_hidden_layers=DEEP)
    rows, asked = edited(host), prompts(shared=40)
    assert ability(host).prefixes
    per_prompt = [1 + sum(first <= layer for first in FIRSTS[1:]) for layer in range(DEEP)]
    for work in (logprobs, lambda *a: next(generate(*a, 1), None)):
        with counted(host) as found:
            work(host, *crossed(asked, rows))
        assert found == [n * (40 + 3 * 9) for n in per_prompt]
    with counted(host) as found:  # the base alone shares it too
        logprobs(host, asked)
    assert found == [40 + 3 * 9] * DEEP
    same = asked[0][:40]
    with counted(host) as found:  # 34 of 41 tokens are shared: logits are wanted for the others
        teacher_forced(host, [same[:35]] * 2, [[*same[35:], 5, 9], [*same[35:], 6, 9]])
    assert found == [34 + 2 * 7] * DEEP


@pytest.mark.parametrize("name", SLIDING)
def test_a_window_shorter_than_the_beginning_is_read_whole(name):
    host = tiny_host(name, num_hidden_layers=DEEP, sliding_window=8)
    assert ability(host).forks
    assert not ability(host).prefixes
    rows, asked = edited(host), prompts(shared=20)
    for prompt, row, after in zip(
        *crossed(asked, rows), logprobs(host, *crossed(asked, rows)), strict=True
    ):
        torch.testing.assert_close(after, alone(host, prompt, row)[-1], atol=3e-4, rtol=1e-4)


def test_rows_of_different_prompts_share_nothing(llama):
    row = edited(llama)[1]
    with counted(llama) as found:
        logprobs(llama, prompts(), [(), row, row])
    assert found == [3 * 9] * DEEP


def test_without_the_base_the_row_that_is_edited_last_is_the_trunk():
    found = fork("aaab", [1, 3, 0, 2], layers=4)
    assert found.order == (1, 3, 2, 0)
    assert found.parents == (0, 1, 0, 0)
    assert found.sizes == (3, 4, 4, 4, 4)
    assert found.holders(0) == [0, 0, 2, 1]  # the first row did not exist in layer 0
    assert found.holders(1) == [3, 0, 2, 1]
    assert sum(found.sizes[:-1]) == 3 + 4 + 4 + 4  # rows times layers that are computed


@pytest.mark.parametrize("firsts", [[0, 0], [0, 4]])
def test_rows_that_have_no_layer_in_common_do_not_fork(firsts):
    assert fork("aa", firsts, layers=4) is None
    assert fork("ab", [2, 3], layers=4) is None


def test_a_turn_computes_no_more_than_its_share_and_takes_more_rows_for_it(llama, monkeypatch):
    limit, passes = 50, []
    texts, rows = crossed(prompts(), edited(llama))
    ability(llama)
    real = score.forward

    def forward(*args, **settings):
        with counted(llama) as found:
            result = real(*args, **settings)
        passes.append(sum(found))
        return result

    monkeypatch.setattr(score, "forward", forward)
    monkeypatch.setattr(score, "tokens_a_step", lambda _: limit)
    expected = [alone(llama, text, row)[-1] for text, row in zip(texts, rows, strict=True)]
    for one, other in zip(logprobs(llama, texts, rows), expected, strict=True):
        torch.testing.assert_close(one, other, atol=3e-4, rtol=1e-4)
    assert max(passes) <= limit * DEEP * 1.25  # the head's part is not in the layers
    assert len(passes) < len(texts) / (limit // 9)  # a turn would hold five rows of nine tokens
    assert fitting(llama, prompts(), [()] * 3, [1] * 3, 18) == 2  # nothing shared: as ever
    assert fitting(llama, prompts(), [()] * 3, [1] * 3, 1) == 1


def test_a_model_that_holds_rows_beside_its_layers_goes_the_plain_way():
    host = tiny_host("llama", num_hidden_layers=DEEP)
    held = {}
    first, last = host.architecture.layers[0], host.architecture.layers[-1]
    first.register_forward_pre_hook(lambda _, args: held.update(x=args[0]))
    last.register_forward_hook(lambda _, __, output: output + held["x"])
    rows, asked = edited(host)[:3], prompts()
    found = logprobs(host, *crossed(asked, rows))
    assert not ability(host).forks
    assert "do not share layers" in ability(host).note
    for prompt, row, after in zip(*crossed(asked, rows), found, strict=True):
        torch.testing.assert_close(after, alone(host, prompt, row)[-1], atol=3e-4, rtol=1e-4)


def test_a_mixed_up_mask_is_noticed_before_anything_is_computed_with_it(monkeypatch):
    real = Fork.pick

    def wrong(self, value, layer):
        picked = real(self, value, layer)
        return picked.flip(0) if isinstance(picked, torch.Tensor) and picked.dim() == 4 else picked

    monkeypatch.setattr(Fork, "pick", wrong)
    host = tiny_host("llama", num_hidden_layers=DEEP)
    assert not ability(host).forks
    assert "logits differ" in ability(host).note


def test_sessions_that_fork_beside_a_chat_answer_as_alone(llama):
    rows, asked = edited(llama), prompts(shared=20)
    jobs = [
        lambda: [r.tokens for r in finish(replies(llama, *crossed(asked, rows), STEPS))],
        lambda: list(generate(llama, [asked[0]] * 2, [(), rows[1]], 3 * STEPS)),
        lambda: [list(x) for x in generate(llama, prompts(seed=3), None, 3 * STEPS)],
    ]
    expected = [job() for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        for _ in range(3):
            assert [one.result(60) for one in [pool.submit(job) for job in jobs]] == expected


def test_memory_that_is_short_halves_forked_rows_too(llama, monkeypatch):
    texts, rows = crossed(prompts(), edited(llama))
    expected = finish(replies(llama, texts, rows, STEPS))
    real, refused = generation.forward, []

    def tight(host, batch, plan, *args, **settings):
        if plan.size > 4:
            refused.append(plan.size)
            raise torch.OutOfMemoryError
        return real(host, batch, plan, *args, **settings)

    every_pass(monkeypatch, tight)
    assert finish(replies(llama, texts, rows, STEPS)) == expected
    assert max(refused) > 4
