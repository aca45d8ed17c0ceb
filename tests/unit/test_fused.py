"""Matrices that hold q, k and v, or gate and up: each part gets its own weight of a merge."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sst_ui.errors import UserError
from sst_ui.jobs.export.mergekit import unspoken
from sst_ui.jobs.merge import merge as lab
from sst_ui.jobs.search import space
from sst_ui.jobs.search.trials import Local
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture import fused_rows
from sst_ui.model.architecture.discover import discover
from sst_ui.model.architecture.module_roles import is_conv1d, shape_of
from sst_ui.model.lora.adapters import write_adapter
from sst_ui.progress import finish
from sst_ui.recipe import Merge, Recipe, flat
from tests.unit.test_merge import dense, live, merged_by_hand

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "phi3": {"num_key_value_heads": 2},
    "gpt2": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 1},
    "bloom": {},
    "gpt_neox": {},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "persimmon": {},
    "falcon grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon one key": {"new_decoder_architecture": False, "multi_query": True},
    "falcon": {"new_decoder_architecture": False, "multi_query": False},
    "gpt_bigcode one key": {"multi_query": True},
    "gpt_bigcode": {"multi_query": False},
    "codegen": {"rotary_dim": 4},
}
HALVES = {"phi3": {}, "glm": {"head_dim": 8}, "glm4": {"head_dim": 8}}


def built(name: str):
    own = FAMILIES.get(name) or HALVES.get(name, {})
    config = AutoConfig.for_model(name.split()[0], **{**COMMON, **own})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_rows_of_q_k_and_v_are_those_that_the_model_uses_as_such(name):
    """The cache holds what the model took for keys and values: a change in a part's rows must show
    there and nowhere else."""
    model = built(name)
    architecture = discover(model)
    (path,) = architecture.linears["qkv"]
    module = architecture.matrices[path]
    rows = fused_rows.rows_of(model.config, "qkv", shape_of(module)[0])
    ids = torch.tensor([[3, 9, 27, 11]])

    def seen():
        cache = model(ids, use_cache=True).past_key_values.layers[0]
        return cache.keys.clone(), cache.values.clone()

    keys, values = seen()
    changes = {"q": (False, False), "k": (True, False), "v": (False, True)}
    assert torch.cat(list(rows.values())).sort().values.equal(torch.arange(shape_of(module)[0]))
    for part, expected in changes.items():
        weight = module.weight.mT if is_conv1d(module) else module.weight
        before = weight.clone()
        weight[rows[part]] += 1.0
        now = seen()
        assert (not torch.equal(now[0], keys), not torch.equal(now[1], values)) == expected
        moved = [(a != b).float().mean() for a, b in zip(now, (keys, values), strict=True)]
        assert all(share > 0.9 for share, moves in zip(moved, expected, strict=True) if moves)
        weight.copy_(before)


@pytest.mark.parametrize("name", HALVES)
def test_the_rows_of_gate_and_up_are_those_that_the_model_uses_as_such(name):
    """The MLP is down(silu(gate) * up): linear in up, not in gate."""
    model = built(name)
    architecture = discover(model)
    (path,) = architecture.linears["gate_up"]
    mlp = model.get_submodule(path.rpartition(".")[0])
    weight = architecture.matrices[path].weight
    rows = fused_rows.rows_of(model.config, "gate_up", len(weight))
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    before = mlp(x)
    weight[rows["up"]] *= 2
    assert torch.allclose(mlp(x), 2 * before, atol=1e-6)
    weight[rows["gate"]] *= 2
    assert not torch.allclose(mlp(x), 4 * before, rtol=0.05)


MODULES = {
    "phi3": ("self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "gpt_neox": ("attention.query_key_value", "mlp.dense_4h_to_h"),
}


def adapters(host, folder, bias=False):
    """Two adapters on every module of `MODULES`, as folders and as deltas."""
    found = []
    for name, rank, seed in (("utility", 2, 0), ("safety", 3, 1)):
        noise = torch.Generator().manual_seed(seed)
        deltas = {}
        for layer in host.architecture.layer_names:
            for module in MODULES[host.architecture.model_type]:
                out, inp = shape_of(host.architecture.matrices[f"{layer}.{module}"])
                b, a = (torch.randn(size, generator=noise) for size in ((out, rank), (rank, inp)))
                shift = torch.randn(out, generator=noise) if bias else None
                deltas[f"{layer}.{module}"] = Delta(0.03 * b, a, shift)
        found.append((str(write_adapter(folder / name, deltas, host)), deltas))
    (utility, u), (safety, s) = found
    return utility, safety, u, s


def by_hand(path: str, out: int, factors: dict[str, float]) -> torch.Tensor:
    """[out, 1] factor of each row, with the layouts written out once more."""
    column = torch.empty(out, 1, dtype=torch.float64)
    if path.endswith("qkv_proj"):  # tiny Phi-3: 4 query heads of 8, 2 keys, 2 values
        column[:32], column[32:48], column[48:] = (factors[part] for part in "qkv")
    elif path.endswith("query_key_value"):  # tiny GPT-NeoX: 8 q, 8 k, 8 v for each of 4 heads
        for head in range(4):
            for i, part in enumerate("qkv"):
                column[24 * head + 8 * i : 24 * head + 8 * (i + 1)] = factors[part]
    elif path.endswith("gate_up_proj"):
        column[:48], column[48:] = factors["gate"], factors["up"]
    else:
        column[:] = factors["down"]
    return column


FACTORS = {"q": 0.0, "k": 0.5, "v": 2.0, "gate": -1.0, "up": 0.25, "down": 1.5}


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
@pytest.mark.parametrize("family", MODULES)
def test_each_part_of_a_fused_matrix_is_merged_by_its_own_factor(
    family, method, tiny_host, tmp_path
):
    host = tiny_host(family)
    utility, safety, u, s = adapters(host, tmp_path)
    weights = replace(flat(), strength=0.5, modules=FACTORS)
    spec = Merge(utility, safety, method=method, weights=weights)
    found, edits = live(host, Recipe(edits=(spec,)))
    changes = {}
    for path, delta in s.items():
        w = 0.5 * by_hand(path, delta.out, FACTORS)
        kept = 1 - w if method == "linear" else 1.0
        changes[path] = kept * dense(u[path]) + w * dense(delta)
        assert torch.allclose(dense(edits[0].deltas[path]), changes[path], atol=1e-5)
        assert edits[0].deltas[path].rank <= 10
    assert torch.allclose(found, merged_by_hand(host, changes), atol=1e-4)


def test_biases_of_adapters_are_merged_by_part_too(tiny_host, tmp_path):
    host = tiny_host("phi3")
    utility, safety, u, s = adapters(host, tmp_path, bias=True)
    spec = Merge(utility, safety, "task_arithmetic", weights=replace(flat(), modules=FACTORS))
    outcome = finish(lab.merge(host, spec))
    for path, delta in outcome.deltas.items():
        w = by_hand(path, delta.out, FACTORS)[:, 0]
        expected = u[path].bias.double() + w * s[path].bias.double()
        assert torch.allclose(delta.bias.double(), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_methods_of_the_whole_matrix_give_each_part_the_rows_under_its_weight(
    method, tiny_host, tmp_path
):
    host = tiny_host("phi3")
    utility, safety, *_ = adapters(host, tmp_path)
    spec = Merge(utility, safety, method, weights=replace(flat(), modules={"v": 0.5}))
    path = "model.layers.1.self_attn.qkv_proj"
    split = finish(lab.merge(host, spec)).deltas[path].dense()
    for rows, weight in ((slice(0, 48), 1.0), (slice(48, 64), 0.5)):
        whole = replace(spec, weights=replace(flat(), strength=weight))
        one = finish(lab.merge(host, whole)).deltas[path].dense()
        assert torch.allclose(split[rows], one[rows], atol=1e-4)


def test_a_fused_matrix_of_one_factor_is_merged_as_a_whole(tiny_host, tmp_path):
    host = tiny_host("phi3")
    utility, safety, *_ = adapters(host, tmp_path)
    tables = [{"q": 0.5, "k": 0.5, "v": 0.5}, {"qkv": 0.5}, {"attention": 0.5}]
    found = []
    for modules in tables:
        spec = Merge(utility, safety, "task_arithmetic", weights=replace(flat(), modules=modules))
        cells = lab.table(host, spec)
        found.append([cells[f"model.layers.0.{name}"] for name in MODULES["phi3"]])
    assert found == [pytest.approx([0.5, 1.0, 1.0])] * 3


def test_layerwise_sst_weighs_fused_matrices_as_attention_and_mlp():
    from sst_ui.maths.merge.registry import ATTENTION, MLP

    assert ATTENTION == ("q", "k", "v", "qkv", "o")
    assert MLP == ("gate", "up", "gate_up", "down")


def test_an_unknown_layout_is_refused_where_the_parts_differ(tiny_host, tmp_path, monkeypatch):
    host = tiny_host("phi3")
    utility, safety, *_ = adapters(host, tmp_path)
    monkeypatch.setitem(fused_rows.LAYOUTS, "qkv", {})
    spec = Merge(utility, safety, "task_arithmetic", weights=replace(flat(), modules={"q": 0.0}))
    with pytest.raises(UserError, match=r"whose row layout is not known for phi3"):
        finish(lab.merge(host, spec))
    whole = replace(spec, weights=replace(flat(), modules={"qkv": 0.5}))
    assert finish(lab.merge(host, whole)).deltas  # one factor needs no layout


def test_a_budget_is_refused_where_the_parts_differ(tiny_host, tmp_path):
    host = tiny_host("phi3")
    utility, safety, *_ = adapters(host, tmp_path)
    spec = Merge(utility, safety, weights=replace(flat(), modules={"q": 0.0}))
    paths = ["model.layers.0.self_attn.qkv_proj"]
    with pytest.raises(UserError, match=r"parts of .* have different weights"):
        lab.table(host, spec, paths)
    assert "fused matrix" in unspoken(host, Recipe(edits=(replace(spec, method="ties"),)))


def test_an_override_of_a_kind_that_the_model_lacks_is_refused(tiny_host, tmp_path):
    host = tiny_host("gpt_neox")
    utility, safety, *_ = adapters(host, tmp_path)
    weights = replace(flat(), overrides={"gate": {0: 0.5}})
    with pytest.raises(UserError, match="'gate' is unknown"):
        finish(lab.merge(host, Merge(utility, safety, "task_arithmetic", weights=weights)))
    weights = replace(flat(), overrides={"k": {0: 0.5}})
    spec = Merge(utility, safety, "task_arithmetic", weights=weights)
    (first, *_) = lab.by_part(host, spec, ["gpt_neox.layers.0.attention.query_key_value"]).values()
    assert [weight for _, weight in first] == pytest.approx([1.0, 0.5, 1.0])


def test_a_search_weighs_a_fused_matrix_as_a_whole(tiny_host):
    measurer = Local(tiny_host("phi3"))
    assert measurer.fused == ("qkv", "gate_up")
    recipe = Recipe(edits=(Merge("a", "b", weights=replace(flat(), modules={"q": 0.3})),))
    rows = space.space(recipe, True, measurer.fused)
    drawn = [name.removeprefix("module_") for name in rows if name.startswith("module_")]
    assert drawn == ["o", "down", "lm_head", "qkv", "gate_up"]
    made = space.candidate(recipe, {"module_qkv": 0.7}, 3).edits[0].weights
    assert made.modules == {"qkv": 0.7}
    whole = Recipe(edits=(Merge("a", "b", weights=replace(flat(), modules={"attention": 0.4})),))
    assert space.values(whole, rows, 3)["module_qkv"] == 0.4
