"""Merge methods, against the papers' formulas on dense matrices and against PEFT."""

import inspect
import math
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils

from sst_ui.errors import UserError
from sst_ui.maths.merge import baselines
from sst_ui.maths.merge.low_rank import Delta, core, zero
from sst_ui.maths.merge.registry import METHODS, Module, family, merge, method, placed, spectrum
from sst_ui.maths.merge.subspace import Moments, decompose, mu_for_budget, soft, top
from sst_ui.maths.merge.types import Stakes

OUT, INP = 10, 8
SST = (
    "sst", "sst_topk", "sst_residual", "sst_layerwise", "sst_ranks", "sst_staged", "sst_adaptive",
    "sst_combined",
)  # fmt: skip
STAKES = Stakes(utility=0.6, safety=0.9)


def build(seed=0, out=OUT, inp=INP, ranks=(2, 3), dtype=torch.float64, **more):
    """(module, dense Δ_U, dense Δ_S) of random deltas and moments."""
    draw = np.random.default_rng(seed)
    deltas = [
        Delta(
            torch.tensor(draw.normal(size=(out, r)), dtype=dtype),
            torch.tensor(draw.normal(size=(r, inp)), dtype=dtype),
        )
        for r in ranks
    ]
    joint = core(*deltas)
    moments = {}
    for task, size in (("safety", 0.01), ("utility", 0.3)):
        x = draw.normal(size=(300, inp)) @ draw.normal(size=(inp, inp)) @ joint.r.numpy()
        d = size * draw.normal(size=(300, out)) @ draw.normal(size=(out, out)) @ joint.u.numpy()
        moments[task] = Moments(torch.tensor(x.T @ x / 300), torch.tensor(d.T @ d / 300), 300)
    more = {"name": "layers.0.q_proj", "kind": "q", "layer": 0, **moments} | more
    more = {"percentile": 0.0, "stakes": STAKES} | more
    more.setdefault("unaligned", torch.tensor(draw.normal(size=(out, inp)), dtype=dtype))
    return Module(core=joint, **more), *(d.dense().double().numpy() for d in deltas)


def dense(merged):
    return merged.delta.b.double().numpy() @ merged.delta.a.double().numpy()


def best(matrix, rank):
    """The best approximation of that rank, and its error."""
    u, sigma, v = np.linalg.svd(matrix)
    return (u[:, :rank] * sigma[:rank]) @ v[:rank], math.sqrt((sigma[rank:] ** 2).sum())


# SST and Fisher averaging


@pytest.mark.parametrize("weight", [1.0, 0.4, -1.0])
@pytest.mark.parametrize("mode", ["kfac", "input"])
def test_sst_adds_the_filtered_edit_to_the_utility_adapter(weight, mode):
    module, utility, _ = build(weight=weight)
    parts = decompose(module.core, module.safety, module.utility, mode=mode)
    for name, g, given in (
        ("sst", soft(3.0), {"mu": 3.0}),
        ("sst_topk", top(4), {"k": 4}),
        ("sst_residual", top(4, rest=0.3), {"k": 4, "ratio": 0.3}),
    ):
        merged = merge(module, name, mode=mode, **given)
        edit = weight * (module.core.u @ parts.edit(g) @ module.core.r.T).numpy()
        assert np.allclose(dense(merged), utility + edit, atol=1e-9)
        assert merged.record.error == 0
        assert merged.record.rank <= 5
        assert merged.record.kept == pytest.approx(abs(weight) * parts.kept(g))
        assert merged.record.size == pytest.approx(
            np.linalg.norm(edit) / np.linalg.norm(module.core.safety)
        )
        assert merged.record.kl == pytest.approx(weight**2 * spectrum_kl(module, parts, g))


def spectrum_kl(module, parts, g):
    fisher = np.kron(module.utility.g.numpy(), module.utility.a.numpy())
    e = parts.edit(g).numpy().reshape(-1)
    return 0.5 * e @ fisher @ e


def test_the_exact_block_is_merged_and_priced_by_itself():
    module, utility, _ = build()
    draw = np.random.default_rng(8)
    blocks = [draw.normal(size=(80, 25)) for _ in range(2)]
    blocks = [torch.tensor(b.T @ b / 80) for b in blocks]
    module = replace(
        module,
        safety=replace(module.safety, block=blocks[0]),
        utility=replace(module.utility, block=blocks[1]),
    )
    merged = merge(module, "sst", mode="block", mu=2.0, damping=0.0)
    f_s, f_u = (b.numpy() for b in blocks)
    f_s = f_s * float(module.utility.g.trace() / module.safety.g.trace())
    e = np.linalg.solve(f_s + 2 * f_u, f_s @ module.core.safety.numpy().reshape(-1))
    edit = module.core.u.numpy() @ e.reshape(5, 5) @ module.core.r.numpy().T
    assert np.allclose(dense(merged), utility + edit, atol=1e-8)
    assert merged.record.kl == pytest.approx(0.5 * e @ f_u @ e)


def test_after_forward_passes_only_there_is_an_edit_and_no_predicted_kl():
    module, _, _ = build()
    forward = {t: replace(getattr(module, t), g=None) for t in ("safety", "utility")}
    merged = merge(replace(module, **forward), "sst", mode="input", mu=2.0)
    assert np.allclose(dense(merged), dense(merge(module, "sst", mode="input", mu=2.0)))
    assert merged.record.kl is None
    assert merge(replace(module, **forward), "task_arithmetic").record.kl is None


def test_free_sst_is_task_arithmetic_and_a_high_price_leaves_the_utility_adapter():
    module, utility, safety = build(weight=0.7)
    plain = dense(merge(module, "task_arithmetic"))
    assert np.allclose(plain, utility + 0.7 * safety, atol=1e-12)
    for name, given in (
        ("sst", {"mu": 0.0}),
        ("sst", {"mu": 1e-12, "damping": 0.0}),
        ("sst_topk", {"k": 4096}),
        ("sst_residual", {"k": 0, "ratio": 1.0}),
    ):
        assert np.allclose(dense(merge(module, name, **given)), plain, atol=1e-6)
    assert np.allclose(dense(merge(module, "sst", mu=1e6)), utility, atol=0.01)
    assert np.allclose(dense(merge(module, "sst_topk", k=0)), utility, atol=1e-12)


def test_fisher_averaging_weighs_entry_by_entry():
    module, utility, safety = build(weight=0.7)
    u, r = module.core.u.numpy(), module.core.r.numpy()
    diagonals = []
    for m in (module.safety, module.utility):
        whole = np.kron(u @ m.g.numpy() @ u.T, r @ m.a.numpy() @ r.T)  # in the weights' own space
        diagonal = np.diag(whole).reshape(OUT, INP)
        diagonals.append(diagonal / diagonal.mean())
    f_s, f_u = diagonals
    for price in (0.1, 1.0, 10.0):
        mean = (f_s * safety + price * f_u * utility) / (f_s + price * f_u)
        wanted = utility + 0.7 * (mean - utility)
        merged = merge(module, "fisher", rank=min(OUT, INP), price=price)
        assert np.allclose(dense(merged), wanted, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("q", 1.5),
        ("o", 1.5),
        ("gate", 0.2),
        ("down", 0.2),
        ("lm_head", 2.5),
        ("qkv", 1.5),
        ("gate_up", 0.2),
    ],
)
def test_layer_wise_weighs_kinds_on_top_of_the_table(kind, factor):
    module, utility, _ = build(kind=kind, weight=0.5)
    plain = dense(merge(module, "sst_topk", k=5)) - utility
    merged = merge(module, "sst_layerwise", k=5, attention=1.5, mlp=0.2, lm_head=2.5)
    assert np.allclose(dense(merged) - utility, factor * plain, atol=1e-9)


def problem(module):
    """F_S, F_U [qp, qp] and D [qp] of a module, dense, as `decompose` normalises them."""
    f_s, f_u = (np.kron(m.g.numpy(), m.a.numpy()) for m in (module.safety, module.utility))
    scale = float(module.utility.g.trace() / module.safety.g.trace())
    return scale * f_s, f_u, module.core.safety.numpy().reshape(-1)


def lifted(module, edit):
    """An edit of the core [qp] as a dense change of the weights."""
    u, r = module.core.u.numpy(), module.core.r.numpy()
    return u @ edit.reshape(module.core.q, module.core.p) @ r.T


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_every_stage_filters_what_the_stages_before_it_left(stages):
    module, utility, _ = build(weight=0.7)
    f_s, f_u, d = problem(module)
    edit = np.zeros_like(d)
    for _ in range(stages):
        edit = edit + np.linalg.solve(f_s + 4.0 * f_u, f_s @ (d - edit))
    merged = merge(module, "sst_staged", mu=4.0, stages=stages, damping=0.0)
    assert np.allclose(dense(merged), utility + 0.7 * lifted(module, edit), atol=1e-8)
    if stages == 1:
        plain = merge(module, "sst", mu=4.0, damping=0.0)
        assert np.array_equal(dense(merged), dense(plain))


def test_more_stages_keep_more():
    module, _, _ = build()
    kept = [merge(module, "sst_staged", mu=30.0, stages=n).record.kept for n in (1, 2, 4, 16)]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1] <= 1


@pytest.mark.parametrize("stakes", [Stakes(0.6, 0.9), Stakes(2.0, 0.1), Stakes(0.4, 0.4)])
def test_held_out_losses_weigh_the_two_data_sets_in_the_objective(stakes):
    module, utility, _ = build(stakes=stakes)
    f_s, f_u, d = problem(module)
    total = stakes.utility + stakes.safety
    w_u, w_s = (2 * each / total for each in (stakes.utility, stakes.safety))
    edit = np.linalg.solve(w_s * f_s + 4.0 * w_u * f_u, w_s * f_s @ d)
    merged = dense(merge(module, "sst_adaptive", base_mu=4.0, damping=0.0))
    assert np.allclose(merged, utility + lifted(module, edit), atol=1e-8)
    plain = dense(merge(module, "sst", mu=4.0, damping=0.0))
    assert np.allclose(merged, plain) == (stakes.utility == stakes.safety)
    unmoved = merge(module, "sst_adaptive", base_mu=4.0, adapt=0.0, damping=0.0)
    assert np.allclose(dense(unmoved), plain, atol=1e-12)


def test_a_data_set_without_anything_at_stake_has_the_least_weight_and_not_none():
    prices = [Stakes(u, s).price(1.0) for u, s in ((-0.3, -2.0), (0.0, 1.0), (1.0, 0.0))]
    assert prices == pytest.approx([1.0, 0.01, 100.0])


@pytest.mark.parametrize(("kind", "factor"), [("q", 1.5), ("down", 0.2), ("lm_head", 20.0)])
def test_the_combination_has_its_parts_as_limits(kind, factor):
    module, utility, safety = build(kind=kind, weight=0.5)
    weights = {"attention": 1.5, "mlp": 0.2, "lm_head": 20.0}

    def combined(**given):
        return (dense(merge(module, "sst_combined", **weights, **given)) - utility) / factor

    def alone(name, **given):
        return dense(merge(module, name, **given)) - utility

    assert np.allclose(
        combined(base_mu=4.0, adapt=0.0, stages=1, ratio=0.0), alone("sst", mu=4.0), atol=1e-9
    )
    assert np.allclose(
        combined(base_mu=4.0, adapt=0.0, stages=3, ratio=0.0),
        alone("sst_staged", mu=4.0, stages=3), atol=1e-9,
    )  # fmt: skip
    adaptive = alone("sst_adaptive", base_mu=4.0, adapt=2.0)
    assert np.allclose(combined(base_mu=4.0, adapt=2.0, stages=1, ratio=0.0), adaptive, atol=1e-9)
    some = combined(base_mu=4.0, adapt=2.0, stages=1, ratio=0.3)
    assert np.allclose(some, 0.3 * 0.5 * safety + 0.7 * adaptive, atol=1e-9)
    assert np.allclose(combined(ratio=1.0), 0.5 * safety, atol=1e-9)


def test_one_bar_gives_every_module_a_k_of_its_own():
    notes = []
    for seed, ranks in ((1, (2, 3)), (2, (4, 1)), (3, (3, 3))):
        module, utility, _ = build(seed, ranks=ranks)
        f_s, f_u, d = problem(module)
        lower = np.linalg.cholesky(f_u)
        white = np.linalg.solve(lower, np.linalg.solve(lower, f_s).T)
        values, q = np.linalg.eigh((white + white.T) / 2)
        v = np.linalg.solve(lower.T, q)  # vᵀ F_U v = I
        many = values > 1.0
        edit = v[:, many] @ (v[:, many].T @ f_u @ d)
        merged = merge(module, "sst_ranks", mu=1.0, damping=0.0)
        assert np.allclose(dense(merged), utility + lifted(module, edit), atol=1e-7)
        assert merged.record.note == f"k {many.sum()}"
        same = merge(module, "sst_topk", k=int(many.sum()), damping=0.0)
        assert np.allclose(dense(merged), dense(same), atol=1e-9)
        notes.append(merged.record.note)
    assert len(set(notes)) > 1


@pytest.mark.parametrize(
    ("name", "given"), [("sst_ranks", {}), ("sst_staged", {"stages": 4}), ("sst", {})]
)
def test_a_budget_is_spent_and_not_exceeded_by_every_method_with_a_price(name, given):
    modules = [build(1, name="q")[0], build(2, 30, 4, name="o", kind="o")[0]]
    spectra = {module.name: spectrum(module) for module in modules}
    whole = sum(merge(m, "task_arithmetic").record.kl for m in modules)
    mu = mu_for_budget(spectra, whole / 10, family=family(name, given))
    spent = sum(merge(m, name, mu=mu, **given).record.kl for m in modules)
    assert spent <= whole / 10 * (1 + 1e-9)
    more = sum(merge(m, name, mu=mu * (1 - 1e-6), **given).record.kl for m in modules)
    assert more > whole / 10 * (1 - 1e-5)


def test_one_price_for_a_budget_holds_for_what_is_merged():
    modules = {
        m.name: m
        for m in (
            build(1, weight=0.8, name="q")[0],
            build(2, 30, 4, weight=2.0, name="lm_head", kind="lm_head", layer=None)[0],
        )
    }
    spectra = {name: spectrum(module) for name, module in modules.items()}
    weights = {name: module.weight for name, module in modules.items()}
    whole = sum(merge(m, "task_arithmetic").record.kl for m in modules.values())
    mu = mu_for_budget(spectra, whole / 50, weights)
    spent = sum(merge(m, "sst", mu=mu).record.kl for m in modules.values())
    assert spent == pytest.approx(whole / 50, rel=1e-6)


def test_a_spectrum_is_worked_out_once_and_not_for_other_moments():
    module, _, _ = build()
    first = spectrum(module)
    assert spectrum(replace(module, weight=3.0)) is first
    assert spectrum(module, damping=0.1) is not first
    other = Moments(module.utility.a * 2, module.utility.g, 300)
    assert spectrum(replace(module, utility=other)) is not first


# Baselines


def loop_ties(deltas, weights, density):
    """Algorithm 1 of the paper, an entry at a time, weights as multiplicities."""
    trimmed = []
    for delta in deltas:
        cut = np.sort(np.abs(delta).reshape(-1))[::-1][int(density * delta.size) - 1]
        trimmed.append(np.where(np.abs(delta) >= cut, delta, 0))
    result = np.zeros_like(deltas[0])
    for place in np.ndindex(result.shape):
        values = [(w * t[place], abs(w)) for t, w in zip(trimmed, weights, strict=True)]
        sign = np.sign(sum(v for v, _ in values))
        agreeing = [(v, w) for v, w in values if v * sign > 0]
        if agreeing:
            result[place] = sum(v for v, _ in agreeing) / sum(w for _, w in agreeing)
    return result


@pytest.mark.parametrize("weight", [1.0, 0.3, 2.0, -0.5])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_is_the_papers_algorithm_on_the_deltas(weight, density):
    module, utility, safety = build(weight=weight)
    expected = 1.3 * loop_ties([utility, safety], [1.0, weight], density)
    full = merge(module, "ties", rank=INP, density=density, scale=1.3)
    assert np.allclose(dense(full), expected, atol=1e-9)
    approximate, error = best(expected, 5)
    merged = merge(module, "ties", density=density, scale=1.3)
    assert np.allclose(dense(merged), approximate, atol=1e-9)
    assert merged.delta.rank == merged.record.rank == 5  # r_U + r_S
    assert merged.record.error == pytest.approx(error)
    assert merged.record.kept is None


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
def test_ties_with_equal_weights_is_pefts(density):
    _, utility, safety = build()
    pair = [torch.tensor(utility), torch.tensor(safety)]
    expected = merge_utils.ties(pair, torch.ones(2), density)
    assert torch.allclose(baselines.ties(pair, (1.0, 1.0), density), expected, atol=1e-12)


def test_entries_that_cancel_elect_no_sign_and_stay_zero():
    one = torch.tensor([[1.0, -2.0, 0.0]])
    other = torch.tensor([[-1.0, -4.0, 0.0]])
    expected = torch.tensor([[0.0, -3.0, 0.0]])
    assert torch.equal(baselines.ties([one, other], (1.0, 1.0), 1.0), expected)


def test_dare_keeps_the_rest_rescaled_and_both_adapters_on_average():
    draw = torch.Generator().manual_seed(0)
    delta = torch.randn(400, 300, generator=draw)
    kept = baselines.dare(delta, 0.9, draw)
    there = kept != 0
    assert float(there.double().mean()) == pytest.approx(0.1, abs=0.005)
    assert torch.allclose(kept[there], 10 * delta[there])
    module, utility, safety = build(weight=0.6)
    mean = np.mean(
        [dense(merge(module, "dare", rank=INP, seed=s, drop=0.5)) for s in range(3000)], axis=0
    )
    assert np.allclose(mean, utility + 0.6 * safety, atol=0.35)


def test_dare_draws_by_seed_and_module_and_not_by_order():
    first, other = build()[0], build(name="layers.1.q_proj")[0]
    before = dense(merge(first, "dare", seed=1))
    assert not np.allclose(before, dense(merge(other, "dare", seed=1)))
    assert np.array_equal(before, dense(merge(first, "dare", seed=1)))
    assert not np.allclose(before, dense(merge(first, "dare", seed=2)))
    undropped = merge(first, "dare", drop=0.0)
    assert np.allclose(dense(undropped), dense(merge(first, "task_arithmetic")), atol=1e-9)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_safe_lora_projects_where_the_projection_points_elsewhere(weight):
    module, utility, _ = build(weight=weight)
    v = module.unaligned.numpy()
    projection = v @ v.T / np.linalg.norm(v)
    projected = projection @ utility
    cosine = (projected * utility).sum() / np.linalg.norm(projected) / np.linalg.norm(utility)
    assert 0 < cosine < 1
    unsafe = merge(module, "safe_lora", threshold=cosine + 1e-6)
    assert np.allclose(dense(unsafe), utility + weight * (projected - utility), atol=1e-9)
    assert unsafe.record.note == f"projected: cosine {cosine:.3f}"
    safe = merge(module, "safe_lora", threshold=cosine - 1e-6)
    assert np.allclose(dense(safe), utility, atol=1e-12)
    assert safe.record.note == f"kept: cosine {cosine:.3f}"
    approximate, error = best(projected, 1)
    cut = merge(replace(module, weight=1.0), "safe_lora", rank=1, threshold=1.0)
    assert np.allclose(dense(cut), approximate, atol=1e-9)
    assert cut.record.error == pytest.approx(error)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_safe_merge_adds_the_safety_adapter_in_just_those_layers(weight):
    module, utility, safety = build(weight=weight)
    v = module.unaligned.numpy()
    projected = v @ v.T / np.linalg.norm(v) @ utility
    cosine = (projected * utility).sum() / np.linalg.norm(projected) / np.linalg.norm(utility)
    merged = merge(module, "safe_merge", threshold=cosine + 1e-6, share=0.2)
    s = 0.2 * weight
    assert np.allclose(dense(merged), (1 - s) * utility + s * safety, atol=1e-9)
    assert merged.record.note.startswith("merged")
    kept = merge(module, "safe_merge", threshold=cosine - 1e-6, share=0.2)
    assert np.allclose(dense(kept), utility, atol=1e-12)
    assert kept.record.note.startswith("kept")


@pytest.mark.parametrize("name", ["safe_lora", "safe_merge"])
@pytest.mark.parametrize(
    ("given", "count"),
    [({}, 3), ({"selected": 0.2}, 2), ({"selected": 0.0}, 0), ({"selected": 1.0}, 6)],
)
def test_the_selected_share_of_modules_is_that_of_the_lowest_cosines(name, given, count):
    built = [build(seed, name=f"m{seed}", percentile=None) for seed in range(6)]
    cosines = []
    for module, utility, _ in built:
        v = module.unaligned.numpy()
        c = v @ v.T @ utility
        cosines.append((c * utility).sum() / np.linalg.norm(c) / np.linalg.norm(utility))
    modules = placed([module for module, _, _ in built])
    order = np.argsort(cosines)
    assert [modules[i].percentile for i in order] == pytest.approx([i / 6 for i in range(6)])
    notes = [merge(module, name, **given).record.note for module in modules]
    acted = {i for i, note in enumerate(notes) if not note.startswith("kept")}
    assert acted == set(order[:count])
    low = sorted(cosines)[1] + 1e-9  # the papers' absolute threshold
    notes = [merge(m, name, selected=1.0, threshold=low).record.note for m in modules]
    assert {i for i, n in enumerate(notes) if not n.startswith("kept")} == set(order[:2])


@pytest.mark.parametrize("name", ["safe_lora", "safe_merge"])
def test_where_alignment_changed_nothing_the_utility_adapter_stays(name):
    module, utility, _ = build(unaligned=torch.zeros(OUT, INP))
    merged = merge(module, name, threshold=1.0)
    assert np.allclose(dense(merged), utility, atol=1e-12)
    assert merged.record.note == "kept: nothing to compare"


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.4)])
def test_task_arithmetic_is_pefts_cat(weights):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = torch.nn.Linear(INP, OUT, bias=False)

    torch.manual_seed(0)
    utility = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    safety = LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(Net(), utility, adapter_name="utility")
    model.add_adapter("safety", safety)
    model.add_weighted_adapter(["utility", "safety"], list(weights), "both", "cat")
    layer = model.base_model.model.q_proj
    deltas = [
        Delta(scale * layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach())
        for name, scale in (("utility", 3.0), ("safety", 1.0))
    ]
    module = Module("q_proj", "q", 0, core(*deltas), weight=weights[1])
    expected = layer.get_delta_weight("both").detach().numpy()
    assert np.allclose(dense(merge(module, "task_arithmetic")), expected, atol=1e-5)


def test_linear_interpolation_goes_from_one_adapter_to_the_other():
    module, utility, safety = build(weight=0.25)
    merged = merge(module, "linear")
    assert np.allclose(dense(merged), 0.75 * utility + 0.25 * safety, atol=1e-12)


# All methods


@pytest.mark.parametrize("name", METHODS.names())
def test_a_weight_of_zero_leaves_the_utility_adapter(name):
    module, utility, _ = build(weight=0.0)
    merged = merge(module, name)
    assert np.allclose(dense(merged), utility, atol=1e-12)
    assert merged.record.kept == 0


@pytest.mark.parametrize("name", METHODS.names())
def test_no_method_depends_on_how_the_adapters_are_factored(name):
    draw = np.random.default_rng(4)
    plain, _, _ = build()
    space = plain.core
    deltas = [space.delta(c)[0] for c in (space.utility, space.safety)]
    mixes = [torch.tensor(draw.normal(size=(d.rank, d.rank))) for d in deltas]
    again = core(*(Delta(d.b @ m.inverse(), m @ d.a) for d, m in zip(deltas, mixes, strict=True)))

    def carried(m):  # the same moments, in the other basis
        u, r = again.u.T @ space.u, again.r.T @ space.r
        return Moments(r @ m.a @ r.T, u @ m.g @ u.T, m.n)

    moments = {task: carried(getattr(plain, task)) for task in ("safety", "utility")}
    other = replace(plain, core=again, **moments)
    assert np.allclose(dense(merge(plain, name)), dense(merge(other, name)), atol=1e-7)


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (3, 4)], ids=str)
def test_lm_heads_and_other_shapes_in_float32_and_cut_to_a_rank(name, shape):
    module, _, _ = build(0, *shape, dtype=torch.float32, kind="lm_head", layer=None)
    exact, cut = merge(module, name, rank=min(shape)), merge(module, name, rank=1)
    assert exact.delta.b.dtype == torch.float32
    assert (cut.delta.out, cut.delta.inp, cut.delta.rank) == (*shape, 1)
    apart = np.linalg.norm(dense(exact) - dense(cut))
    assert cut.record.error == pytest.approx(apart, rel=1e-3, abs=1e-4)
    assert exact.record.error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_missing_or_empty_adapter_is_a_zero_delta(name):
    draw = torch.Generator().manual_seed(0)
    delta = Delta(
        torch.randn(OUT, 2, generator=draw).double(), torch.randn(2, INP, generator=draw).double()
    )
    v = torch.randn(OUT, INP, generator=draw).double()
    eye = Moments(torch.eye(2), torch.eye(2), 9)
    more = {"percentile": 0.0, "stakes": STAKES}
    alone = Module("x", "q", 0, core(delta, None), eye, eye, v, **more)
    wanted = delta.dense().numpy()
    if "target" in [parameter.name for parameter in METHODS[name].parameters]:
        assert np.allclose(dense(merge(alone, name)), wanted)  # there is nothing to add
    assert np.isfinite(dense(merge(alone, name))).all()
    added = dense(merge(Module("x", "q", 0, core(None, delta), eye, eye, v, **more), name))
    if name in ("safe_lora", "safe_merge"):  # no utility delta, so none that is unsafe
        assert not added.any()
    elif name == "fisher":  # the diagonals are of the two adapters' own spaces
        assert np.linalg.norm(added) < np.linalg.norm(wanted)
    elif name == "sst":  # F_S = F_U
        mu = METHODS[name].parameters[0].default
        assert np.allclose(added, wanted / (1 + mu), rtol=1e-2)
    elif name == "task_arithmetic":
        assert np.allclose(added, wanted)
    empty = Module("x", "q", 0, core(zero(OUT, INP), zero(OUT, INP)))
    merged = merge(empty, name)
    assert (merged.delta.rank, merged.record.error) == (0, 0)
    assert not dense(merged).any()


@pytest.mark.parametrize("row", list(METHODS), ids=lambda row: row.name)
def test_every_control_is_read_from_the_function_and_reaches_it(row):
    assert row.what
    assert row.paper
    signature = list(inspect.signature(row.run).parameters.values())[1:]
    assert [p.name for p in row.parameters] == [p.name for p in signature]
    for parameter in row.parameters:
        assert parameter.what
        assert parameter.check(parameter.default) == parameter.default
    module, _, _ = build()
    modules = [replace(module, kind=kind) for kind in ("q", "down", "lm_head")]
    other = {
        "mu": 0.1, "k": 2, "ratio": 0.9, "attention": 2.0, "mlp": 2.0, "lm_head": 2.0,
        "damping": 0.5, "density": 0.7, "scale": 0.5, "drop": 0.9, "seed": 7, "share": 0.9,
        "price": 50.0, "base_mu": 0.1, "adapt": 3.0, "stages": 9, "selected": 0.0,
        "threshold": -1.0, "target": "interpolating", "mode": "input",
    }  # fmt: skip
    start = {"threshold": 1.0} if "unaligned" in row.needs else {}
    start |= {"mu": 1.0} if row.name == "sst_ranks" else {}
    start |= {"k": 5} if "k" in [p.name for p in row.parameters] else {}
    for parameter in row.parameters:
        turned = start | {parameter.name: other[parameter.name]}
        pairs = [(merge(m, row.name, **start), merge(m, row.name, **turned)) for m in modules]
        assert any(not np.allclose(dense(a), dense(b)) for a, b in pairs), parameter.name


def test_a_name_that_is_taken_is_refused():
    def mine(module):
        """Another way."""

    row = METHODS["ties"]
    with pytest.raises(UserError, match="there is a merge method 'ties' already"):
        method("ties", title="TIES", paper="mine")(mine)
    assert METHODS["ties"] is row


def test_the_registry_holds_the_methods_of_the_field_with_typed_controls():
    assert METHODS.names() == [
        *SST, "fisher", "task_arithmetic", "linear", "ties", "dare", "safe_lora", "safe_merge",
    ]  # fmt: skip
    mu = METHODS["sst"].parameters[0]
    assert (mu.name, mu.kind, mu.low, mu.log) == ("mu", "float", 0, True)
    choice = METHODS["sst"].parameters[1]
    assert (choice.kind, choice.choices) == ("choice", ("additive", "interpolating"))
    assert METHODS["sst_topk"].parameters[0].kind == "int"
    assert typing.get_type_hints(METHODS["sst"].run)["mu"] is float


def test_a_slider_may_give_a_whole_number_as_a_float():
    module, _, _ = build()
    assert np.array_equal(
        dense(merge(module, "sst_topk", k=5.0)), dense(merge(module, "sst_topk", k=5))
    )


def test_bad_input_says_what_to_do():
    module, _, _ = build()
    with pytest.raises(UserError, match="did you mean 'ties'"):
        merge(module, "tiez")
    with pytest.raises(UserError, match="did you mean 'density'"):
        merge(module, "ties", densty=0.5)
    with pytest.raises(UserError, match=r"density is 1\.5; it must be a number from 0\.01 to 1"):
        merge(module, "ties", density=1.5)
    for bad in (True, "3", math.nan, 2.5):
        with pytest.raises(UserError, match="k is"):
            merge(module, "sst_topk", k=bad)
    with pytest.raises(UserError, match="did you mean 'kfac'"):
        merge(module, "sst", mode="kfca")
    with pytest.raises(UserError, match=r"needs the Fisher moments.*layers\.0\.q_proj has none"):
        merge(replace(module, utility=None), "sst")
    with pytest.raises(UserError, match="needs the weights of an unaligned checkpoint"):
        merge(replace(module, unaligned=None), "safe_lora")
    forward = replace(module, utility=replace(module.utility, g=None))
    with pytest.raises(UserError, match="method fisher needs the gradients of both tasks"):
        merge(forward, "fisher")
    with pytest.raises(UserError, match="weight of layers"):
        merge(replace(module, weight=math.nan), "sst")
    with pytest.raises(UserError, match="has no moments"):
        spectrum(replace(module, safety=None))
    with pytest.raises(ValueError, match=r"V is \[2, 2\]"):
        merge(replace(module, unaligned=torch.ones(2, 2)), "safe_lora")
