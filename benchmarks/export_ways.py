"""Four ways from a model's folder to an edited one, and a random model of a real shape.

Each way reads `source`, writes `out` and waits until all of it is on the disk; the edit is the
default ablation along random directions, which costs what a measured one does.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks.methods import edit
from sst_ui.maths import directions, kernel
from sst_ui.model.architecture.discover import discover
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.weights.staged_folder import staged, sync
from sst_ui.model.weights.stored_tensors import write_header
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.paths import DEMO
from sst_ui.progress import finish
from sst_ui.recipe import KINDS, ModelSpec, WeightTable

SHAPES = {  # of Qwen2.5
    "0.5b": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "3b": {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
}
SHARD = 4_000_000_000  # bytes; models on the Hub are cut at about this size


def copy_files(source: Path, out: Path) -> None:
    """`cp`: nothing is changed. The limit."""
    shutil.copytree(source, out)  # inside the kernel, as coreutils do
    sync(out)


def stream(source: Path, out: Path) -> None:
    """The studio's: from the files, without a model."""
    layers, hidden = _size(source)
    row = (RowEdit(directions.random(layers, hidden), _alpha(layers)),)
    with staged(out) as folder:
        finish(write_model(ModelSpec(id=str(source)), row, None, folder))


def load_edit_save(source: Path, out: Path) -> None:
    """Plain transformers: load, write the edit into the weights, save."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto").requires_grad_(False)
    edit(discover(model), directions.random(*_size(source)), WeightTable())
    _save(model, source, out)


def peft_merge(source: Path, out: Path) -> None:
    """PEFT: the same edit as an adapter of rank 1, merged and saved."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter_of(source)).merge_and_unload()
    _save(merged, source, out)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "cp": copy_files,
    "stream": stream,
    "peft": peft_merge,
    "transformers": load_edit_save,
}


def random_model(folder: Path, shape: str) -> int:
    """Write a random bfloat16 Qwen2 in shards, one tensor at a time; returns its bytes."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO, local_files_only=True)
    config = Qwen2Config(
        **SHAPES[shape],
        vocab_size=151_936,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
        architectures=["Qwen2ForCausalLM"],
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Qwen2ForCausalLM(config).named_parameters()}
    shards: list[dict[str, torch.Size]] = [{}]
    for name, size in shapes.items():
        if sum(s.numel() for s in shards[-1].values()) * 2 + size.numel() * 2 > SHARD:
            shards.append({})
        shards[-1][name] = size
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = ["model.safetensors"] if len(shards) == 1 else files
    noise = torch.Generator().manual_seed(0)
    for file, shard in zip(files, shards, strict=True):
        _random_shard(folder / file, shard, noise)
    total = sum(size.numel() * 2 for size in shapes.values())
    if len(shards) > 1:
        places = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return total


def _random_shard(path: Path, shapes: dict[str, torch.Size], noise: torch.Generator) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in shapes.items():
        end = at + size.numel() * 2
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    with path.open("wb") as file:
        file.write(write_header(entries))
        for size in shapes.values():
            values = torch.empty(size, dtype=torch.bfloat16)
            if len(size) == 1:
                values.fill_(1.0)
            else:
                values.normal_(0, 0.02, generator=noise)
            file.write(memoryview(values.view(torch.uint8).view(-1).numpy()))


def make_adapter(source: Path) -> None:
    """The edit as a PEFT adapter beside the model: B = −α r̂ [out, 1], A = r̂ᵀ W [1, in]."""
    layers, hidden = _size(source)
    vectors, alpha = directions.random(layers, hidden).vectors[:, 0], _alpha(layers)
    places = _places(source)
    tensors = {}
    for layer in range(layers):
        for kind, module in enumerate(("self_attn.o_proj", "mlp.down_proj")):
            if alpha[layer, kind]:
                name = f"model.layers.{layer}.{module}"
                with safe_open(places[f"{name}.weight"], "pt") as file:
                    weight = file.get_tensor(f"{name}.weight").float()
                r = vectors[layer]
                start = f"base_model.model.{name}"
                tensors[f"{start}.lora_A.weight"] = (r @ weight)[None].contiguous()
                tensors[f"{start}.lora_B.weight"] = (-float(alpha[layer, kind]) * r)[:, None]
    names = sorted(n.removeprefix("base_model.model.").split(".lora_")[0] for n in tensors)
    folder = adapter_of(source)
    folder.mkdir(exist_ok=True)
    config = LoraConfig(r=1, lora_alpha=1, target_modules=[*dict.fromkeys(names)], bias="none")
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", str(source)
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors")


def adapter_of(source: Path) -> Path:
    return source.with_name(f"{source.name}-adapter")


def _places(source: Path) -> dict[str, Path]:
    found = {}
    for path in source.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _save(model: nn.Module, source: Path, out: Path) -> None:
    model.save_pretrained(out, max_shard_size=SHARD)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    sync(out)


def _size(source: Path) -> tuple[int, int]:
    config = json.loads((source / "config.json").read_text())
    return config["num_hidden_layers"], config["hidden_size"]


def _alpha(layers: int):
    """[L, kinds] of the default profile at strength 1."""
    alpha = kernel.table(WeightTable(), layers)
    assert alpha.shape == (layers, len(KINDS))
    return alpha
