"""Adapters with biases (lora_bias): read, applied live, exported and merged, against PEFT."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sst_ui.errors import UserError
from sst_ui.jobs.export.mergekit import spoken
from sst_ui.jobs.merge.merge import merge, table
from sst_ui.model.hooks.live_edits import RowDelta
from sst_ui.model.lora.adapters import read_adapter, write_adapter
from sst_ui.model.lora.from_edits import lower
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.progress import finish
from sst_ui.recipe import Merge, WeightTable
from tests.tiny import ids, tiny
from tests.unit.test_adapters import WEIGHTS, assert_same, here, peft_logits, saved_by_peft
from tests.unit.test_live_edits import edit
from tests.unit.test_live_edits import table as alphas

__all__ = ["here"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "llama_bias": ["q_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
}


def biased(folder, name, **settings):
    settings = {"target_modules": TARGETS[name], "lora_bias": True, **settings}
    return saved_by_peft(folder, name, **settings)


@torch.no_grad()
def live(host, row, tokens):
    with host.live.applied(host.live.compile([row] * len(tokens))):
        return host.model(input_ids=tokens.to(host.device)).logits.cpu()


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_an_adapter_with_biases_computes_here_as_in_peft(name, settings, here, tmp_path):
    host, tokens = here(name), ids()
    adapter = read_adapter(str(biased(tmp_path / "a", name, **settings)), host)
    assert all(bool(delta.bias.any()) for delta in adapter.deltas.values())
    row = (RowDelta(adapter.deltas),)
    assert_same(live(host, row, tokens), peft_logits(name, tmp_path / "a", tokens))
    assert host.live.check(row).max_error < 1e-5
    again = write_adapter(tmp_path / "b", adapter.deltas, host)
    assert_same(peft_logits(name, again, tokens), peft_logits(name, tmp_path / "a", tokens))


def test_rows_of_one_batch_have_their_own_share_of_a_bias(here, tmp_path):
    host, tokens = here("llama_bias"), ids(1)
    deltas = read_adapter(str(biased(tmp_path / "a", "llama_bias")), host).deltas
    rows = [(), (RowDelta(deltas, 0.5),), (RowDelta(deltas),)]
    plan = host.live.compile(rows).select([2, 0, 1, 2])
    with torch.no_grad(), host.live.applied(plan):
        together = host.model(input_ids=tokens.expand(4, -1)).logits
    for line, row in zip(together, (rows[2], rows[0], rows[1], rows[2]), strict=True):
        assert_same(line[None], live(host, row, tokens))


@pytest.mark.parametrize("name", ["llama_bias", "gpt2"])
def test_with_an_ablation_it_leaves_as_an_adapter_and_as_a_model(name, stored_host, tmp_path):
    host, tokens = stored_host(name, vocab_size=261), ids()
    deltas = read_adapter(str(_of_host(tmp_path / "a", host, TARGETS[name])), host).deltas
    row = (RowDelta(deltas, 0.7), edit(alphas(7), k=2))
    expected = live(host, row, tokens)
    found = finish(lower(host, row))
    folder = write_adapter(tmp_path / "b", found.deltas, host, found.biases)
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(host.spec.id)
        model = PeftModel.from_pretrained(base, folder).eval()
        assert_same(model(input_ids=tokens).logits, expected)
    again = read_adapter(str(folder), host)
    assert_same(live(host, (RowDelta(again.deltas),), tokens), expected)
    finish(write_model(host.spec, row, host.architecture, tmp_path / "m"))
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        assert_same(written(input_ids=tokens).logits, expected)


def _of_host(folder, host, targets):
    """A random adapter with biases on a model that lies in a folder."""
    base = AutoModelForCausalLM.from_pretrained(host.spec.id)
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=targets, lora_bias=True)
    model = get_peft_model(base, config)
    noise = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=noise))
    model.save_pretrained(folder)
    return folder


def test_files_without_a_place_for_the_bias_are_said(stored_host, tmp_path):
    host = stored_host("llama")
    deltas = read_adapter(str(_of_host(tmp_path / "a", host, ["q_proj"])), host).deltas
    row = (RowDelta(deltas),)
    with pytest.raises(UserError, match=r"bias to .*q_proj, which has none.*format adapter"):
        finish(write_model(host.spec, row, host.architecture, tmp_path / "m"))
    spec = Merge(str(tmp_path / "a"), str(tmp_path / "a"), method="linear")
    with pytest.raises(UserError, match="which has none"):
        spoken(host, spec, tmp_path)


def test_zeros_for_a_bias_are_none(here, tmp_path):
    folder = biased(tmp_path / "a", "llama")
    tensors = load_file(folder / WEIGHTS)
    tensors = {k: v * 0 if k.endswith(".bias") else v for k, v in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    deltas = read_adapter(str(folder), here()).deltas
    assert all(delta.bias is None for delta in deltas.values())


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_sums_of_adapters_sum_their_biases_as_peft_does(method, here, tmp_path):
    name, tokens = "llama_bias", ids()
    host = here(name)
    one = biased(tmp_path / "u", name)
    other = biased(tmp_path / "s", name, target_modules=["q_proj", "v_proj"], r=2)
    spec = Merge(str(one), str(other), method=method, weights=WeightTable(peak=0.6, width=0.4))
    weights = table(host, spec)
    outcome = finish(merge(host, spec))
    model = PeftModel.from_pretrained(tiny(name), one, adapter_name="u").eval()
    model.load_adapter(other, "s")
    model.base_model.set_adapter(["u", "s"])
    for path, module in model.base_model.model.named_modules():
        scales = getattr(module, "scaling", None)  # attention has a number of that name
        for side, scale in scales.items() if isinstance(scales, dict) else ():
            w = weights[path]
            share = w if side == "s" else 1 - w if method == "linear" else 1
            module.scaling[side] = scale * share
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
    assert_same(live(host, (outcome.live,), tokens), expected)
    folder = write_adapter(tmp_path / "merged", outcome.deltas, host)
    assert_same(peft_logits(name, folder, tokens), expected)


@pytest.mark.parametrize("method", ["sst", "ties"])
def test_methods_of_weights_alone_refuse_biases_before_any_statistics(method, here, tmp_path):
    folder = str(biased(tmp_path / "a", "llama_bias"))
    spec = Merge(folder, folder, method=method)
    with pytest.raises(UserError, match=f"adds biases.*{method} merges weights only.*linear"):
        finish(merge(here("llama_bias"), spec))
