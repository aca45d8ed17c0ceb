"""Will it fit? Parameters and memory of a model, from its configuration alone.

Knows configurations and devices. Fetches and allocates no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from sst_ui.errors import UserError
from sst_ui.model.devices import SEVERAL, free_memory, roomiest_gpu
from sst_ui.model.source import Source, open_source
from sst_ui.recipe import ModelSpec

CHAT = 2048  # tokens of the conversation that the overhead is stated for
PER_WEIGHT = {"4bit": 0.56, "8bit": 1.02}  # bytes, with the constants of their blocks


@dataclass(frozen=True)
class Report:
    """What loading would take.

    Attributes:
        parameters: tied ones counted once.
        bytes: of the weights, in the type and quantisation they would be loaded in.
        overhead: of a two-column chat of 2,048 tokens beside them (key-value cache and logits).
        architecture: class name, e.g. `LlamaForCausalLM`.
        dtype: name of the type, e.g. `bfloat16`.
        device: where it would go; `cuda:*` where several share it.
        free: bytes free there.
        messages: what to say about it; the last one says why, where it does not fit.
    """

    parameters: int
    bytes: int
    overhead: int
    architecture: str
    dtype: str
    device: str
    free: int
    messages: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether weights and overhead fit into what is free."""
        return self.bytes + self.overhead <= self.free

    def summary(self) -> str:
        """One line for the screen."""
        return (
            f"{self.architecture}, {count(self.parameters)} parameters, {self.dtype}: "
            f"{size(self.bytes)} + {size(self.overhead)} for a chat; "
            f"{size(self.free)} free on {self.device}"
        )


def inspect(spec: ModelSpec, source: Source | None = None) -> Report:
    """Parameters and expected memory, before anything large is fetched.

    Raises:
        UserError: no such model or device, or an architecture that is no causal language model.
    """
    source = source or open_source(spec)
    device, free = free_memory(spec.device)
    config = read_config(spec, source)
    dtype = dtype_for(spec, config, device)
    model = _skeleton(spec, config, source.name)
    parameters = sum(p.numel() for p in model.parameters())
    messages = []
    if stored := getattr(config, "quantization_config", None):
        if spec.quantization != "none":
            raise UserError(f"{source.name} is quantised already; set model.quantization to none.")
        weights = sum(source.files.get(name, 0) for name in source.weights())
        weights = weights or parameters
        method = stored.get("quant_method") if isinstance(stored, Mapping) else stored.quant_method
        messages.append(f"the checkpoint is quantised ({getattr(method, 'value', method)}).")
    else:
        weights = _weight_bytes(spec, model, dtype.itemsize)
    report = Report(
        parameters=parameters,
        bytes=int(weights),
        overhead=_overhead(config, dtype.itemsize),
        architecture=type(model).__name__,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        free=free,
        messages=tuple(messages),
    )
    if device == SEVERAL and spec.device == "auto":
        one, room = roomiest_gpu()  # to spread a model that fits one device would only slow it down
        if replace(report, free=room).fits:
            return replace(report, device=one, free=room)
    if report.fits:
        return report
    smaller = "a smaller model"
    if spec.quantization == "none" and dtype.itemsize == 4:
        smaller = "model.dtype bfloat16 (half of it) or a smaller model"
    elif spec.quantization == "none":
        smaller = "model.quantization 4bit or a smaller model"
    kind = report.dtype if spec.quantization == "none" else spec.quantization
    message = (
        f"{source.name} does not fit: {count(parameters)} parameters in {kind} need "
        f"{size(report.bytes)}, a chat about {size(report.overhead)} more, and {size(free)} are "
        f"free on {device}. Try {smaller}."
    )
    return replace(report, messages=(*messages, message))


def read_config(spec: ModelSpec, source: Source) -> PreTrainedConfig:
    """The model's configuration, without running its code unless that is switched on."""
    raw = source.read("config.json")
    if "auto_map" in raw and not spec.trust_remote_code:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if raw.get("model_type") not in CONFIG_MAPPING_NAMES:
            raise UserError(
                f"{source.name} brings its own code, which is not run unless "
                "model.trust_remote_code is switched on. Read it first."
            )
    try:
        return AutoConfig.from_pretrained(
            source.folder or spec.id,
            revision=source.commit if source.folder is None else None,
            trust_remote_code=spec.trust_remote_code,
        )
    except (ValueError, KeyError, TypeError, OSError, ImportError) as error:
        kind = raw.get("model_type")
        what = f"model type {kind!r}" if kind else "no model_type in its config.json"
        raise UserError(
            f"{source.name} cannot be read ({what}): {' '.join(str(error).split())[:200]}"
        ) from error


def dtype_for(spec: ModelSpec, config: PreTrainedConfig, device: str) -> torch.dtype:
    """The type to load in; `auto` is float32 on a CPU and for the demo, else the checkpoint's."""
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    if device == "cpu" or spec.id == "demo":
        return torch.float32
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(stored, str):
        stored = getattr(torch, stored, None)
    return stored or torch.bfloat16


def _skeleton(spec: ModelSpec, config: PreTrainedConfig, name: str):
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=spec.trust_remote_code
            )
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(
            f"{name} ({config.model_type}) is not a causal language model that transformers can "
            f"build: {' '.join(str(error).split())[:200]}"
        ) from error


def _weight_bytes(spec: ModelSpec, model, itemsize: int) -> float:
    total = sum(p.numel() for p in model.parameters())
    if spec.quantization == "none":
        return total * itemsize
    # bitsandbytes quantises linear layers; embeddings and the output head keep their type
    head = model.get_output_embeddings()
    linear = sum(
        m.weight.numel()
        for m in model.modules()
        if isinstance(m, torch.nn.Linear) and m is not head
    )
    return linear * PER_WEIGHT[spec.quantization] + (total - linear) * itemsize


def _overhead(config: PreTrainedConfig, itemsize: int) -> int:
    """Key-value cache and logits of a two-column chat."""
    text = config.get_text_config()
    tokens = min(CHAT, getattr(text, "max_position_embeddings", None) or CHAT)
    kept = 0  # numbers a token leaves in all layers; their shapes may differ (Gemma 4)
    layers = [text] * getattr(text, "num_hidden_layers", 0)
    for layer in getattr(text, "per_layer_config", layers):
        heads = getattr(layer, "num_attention_heads", 1) or 1
        kv = getattr(layer, "num_key_value_heads", None) or heads
        width = getattr(layer, "head_dim", None) or getattr(layer, "hidden_size", 0) // heads
        kept += 2 * kv * width
    return 2 * kept * tokens * itemsize + 2 * 4 * getattr(text, "vocab_size", 0)


def size(n: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def count(n: float) -> str:
    """A number of parameters for people."""
    return f"{n / 1e9:.3g} B" if n >= 1e9 else f"{n / 1e6:.3g} M"
