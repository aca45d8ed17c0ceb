"""What writes to the residual stream is found completely, or the model is refused."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, T5Config

from sst_ui.model.architecture.discover import ArchitectureError, discover
from sst_ui.recipe import KINDS
from tests.tiny import ARCHITECTURES, EXPERTS, HIDDEN, LAYERS, VARIANTS, ids, tiny

LLAMA = ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")
MIXTURE = ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp")
WRITERS = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3"), LLAMA),
    "olmo2": LLAMA,
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "gpt_neox": (
        "gpt_neox.layers.{}.attention.dense",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    ),
    "mixtral": MIXTURE,
    "qwen3_moe": MIXTURE,
}
SPLIT = {"q", "k", "v", "o", "gate", "up", "down", "lm_head"}
LINEARS = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "olmo2"), SPLIT),
    "phi3": {"qkv", "o", "gate_up", "down", "lm_head"},
    "gpt2": {"qkv", "o", "up", "down", "lm_head"},
    "gpt_neox": {"qkv", "o", "up", "down", "lm_head"},
    "mixtral": {"q", "k", "v", "o", "lm_head"},
    "qwen3_moe": {"q", "k", "v", "o", "lm_head"},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_layer_has_one_attention_and_one_mlp_writer(name):
    found = discover(tiny(name))
    assert [w.name for w in found.writers] == [
        pattern.format(layer) for layer in range(LAYERS) for pattern in WRITERS[name]
    ]
    assert [w.role for w in found.writers] == list(KINDS) * LAYERS
    assert found.hidden == HIDDEN
    assert found.writer(1, "mlp").name == WRITERS[name][1].format(1)


@pytest.mark.parametrize("name", ARCHITECTURES + VARIANTS)
def test_with_all_writers_silent_the_residual_stream_passes_unchanged(name):
    """So nothing that writes was missed, whatever the tables of names say."""
    model = tiny(name)
    found = discover(model)
    for written in (t for w in found.writers for t in w.tensors):
        model.get_parameter(written.name).zero_()
        if written.bias:
            model.get_parameter(written.bias).zero_()
    states = model(input_ids=ids(), output_hidden_states=True).hidden_states[:-1]  # the last: norm
    assert len(states) == LAYERS
    assert all(torch.equal(state, states[0]) for state in states)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_linear_modules_are_listed_by_kind(name):
    model = tiny(name)
    found = discover(model)
    assert set(found.linears) == LINEARS[name]
    for kind, names in found.linears.items():
        assert len(names) == (1 if kind == "lm_head" else LAYERS)
        assert all(type(model.get_submodule(n)).__name__ in ("Linear", "Conv1D") for n in names)


@pytest.mark.parametrize("name", ARCHITECTURES + VARIANTS)
def test_every_parameter_is_changed_or_named_as_left(name):
    model = tiny(name)
    found = discover(model)
    changed = {n for w in found.writers for t in w.tensors for n in (t.name, t.bias) if n}
    for parameter in dict(model.named_parameters()):
        left = parameter in found.untouched or parameter.rpartition(".")[0] in found.untouched
        assert left != (parameter in changed), parameter


@pytest.mark.parametrize("name", ARCHITECTURES + VARIANTS)
def test_each_written_parameter_says_which_axis_is_the_residual_stream(name):
    model = tiny(name)
    for written in (t for w in discover(model).writers for t in w.tensors):
        assert model.get_parameter(written.name).shape[written.axis] == HIDDEN
    if name == "gpt_oss":  # its experts are stored [experts, in, out], the others' [.., out, in]
        assert discover(model).writer(0, "mlp").tensors[0].axis == 2


def test_a_conv1d_weight_is_given_as_out_by_in():
    model = tiny("gpt2")
    writer = discover(model).writer(0, "mlp")
    assert writer.form == "conv1d"
    assert torch.equal(writer.weight(), model.transformer.h[0].mlp.c_proj.weight.T)
    assert torch.equal(writer.bias(), model.transformer.h[0].mlp.c_proj.bias)


def test_the_weight_is_a_copy():
    model = tiny("llama")
    discover(model).writer(0, "mlp").weight().zero_()
    assert model.model.layers[0].mlp.down_proj.weight.abs().sum() > 0


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_have_no_single_weight(name):
    writer = discover(tiny(name)).writer(0, "mlp")
    assert writer.form == "experts"
    with pytest.raises(ValueError, match="several experts"):
        writer.weight()


def test_a_shared_expert_writes_too():
    names = [t.name for t in discover(tiny("qwen2_moe")).writer(0, "mlp").tensors]
    assert names == [
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.shared_expert.down_proj.weight",
    ]


def test_tied_embeddings_and_norms_after_the_writer_are_pointed_out():
    assert any("tied" in note for note in discover(tiny("llama_tied")).notes)
    assert not discover(tiny("llama")).notes
    for name in ("gemma2", "gemma3", "olmo2"):
        assert any("norm" in note for note in discover(tiny(name)).notes)


def test_a_model_without_attention_is_refused():
    with pytest.raises(
        ArchitectureError, match=r"'mamba'.*attention.*Found: backbone.layers.*mixer"
    ):
        discover(tiny("mamba"))


def test_an_encoder_is_refused():
    with pytest.raises(ArchitectureError, match=r"'bert'.*mlp.*Found: .*attention, intermediate"):
        discover(tiny("bert"))


def test_an_encoder_decoder_is_refused():
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=256, **settings))
    with pytest.raises(ArchitectureError, match="encoder-decoder"):
        discover(model)


def test_a_hybrid_names_the_layers_that_lack_attention():
    with pytest.raises(ArchitectureError, match=r"layers\.0 .*no block for attention.*only mamba"):
        discover(tiny("jamba"))


def test_one_missing_writer_is_an_error_that_names_it():
    model = tiny("llama")
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(ArchitectureError, match=r"layers\.1\.mlp .*no output.*5 of 6"):
        discover(model)


def test_a_writer_of_another_width_is_an_error():
    model = tiny("llama")
    model.model.layers[2].self_attn.o_proj = nn.Linear(32, 16)
    with pytest.raises(ArchitectureError, match=r"layers\.2\.self_attn\.o_proj.*16.*32"):
        discover(model)


@pytest.mark.parametrize("where", ["layer", "mlp"])
def test_a_module_of_unknown_role_is_an_error(where):
    model = tiny("llama")
    layer = model.model.layers[0]
    (layer if where == "layer" else layer.mlp).side_channel = nn.Linear(32, 32)
    with pytest.raises(ArchitectureError, match=r"side_channel .*unknown role"):
        discover(model)


def test_a_module_used_by_two_layers_is_an_error():
    model = tiny("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(ArchitectureError, match="shares one module"):
        discover(model)
