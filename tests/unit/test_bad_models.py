"""Models and adapters that are wrong: one line that says so, or a warning that a person sees."""

import json
import math
import os
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sst_ui.__main__ import main
from sst_ui.cli import with_bar
from sst_ui.errors import UserError
from sst_ui.jobs.merge.merge import prepare
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.lora.adapters import read_adapter, write_adapter
from sst_ui.model.runtime.host import load
from sst_ui.paths import DEMO
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Merge, ModelSpec, Recipe
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.job_runner import Told, watched
from tests.talk import SPECIAL, VOCAB, answers, byte_tokenizer, tiny_host
from tests.tiny import tiny as build

WEIGHTS = "model.safetensors"
HEADER = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model folder as `save_pretrained` writes it. Not to be changed: use `folder`."""
    path = tmp_path_factory.mktemp("saved") / "small"
    build("llama", vocab_size=VOCAB).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "small")


def opened(folder, steps=None, **settings):
    spec = ModelSpec(id=str(folder), **{"device": "cpu", **settings})
    return finish(load(spec), (lambda _: None) if steps is None else steps.append)


def refusal(folder, **settings) -> str:
    with pytest.raises(UserError) as caught:
        opened(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write(folder, tensors) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# Settings


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"head_dim": 0},
        {"num_hidden_layers": "twelve"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 4},
        {"hidden_size": -32},
        {"hidden_size": 10**12},
        {"vocab_size": 10**30},
        {"vocab_size": 10**7},
        {"rms_norm_eps": math.nan},
        {"rms_norm_eps": math.inf},
        {"rms_norm_eps": -5.0},
        {"hidden_act": "nope"},
        {"rope_parameters": {"rope_type": "nope"}},
        {"rope_parameters": [1]},
        {"model_type": [1]},
        {"quantization_config": "x"},
        {"quantization_config": {"quant_method": "nope"}},
        {"eos_token_id": "x"},
        {"text_config": [1]},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_settings_that_make_no_model_are_refused(folder, change):
    edit_json(folder / "config.json", **change)
    refusal(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", ""),
        ("config.json", "NaN"),
        ("config.json", "[" * 99999),
        ("config.json", '{"a":' + "9" * 5000 + "}"),
        ("generation_config.json", "{"),
        ("generation_config.json", "[]"),
        ("tokenizer_config.json", "[]"),
    ],
    ids=range(7),
)
def test_a_file_that_is_no_json_object_is_named(folder, name, text):
    (folder / name).write_text(text)
    assert refusal(folder).startswith(f"{name} of small")


@pytest.mark.parametrize("eos", ["x", [3, "x"], 2.5, {}])
def test_an_end_of_text_that_is_no_token_is_refused(folder, eos):
    edit_json(folder / "generation_config.json", eos_token_id=eos)
    refusal(folder)


# Weights


def shown(header, body: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        shown(b"[]"),
        shown(b"[" * 99999),
        shown({}),
        shown({"a": None}),
        shown({"a": {}}),
        shown(HEADER, bytes(15)),
        shown(HEADER, bytes(17)),
        shown({"a": {**HEADER["a"], "dtype": "F99"}}),
        shown({"a": {**HEADER["a"], "shape": [5]}}),
        shown({"a": {**HEADER["a"], "shape": [-2, -2]}}),
        shown({"a": {**HEADER["a"], "shape": [2**62, 2**62]}}),
        shown({"a": {**HEADER["a"], "shape": "4"}}),
        shown({"a": {**HEADER["a"], "data_offsets": [0, 10**18]}}),
        shown({"a": {**HEADER["a"], "data_offsets": ["x"]}}),
        shown({**HEADER, "b": HEADER["a"]}),
        shown({"__metadata__": 5, **HEADER}),
    ],
)
def test_damaged_weights_are_refused_before_they_are_loaded(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    message = refusal(folder)
    assert message.startswith("model.safetensors is ")
    assert "damaged" in message or "cut off" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "."])
def test_files_without_permission_are_named(folder, name):
    (folder / name).chmod(0)
    try:
        refusal(folder)
    finally:
        (folder / name).chmod(0o755)


def test_files_that_cannot_be_read_are_named(folder, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", denied)
    message = refusal(folder)
    assert message.startswith("config.json of small cannot be read:")
    assert "Permission denied" in message


@pytest.mark.parametrize("model", ["/a\0b", "/" + "x" * 5000, "~nobody-of-this-name/x", "/\ud800"])
def test_a_name_that_no_folder_has_is_bad_input(model):
    with pytest.raises(UserError) as caught:
        finish(load(ModelSpec(id=model)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_numbers_are_found(folder, value):
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    write(folder, weights)
    assert "computes numbers that are not finite" in refusal(folder)


def test_packed_weights_without_their_settings_are_not_taken_for_numbers(folder):
    weights = load_file(folder / WEIGHTS)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    write(folder, weights)
    assert f"stores {name} as F8_E4M3, a quantised form" in refusal(folder)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_fp8_weights_are_unpacked_on_a_cpu(folder, dtype):
    weights, exact = load_file(folder / WEIGHTS), {}
    for name in [name for name in weights if "proj" in name]:
        rows, columns = weights[name].shape
        blocks = weights[name].reshape(rows // 16, 16, columns // 16, 16)
        scale = blocks.abs().amax((1, 3)) / 448  # [rows / 16, columns / 16]
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        exact[name] = (packed.float() * scale[:, None, :, None]).reshape(rows, columns)
        weights[name] = packed.reshape(rows, columns)
        weights[f"{name}_scale_inv"] = scale
    write(folder, weights)
    packed = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    edit_json(folder / "config.json", quantization_config=packed, dtype="bfloat16")
    host = opened(folder, dtype=dtype)
    wanted = torch.float32 if dtype == "float32" else torch.bfloat16
    assert {p.dtype for p in host.model.parameters()} == {wanted}
    for name, value in exact.items():
        assert torch.equal(host.model.get_parameter(name), value.to(wanted))
    finish(answers(host, [host.encode("Hello")], None, 2))


# Tokens


def test_a_tokenizer_that_knows_nothing_is_refused(folder):
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"] = {token: i for i, token in enumerate(SPECIAL)}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert "no token for any part of ordinary text" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 5}'])
def test_a_broken_tokenizer_is_named(folder, text):
    (folder / "tokenizer.json").write_text(text)
    assert refusal(folder).startswith("the tokenizer of")


@pytest.mark.parametrize("pad", [-1, VOCAB, 10**6])
def test_a_padding_token_without_an_embedding_is_never_read(folder, pad):
    edit_json(folder / "config.json", pad_token_id=pad)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<a pad of its own>"})
    tokenizer.save_pretrained(folder)
    host = opened(folder)
    assert 0 <= host.pad < VOCAB
    prompts = [host.encode("Hello"), host.encode("Hello, how are you today?")]
    alone = [finish(answers(host, [prompt], None, 4))[0] for prompt in prompts]
    assert finish(answers(host, prompts, None, 4)) == alone


def test_a_template_with_tokens_past_the_embedding_is_refused(folder):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    message = refusal(folder)
    assert f"makes token {VOCAB} ('<|turn|>')" in message
    assert f"has {VOCAB} embeddings" in message


@pytest.mark.parametrize("text", ["a\ud800", "\udfff", "\ude00\ud83d"])
def test_half_a_character_is_named_and_the_next_message_is_read(text):
    host = tiny_host()
    for read in (host.encode, host.tokens):
        with pytest.raises(UserError, match=r"half a character \(U\+D[8-F]"):
            read(text)
    assert host.encode("😀")


# Warnings


def test_tensors_that_the_model_has_no_place_for_are_warned_of(folder, capsys):
    write(folder, load_file(folder / WEIGHTS) | {"model.extra.weight": torch.ones(2)})
    steps = []
    host = opened(folder, steps)
    (warning,) = host.warnings
    assert "1 tensors in the files" in warning
    assert "model.extra.weight" in warning
    assert [step.warning for step in steps if step.warning] == [warning]
    spec = ModelSpec(id=str(folder))
    with_bar(load(spec))
    assert capsys.readouterr().err.count(f"warning: {warning}") == 1


def test_layers_beyond_the_configuration_are_warned_of_on_the_page_too(folder):
    edit_json(folder / "config.json", num_hidden_layers=2)
    loaded = finish(Engine().load(ModelSpec(id=str(folder), device="cpu")))
    (warning,) = loaded.warnings
    assert "config.json says 2 layers, and the files hold more" in warning
    assert "model.layers.2." in warning


def test_a_sound_model_has_no_warnings(saved, host):
    assert opened(saved).warnings == host.warnings == ()


def lora(out, host, base, layers=3):
    deltas = {
        f"model.layers.{i}.self_attn.o_proj": Delta(torch.ones(32, 1), torch.ones(1, 32))
        for i in range(layers)
    }
    write_adapter(out, deltas, host)
    edit_json(out / "adapter_config.json", base_model_name_or_path=base)
    return str(out)


@pytest.mark.parametrize(
    ("base", "warned"),
    [
        ("org/Small", False),
        ("/somewhere/else/small/", False),
        ("C:\\models\\small", False),
        ("~/.cache/hub/models--org--small/snapshots/0123abc", False),
        ("org/other-7b", True),
        ("~/.cache/hub/models--small--other/snapshots/0123abc", True),
    ],
)
def test_an_adapter_of_another_base_is_warned_of_where_it_is_merged(tmp_path, base, warned, capsys):
    host = tiny_host(spec=ModelSpec(id="org/small"))
    one, two = lora(tmp_path / "one", host, base), lora(tmp_path / "two", host, "org/small")
    with_bar(prepare(host, Merge(one, two, method="task_arithmetic")))
    told = capsys.readouterr().err
    warning = f"warning: one says that it was trained on {base}, not on org/small.\n"
    assert told == (warning if warned else "")


def test_an_adapter_of_a_shallower_or_narrower_base_is_an_error(tmp_path):
    host = tiny_host()
    shallow = lora(tmp_path / "two", host, "org/small", layers=2)
    edit_json(tmp_path / "two" / "adapter_config.json", target_modules=["o_proj"])
    with pytest.raises(UserError, match="lacks the factors of 1 modules"):
        read_adapter(shallow, host)
    with pytest.raises(UserError, match="does not belong to"):
        read_adapter(lora(tmp_path / "three", host, "org/small"), tiny_host(head_dim=16))


def test_the_demo_s_adapters_raise_no_warning(host):
    adapters = DEMO / "adapters"
    for name in ("utility", "safety"):
        assert read_adapter(str(adapters / name), host).notes == ()


def test_the_page_is_told_of_a_warning_each_time_an_edit_is_asked_for(tmp_path, saved):
    engine = Engine()
    key = finish(engine.load(ModelSpec(id=str(saved), device="cpu"))).key
    host = engine.host(key)
    one, two = lora(tmp_path / "one", host, "org/x"), lora(tmp_path / "two", host, "small")
    recipe = Recipe(model=host.spec, edits=(Merge(one, two, method="task_arithmetic"),))
    for _ in range(2):  # the second time from memory
        told = Told("en", toast=False)
        list(watched("en", engine.resolve(key, recipe), lambda bar: bar, told=told))
        assert len(told.texts) == 1
        assert "trained on org/x" in told.texts[0]


def test_an_adapter_changed_in_place_is_read_again_by_the_page(tmp_path, saved):
    engine = Engine()
    key = finish(engine.load(ModelSpec(id=str(saved), device="cpu"))).key
    host = engine.host(key)
    one, two = lora(tmp_path / "one", host, "small"), lora(tmp_path / "two", host, "small")
    recipe = Recipe(model=host.spec, edits=(Merge(one, two, method="task_arithmetic"),))

    def edited():
        (edit,) = finish(engine.resolve(key, recipe))
        return next(iter(edit.deltas.values())).dense().sum().item()

    assert edited() == pytest.approx(2 * 32 * 32)
    assert engine.knows(key, recipe)
    weights = {
        k: 3 * v for k, v in load_file(tmp_path / "two" / "adapter_model.safetensors").items()
    }
    save_file(weights, tmp_path / "two" / "adapter_model.safetensors", metadata={"format": "pt"})
    assert not engine.knows(key, recipe)
    assert edited() == pytest.approx(10 * 32 * 32)


def test_a_warning_without_a_place_of_its_own_is_a_toast(monkeypatch):
    shown = []
    monkeypatch.setattr("gradio.Warning", lambda text, **_: shown.append(text))

    def job():
        for _ in range(3):
            yield Progress("x", 0, 1, warning="a < b")

    list(watched("en", job(), lambda bar: bar))
    assert shown == ["a &lt; b"]


def test_the_terminal_says_bad_files_in_one_line(folder, tmp_path, capsys):
    edit_json(folder / "config.json", num_hidden_layers="twelve")
    out = str(tmp_path / "d.safetensors")
    assert main(["measure", "--model", str(folder), "--out", out]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
