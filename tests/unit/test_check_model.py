"""The check looks at the model, not at modules alone: each layer adds what its modules write."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from sst_ui.errors import UserError
from sst_ui.jobs.export.export import export
from sst_ui.maths import directions
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.discover import discover
from sst_ui.model.hooks.live_edits import LiveEdits, RowEdit
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.hooks.row_plan import stream_of, with_stream
from sst_ui.model.hooks.stream_accounting import watched
from sst_ui.model.inference.generate import generate
from sst_ui.model.inference.kv_cache import fresh_cache
from sst_ui.model.load.memory import _overhead
from sst_ui.model.lora.from_edits import lower
from sst_ui.model.runtime.host import load
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, ModelSpec, Recipe
from tests.talk import byte_tokenizer
from tests.tiny import ARCHITECTURES, HIDDEN, LAYERS, VARIANTS, ids, tiny
from tests.unit.test_live_edits import assert_same, edit, logits

WHOLE = ("bloom", "granite", "hyperclovax", "olmo3", "exaone4", "glm4", "afmoe", "gemma4")


def live_of(model):
    return LiveEdits(discover(model))


def refused(live, words, one=None):
    """An edit is refused wherever it could have been applied."""
    one = one or edit()
    for attempt in (lambda: live.check((one,)), lambda: live.compile([(one,)])):
        with pytest.raises(UserError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES + VARIANTS + WHOLE)
def test_every_layer_of_a_family_that_can_be_edited_adds_up(name, dtype):
    account = live_of(tiny(name).to(dtype)).account
    assert not account.problems
    assert not account.uncalled
    assert account.error < {torch.float32: 1e-5}.get(dtype, 0.01)


@pytest.mark.parametrize("name", WHOLE)
def test_the_component_that_a_layer_adds_is_what_the_edit_says(name):
    """Measured here again, on the stream of the whole model, with all writers edited."""
    model = tiny(name)
    live = live_of(model)
    one = edit(1.0, 2)
    with watched(live.architecture) as layers:
        logits(model, ids(rows=1), live, [(one,)])
    for number, seen in enumerate(layers):
        factor = live.account.factors[number]["stream"]
        added = (seen.out - factor * seen.into) @ one.directions.vectors[number].double().T
        assert added.abs().max() < 1e-4 * seen.out.abs().max()
    assert live.check((one,)).max_error < 1e-4


def test_a_residual_multiplier_is_found():
    factors = live_of(tiny("granite")).account.factors
    for layer in factors:
        assert layer == pytest.approx({"stream": 1, "attention": 0.22, "mlp": 0.22}, abs=1e-5)


def test_a_module_that_the_model_bypasses_is_refused_for_ablations_and_deltas():
    model = tiny("bloom_slow")
    live = live_of(model)
    refused(live, r"bloom .*does not call transformer\.h\.0\.self_attention\.dense")
    path = "transformer.h.1.mlp.dense_4h_to_h"
    delta = RowDelta({path: Delta(torch.ones(HIDDEN, 1), torch.ones(1, 4 * HIDDEN))})
    with pytest.raises(UserError, match=r"does not call .*dense_4h_to_h"):
        live.compile([(delta,)])
    reads = RowDelta(
        {"transformer.h.1.mlp.dense_h_to_4h": Delta(torch.ones(128, 1), torch.ones(1, HIDDEN))}
    )
    live.compile([(reads,)])
    assert live.check((edit(affine=True),)).max_error < 1e-5  # acts behind the layer


def test_a_bias_outside_the_linear_module_is_named_and_its_layer_refused():
    model = tiny("gpt_neox_japanese")
    live = live_of(model)
    refused(live, r"layers\.2 .*attention\.dense_bias is added at every token")
    cells = np.ones((LAYERS, 2))
    cells[2] = 0
    assert live.check((edit(cells),)).max_error < 1e-5  # the other layers add up
    assert live.check((edit(operation="add"),)).max_error < 1e-5


def test_a_norm_inside_a_mixture_behind_its_experts_is_refused():
    live = live_of(tiny("axk1"))
    assert sorted(live.account.problems) == [1, 2]  # layer 0 is dense
    refused(live, r"something in model\.layers\.1\.mlp changes what its experts write")


@pytest.mark.parametrize("name", ["minimax", "openai_gpt"])
def test_layers_that_norm_the_stream_itself_are_refused(name):
    refused(live_of(tiny(name)), r"is not what .* write")


def test_a_norm_under_an_unknown_name_is_named():
    model = tiny("llama")
    block = model.model.layers[1].mlp
    block.unheard_of = nn.RMSNorm(HIDDEN)
    inner = block.forward
    block.forward = lambda x: block.unheard_of(inner(x))
    refused(
        live_of(model),
        r"layers\.1\.mlp\.unheard_of \(RMSNorm\) changes the output of .*layers\.1\.mlp\.down_proj",
    )


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_part_of_an_output_that_goes_round_the_writer_is_noticed(share):
    model = tiny("qwen3")
    block = model.model.layers[2].mlp
    inner = block.forward
    block.forward = lambda x: inner(x) + share * x
    refused(live_of(model), r"layers\.2 adds to the residual stream is not what")


def test_a_writer_whose_output_is_dropped_is_noticed():
    model = tiny("llama")
    block = model.model.layers[0].mlp
    inner = block.forward
    block.forward = lambda x: 0 * inner(x)
    refused(live_of(model), r"layers\.0")


def test_a_norm_that_gets_something_else_than_its_writer_gives_is_noticed():
    model = tiny("gemma2")
    block = model.model.layers[1].mlp
    inner = block.forward
    block.forward = lambda x: inner(x) + 0.1
    refused(
        live_of(model),
        r"layers\.1\.post_feedforward_layernorm does not get what .*down_proj writes",
    )


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_what_comes_back_after_the_edit_is_an_error_that_names_the_layer(name):
    """The modules alone are as they should be; the stream is not."""
    model = tiny(name)
    live = live_of(model)
    one = edit()
    added = 0.3 * one.directions.vectors[1, 0]
    model.model.layers[1].register_forward_hook(
        lambda module, args, output: with_stream(output, stream_of(output) + added), prepend=True
    )
    with pytest.raises(UserError, match=r"layers\.1 adds"):
        live.check((one,))


def test_the_edit_is_checked_on_the_stream_for_every_strength():
    live = live_of(tiny("gemma2"))
    cells = np.array([[1.0, -1.0], [0.0, 2.0], [0.3, 0.0]])
    report = live.check((edit(cells, 3), edit(0.5, norm_preserving=True)))
    assert report.matched == 4 + 2 * LAYERS
    assert report.max_error < 1e-5


def test_the_accounting_is_done_once_and_a_check_costs_two_passes_at_most():
    model = tiny("llama")
    passes = []
    model.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    live = live_of(model)
    assert len(passes) == 1
    live.check((edit(),))
    assert len(passes) <= 3
    live.compile([(edit(0.3),)] * 4)
    assert len(passes) <= 3


def test_an_export_of_what_cannot_be_edited_is_refused_before_anything_is_measured(
    tiny_host, tmp_path
):
    host = tiny_host("bloom_slow")
    recipe = Recipe(ModelSpec(id="tiny-bloom_slow"), edits=(Ablation(),))
    for format in ("model", "adapter"):
        with pytest.raises(UserError, match="does not call"):
            finish(export(host, recipe, tmp_path / format, format))
        assert not (tmp_path / format).exists()


def test_layers_may_return_lists():
    """Remote code does. The list is unpacked behind our hooks, where the model would do it."""
    model, tokens = tiny("llama"), ids()
    expected = logits(model, tokens, live_of(model), [(edit(affine=True),), (edit(),)])
    model = tiny("llama")
    for layer in model.model.layers:
        inner = layer.forward
        layer.forward = lambda *args, inner=inner, **kwargs: [inner(*args, **kwargs), None]
        layer.register_forward_hook(lambda module, args, output: None)
    unpack = [
        lambda module, args, output: output[0] if isinstance(output, list) else None
        for _ in model.model.layers
    ]
    found = discover(model)
    for layer, hook in zip(found.layers, unpack, strict=True):
        layer.register_forward_hook(hook)
        layer._forward_hooks.move_to_end(next(reversed(layer._forward_hooks)))
    live = LiveEdits(found)
    for layer, hook in zip(found.layers, unpack, strict=True):
        layer.register_forward_hook(hook)
    assert_same(logits(model, tokens, live, [(edit(affine=True),), (edit(),)]), expected, 1e-6)


def test_containers_keep_their_kind():
    x, y = torch.zeros(1), torch.ones(1)
    assert with_stream([x, 3], y) == [y, 3]
    assert with_stream((x, 3), y) == (y, 3)
    assert with_stream(x, y) is y
    assert stream_of([x, 3]) is x


def test_layers_of_unlike_head_sizes_load_and_fit(stored_host):
    host = stored_host("gemma4")
    one = RowEdit(directions.random(host.layers, host.hidden), np.ones((host.layers, 2)))
    assert host.live.check((one,)).max_error < 1e-5
    config = host.model.config
    heads = [layer.head_dim for layer in config.per_layer_config]
    assert heads == [8, 8, 16]
    tokens = config.max_position_embeddings
    assert _overhead(config, 4) == 2 * 2 * 2 * sum(heads) * tokens * 4 + 2 * 4 * config.vocab_size
    llama = AutoConfig.for_model("llama", head_dim=64, num_hidden_layers=2, num_key_value_heads=4)
    assert _overhead(llama, 2) == 2 * 2 * (2 * 4 * 64) * 2048 * 2 + 2 * 4 * 32_000
    assert fresh_cache(host) is not None


@pytest.mark.parametrize("name", ["minimax", "openai_gpt", "gemma4", "llama"])
def test_answers_are_those_of_full_passes_whatever_cache_a_family_wants(name, tiny_host):
    host = tiny_host(name)
    assert (fresh_cache(host) is None) == (name in ("minimax", "openai_gpt"))
    prompts = [ids(1, 6, seed)[0].tolist() for seed in (1, 1, 2)]
    rows = [(), (edit(2.0, affine=True),), ()]
    steps = list(generate(host, prompts, rows, 5))
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        given = list(prompt)
        for step in steps:
            if number not in step:
                break
            tail = len(given) - len(prompt) + 1
            wanted = logits(host.model, torch.tensor([given]), host.live, [row], tail)[0, -1]
            assert int(wanted.argmax()) == step[number]
            given.append(step[number])
    assert steps


def test_a_model_that_cannot_be_run_says_so_in_one_line():
    model = tiny("llama")
    model.model.layers[0].forward = lambda *_, **__: 1 / 0
    with pytest.raises(UserError, match=r"llama cannot be run over 6 tokens: ZeroDivisionError"):
        live_of(model)


def test_the_check_runs_on_the_byte_tokenizer_host_too(tiny_host):
    assert tiny_host("llama", tokenizer=byte_tokenizer()).live.account.error < 1e-6


def test_the_two_errors_about_packed_experts_point_at_a_way_that_works(stored_host, tmp_path):
    """gpt-oss as it is published: the experts are packed, and an adapter cannot hold them."""
    host = stored_host("gpt_oss")
    folder = tmp_path / "tiny-gpt_oss"
    file, settings = folder / "model.safetensors", folder / "config.json"
    every = load_file(file)
    config = json.loads(settings.read_text())
    packed = {
        f"{name}_blocks" if name.endswith("experts.down_proj") else name: value.to(torch.uint8)
        if name.endswith("experts.down_proj")
        else value
        for name, value in every.items()
    }
    save_file(packed, file)
    settings.write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    one = (RowEdit(directions.random(host.layers, host.hidden), np.ones((host.layers, 2))),)
    with pytest.raises(UserError, match=r"unpacked copy.*an adapter cannot") as model:
        finish(write_model(host.spec, one, host.architecture, tmp_path / "out"))
    with pytest.raises(UserError, match=r"no format can edit those.*unpacked") as adapter:
        finish(lower(host, one))
    assert "export an adapter" not in str(model.value)
    assert "from that" in str(adapter.value)
    # what both say: an unpacked copy
    save_file(every, file, metadata={"format": "pt"})
    settings.write_text(json.dumps(config))
    done = finish(write_model(host.spec, one, host.architecture, tmp_path / "again"))
    assert any(name.endswith("experts.down_proj") for name in done.changed)
    with pytest.raises(UserError, match=r"format model\)\.$"):
        finish(lower(host, one))


def test_a_module_that_computes_more_than_its_weight_says_is_refused():
    """Live its whole output would be edited, in the files its weight alone."""
    model = tiny("llama")
    module = model.model.layers[0].mlp.down_proj
    inner = module.forward
    module.forward = lambda x: inner(x) + 0.5
    refused(
        live_of(model), r"layers\.0\.mlp\.down_proj \(Linear\) does not compute what its weight"
    )


@pytest.mark.parametrize("where", ["model.layers.1.mlp", "model.layers.1.mlp.experts"])
def test_a_norm_hooked_behind_experts_is_noticed_too(where):
    model = tiny("qwen3_moe")
    norm = nn.RMSNorm(HIDDEN)
    model.get_submodule(where).register_forward_hook(
        lambda module, args, output: with_stream(output, norm(stream_of(output)))
    )
    refused(live_of(model), r"model\.layers\.1\.mlp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_an_edit_of_what_was_removed_before_is_no_error(name, dtype, tmp_path):
    """Then the component along the direction is nothing but rounding, before and after."""
    tiny(name, vocab_size=261).to(dtype).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    read = AutoModelForCausalLM.from_pretrained
    live = live_of(read(tmp_path / "base", dtype=dtype).requires_grad_(False))
    spec, one = ModelSpec(id=str(tmp_path / "base")), edit(1.0, 2)
    finish(write_model(spec, (one,), live.architecture, tmp_path / "out"))
    again = live_of(read(tmp_path / "out", dtype=dtype).requires_grad_(False))
    for alpha in (1.0, -1.0):
        assert again.check((edit(alpha, 2),)).matched == 2 * LAYERS


def test_loading_says_how_many_layers_cannot_be_ablated(tmp_path):
    tiny("gpt_neox_japanese", vocab_size=261).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    said = []
    host = finish(load(ModelSpec(id=str(tmp_path))), said.append)
    warning = f"1 of {LAYERS} layers does not add up to what its modules write; it is not ablated."
    assert warning in host.warnings
    assert warning in [step.warning for step in said]
