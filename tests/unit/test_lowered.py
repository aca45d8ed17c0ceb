"""Edits lowered to a LoRA adapter and read by plain PEFT, against copies with edited weights."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from sst_ui.errors import UserError
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.hooks.live_edits import RowDelta
from sst_ui.model.lora.adapters import write_adapter
from sst_ui.model.lora.from_edits import lower
from sst_ui.progress import finish
from tests.tiny import HIDDEN, VOCAB, ids, tiny
from tests.unit.test_live_edits import (
    DENSE,
    LAYERS,
    assert_same,
    centred,
    centred_copy,
    edit,
    edited_copy,
    logits,
    table,
)

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
BIASED = ("llama_bias", "llama_narrow", "gpt2", "gpt_neox", "gpt_neox_serial", "qwen3_wide_bias")


def random_delta(out, inp, rank, seed):
    noise = torch.Generator().manual_seed(seed)
    b, a = torch.randn(out, rank, generator=noise), torch.randn(rank, inp, generator=noise)
    return Delta(0.05 * b, a)


def merged(model, deltas, scale):
    """A copy of the model with dense deltas in its weights."""
    for path, delta in deltas.items():
        module = model.get_submodule(path)
        change = scale * delta.b @ delta.a
        module.weight.add_(change.T if type(module).__name__ == "Conv1D" else change)
    return model


@torch.no_grad()
def by_peft(name, folder, tokens):
    model = PeftModel.from_pretrained(tiny(name), folder).eval()
    return model(input_ids=tokens).logits


@pytest.fixture
def lowered_folder(tiny_host, tmp_path):
    """`lowered_folder(name, edits, rank)`: (host, Lowered, folder of the adapter)."""

    def build(name, edits, rank=None):
        host = tiny_host(name, vocab_size=VOCAB)
        found = finish(lower(host, edits, rank))
        folder = write_adapter(tmp_path / "adapter", found.deltas, host, found.biases)
        return host, found, folder

    return build


@pytest.mark.parametrize("name", DENSE)
def test_an_ablation_is_an_exact_adapter_of_as_many_ranks_as_directions(name, lowered_folder):
    row, tokens = (edit(table(7), k=2),), ids()
    _, found, folder = lowered_folder(name, row)
    assert_same(by_peft(name, folder, tokens), logits(edited_copy(tiny(name), row), tokens))
    assert {delta.rank for delta in found.deltas.values()} == {2}
    assert len(found.deltas) == 2 * LAYERS - 1  # one cell of the table is 0
    assert found.error == 0
    assert not found.errors
    assert bool(found.biases) == (name in BIASED)


@pytest.mark.parametrize("name", DENSE)
def test_an_affine_edit_of_what_is_written_is_an_exact_adapter_with_biases(name, lowered_folder):
    row, tokens = (centred(table(7), k=2), centred(0.4, seed=3)), ids()
    _, found, folder = lowered_folder(name, row)
    assert_same(by_peft(name, folder, tokens), logits(centred_copy(tiny(name), row), tokens))
    assert found.error == 0
    assert len(found.biases) == 2 * LAYERS


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_deltas_and_ablations_in_a_row_are_one_exact_adapter(name, lowered_folder):
    host = tiny(name)
    down = next(p for p, _ in host.named_modules() if p.endswith(("down_proj", "mlp.c_proj")))
    module = host.get_submodule(down)
    shape = (module.nf, module.nx) if name == "gpt2" else module.weight.shape
    reader = "model.layers.1.self_attn.q_proj" if name == "llama" else "transformer.h.1.attn.c_attn"
    deltas = {
        down: random_delta(*shape, 3, 1),
        reader: random_delta(HIDDEN if name == "llama" else 3 * HIDDEN, HIDDEN, 2, 2),
    }
    ablations = (edit(0.8, k=1, seed=3), edit(table(5), k=2, seed=4))
    # the order in the row does not matter: deltas come first
    _, found, folder = lowered_folder(name, (ablations[0], RowDelta(deltas, 0.5), ablations[1]))
    expected = logits(edited_copy(merged(tiny(name), deltas, 0.5), ablations), ids())
    assert_same(by_peft(name, folder, ids()), expected)
    assert found.deltas[down].rank == 3 + 1 + 2
    assert found.deltas[reader].rank == 2


@pytest.mark.parametrize(
    "name", ["llama", "llama_bias", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox"]
)
def test_adding_a_direction_is_a_bias_at_the_last_writer_of_each_layer(name, lowered_folder):
    row = (edit(0.7, operation="add"), edit(0.5, seed=2))
    host, found, folder = lowered_folder(name, row)
    tokens = ids()
    assert_same(by_peft(name, folder, tokens), logits(host.model, tokens, host.live, [row] * 2))
    mlps = {writer.name for writer in host.architecture.writers if writer.role == "mlp"}
    assert mlps <= set(found.biases)
    assert name != "llama" or mlps == set(found.biases)


def test_norm_preservation_needs_a_rank_and_tells_how_much_is_lost(lowered_folder, tiny_host):
    row = (edit(1.0, norm_preserving=True),)
    with pytest.raises(UserError, match=r"norm_preserving.*--rank 64"):
        finish(lower(tiny_host("llama"), row))
    _, found, _folder = lowered_folder("llama", row, rank=6)
    base, copy = tiny("llama"), edited_copy(tiny("llama"), row)
    lost = whole = 0.0
    for path, error in found.errors.items():
        change = (copy.get_submodule(path).weight - base.get_submodule(path).weight).double()
        sigma = torch.linalg.svdvals(change)
        assert error == pytest.approx(float(sigma[6:].norm() / sigma.norm()), rel=1e-3)
        written = found.deltas[path].dense().double()
        assert error == pytest.approx(float((change - written).norm() / change.norm()), rel=1e-3)
        lost += float(sigma[6:].square().sum())
        whole += float(sigma.square().sum())
    assert len(found.errors) == 2 * LAYERS
    assert found.error == pytest.approx(np.sqrt(lost / whole), rel=1e-3)
    assert 0.01 < found.error < 0.9


def test_with_all_ranks_norm_preservation_is_exact(lowered_folder):
    row = (edit(table(8), k=2, norm_preserving=True), edit(0.5, seed=5))
    _, found, folder = lowered_folder("llama_bias", row, rank=HIDDEN)
    expected = logits(edited_copy(tiny("llama_bias"), row), ids())
    assert_same(by_peft("llama_bias", folder, ids()), expected)
    assert found.error < 1e-6


def test_a_rank_below_the_exact_one_is_the_best_of_that_rank(tiny_host):
    row = (edit(1.0, k=3),)
    found = finish(lower(tiny_host("llama", vocab_size=VOCAB), row, rank=2))
    path = "model.layers.0.mlp.down_proj"
    base, copy = tiny("llama"), edited_copy(tiny("llama"), row)
    sigma = torch.linalg.svdvals(
        (copy.get_submodule(path).weight - base.get_submodule(path).weight).double()
    )
    assert found.deltas[path].rank == 2
    assert found.errors[path] == pytest.approx(float(sigma[2] / sigma.norm()), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("llama", (edit(affine=True),), "one token of a conversation.*affine_at 'everywhere'"),
        ("mixtral", (edit(),), "mixtures of experts.*format model"),
        ("gemma2", (edit(operation="add"),), "is not that"),
    ],
)
def test_what_no_adapter_can_hold_is_refused_with_the_reason(name, row, words, tiny_host):
    with pytest.raises(UserError, match=words):
        finish(lower(tiny_host(name), row))
