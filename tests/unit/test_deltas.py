"""Low-rank deltas in the live model against copies whose weights were merged in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sst_ui.errors import UserError
from sst_ui.maths.directions import Directions
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.discover import discover
from sst_ui.model.hooks.live_edits import LiveEdits, RowDelta, RowEdit
from sst_ui.model.inference.replies import replies
from sst_ui.progress import finish
from tests.tiny import ARCHITECTURES, EXPERTS, HIDDEN, LAYERS, VARIANTS, ids, tiny

ALL = ARCHITECTURES + VARIANTS
DENSE = tuple(name for name in ALL if name not in EXPERTS)


def linears(model):
    """Name -> (module, whether its weight is [in, out]), spelled out here again."""
    return {
        name: (module, type(module).__name__ == "Conv1D")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def random_deltas(model, seed=0, rank=3, size=0.1, only=None):
    noise = torch.Generator().manual_seed(seed)
    found = {}
    for name, (module, turned) in linears(model).items():
        out, width = module.weight.shape[::-1] if turned else module.weight.shape
        b = size * torch.randn(out, rank, generator=noise)
        a = torch.randn(rank, width, generator=noise)
        if only is None or only in name:
            found[name] = Delta(b, a)
    return found


def merged(model, *edits):
    """W + s B A in plain transformers; the edits' deltas one after the other."""
    model = copy.deepcopy(model)
    modules = linears(model)
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:  # the embedding stays what it was
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    for edit in edits:
        for name, delta in edit.deltas.items():
            scale = edit.scale[name] if isinstance(edit.scale, dict) else edit.scale
            module, turned = modules[name]
            change = scale * delta.b.double() @ delta.a.double()
            change = change.T if turned else change
            module.weight.copy_((module.weight.double() + change).to(module.weight.dtype))
    return model


def logits(model, tokens, live=None, rows=None):
    with torch.no_grad():
        if rows is None:
            return model(input_ids=tokens).logits
        with live.applied(live.compile(rows)):
            return model(input_ids=tokens).logits


def assert_same(actual, expected, tolerance=1e-4):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def ablation(alpha=1.0, seed=0, **options):
    noise = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(LAYERS, HIDDEN, 2, generator=noise)).Q.mT.contiguous()
    found = Directions(vectors, torch.ones(LAYERS), torch.zeros(LAYERS, 2))
    return RowEdit(found, np.full((LAYERS, 2), alpha), **options)


def ablated(model, edit):
    """o and down projections of a Llama with r̂ projected out of their weights, norms kept if so."""
    model = copy.deepcopy(model)
    for layer, vectors in zip(model.model.layers, edit.directions.vectors.double(), strict=True):
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            old = module.weight.double()
            new = old - vectors.T @ (edit.alpha[0, 0] * (vectors @ old))
            if edit.norm_preserving:
                new = new * (old.norm(dim=0) / new.norm(dim=0))
            module.weight.copy_(new.float())
    return model


@pytest.fixture
def llama():
    model = tiny("llama")
    return model, LiveEdits(discover(model))


@pytest.mark.parametrize("name", ALL)
def test_each_row_computes_as_a_copy_with_merged_weights(name):
    model, tokens = tiny(name), ids(rows=4)
    first, second = random_deltas(model, 1), random_deltas(model, 2, rank=1)
    each = {path: 0.1 * i for i, path in enumerate(first)}
    rows = [
        (RowDelta(first),),
        (),
        (RowDelta(first, each), RowDelta(second, -0.5)),
        (RowDelta(second, 2.0),),
    ]
    base = logits(model, tokens)
    expected = [logits(merged(model, *row), tokens)[i] for i, row in enumerate(rows)]
    actual = logits(model, tokens, LiveEdits(discover(model)), rows)
    assert_same(actual, torch.stack(expected))
    for i in (0, 2, 3):
        assert (actual[i] - base[i]).abs().max() > 0.05 * base[i].abs().max()


@pytest.mark.parametrize("name", DENSE)
def test_rows_without_a_delta_keep_every_bit(name):
    model, tokens = tiny(name), ids(rows=4)
    base = logits(model, tokens)
    live = LiveEdits(discover(model))
    deltas = random_deltas(model)
    rows = [(), (RowDelta(deltas),), (RowDelta(deltas, 0.0),), (RowDelta(deltas, {}),)]
    actual = logits(model, tokens, live, rows)
    assert torch.equal(actual[[0, 2, 3]], base[[0, 2, 3]])
    assert not torch.equal(actual[1], base[1])
    assert torch.equal(logits(model, tokens), base)  # the hooks that are left do nothing
    live.close()
    assert not linears(model)["lm_head"][0]._forward_hooks


def test_only_a_plan_with_deltas_puts_hooks_on_the_linear_modules(llama):
    model, live = llama
    query = model.model.layers[0].self_attn.q_proj
    logits(model, ids(), live, [(ablation(),), ()])
    assert not query._forward_hooks
    logits(model, ids(), live, [(RowDelta(random_deltas(model, only="q_proj")),), ()])
    assert len(query._forward_hooks) == 1
    assert not model.model.layers[0].self_attn.k_proj._forward_hooks


def test_rows_that_share_a_delta_share_one_product(llama):
    model, live = llama
    deltas = random_deltas(model, only="layers.1.mlp.up_proj")
    (path,) = deltas
    plan = live.compile([(RowDelta(deltas),), (), (RowDelta(deltas, 0.3),)])
    (op,) = plan.deltas[path]
    assert op.rows == (0, 2)
    assert op.factor[:, 0].unique(dim=1).flatten().tolist() == pytest.approx([1.0, 0.3])
    twice = live.compile([(RowDelta(deltas, 0.5), RowDelta(deltas, 0.25))])
    assert [op.factor.unique().tolist() for op in twice.deltas[path]] == [[0.75]]
    other = random_deltas(model, 1, rank=2, only="layers.1.mlp.up_proj")
    rows = [(RowDelta(deltas), RowDelta(other, scale)) for scale in (0.25, 0.5)]
    (op,) = live.compile(rows).deltas[path]  # two deltas side by side are one product as well
    assert op.factor[:, 0].tolist() == [[1, 1, 1, 0.25, 0.25], [1, 1, 1, 0.5, 0.5]]


@pytest.mark.parametrize("options", [{}, {"norm_preserving": True}], ids=["plain", "norm"])
@pytest.mark.parametrize("first", ["delta", "ablation"])
def test_a_row_with_both_is_merged_first_and_ablated_after(llama, first, options):
    model, live = llama
    tokens = ids(rows=3)
    delta, other = RowDelta(random_deltas(model), 0.7), RowDelta(random_deltas(model, 3), 0.2)
    cut = ablation(0.8, **options)
    row = (delta, other, cut) if first == "delta" else (cut, delta, other)
    expected = logits(ablated(merged(model, delta, other), cut), tokens)[1]
    actual = logits(model, tokens, live, [(), row, (delta,)])
    assert_same(actual[1], expected)
    assert_same(actual[2], logits(merged(model, delta), tokens)[2])
    reverse = logits(merged(ablated(model, cut), delta, other), tokens)[1]
    assert (reverse - expected).abs().max() > 0.01 * expected.abs().max()  # the order matters
    before = logits(ablated(merged(model, delta, other), ablation(0.8)), tokens)[1]
    if options:  # and so do the norms
        assert (before - expected).abs().max() > 0.01 * expected.abs().max()


def test_rows_that_stay_keep_their_deltas(llama):
    model, live = llama
    first, second = random_deltas(model, 1), random_deltas(model, 2)
    rows = [(RowDelta(first),), (), (RowDelta(second), ablation()), (RowDelta(first, 0.5),)]
    plan = live.compile(rows)
    for stay in ([0, 2, 3], [3, 0], [1], [2, 2, 1, 0], [0, 1, 2, 3]):
        tokens = ids(rows=len(stay))
        with live.applied(plan.select(stay)), torch.no_grad():
            actual = model(input_ids=tokens).logits
        assert_same(actual, logits(model, tokens, live, [rows[i] for i in stay]), 1e-6)


def test_generation_goes_on_when_rows_with_deltas_leave(tiny_host):
    host = tiny_host("llama")
    rows = [(RowDelta(random_deltas(host.model, i, size=0.3)),) if i % 3 else () for i in range(8)]
    prompts = [[20 + i, 40 + 2 * i, 60][: 1 + i % 3] for i in range(8)]
    host.stop = frozenset(range(3, 256, 7))  # with so many, rows leave one by one
    together = finish(replies(host, prompts, rows, 12))
    alone = []
    for prompt, row in zip(prompts, rows, strict=True):
        model, tokens = merged(host.model, *row), list(prompt)
        while len(tokens) < len(prompt) + 12:
            chosen = int(logits(model, torch.tensor([tokens]))[0, -1].argmax())
            if chosen in host.stop:
                break
            tokens.append(chosen)
        alone.append(tuple(tokens[len(prompt) :]))
    assert [reply.tokens for reply in together] == alone
    assert len({len(reply.tokens) for reply in together}) > 2


def test_bfloat16_rows_stay_near_the_merged_copy():
    model = tiny("llama").bfloat16()
    live = LiveEdits(discover(model))
    rows = [(RowDelta(random_deltas(model)),), ()]
    actual = logits(model, ids(), live, rows)
    assert actual.dtype == torch.bfloat16
    assert_same(actual[0].float(), logits(merged(model, *rows[0]), ids())[0].float(), 0.05)
    assert live.check(rows[0]).max_error < 0.02
    live.check((RowDelta(random_deltas(model), 1e-6),))  # too weak to show, and no error for that


@pytest.mark.parametrize("name", ALL)
def test_the_check_covers_deltas_and_ablations_together(name):
    model = tiny(name)
    live = LiveEdits(discover(model))
    deltas = random_deltas(model)
    report = live.check((RowDelta(deltas, 0.5), ablation()))
    assert report.matched == report.expected == len(deltas) + 2 * LAYERS
    assert report.max_error < 1e-5
    assert set(deltas) <= set(report.changed)
    assert not set(report.changed) & set(report.untouched)


def test_the_check_fails_by_name_when_a_delta_does_not_reach_its_module(llama):
    model, live = llama
    name = "model.layers.1.self_attn.q_proj"
    edit = RowDelta(random_deltas(model, only="q_proj"))
    live.check((edit,))
    model.get_submodule(name)._forward_hooks.clear()  # behind our back
    with pytest.raises(UserError, match=rf"2 of 3.*{name}"):
        live.check((edit,))


def test_the_check_says_that_a_scale_of_zero_changes_nothing(llama):
    model, live = llama
    report = live.check((RowDelta(random_deltas(model), 0.0),))
    assert report.matched == 0
    assert "changes nothing" in report.messages[0]


def test_deltas_of_another_model_are_refused(llama):
    model, live = llama
    other = RowDelta({"model.layers.9.mlp.up_proj": Delta(torch.ones(4, 1), torch.ones(1, 4))})
    with pytest.raises(UserError, match=r"no linear module 'model\.layers\.9.*model\.layers\.\*"):
        live.compile([(other,)])
    wrong = RowDelta({"model.layers.1.mlp.up_proj": Delta(torch.ones(4, 1), torch.ones(1, 32))})
    with pytest.raises(UserError, match=r"up_proj is \[4, 32\], the module \[48, 32\]"):
        live.compile([(wrong,)])
    with pytest.raises(UserError, match="not finite"):
        RowDelta(random_deltas(model), float("nan"))
    with pytest.raises(UserError, match="which no delta changes"):
        RowDelta({}, {"lm_head": 1.0})


def test_a_mixtures_router_chooses_rows_so_its_experts_take_no_delta():
    found = discover(tiny("qwen2_moe"))
    assert any("shared_expert.gate_proj" in name for name in found.matrices)
    assert not any(".experts." in name for name in found.matrices)
