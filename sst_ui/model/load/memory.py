"""Will it fit? Parameters and memory of a model, from its configuration alone.

No weights are fetched or allocated.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sst_ui.errors import UserError
from sst_ui.model.load.devices import SEVERAL, free_memory, roomiest_gpu
from sst_ui.model.load.source import Source, open_source
from sst_ui.recipe import ModelSpec

COUNTED = re.compile(r"layers|experts")
MOST = 1024  # of layers or experts; the largest models have some hundreds
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
        weights: float = sum(source.files.get(name, 0) for name in source.weights())
        weights = weights or parameters
        if becomes_plain(config, device):
            weights = parameters * dtype.itemsize
        messages.append(f"the checkpoint is quantised ({_method(stored)}).")
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
    _sane(raw, source.name)
    if "auto_map" in raw and not spec.trust_remote_code:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if raw.get("model_type") not in CONFIG_MAPPING_NAMES:
            raise UserError(
                f"{source.name} brings its own code, which is not run unless "
                "model.trust_remote_code is switched on. Read it first."
            )
    try:
        config = AutoConfig.from_pretrained(
            source.folder or spec.id,
            revision=source.commit if source.folder is None else None,
            trust_remote_code=spec.trust_remote_code,
        )
        return padded(config)
    except Exception as error:  # a wrong configuration fails in as many ways as there are models
        kind = raw.get("model_type")
        what = f"model type {str(kind)[:80]!r}" if kind else "no model_type in its config.json"
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source.name} cannot be read ({what}): {why}. Check its config.json."
        ) from error


def _sane(raw: Mapping, name: str) -> None:
    """Refuse numbers that no model has, before something is built in their measure."""
    for part in (raw, *(value for value in raw.values() if isinstance(value, Mapping))):
        for key, value in part.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"config.json of {name} sets {key[:80]} to {value}; correct it.")
            number = isinstance(value, int | float) and COUNTED.search(key)
            if number and value > MOST:
                raise UserError(
                    f"config.json of {name} sets {key[:80]} to {value:.3g}; no model has more "
                    f"than {MOST}."
                )
    stored = raw.get("quantization_config")
    if stored is not None and not (isinstance(stored, Mapping) and _supported(stored)):
        raise UserError(
            f"the weights of {name} are quantised ({_method(stored)}) in a way that transformers "
            "does not know; use another version of the model."
        )


def _supported(stored: Mapping) -> bool:
    from transformers.quantizers import AutoHfQuantizer

    return bool(AutoHfQuantizer.supports_quant_method(dict(stored)))


def padded(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration without a padding token that has no embedding: it would not load, and what
    is padded is masked, so that any token will do."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        pad, size = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(pad, int) and isinstance(size, int) and not 0 <= pad < size:
            part.pad_token_id = None
    return config


def becomes_plain(config: PreTrainedConfig, device: str) -> bool:
    """Whether a checkpoint's weights are FP8, which only some GPUs compute with, and this device
    has to have them unpacked."""
    stored = getattr(config, "quantization_config", None)
    if not stored or _method(stored) != "fp8":
        return False
    if not device.startswith("cuda"):
        return True
    number = 0 if device == SEVERAL else int(device.partition(":")[2] or 0)
    return torch.cuda.get_device_capability(number) < (8, 9)


def _method(stored: object) -> str:
    """The name of a way of quantising."""
    if isinstance(stored, Mapping):
        found = stored.get("quant_method")
    else:
        found = getattr(stored, "quant_method", stored)
    return str(getattr(found, "value", found))[:80]


def dtype_for(spec: ModelSpec, config: PreTrainedConfig, device: str) -> torch.dtype:
    """The type to load in; `auto` is float32 on a CPU and for the demo, else the checkpoint's.

    A quantised checkpoint is unpacked to the checkpoint's type on a CPU too: bfloat16.
    """
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    packed = getattr(config, "quantization_config", None)
    if (device == "cpu" and not packed) or spec.id == "demo":
        return torch.float32
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(stored, str):
        stored = getattr(torch, stored, None)
    if isinstance(stored, torch.dtype) and stored.is_floating_point and stored.itemsize > 1:
        return stored
    return torch.bfloat16


def _skeleton(spec: ModelSpec, config: PreTrainedConfig, name: str) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:
        raise UserError(
            f"{name} ({config.model_type}) is not a causal language model that transformers can "
            f"build: {' '.join(str(error).split())[:200]}. Check its config.json."
        ) from error


def _weight_bytes(spec: ModelSpec, model: PreTrainedModel, itemsize: int) -> float:
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
    kept = 0  # numbers that a token leaves in all layers; their shapes may differ (Gemma 4)
    depth = getattr(text, "num_hidden_layers", 0)  # wrong ones are refused with the skeleton
    alike = [text] * depth
    for layer in getattr(text, "per_layer_config", alike) if depth > 0 else alike:
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
