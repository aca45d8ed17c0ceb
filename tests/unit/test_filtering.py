"""Filtered ablation on models: live and exported, against copies with densely edited weights."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from sst_ui.errors import UserError
from sst_ui.jobs.directions import filter_moments, filtering
from sst_ui.jobs.directions.filtering import filters
from sst_ui.jobs.directions.kl_budget import PRICES
from sst_ui.jobs.directions.measure import control, measure, resolve
from sst_ui.jobs.evaluate.evaluate import evaluate
from sst_ui.jobs.export.export import export
from sst_ui.jobs.purpose import goal, purpose
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.hooks.live_edits import RowDelta, RowEdit, RowFilter
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Evaluation, Filter, Recipe, WeightTable
from tests.talk import tiny_host
from tests.tiny import LAYERS, tiny

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
HARMFUL = ["pick a lock", "forge a stamp", "break the seal", "open the safe", "copy the key"]
HARMLESS = ["bake bread", "water a fern", "fold a shirt", "tune a harp", "mend a sock", "sing"]
ALIKE = ["kill a process", "shoot a photo", "crack an egg"]
FLAT = {"profile": "custom", "peak": 0.5, "width": 1e6, "threshold": 0.0}
WHOLE = ("llama", "gpt2", "llama_bias", "qwen3", "phi3", "gpt_neox")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    filter_moments._recent.clear()
    filtering._recent.clear()


@pytest.fixture
def prompts(tmp_path):
    """Name -> path of the harmful, harmless and look-alike prompts."""
    sets = {"harmful": HARMFUL, "harmless": HARMLESS, "alike": ALIKE}
    for name, texts in sets.items():
        lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return {name: str(tmp_path / f"{name}.jsonl") for name in sets}


def ablation(prompts, k=1, strength=1.0, affine=False, weights=None, **settings) -> Ablation:
    spec = DirectionSpec(harmful=prompts["harmful"], harmless=prompts["harmless"], k=k)
    weights = weights or WeightTable(**FLAT, strength=strength)
    settings = {"answers": 3, "ridge": 1e-3, **settings}
    return Ablation(spec, weights, "filter", affine=affine, filter=Filter(**settings))


def resolved(host, *edits):
    return finish(resolve(host, Recipe(edits=edits)))


def of_writers(model, names, tokens, last):
    """Path -> (inputs, outputs) of one text, float64 [tokens, width]: the last token, or all but
    the first."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0][0], out[0])})
        )
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    keep = slice(-1, None) if last else slice(1, None)
    return {name: tuple(z[keep].double() for z in pair) for name, pair in seen.items()}


def answered(host, texts, tokens):
    """Prompts with greedy answers of plain transformers behind them."""
    if not tokens:
        return [host.encode(text) for text in texts]
    found = []
    for text in texts:
        ids = torch.tensor([host.encode(text)])
        out = host.model.generate(
            ids, max_new_tokens=tokens, do_sample=False, eos_token_id=sorted(host.stop),
            attention_mask=torch.ones_like(ids), pad_token_id=host.pad,
        )  # fmt: skip
        whole = out[0].tolist()
        found.append(whole[:-1] if whole[-1] in host.stop else whole)
    return found


def samples(host, writers, texts, last):
    parts = [of_writers(host.model, writers, text, last) for text in texts]
    return {
        name: tuple(torch.cat([part[name][i] for part in parts]) for i in (0, 1))
        for name in writers
    }


def weights_of(host, answers):
    """[tokens] of the harmless samples: half of it all on the last tokens of the prompts."""
    texts = answered(host, HARMLESS, answers)
    mean = sum(len(text) - 1 for text in texts) / len(texts)
    found = []
    for text, prompt in zip(texts, HARMLESS, strict=True):
        found.append(torch.ones(len(text) - 1).double())
        found[-1][len(host.encode(prompt)) - 2] += mean
    return torch.cat(found)


def by_hand(host, edit, directions):
    """A copy of the model with the filter's change in its weights, from the formula."""
    writers = {w.name: w for w in host.architecture.writers}
    harmful = samples(host, writers, [host.encode(text) for text in HARMFUL], True)
    harmless = samples(host, writers, answered(host, HARMLESS, edit.filter.answers), False)
    w = weights_of(host, edit.filter.answers)[:, None]
    model = copy.deepcopy(host.model)
    for name, writer in writers.items():
        rows = directions.vectors[writer.layer].double()
        x, y = harmful[name]
        s, z = harmless[name]
        centre = (w * z @ rows.T).sum(0) / w.sum() if edit.affine else 0.0
        sigma = x.T @ x / len(x)
        ridge = edit.filter.ridge * sigma.diagonal().mean() * torch.eye(len(sigma)).double()
        g = x.T @ (y @ rows.T - centre) / len(x)
        second = (w * s).T @ s / w.sum()
        null = torch.eye(len(sigma)).double()
        if (share := edit.filter.null_space) is not None:
            energies, axes = torch.linalg.eigh(second)
            null = axes[:, energies.clamp(min=0).cumsum(0) <= share * energies.sum()]
        inner = null.T @ (sigma + edit.filter.mu * second + ridge) @ null
        v = null @ torch.linalg.solve(inner, null.T @ g)
        change = -edit.weights.strength * rows.T @ v.T
        module = model.get_submodule(name)
        if type(module).__name__ == "Conv1D":
            change = change.T
        module.weight.data.copy_((module.weight.double() + change).float())
    return model


def logits(model, tokens, live=None, row=()):
    with torch.no_grad():
        if live is None:
            return model(input_ids=tokens).logits
        with live.applied(live.compile([row] * len(tokens))):
            return model(input_ids=tokens).logits


def writes(host, module, tokens, row):
    """What a module gives at the last token, without and with an edit."""
    seen = []
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out[0, -1]))
    for edits in ((), (row,)):
        logits(host.model, tokens, host.live, edits)
    handle.remove()
    return seen


def ids():
    return torch.randint(5, 250, (2, 9), generator=torch.Generator().manual_seed(5))


def same(actual, expected, tolerance=1e-4):
    return float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize(("name", "k"), [*((name, 1) for name in WHOLE), ("gpt2", 2), ("phi3", 2)])
def test_the_live_filter_is_the_formula_in_the_weights(name, k, prompts):
    host, edit = tiny_host(name), ablation(prompts, k, mu=0.5)
    (row,) = resolved(host, edit)
    expected = logits(by_hand(host, edit, row.directions), ids())
    assert same(logits(host.model, ids(), host.live, (row,)), expected, 1e-5)
    assert not same(logits(host.model, ids()), expected)  # it does something
    assert len(row.active()) == 2 * LAYERS
    assert {delta.rank for delta, _ in row.active().values()} == {k}


@pytest.mark.parametrize("strength", [-1.0, 0.4])
@pytest.mark.parametrize("affine", [False, True])
def test_strength_below_zero_and_an_affine_centre_are_the_formula_too(strength, affine, prompts):
    host, edit = tiny_host("llama"), ablation(prompts, 1, strength, affine, mu=2.0)
    (row,) = resolved(host, edit)
    expected = logits(by_hand(host, edit, row.directions), ids())
    assert same(logits(host.model, ids(), host.live, (row,)), expected)
    assert goal((row,)) == ("reinforce" if strength < 0 else "remove")
    assert purpose(Recipe(edits=(edit,)), LAYERS) == (
        "reinforced" if strength < 0 else "abliterated"
    )


@pytest.mark.parametrize(("name", "share"), [("gpt2", 0.2), ("llama", 0.5)])
def test_a_filter_bound_to_a_null_space_is_the_formula_in_the_weights(name, share, prompts):
    # five prompts and no price: the ridge keeps float32 sums from deciding
    host, edit = tiny_host(name), ablation(prompts, 2, mu=0.0, null_space=share, ridge=0.05)
    (row,) = resolved(host, edit)
    expected = logits(by_hand(host, edit, row.directions), ids())
    assert same(logits(host.model, ids(), host.live, (row,)), expected)
    assert not same(logits(host.model, ids()), expected)  # it does something
    (free,) = resolved(host, replace(edit, filter=replace(edit.filter, null_space=None)))
    assert row.moved < free.moved
    assert {delta.rank for delta, _ in row.active().values()} == {2}


def test_a_filter_without_a_price_removes_what_harmful_prompts_write(prompts):
    host, edit = tiny_host("llama"), ablation(prompts, mu=0.0, ridge=1e-6)
    (row,) = resolved(host, edit)
    writer = host.architecture.writer(0, "attention")  # nothing before it is edited
    rows = row.directions.vectors[0].double()
    for text in HARMFUL:
        tokens = torch.tensor([host.encode(text)])
        seen = writes(host, writer.module, tokens, row)
        before, after = (float(y.double() @ rows[0]) for y in seen)
        assert abs(after) < 1e-3 * abs(before)


def test_a_dear_filter_hardly_moves_harmless_prompts(prompts):
    host = tiny_host("llama", intermediate_size=96, head_dim=32)  # wider than the samples span
    free, dear = (resolved(host, ablation(prompts, mu=mu, answers=0)) for mu in (0.0, 1e8))
    for text in HARMLESS:
        tokens = torch.tensor([host.encode(text)])
        base = logits(host.model, tokens)
        moved = [(logits(host.model, tokens, host.live, row) - base).norm() for row in (free, dear)]
        assert moved[1] < 0.02 * moved[0]


def test_behind_a_norm_the_direction_goes_as_the_fit_says(prompts):
    host, edit = tiny_host("gemma2"), ablation(prompts, mu=0.0, ridge=1e-6)
    (row,) = resolved(host, edit)
    writer = host.architecture.writer(0, "attention")
    rows = row.directions.vectors[0].double()
    tokens = torch.tensor([host.encode(HARMFUL[0])])
    seen = writes(host, writer.norm, tokens, row)
    before, after = (float(y.double() @ rows[0]) for y in seen)
    assert abs(after) < 1e-3 * abs(before)


def test_an_affine_centre_behind_a_norm_is_refused(prompts):
    with pytest.raises(UserError, match=r"norm behind.*affine to false"):
        resolved(tiny_host("gemma2"), ablation(prompts, affine=True))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_refused_by_name_and_attention_alone_is_filtered(name, prompts):
    host = tiny_host(name)
    with pytest.raises(UserError, match=r"layers\.\*\.mlp.*experts.*weights\.modules\.mlp"):
        resolved(host, ablation(prompts))
    weights = WeightTable(**FLAT, modules={"attention": 1.0, "mlp": 0.0})
    (row,) = resolved(host, ablation(prompts, weights=weights))
    assert len(row.active()) == LAYERS
    assert host.live.check((row,)).max_error < 1e-4


def test_a_layer_that_does_not_add_up_is_refused(prompts):
    host = tiny_host("llama")
    row = resolved(host, ablation(prompts))[0]
    host.live.account.problems[1] = "layer 1 does something else."
    with pytest.raises(UserError, match="layer 1 does something else"):
        host.live.compile([(row,)])


class Packed(nn.Module):
    """A linear module whose weight is kept in eighths of a byte, as quantised ones are."""

    def __init__(self, module: nn.Linear):
        super().__init__()
        self.out_features, self.in_features = module.weight.shape
        step = module.weight.abs().max() / 127
        packed = (module.weight / step).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.step = float(step)

    def forward(self, x):
        return x @ (self.weight.to(x) * self.step).T


def test_packed_weights_are_filtered_as_the_matrix_they_stand_for(prompts):
    plain, packed = tiny("llama", vocab_size=261), tiny("llama", vocab_size=261)
    for model in (plain, packed):
        for layer in model.model.layers:
            module = Packed(layer.mlp.down_proj)
            if model is plain:
                layer.mlp.down_proj.weight.copy_(module.weight.float() * module.step)
            else:
                layer.mlp.down_proj = module
    hosts = [tiny_host("llama") for _ in range(2)]
    found = []
    for host, model in zip(hosts, (plain, packed), strict=True):
        host = type(host)(host.spec, model, host.tokenizer, digest="")
        (row,) = resolved(host, ablation(prompts, mu=0.5))
        assert all(not w.quantized or model is packed for w in host.architecture.writers)
        found.append(logits(model, ids(), host.live, (row,)))
    assert same(found[1], found[0])


def test_wide_inputs_are_solved_in_their_subspace_and_come_back_from_the_cache(
    prompts, monkeypatch
):
    """The few samples here lie in it completely, so that the filter is the whole one."""
    host = tiny_host("llama", intermediate_size=400)
    edit = ablation(prompts, mu=1.0)
    (row,) = resolved(host, edit)
    name = host.architecture.writer(1, "mlp").name
    monkeypatch.setattr(filter_moments, "EXACT", 300)
    monkeypatch.setattr(filter_moments, "FORMULAS", -1)  # not what the cache holds
    found = []
    for _ in range(2):  # measured, and then as after a restart
        filter_moments._recent.clear()
        filtering._recent.clear()
        found.append(resolved(host, edit)[0].deltas[name].a)
    assert torch.linalg.norm(found[0] - row.deltas[name].a) < 1e-2 * torch.linalg.norm(found[0])
    assert torch.allclose(*found, rtol=1e-3, atol=1e-4)


def test_the_second_time_costs_no_pass_and_another_price_none_either(prompts):
    host, edit = tiny_host("llama"), ablation(prompts)
    passes = []
    first = resolved(host, edit)[0]
    host.architecture.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    dear = resolved(host, replace(edit, filter=replace(edit.filter, mu=9.0)))[0]
    within = resolved(host, replace(edit, filter=replace(edit.filter, budget=0.01)))[0]
    weak = resolved(host, replace(edit, weights=replace(edit.weights, strength=0.5)))[0]
    assert not passes
    assert all(weak.deltas[path] is delta for path, delta in first.deltas.items())
    name = host.architecture.writers[0].name
    assert not torch.equal(dear.deltas[name].a, first.deltas[name].a)
    assert not torch.equal(within.deltas[name].a, first.deltas[name].a)
    filter_moments._recent.clear()  # as after a restart
    filtering._recent.clear()
    again = resolved(host, edit)[0]
    assert not passes
    for path, delta in first.deltas.items():
        assert torch.allclose(again.deltas[path].a, delta.a, rtol=1e-3, atol=1e-4)


def test_the_forecast_is_what_the_first_writers_do(prompts):
    """In the first layer nothing earlier is edited, so that prediction and fact are the same."""
    host = tiny_host("llama")
    weights = WeightTable(
        **FLAT, modules={"attention": 1.0, "mlp": 0.0}, overrides={"attention": {1: 0.0, 2: 0.0}}
    )
    edit = ablation(prompts, weights=weights, mu=0.4, answers=0)
    directions = finish(measure(host, edit.directions))
    told = finish(filters(host, edit, directions)).forecast(edit)
    (row,) = resolved(host, edit)
    name, vector = host.architecture.writer(0, "attention").name, directions.vectors[0, 0].double()
    delta = row.deltas[name]
    x, y = samples(host, [name], [host.encode(t) for t in HARMFUL], True)[name]
    s, z = samples(host, [name], [host.encode(t) for t in HARMLESS], False)[name]
    change, moved = (inputs @ delta.a.double().T @ delta.b.double().T @ vector for inputs in (x, s))
    gone = 1 - float((y @ vector + change).square().sum() / (y @ vector).square().sum())
    w = weights_of(host, 0)
    share = float((w * moved.square()).sum() / (w * (z @ vector).square()).sum())
    assert told.removed[0] == pytest.approx(gone, abs=5e-3)  # the ridge's part counts as left
    assert told.removed[0] <= gone + 1e-6
    assert told.moved[0] == pytest.approx(share, rel=1e-3)
    assert told.total_moved == pytest.approx(share, rel=1e-3)
    assert np.isnan(told.removed[1:]).all()
    assert told.mu == 0.4


def test_a_budget_keeps_the_predicted_energy_below_it(prompts):
    host = tiny_host("llama")
    for budget in (0.2, 0.003):
        edit = ablation(prompts, budget=budget)
        directions = finish(measure(host, edit.directions))
        told = finish(filters(host, edit, directions)).forecast(edit)
        assert 0.98 * budget < told.total_moved <= budget
        (row,) = resolved(host, edit)
        same_price = ablation(prompts, mu=told.mu)
        (other,) = resolved(host, same_price)
        name = host.architecture.writers[0].name
        assert torch.equal(row.deltas[name].a, other.deltas[name].a)


def test_lookalikes_are_measured_and_left_alone(prompts):
    host = tiny_host("llama", intermediate_size=96, head_dim=32)
    plain, kept = ablation(prompts, mu=1e6), None
    kept = replace(plain, filter=replace(plain.filter, lookalikes=prompts["alike"]))
    rows = [resolved(host, edit) for edit in (plain, kept)]
    assert rows[1][0].sources == (prompts["harmful"], prompts["harmless"], prompts["alike"])
    moved = []
    for row in rows:
        tokens = [torch.tensor([host.encode(text)]) for text in ALIKE]
        parts = [logits(host.model, t, host.live, row) - logits(host.model, t) for t in tokens]
        moved.append(sum(float(part.norm()) for part in parts))
    assert moved[1] < 0.2 * moved[0]


def test_behind_other_deltas_the_filter_is_solved_on_the_changed_model(prompts):
    host, edit = tiny_host("llama"), ablation(prompts, mu=0.5)
    directions = finish(measure(host, edit.directions))
    deltas = {
        w.name: Delta(torch.randn(w.written, 2) * 0.3, torch.randn(2, w.width))
        for w in host.architecture.writers
    }
    merged = copy.deepcopy(host.model)
    for name, delta in deltas.items():
        merged.get_submodule(name).weight.data.add_(delta.dense())
    other = type(host)(host.spec, merged, host.tokenizer, digest="merged")
    expected = finish(filters(other, edit, directions)).edit_row(edit)
    before = (RowDelta(deltas),)
    found = finish(filters(host, edit, directions, before, "these deltas")).edit_row(edit)
    for name, delta in expected.deltas.items():
        assert torch.allclose(found.deltas[name].a, delta.a, rtol=1e-2, atol=1e-4)
    both = logits(host.model, ids(), host.live, (*before, found))
    assert same(both, logits(merged, ids(), other.live, (expected,)), 1e-3)


def test_a_filter_behind_a_plain_ablation_is_refused_and_in_front_of_it_is_fine(prompts):
    host, edit = tiny_host("llama"), ablation(prompts)
    plain = replace(edit, operation="ablate")
    with pytest.raises(UserError, match="put the filter first"):
        resolved(host, plain, edit)
    found = resolved(host, edit, plain)
    assert [type(one) for one in found] == [RowFilter, RowEdit]
    assert host.live.check(found).matched == 2 * 2 * LAYERS


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("format", "null"), [("adapter", None), ("adapter", 0.3), ("model", None)])
def test_what_is_exported_computes_what_was_live(
    name, format, null, prompts, stored_host, tmp_path
):
    from transformers import AutoModelForCausalLM

    host = stored_host(name)
    edit = ablation(prompts, k=2, strength=-0.7, affine=True, mu=0.5, null_space=null)
    recipe = Recipe(model=host.spec, edits=(edit,))
    done = finish(export(host, recipe, tmp_path / "out", format))
    row = finish(resolve(host, recipe))
    if format == "adapter":
        base = AutoModelForCausalLM.from_pretrained(host.spec.id).eval()
        model = PeftModel.from_pretrained(base, done.folder).eval()
        assert "rank 2" in done.notes[0]
        assert "Exact" in done.notes[1]
    else:
        model = AutoModelForCausalLM.from_pretrained(done.folder).eval()
    assert same(logits(model, ids()), logits(host.model, ids(), host.live, row), 1e-4)
    card = (done.folder / "README.md").read_text()
    assert "μ 0.5" in card
    assert ("in the null space of 0.3 of the harmless energy" in card) == (null is not None)


def test_a_kl_budget_takes_the_smallest_price_that_keeps_it(prompts):
    host, edit = tiny_host("llama"), ablation(prompts, k=2, strength=1.0)

    def cost(row):
        asked = Evaluation(metrics=(f"kl_16@{prompts['harmless']}",), samples=64)
        return finish(evaluate(host, row, asked))[0].edited.value

    def at(**settings):
        return replace(edit, filter=replace(edit.filter, **settings))

    free, dear = (cost(resolved(host, at(mu=mu))) for mu in (0.01, 100.0))
    assert dear < free
    budget = (free * dear) ** 0.5
    within = resolved(host, at(kl=budget))
    assert cost(within) <= budget
    cheaper = at(mu=within[0].mu / 1.1)
    assert cost(resolved(host, cheaper)) > budget
    # once one is measured, another is predicted without the model
    measured_at = finish(filters(host, edit, finish(measure(host, edit.directions))))
    assert measured_at.forecast(at(kl=budget)).mu == pytest.approx(within[0].mu, rel=0.1)
    assert measured_at.forecast(at(kl=budget / 4)).mu > within[0].mu
    loose = resolved(host, at(kl=10.0))
    assert loose[0].mu == min(PRICES)  # the least that is tried
    with pytest.raises(UserError, match=r"costs .* nats a token .* more than filter.kl, 1e-12"):
        resolved(host, at(kl=1e-12))


def test_random_directions_are_a_control_of_the_filter_too(prompts):
    host, edit = tiny_host("llama"), ablation(prompts)
    (row,) = finish(resolve(host, control(Recipe(edits=(edit,)))))
    assert isinstance(row, RowFilter)
    assert row.directions.control


def test_metrics_on_a_set_that_the_filter_saw_are_said_not_to_be_held_out(prompts):
    host = tiny_host("llama")
    edit = ablation(prompts, lookalikes=prompts["alike"])
    row = resolved(host, edit)
    wanted = Evaluation(metrics=(f"kl_1@{prompts['alike']}",), samples=3, max_new_tokens=2)
    (result,) = finish(evaluate(host, row, wanted))
    assert "not held out" in result.note


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm_preserving": True}, "norm_preserving goes with a plain ablation"),
        ({"filter": {"mu": -1}}, "filter.mu"),
        ({"filter": {"budget": 2}}, "filter.budget"),
        ({"filter": {"kl": 0}}, "filter.kl"),
        ({"filter": {"kl": 0.1, "budget": 0.1}}, "filter.budget and filter.kl both"),
        ({"filter": {"ridge": 0}}, "filter.ridge"),
        ({"filter": {"lookalike_weight": -1}}, "filter.lookalike_weight"),
        ({"filter": {"null_space": 0}}, "filter.null_space"),
        ({"filter": {"null_space": 1.5}}, "filter.null_space"),
        ({"filter": {"mew": 1}}, "mew"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_sentence(settings, words):
    from sst_ui.recipe import from_data

    with pytest.raises(UserError, match=words):
        from_data({"version": 1, "edits": [{"operation": "filter", **settings}]})
