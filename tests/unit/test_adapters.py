"""Adapters written by PEFT and read here, and the other way round: both must compute the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from sst_ui.errors import UserError
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.hooks.live_edits import RowDelta
from sst_ui.model.load import hub
from sst_ui.model.lora.adapters import read_adapter, write_adapter
from tests.tiny import VOCAB, ids, tiny

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gemma3": ["q_proj", "o_proj", "gate_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "qwen2_moe": ["o_proj", "up_proj"],
    "llama_tied": ["q_proj", "lm_head"],
}


def saved_by_peft(folder: Path, name: str = "llama", **settings) -> Path:
    """A random adapter, saved with PEFT."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS.get(name), **settings}
    model = get_peft_model(tiny(name), LoraConfig(task_type="CAUSAL_LM", **settings))
    noise = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            values = torch.randn(parameter.shape, generator=noise)
            parameter.data.copy_(values * (0.1 if "lora_B" in key else 1))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def here(tiny_host):
    """A host with the weights of `tiny(name)`."""
    return lambda name="llama", **more: tiny_host(name, **{"vocab_size": VOCAB, **more})


def change_config(folder: Path, **settings) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def peft_logits(name: str, folder: Path, tokens):
    model = PeftModel.from_pretrained(tiny(name), folder).eval()
    return model(input_ids=tokens).logits


@torch.no_grad()
def live_logits(host, deltas, tokens):
    with host.live.applied(host.live.compile([(RowDelta(deltas),)] * len(tokens))):
        return host.model(input_ids=tokens).logits


def assert_same(actual, expected, tolerance=1e-5):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", TARGETS)
def test_an_adapter_computes_here_as_in_peft(name, here, tmp_path):
    folder = saved_by_peft(tmp_path / "a", name)
    host, tokens = here(name), ids()
    adapter = read_adapter(str(folder), host)
    actual = live_logits(host, adapter.deltas, tokens)
    assert_same(actual, peft_logits(name, folder, tokens))
    with torch.no_grad():
        base = host.model(input_ids=tokens).logits
    assert (actual - base).abs().max() > 0.01 * base.abs().max()
    assert set(adapter.ranks.values()) == {4}
    assert adapter.name == "a"


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7}},
        {"alpha_pattern": {"v_proj": 20, r"layers\.[12]\.self_attn\.q_proj": 1}},
        {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {"v_proj": 3}, "use_rslora": True},
        {"target_modules": r".*layers\.[02]\..*(up|k)_proj"},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"exclude_modules": ["v_proj"]},
        {"target_modules": ["lm_head"], "init_lora_weights": "gaussian"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_ranks_scales_and_targets_are_read_as_peft_reads_them(settings, here, tmp_path):
    folder = saved_by_peft(tmp_path / "a", **settings)
    host, tokens = here(), ids()
    adapter = read_adapter(str(folder), host)
    assert_same(live_logits(host, adapter.deltas, tokens), peft_logits("llama", folder, tokens))


@pytest.mark.parametrize("name", [*TARGETS, "mixtral"])
def test_what_is_written_computes_in_peft_as_it_does_live(name, here, tmp_path):
    host, tokens = here(name), ids()
    noise = torch.Generator().manual_seed(3)
    deltas = {}
    for i, (path, module) in enumerate(host.architecture.matrices.items()):
        turned = type(module).__name__ == "Conv1D"
        out, width = module.weight.shape[::-1] if turned else module.weight.shape
        rank = i % 4  # 0: no change, and no place in the file
        b = 0.1 * torch.randn(out, rank, generator=noise)
        deltas[path] = Delta(b, torch.randn(rank, width, generator=noise))
    folder = write_adapter(tmp_path / "new" / "merged", deltas, host)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert [path.name for path in folder.parent.iterdir()] == ["merged"]  # nothing half done
    live = live_logits(host, deltas, tokens)
    assert_same(peft_logits(name, folder, tokens), live)
    again = read_adapter(str(folder), host)
    for path, delta in again.deltas.items():
        assert torch.equal(delta.a, deltas[path].a)
        assert torch.equal(delta.b, deltas[path].b)
    assert again.ranks == {path: d.rank for path, d in deltas.items() if d.rank}
    assert again.base == host.spec.id
    assert again.notes == ()


def test_the_same_deltas_give_the_same_file(here, tmp_path):
    host = here()
    deltas = read_adapter(str(saved_by_peft(tmp_path / "a")), host).deltas
    first, second = (write_adapter(tmp_path / name, deltas, host) for name in "bc")
    for name in (CONFIG, WEIGHTS):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one, two = (read_adapter(str(folder), host) for folder in (first, second))
    assert one.digest == two.digest
    change_config(second, lora_alpha=9)
    assert read_adapter(str(second), host).digest != one.digest


def test_what_cannot_be_saved_leaves_nothing(here, tmp_path, monkeypatch):
    host = here()
    path = "model.layers.0.mlp.up_proj"
    good = Delta(torch.ones(48, 1), torch.ones(1, 32))
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for deltas, folder, message in (
        ({path: good}, full, "already exists"),
        ({}, tmp_path / "x", "nothing to save"),
        ({path: Delta(torch.ones(4, 1), torch.ones(1, 32))}, tmp_path / "x", r"\[4, 32\].*48, 32"),
        ({"model.nowhere": good}, tmp_path / "x", r"no linear module 'model\.nowhere'"),
        ({path: Delta(good.b * torch.nan, good.a)}, tmp_path / "x", "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            write_adapter(folder, deltas, host)
    monkeypatch.setattr("sst_ui.model.lora.adapters.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_adapter(tmp_path / "x", {path: good}, host)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_names_with_other_words_in_front_find_their_modules(here, tmp_path):
    folder = saved_by_peft(tmp_path / "a", target_modules=["q_proj", "lm_head"])
    host = here()
    expected = read_adapter(str(folder), host).deltas

    def rename(tensors):
        for key in list(tensors):
            tensors[key.replace(".model.model.", ".model.language_model.model.")] = tensors.pop(key)

    change_weights(folder, rename)
    actual = read_adapter(str(folder), host).deltas
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[path].a, expected[path].a) for path in actual)

    def tower(tensors):
        for key in list(tensors):
            tensors[key.replace("language_model", "vision_tower")] = tensors.pop(key)

    change_weights(folder, tower)
    with pytest.raises(UserError, match=r"not linear modules of the model.*vision_tower"):
        read_adapter(str(folder), host)


def test_embeddings_that_peft_stores_beside_must_be_those_of_the_base(here, tmp_path):
    folder = saved_by_peft(tmp_path / "a", target_modules=["lm_head"])
    key = "base_model.model.lm_head.base_layer.weight"
    assert key in load_file(folder / WEIGHTS)
    assert set(read_adapter(str(folder), here()).deltas) == {"lm_head"}
    change_weights(folder, lambda tensors: tensors[key].mul_(1.5))
    with pytest.raises(UserError, match=r"lm_head\.weight.*retrained or resized"):
        read_adapter(str(folder), here())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "type IA3; only LoRA"),
        ({"use_dora": True}, "sets use_dora: DoRA rescales"),
        ({"bias": "lora_only"}, "sets bias 'lora_only'"),
        ({"lora_bias": True}, r"lacks .*lora_B\.bias.*sets lora_bias true"),
        ({"modules_to_save": ["lm_head"]}, r"sets modules_to_save \(lm_head\): it brings whole"),
        ({"trainable_token_indices": [3]}, "retrained token embeddings"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "other than linear modules' weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised with pissa_niter_4.*base weights"),
        ({"fan_in_fan_out": True}, r"fan_in_fan_out true, but.*\[out, in\]"),
        ({"r": 5}, r"q_proj.*factors \[32, 4\] and \[4, 32\].*rank 5"),
        ({"lora_alpha": "much"}, "must be a number"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"lacks the factors of 3 modules.*k_proj"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_are_not_plain_lora_are_refused_by_name(settings, message, here, tmp_path):
    folder = saved_by_peft(tmp_path / "a", target_modules=["q_proj"])
    read_adapter(str(folder), here())
    change_config(folder, **settings)
    with pytest.raises(UserError, match=message):
        read_adapter(str(folder), here())


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q + "A.weight"), r"lacks model\.layers\.1\.self_attn\.q_proj\.lora_A"),
        (lambda t: (t.pop(Q + "A.weight"), t.pop(Q + "B.weight")), r"incomplete"),
        (lambda t: t[Q + "B.weight"].mul_(torch.nan), r"layers\.1\.self_attn\.q_proj.*NaN"),
        (lambda t: t[Q + "A.weight"][0].fill_(torch.inf), "NaN or infinite"),
        (lambda t: t.update({Q + "C.weight": torch.ones(2)}), r"lora_C\.weight, which is not part"),
        (lambda t: t.update({"surplus.weight": torch.ones(2)}), r"surplus\.weight.*does not have"),
        (lambda t: t.update({Q + "magnitude_vector.weight": torch.ones(2)}), "DoRA"),
        (lambda t: t.update({Q + "A.bias": torch.ones(2)}), "biases"),
        (lambda t: t.update({Q + "B.bias": torch.ones(32)}), "sets lora_bias false"),
        (lambda t: t.update({Q + "A.weight": torch.ones(4, 32).int()}), "int32, not floating"),
        (lambda t: t.clear(), "no LoRA factors"),
    ],
)
def test_every_tensor_of_the_file_is_accounted_for(change, message, here, tmp_path):
    folder = saved_by_peft(tmp_path / "a", target_modules=["q_proj"])
    change_weights(folder, change)
    with pytest.raises(UserError, match=message):
        read_adapter(str(folder), here())


def test_adapters_of_another_base_are_refused(here, tmp_path):
    folder = saved_by_peft(tmp_path / "a")
    with pytest.raises(UserError, match=r"not belong.*q_proj by a matrix \[32, 32\].*\[16, 32\]"):
        read_adapter(str(folder), here("llama_narrow"))
    with pytest.raises(UserError, match=r"9 of its 9 modules are not.*The model has transformer"):
        read_adapter(str(folder), here("gpt2"))
    with pytest.raises(UserError, match=r"1\.mlp\.down_proj.*not linear modules|3 of its 9"):
        read_adapter(str(folder), here(num_hidden_layers=2))


def test_another_name_of_the_base_is_only_noted(here, tmp_path):
    folder = saved_by_peft(tmp_path / "a")
    for base, noted in ((None, False), ("org/tiny-LLAMA", False), ("org/other-7b", True)):
        change_config(folder, base_model_name_or_path=base, new_setting=noted)
        adapter = read_adapter(str(folder), here())
        assert any("trained on org/other-7b" in note for note in adapter.notes) is noted
        assert any("new_setting" in note for note in adapter.notes) is noted


def test_folders_that_hold_no_adapter_say_what_they_are(here, tmp_path):
    folder = saved_by_peft(tmp_path / "a")
    config, weights = (folder / CONFIG).read_text(), (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="no weights"):
        read_adapter(str(folder), here())
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"pickle.*can run any code"):
        read_adapter(str(folder), here())
    (folder / WEIGHTS).write_bytes(weights[:-9])
    with pytest.raises(UserError, match="cut off"):
        read_adapter(str(folder), here())
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CONFIG).write_text(config[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        read_adapter(str(folder), here())
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match=r"not a PEFT adapter: it has no adapter_config\.json"):
        read_adapter(str(folder), here())
    with pytest.raises(UserError, match="a model, not an adapter"):
        read_adapter("demo", here())
    with pytest.raises(UserError, match="does not exist"):
        read_adapter(str(tmp_path / "nowhere"), here())
    with pytest.raises(UserError, match="no adapter given"):
        read_adapter(" ", here())


def test_an_adapter_on_the_hub_is_fetched_in_two_files(here, tmp_path, monkeypatch):
    folder = saved_by_peft(tmp_path / "a")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    fetched = []

    def fetch(repo, name, commit):
        fetched.append((repo, name, commit))
        return str(shutil.copy(folder / name, tmp_path / f"fetched-{name}"))

    monkeypatch.setattr(hub, "list_files", lambda repo, revision: (sizes, f"commit of {revision}"))
    monkeypatch.setattr(hub, "fetch", fetch)
    adapter = read_adapter("org/adapter", here(), "v1")
    assert adapter.name == "org/adapter"
    assert adapter.digest == read_adapter(str(folder), here()).digest
    assert fetched == [("org/adapter", name, "commit of v1") for name in (CONFIG, WEIGHTS)]
