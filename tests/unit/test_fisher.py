"""Moments from hooks against gradients by perturbing each token, one conversation at a time.

The reference adds a tensor ε to what one module writes and asks autograd for ∂ log p/∂ε, in float64
and without padding, batches, hooks of ours or the live form.
"""

import copy

import pytest
import torch
from torch import nn

from sst_ui.errors import UserError
from sst_ui.maths.merge.low_rank import Core, Delta
from sst_ui.maths.merge.low_rank import core as core_of
from sst_ui.model.hooks.live_edits import RowDelta
from sst_ui.model.inference import fisher
from sst_ui.model.inference.fisher import Beside, moments
from sst_ui.model.inference.fisher_step import Step
from sst_ui.model.inference.input_basis import input_directions
from sst_ui.model.inference.logprobs import teacher_forced
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, finish
from tests.talk import byte_tokenizer
from tests.tiny import tiny

FAMILIES = ("llama", "gemma2", "phi3", "gpt2", "gpt_neox", "qwen2_moe", "llama_tied")
CONVERSATIONS = [
    ([5, 60, 61, 62], [70, 71, 72]),
    ([5, 90], [91]),
    ([5, 20, 21, 22, 23, 24, 25], [30, 31]),
    ([5], [40, 41, 42, 43, 44]),
]


def double_host(name="llama", **overrides) -> Host:
    from sst_ui.recipe import ModelSpec

    model = tiny(name, vocab_size=261, **overrides).double()
    model.set_experts_implementation("eager")  # the grouped one has no float64
    return Host(ModelSpec(id="tiny"), model, byte_tokenizer())


def shape(module):
    turned = type(module).__name__ == "Conv1D"
    return module.weight.shape[::-1] if turned else module.weight.shape


def random_cores(model, q=3, p=2, only=("0.", "2.", "head")):
    noise = torch.Generator().manual_seed(0)
    found = {}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if linear and any(part in name for part in only):
            out, width = shape(module)
            u = torch.linalg.qr(torch.randn(out, q, generator=noise).double()).Q
            r = torch.linalg.qr(torch.randn(width, p, generator=noise).double()).Q
            zero = torch.zeros(q, p).double()
            found[name] = Core(u, r, zero, zero, (1, 1))
    return found


def perturbed(model, name, conversation):
    """(x [tokens, in], ∂ log p/∂y [tokens, out]) of one module, for all tokens that are read."""
    model = copy.deepcopy(model)
    module = model.get_submodule(name)
    prompt, response = conversation
    text = torch.tensor([[*prompt, *response][:-1]])
    epsilon = torch.zeros(text.shape[1], shape(module)[0]).double().requires_grad_()
    seen, plain = [], module.forward

    def forward(x):
        seen.append(x.detach().reshape(text.shape[1], -1))
        y = plain(x)
        return y + epsilon.reshape(y.shape)

    module.forward = forward
    with torch.enable_grad():
        logs = model(input_ids=text).logits[0].log_softmax(-1)
        of_response = logs[len(prompt) - 1 :]
        log_p = of_response[torch.arange(len(response)), torch.tensor(response)].sum()
        (gradient,) = torch.autograd.grad(log_p, epsilon)
    return seen[0], gradient


def expected(model, name, core, where="response"):
    xs, deltas = [], []
    for prompt, response in CONVERSATIONS:
        x, delta = perturbed(model, name, (prompt, response))
        first = len(prompt) - 1 if where == "response" or "head" in name else 0
        first = max(first, 1)  # the sink
        xs.append(x[first:] @ core.r)
        deltas.append(delta[first:] @ core.u)
    x, delta = torch.cat(xs), torch.cat(deltas)
    each = torch.einsum("tq,tp->tqp", delta, x).flatten(1)
    # gradients are summed up a token of the responses, its sink left out, wherever they arise
    predicted = sum(len(response) - (len(prompt) == 1) for prompt, response in CONVERSATIONS)
    return x.T @ x / len(x), delta.T @ delta / predicted, each.T @ each / predicted, len(x)


def assert_close(actual, wanted, tolerance=1e-6):
    assert (actual - wanted).norm() <= tolerance * wanted.norm()
    assert wanted.norm() > 0


@pytest.mark.parametrize("mode", ["input", "kfac", "nearest", "block"])
def test_a_weight_of_two_is_every_conversation_twice(mode):
    host = double_host()
    cores = random_cores(host.model)
    some, others = CONVERSATIONS[:2], CONVERSATIONS[2:]
    shifts = ((), ())
    more, none = [Beside(others, 2.0)], [Beside(others, 0.0)]
    weighed = finish(moments(host, cores, some, shifts, mode=mode, beside=more))
    twice = finish(moments(host, cores, [*some, *others, *others], shifts, mode=mode))
    alone = finish(moments(host, cores, some, shifts, mode=mode, beside=none))
    without = finish(moments(host, cores, some, shifts, mode=mode))
    for name in cores:
        for part in ("a", "g", "block"):
            found, expected = (getattr(m[name], part) for m in (weighed, twice))
            assert (found is None) == (expected is None)
            if found is not None:
                assert_close(found, expected)
                assert (found - getattr(without[name], part)).norm() > 1e-3 * found.norm()
                assert torch.equal(getattr(alone[name], part), getattr(without[name], part))
        assert weighed[name].n == twice[name].n


@pytest.mark.parametrize("where", ["response", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_moments_are_those_of_single_perturbed_tokens(name, where):
    host = double_host(name)
    cores = random_cores(host.model)
    # Its attention rounds the mask to float32, where float64's smallest number is −∞ at padding.
    exact = name != "gemma2"
    host.model.to(torch.float64 if exact else torch.float32)
    found = finish(moments(host, cores, CONVERSATIONS, mode="block", where=where))
    host.model.double()
    tolerance = 1e-6 if exact else 1e-4
    assert found.keys() == cores.keys()
    assert len(cores) > 8
    for path, core in cores.items():
        a, g, block, n = expected(host.model, path, core, where)
        assert found[path].n == n
        assert found[path].a.dtype == torch.float64
        assert_close(found[path].a, a, tolerance)
        assert_close(found[path].g, g, tolerance)
        assert_close(found[path].block, block, tolerance)


def test_nearest_factors_are_a_step_towards_the_nearest_kronecker_product():
    host = double_host()
    cores = random_cores(host.model)
    all_found = finish(moments(host, cores, CONVERSATIONS, mode="nearest", where="all"))
    for path, core in cores.items():
        _, _, block, _ = expected(host.model, path, core, "all")
        q, p = core.q, core.p
        exact = block.reshape(q, p, q, p)
        found = all_found[path]
        # the power method's step from the identity: partial traces of the exact block
        over_outputs, over_inputs = torch.einsum("ipiq->pq", exact), torch.einsum("ipjp->ij", exact)
        assert_close(found.a / found.a.trace(), over_outputs / over_outputs.trace())
        assert_close(found.g / found.g.trace(), over_inputs / over_inputs.trace())
        assert_close(found.a.trace() * found.g.trace(), block.trace())


def test_input_directions_hold_the_energy_of_what_a_module_reads():
    host = double_host()
    paths = ["model.layers.0.mlp.down_proj", "model.layers.2.self_attn.q_proj", "lm_head"]
    found = finish(input_directions(host, paths, CONVERSATIONS, (), count=6))
    for path in paths:
        basis = found[path].double()
        assert basis.shape == (shape(host.model.get_submodule(path))[1], 6)
        assert_close(basis.T @ basis, torch.eye(6).double(), 1e-5)
        parts = []
        for prompt, response in CONVERSATIONS:
            x, _ = perturbed(host.model, path, (prompt, response))
            parts.append(x[max(len(prompt) - 1 if "head" in path else 0, 1) :])
        x = torch.cat(parts)
        best = torch.linalg.svdvals(x)[:6].square().sum()
        held = (x @ basis).square().sum()
        assert held > 0.7 * best  # a randomised range finder, no power iterations


def test_a_module_narrower_than_the_count_gets_every_direction():
    host = double_host()
    (basis,) = finish(
        input_directions(host, ["model.layers.0.self_attn.q_proj"], CONVERSATIONS, (), 4096)
    ).values()
    assert torch.equal(basis, torch.eye(len(basis)))


def test_no_weight_gets_a_gradient_and_nothing_stays_behind():
    host = double_host()
    before = {name: p.clone() for name, p in host.model.named_parameters()}
    finish(moments(host, random_cores(host.model), CONVERSATIONS))
    for name, parameter in host.model.named_parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(parameter, before[name])
    assert not hooks_on_matrices(host)


def hooks_on_matrices(host):
    modules = [*host.architecture.matrices.items()]
    modules += [("embedding", host.model.get_input_embeddings())]
    writers = {writer.name for writer in host.architecture.writers}  # theirs are the live edits'
    return [name for name, m in modules if m._forward_hooks and name not in writers]


def test_stopping_in_the_middle_leaves_no_hook():
    host = double_host()
    job = moments(host, random_cores(host.model), CONVERSATIONS, batch_size=1)
    assert [next(job).done for _ in range(3)] == [0, 1, 2]
    assert not hooks_on_matrices(host)  # nor while it waits: a chat may come between
    job.close()
    assert not hooks_on_matrices(host)


def test_an_error_in_a_step_leaves_no_hook(monkeypatch):
    host = double_host()
    monkeypatch.setattr(Step, "_log_p", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finish(moments(host, random_cores(host.model), CONVERSATIONS))
    assert not hooks_on_matrices(host)


@pytest.mark.parametrize("labels", ["given", "sampled"])
@pytest.mark.parametrize("where", ["response", "all"])
def test_batches_do_not_change_the_moments(labels, where):
    host = double_host()
    cores = random_cores(host.model)

    def by(size):
        job = moments(
            host, cores, CONVERSATIONS, labels=labels, where=where, batch_size=size, seed=3
        )
        return finish(job)

    alone = by(1)
    for size in (2, 3, None):
        for path, found in by(size).items():
            assert found.n == alone[path].n
            assert_close(found.a, alone[path].a, 1e-9)
            assert_close(found.g, alone[path].g, 1e-9)


def test_a_step_that_does_not_fit_the_memory_is_halved(monkeypatch):
    host = double_host()
    cores = random_cores(host.model)
    whole = finish(moments(host, cores, CONVERSATIONS))
    sizes, plain = [], Step.run

    def run(self, *args):
        sizes.append(len(self.conversations))
        found = plain(self, *args)
        if sizes[-1] > 2:  # so late that sums were there already
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(Step, "run", run)
    steps: list[Progress] = []
    found = finish(moments(host, cores, CONVERSATIONS, batch_size=4), steps.append)
    assert sizes == [4, 2, 2]
    assert [step.done for step in steps] == [0, 2, 4]
    for path in cores:
        assert found[path].n == whole[path].n
        assert_close(found[path].g, whole[path].g, 1e-9)


def test_the_input_side_needs_no_backward_pass(monkeypatch):
    host = double_host()
    cores = random_cores(host.model)
    both = finish(moments(host, cores, CONVERSATIONS))
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("a backward pass"))
    fast = finish(moments(host, cores, CONVERSATIONS, mode="input"))
    for path in cores:
        assert fast[path].g is None
        assert fast[path].n == both[path].n
        assert_close(fast[path].a, both[path].a, 1e-9)


def some_delta(model, path, seed):
    noise = torch.Generator().manual_seed(seed)
    out, width = shape(model.get_submodule(path))
    b = 0.2 * torch.randn(out, 2, generator=noise).double()
    return Delta(b, torch.randn(2, width, generator=noise).double())


def test_a_shift_measures_the_shifted_model():
    host = double_host()
    cores = random_cores(host.model)
    deltas = {path: some_delta(host.model, path, i) for i, path in enumerate(cores)}
    merged = copy.deepcopy(host.model)
    for path, delta in deltas.items():
        merged.get_submodule(path).weight.add_(0.5 * delta.dense())
    there = (RowDelta(deltas, 0.5),)
    found = finish(moments(host, cores, CONVERSATIONS, shifts=[there]))
    for path, core in cores.items():
        a, g, _, n = expected(merged, path, core)
        assert found[path].n == n
        assert_close(found[path].a, a)
        assert_close(found[path].g, g)
    base = finish(moments(host, cores, CONVERSATIONS))
    steps = []
    both = finish(moments(host, cores, CONVERSATIONS, shifts=[(), there]), steps.append)
    assert (steps[-1].done, steps[-1].total) == (8, 8)
    for path in cores:
        assert both[path].n == 2 * base[path].n
        assert_close(both[path].g, (base[path].g + found[path].g) / 2, 1e-9)
        assert (base[path].g - found[path].g).norm() > 0.01 * base[path].g.norm()


def test_labels_drawn_from_the_model_give_the_true_fisher_matrix():
    host = double_host()
    core = random_cores(host.model, q=4, only=("lm_head",))["lm_head"]
    many = [([5, 6, 7], [9])] * 3000
    found = finish(moments(host, {"lm_head": core}, many, labels="sampled", seed=1, batch_size=500))
    with torch.no_grad():
        p = host.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    true = core.u.T @ (p.diag() - p[:, None] * p) @ core.u
    assert_close(found["lm_head"].g, true, 0.1)
    given = finish(moments(host, {"lm_head": core}, many[:1]))["lm_head"].g
    assert (given - true).norm() > 0.5 * true.norm()  # one label is something else
    again = finish(moments(host, {"lm_head": core}, many, labels="sampled", seed=2, batch_size=500))
    assert not torch.equal(again["lm_head"].g, found["lm_head"].g)


def test_the_exact_block_predicts_what_a_small_edit_costs(tiny_host):
    host = tiny_host("llama")
    noise = torch.Generator().manual_seed(0)
    change = some_delta(host.model, "lm_head", 1)
    delta = Delta(0.1 * change.b.float(), change.a.float())
    space = core_of(None, delta)
    talks = [
        (prompt, torch.randint(5, 261, (12,), generator=noise).tolist())
        for prompt in ([5, 30 + i, 60 + i, 90 + i] for i in range(60))
    ]
    job = moments(host, {"lm_head": space}, talks * 8, labels="sampled", mode="block")
    block = finish(job)["lm_head"].block
    flat = space.safety.flatten()
    predicted = float(flat @ block @ flat) / 2  # nats a token
    prompts, responses = zip(*talks, strict=True)
    base = torch.cat(teacher_forced(host, prompts, responses)).double()
    rows = [(RowDelta({"lm_head": delta}),)] * len(talks)
    edited = torch.cat(teacher_forced(host, prompts, responses, rows)).double()
    measured = float((base.exp() * (base - edited)).sum(-1).mean())
    assert measured > 1e-3
    assert predicted == pytest.approx(measured, rel=0.15)


def test_bfloat16_models_give_nearly_the_same(tiny_host):
    host = tiny_host("llama")
    cores = random_cores(host.model)
    exact = finish(moments(host, cores, CONVERSATIONS))
    host.model.bfloat16()
    half = finish(moments(host, cores, CONVERSATIONS))
    for path in cores:
        assert half[path].a.dtype == torch.float64
        assert_close(half[path].a, exact[path].a, 0.1)
        assert_close(half[path].g, exact[path].g, 0.3)


def test_what_cannot_be_measured_is_said():
    host = double_host()
    cores = random_cores(host.model)
    wide = random_cores(host.model, q=20, p=20, only=("0.mlp",))
    ok = CONVERSATIONS
    for arguments, options, message in (
        ((cores, []), {}, "no conversations"),
        ((cores, [([5], [])]), {}, "no prompt or no response"),
        ((cores, [([5] * 200, [6] * 200)]), {}, "400 tokens.*256"),
        ((cores, ok), {"labels": "sampeld"}, "did you mean 'sampled'"),
        ((cores, ok), {"mode": "kfca"}, "did you mean 'kfac'"),
        ((cores, ok), {"where": "al"}, "did you mean 'all'"),
        (({"model.nowhere": cores["lm_head"]}, ok), {}, "no linear module 'model.nowhere'"),
        (({"model.layers.0.mlp.up_proj": cores["lm_head"]}, ok), {}, "of the adapters' shape"),
        ((wide, ok), {"mode": "block"}, "400 numbers"),
        ((cores, [([5], [6])]), {}, "no token of the conversations reached"),
    ):
        limit, fisher.BLOCK = fisher.BLOCK, 300
        try:
            with pytest.raises(UserError, match=message):
                finish(moments(host, *arguments, **options))
        finally:
            fisher.BLOCK = limit
    host.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        finish(moments(host, cores, CONVERSATIONS))
