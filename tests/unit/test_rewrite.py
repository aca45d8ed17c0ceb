"""The model written from its files, against copies edited by plain formulas and the live model."""

import copy
import errno
import gc
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.peak import Peak
from sst_ui.errors import UserError
from sst_ui.maths import directions
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.discover import discover
from sst_ui.model.hooks.live_edits import LiveEdits, RowEdit
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from tests.talk import byte_tokenizer
from tests.tiny import EXPERTS, ids, tiny
from tests.unit.test_live_edits import (
    ALL,
    assert_same,
    centred,
    centred_copy,
    edit,
    edited_copy,
    logits,
    table,
)

HALF = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8}  # half a step, and room in float32


def saved(folder, name, dtype=torch.float32, shards="20KB", **overrides):
    """Write a random model as its owner would; returns it, in float32, as its files have it."""
    tiny(name, vocab_size=261, **overrides).to(dtype).save_pretrained(folder, max_shard_size=shards)
    byte_tokenizer().save_pretrained(folder)
    return loaded(folder)


def loaded(folder, dtype=torch.float32):
    """What plain transformers makes of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).requires_grad_(False)


def deltas(model, kinds=None, rank=2, seed=0, scale=0.5):
    """Random deltas of every linear module (or those of some kinds)."""
    noise = torch.Generator().manual_seed(seed)
    found = discover(model)
    chosen = {path for kind in kinds or found.linears for path in found.linears[kind]}
    made = {}
    for path, module in found.matrices.items():
        if path in chosen:
            out, inp = module.weight.shape
            if type(module).__name__ == "Conv1D":
                out, inp = inp, out
            b, a = (0.3 * torch.randn(s, generator=noise) for s in ((out, rank), (rank, inp)))
            made[path] = Delta(b, a)
    return RowDelta(made, scale)


def merged_copy(model, row):
    """The deltas added to the weights in float64; a head that is tied gets its own."""
    model = copy.deepcopy(model)
    for one in row:
        for path, delta in one.deltas.items():
            module = model.get_submodule(path)
            change = one.scale * (delta.b.double() @ delta.a.double())
            if type(module).__name__ == "Conv1D":
                change = change.T
            weight = (module.weight.double() + change).float()
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


def expected_copy(model, row):
    added = [one for one in row if isinstance(one, RowDelta)]
    return edited_copy(merged_copy(model, added), [one for one in row if one not in added])


def written(source, row, out, model=None, **options):
    architecture = discover(model) if model is not None else None
    return finish(write_model(ModelSpec(id=str(source)), row, architecture, out, **options))


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ALL)
def test_the_written_model_is_the_live_model(name, dtype, tmp_path):
    model = saved(tmp_path / "base", name, dtype)
    row = (deltas(model), edit(table(7), 2), edit(0.6, 1, seed=3))
    live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
    written(tmp_path / "base", row, tmp_path / "out", model)

    # plain transformers
    again = loaded(tmp_path / "out")
    error = (logits(again, ids()) - live).abs().max() / live.abs().max()
    assert error < (1e-4 if dtype == torch.float32 else 0.03)
    assert (logits(model, ids()) - live).abs().max() > 0.1 * live.abs().max()

    # plain safetensors: what a copy, edited in float64, is saved as
    expected_copy(model, row).save_pretrained(tmp_path / "expected")
    expected, actual = tensors(tmp_path / "expected"), tensors(tmp_path / "out")
    assert expected.keys() == actual.keys()
    for key, value in actual.items():
        assert value.dtype == dtype
        bound = HALF[dtype] * expected[key].abs() + 1e-6
        assert ((value.float() - expected[key]).abs() <= bound).all(), key


@pytest.mark.parametrize("name", ALL)
def test_column_norms_are_kept_in_every_family_mixtures_included(name, tmp_path):
    model = saved(tmp_path / "base", name)
    row = (edit(table(8), 2, norm_preserving=True), edit(0.5, 1, seed=4))
    written(tmp_path / "base", row, tmp_path / "out", model)
    expected_copy(model, row).save_pretrained(tmp_path / "expected")
    expected, actual = tensors(tmp_path / "expected"), tensors(tmp_path / "out")
    for key, value in actual.items():
        assert torch.allclose(value, expected[key], rtol=1e-4, atol=1e-6), key
    again = loaded(tmp_path / "out")
    if name not in EXPERTS:
        live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
        assert (logits(again, ids()) - live).abs().max() < 1e-4 * live.abs().max()


def test_merge_and_then_ablate_with_norms_kept(tmp_path):
    model = saved(tmp_path / "base", "gpt2")
    row = (edit(1.0, 2, norm_preserving=True), deltas(model), deltas(model, seed=5, scale=-0.3))
    written(tmp_path / "base", row, tmp_path / "out", model)
    again = loaded(tmp_path / "out")
    live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
    assert (logits(again, ids()) - live).abs().max() < 1e-4 * live.abs().max()


@pytest.mark.parametrize("shards", ["20KB", "1GB"])
def test_what_no_edit_changes_is_the_same_byte_for_byte(shards, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    model = saved(base, "qwen2", torch.bfloat16, shards)
    alpha = table(1)
    alpha[:, 0] = 0
    done = written(base, (edit(alpha),), out, model)
    before, after = tensors(base), tensors(out)
    differ = {key for key in before if not torch.equal(before[key], after[key])}
    assert differ == set(done.changed)
    assert all(re.search(r"mlp\.down_proj", key) for key in differ)
    sizes = {key: value.nbytes for key, value in before.items()}
    assert done.copied == sum(sizes.values()) - sum(sizes[key] for key in differ)
    assert done.bytes == sum(file.stat().st_size for file in out.iterdir())
    assert {f.name for f in out.iterdir()} == {f.name for f in base.iterdir()} == set(done.files)
    for file in base.iterdir():
        copied = (out / file.name).read_bytes()
        assert len(copied) == file.stat().st_size
        if file.suffix != ".safetensors":
            assert copied == file.read_bytes(), file.name


def test_no_edit_is_a_copy(tmp_path):
    saved(tmp_path / "base", "llama")
    done = written(tmp_path / "base", (edit(0.0),), tmp_path / "out")
    assert done.changed == ()
    for file in (tmp_path / "base").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("shards", ["20KB", "1GB"])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_a_tied_head_stays_tied_or_is_untied_in_the_configuration(name, shards, tmp_path):
    base = tmp_path / "base"
    model = saved(base, name, torch.bfloat16, shards)
    assert "lm_head.weight" not in tensors(base)

    written(base, (deltas(model, ["up"]), edit()), tmp_path / "tied", model)
    again = loaded(tmp_path / "tied")
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert (tmp_path / "tied/config.json").read_bytes() == (base / "config.json").read_bytes()

    row = (deltas(model, ["lm_head"]), edit())
    done = written(base, row, tmp_path / "untied", model)
    assert done.untied
    again = loaded(tmp_path / "untied")
    assert again.config.tie_word_embeddings is False
    embedding = again.get_input_embeddings().weight
    assert torch.equal(embedding, model.get_input_embeddings().weight)
    change = row[0].deltas["lm_head"].dense() * 0.5
    expected = (embedding.double() + change).bfloat16().float()
    assert torch.equal(again.get_output_embeddings().weight, expected)
    live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
    assert (logits(again, ids()) - live).abs().max() < 0.03 * live.abs().max()
    index = tmp_path / "untied/model.safetensors.index.json"
    assert index.exists() == (shards == "20KB")
    if shards == "20KB":
        listed = json.loads(index.read_text())
        files = tensors(tmp_path / "untied")
        assert listed["weight_map"].keys() == files.keys()
        assert listed["metadata"]["total_size"] == sum(t.nbytes for t in files.values())


def test_a_tied_head_with_numbers_in_the_file_is_untied_too(tmp_path):
    base = tmp_path / "base"
    model = saved(base, "llama_tied", shards="1GB")
    both = load_file(base / "model.safetensors")
    both["lm_head.weight"] = both["model.embed_tokens.weight"].clone()
    save_file(both, base / "model.safetensors", {"format": "pt"})
    row = (deltas(model, ["lm_head"]),)
    written(base, row, tmp_path / "out", model)
    again = loaded(tmp_path / "out")
    live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
    assert (logits(again, ids()) - live).abs().max() < 1e-4 * live.abs().max()


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama_bias"])
def test_an_addition_goes_into_the_bias_of_what_a_layer_writes_last(name, tmp_path):
    model = saved(tmp_path / "base", name)
    row = (edit(0.8, operation="add"), edit(0.5, 2, seed=2), edit(-0.3, seed=3, operation="add"))
    written(tmp_path / "base", row, tmp_path / "out", model)
    again = loaded(tmp_path / "out")
    live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
    assert (logits(again, ids()) - live).abs().max() < 1e-4 * live.abs().max()


def attention_only(alpha=0.8):
    cells = np.zeros((3, 2))
    cells[:, 0] = alpha
    return cells


@pytest.mark.parametrize(
    ("name", "cells", "flags"),
    [
        ("gpt2", 0.8, ()),
        ("gpt_neox", 0.8, ()),
        ("llama_bias", 0.8, ()),
        ("llama", 0.8, ("attention_bias", "mlp_bias")),
        ("llama_tied", 0.8, ("attention_bias", "mlp_bias")),
        ("granite", 0.8, ("attention_bias", "mlp_bias")),
        ("llama", attention_only(), ("attention_bias",)),
        ("qwen3", attention_only(), ("attention_bias",)),
        ("gemma2", attention_only(), ("attention_bias",)),
        ("olmo2", attention_only(), ("attention_bias",)),
    ],
    ids=str,
)
def test_an_affine_edit_is_exact_where_modules_have_a_bias_or_can_be_given_one(
    name, cells, flags, tmp_path
):
    model = saved(tmp_path / "base", name)
    row = (centred(cells, 2), centred(0.5 * np.asarray(cells), seed=3))
    done = written(tmp_path / "base", row, tmp_path / "out", model)
    again = loaded(tmp_path / "out")
    assert_same(logits(again, ids()), logits(centred_copy(model, row), ids()))
    assert_same(logits(again, ids()), logits(model, ids(), LiveEdits(discover(model)), [row] * 2))
    before, after = (dict(m.named_parameters()) for m in (model, again))
    written_to = {f"{writer.name}.bias" for writer in discover(model).writers}
    for key in after.keys() - before.keys():
        assert (after[key].abs().max() > 0) == (key in written_to), key
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert done.flags == flags
    assert all(config[flag] is True for flag in flags)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors(tmp_path / "out").keys()
    sizes = sum(t.numel() * t.element_size() for t in tensors(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == sizes


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("mistral", (centred(),), r"no setting of its config\.json.*format adapter"),
        ("qwen3", (centred(),), "mlp.down_proj.*format adapter"),
        ("mixtral", (centred(),), "mixture of experts"),
        ("llama", (edit(operation="add"),), "has no bias"),
        ("gpt_oss", (edit(operation="add"),), "has no bias"),
        ("gpt2", (edit(affine=True),), "one token of a conversation.*affine_at 'everywhere'"),
        (
            "llama",
            (RowDelta({"model.nowhere": Delta(torch.ones(2, 1), torch.ones(1, 2))}),),
            "no l",
        ),
    ],
)
def test_what_no_weights_can_hold_is_refused_before_anything_is_written(
    name, row, reason, tmp_path
):
    model = saved(tmp_path / "base", name)
    with pytest.raises(UserError, match=reason):
        written(tmp_path / "base", row, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_missing_or_quantised_is_named(tmp_path):
    base = tmp_path / "base"
    model = saved(base, "llama", shards="1GB")
    every = load_file(base / "model.safetensors")
    key = "model.layers.1.mlp.down_proj.weight"
    save_file(every | {key: every[key].to(torch.float8_e4m3fn)}, base / "model.safetensors")
    with pytest.raises(UserError, match=f"{key} is stored as F8_E4M3"):
        written(base, (edit(),), tmp_path / "out", model)
    packed = {k if k != key else f"{k[:-7]}.qweight": v for k, v in every.items()}
    save_file(packed, base / "model.safetensors")
    with pytest.raises(UserError, match=f"{key} is to be changed"):
        written(base, (edit(),), tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_numbers_beyond_the_stored_type_are_an_error(tmp_path):
    model = saved(tmp_path / "base", "llama", torch.float16)
    with pytest.raises(UserError, match="not finite in F16"):
        written(tmp_path / "base", (deltas(model, ["o"], scale=1e6),), tmp_path / "out", model)


def test_a_checkpoint_without_the_prefix_is_understood(tmp_path):
    base = tmp_path / "base"
    model = saved(base, "gpt2", shards="1GB")
    bare = {k.removeprefix("transformer."): v for k, v in tensors(base).items()}
    save_file(bare, base / "model.safetensors", {"format": "pt"})
    row = (deltas(model), edit())
    written(base, row, tmp_path / "out", model)
    again = loaded(tmp_path / "out")
    live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
    assert (logits(again, ids()) - live).abs().max() < 1e-4 * live.abs().max()
    assert {k for k in tensors(tmp_path / "out") if k != "lm_head.weight"} == bare.keys()


def test_stochastic_rounding_is_right_on_average_and_repeatable(tmp_path):
    base = tmp_path / "base"
    model = saved(base, "llama", torch.bfloat16)
    row = (edit(0.003),)  # most changes are smaller than half a step of bfloat16
    key = "model.layers.0.mlp.down_proj.weight"
    exact = expected_copy(model, row).state_dict()[key]
    written(base, row, tmp_path / "nearest", model)
    draws = []
    for seed in range(40):
        written(base, row, tmp_path / f"{seed}", model, rounding="stochastic", seed=seed)
        draws.append(tensors(tmp_path / f"{seed}")[key].float())
    mean = torch.stack(draws).mean(0)
    nearest = tensors(tmp_path / "nearest")[key].float()
    assert (mean - exact).abs().mean() < 0.5 * (nearest - exact).abs().mean()
    step = 2.0**-7 * exact.abs()
    assert all(((draw - exact).abs() <= step).all() for draw in draws)
    written(base, row, tmp_path / "again", model, rounding="stochastic", seed=3)
    assert torch.equal(tensors(tmp_path / "again")[key].float(), draws[3])
    with pytest.raises(UserError, match="did you mean 'nearest'"):
        written(base, row, tmp_path / "x", model, rounding="neares")


def test_the_tokenizer_and_a_template_of_ones_own_go_with_it(tmp_path):
    base = tmp_path / "base"
    saved(base, "llama")
    spec = ModelSpec(id=str(base), chat_template="plain")
    finish(write_model(spec, (edit(),), None, tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    original = AutoTokenizer.from_pretrained(base)
    assert tokenizer("Hello there").input_ids == original("Hello there").input_ids
    assert tokenizer.chat_template != original.chat_template
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("missing", [["copy_file_range"], ["copy_file_range", "sendfile"]])
def test_the_bytes_are_the_same_however_the_system_copies(missing, tmp_path, monkeypatch):
    model = saved(tmp_path / "base", "llama")
    row = (edit(table(2)),)
    written(tmp_path / "base", row, tmp_path / "kernel", model)

    def not_here(*_):
        raise OSError(errno.EXDEV, "between two disks")

    for name in missing:
        monkeypatch.setattr(os, name, not_here)
    monkeypatch.setattr("sst_ui.model.weights.streaming_writer.PIECE", 999)
    written(tmp_path / "base", row, tmp_path / "hand", model)
    for file in (tmp_path / "kernel").iterdir():
        assert (tmp_path / "hand" / file.name).read_bytes() == file.read_bytes()


def test_memory_stays_below_three_times_the_largest_tensor(tmp_path):
    base = tmp_path / "base"
    sizes = {"hidden_size": 256, "intermediate_size": 20_000, "num_hidden_layers": 4}
    saved(base, "llama", torch.bfloat16, "1GB", **sizes)
    gc.collect()
    largest, total = 256 * 20_000 * 2, (base / "model.safetensors").stat().st_size
    random = directions.random(4, 256)
    row = (RowEdit(random, np.ones((4, 2)), norm_preserving=True),)
    written(base, row, tmp_path / "warm")
    shutil.rmtree(tmp_path / "warm")
    peak = Peak(torch.device("cpu"))
    written(base, row, tmp_path / "out")
    constant = 24_000_000
    assert peak.added() < 3 * largest + constant < total / 2


def test_progress_counts_the_bytes(tmp_path):
    saved(tmp_path / "base", "llama")
    spec = ModelSpec(id=str(tmp_path / "base"))
    steps = [*write_model(spec, (edit(),), None, tmp_path / "out")]
    done = [step.done for step in steps if step.stage == "write"]
    assert done == sorted(done)
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert done[-1] == steps[-1].total == size
