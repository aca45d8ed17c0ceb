"""The metadata of a GGUF file for Llama-like families: settings, and the order of rows.

Tokenizers are in `gguf_vocabulary.py`. What the keys cannot express is refused, never left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sst_ui.errors import UserError


@dataclass(frozen=True)
class Family:
    """How llama.cpp keeps a family.

    Attributes:
        arch: its name there.
        biases: whether llama.cpp loads biases that the configuration may add.
        paired: whether rotary pairs are neighbours there, so that rows of q and k change places.
    """

    arch: str
    paired: bool
    biases: bool = True


FAMILIES = {
    "llama": Family("llama", True),
    "mistral": Family("llama", True),
    "qwen2": Family("qwen2", False),
    "qwen3": Family("qwen3", False, biases=False),
}


def describe(config: Any, family: Family) -> dict[str, Any]:
    """GGUFWriter's `add_…` -> value.

    Raises:
        UserError: a setting that the written keys would not say.
    """
    config = config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = _rope(config)
    odd = [
        f"{name} {value!r}"
        for name, value, usual in (
            ("hidden_act", config.hidden_act, "silu"),
            ("rope_type", rope.get("rope_type", "default"), ("default", "llama3")),
            ("attention_bias", _biased(config) and not family.biases, False),
            ("partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, 1.0),
        )
        if value != usual and not (isinstance(usual, tuple) and value in usual)
    ]
    if odd:
        raise UserError(
            f"this model has {', '.join(odd)}, which is not written here; export format model and "
            "convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    return {
        "vocab_size": config.vocab_size,
        "context_length": window(config) or config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": heads,
        "head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "key_length": width,
        "value_length": width,
        "rope_dimension_count": width,
        "rope_freq_base": float(rope.get("rope_theta") or 10000.0),
        "layer_norm_rms_eps": config.rms_norm_eps,
    }


def frequencies(config: Any) -> dict[str, Tensor]:
    """The tensor that holds Llama 3's stretching of the rotary frequencies; nothing for others."""
    config = config.get_text_config()
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return {}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    base = float(rope.get("rope_theta") or 10000.0)
    factors = []
    for i in range(0, width, 2):
        turns = old / (2 * math.pi * base ** (i / width))  # of this pair, over the old context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": torch.tensor(factors, dtype=torch.float32)}


def turned(name: str, value: Tensor, config: Any, family: Family) -> Tensor:
    """Rows of q and k in llama.cpp's order: it rotates neighbours, transformers rotates halves."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    kinds = {"q_proj": heads, "k_proj": getattr(config, "num_key_value_heads", None) or heads}
    count = kinds.get(name.split(".")[-2])
    if not family.paired or count is None:
        return value
    halves = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape).contiguous()


def _rope(config: Any) -> Mapping[str, Any]:
    old = getattr(config, "rope_scaling", None) or {}
    new = getattr(config, "rope_parameters", None) or {}
    return {"rope_theta": getattr(config, "rope_theta", None), **old, **new}


def _biased(config: Any) -> bool:
    return bool(getattr(config, "attention_bias", False))


def window(config: Any) -> int | None:
    """The sliding window, where it is in use and shorter than the context."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    return None if window >= config.max_position_embeddings else window
