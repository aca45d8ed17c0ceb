"""What a GGUF file says of a model beside its numbers: settings, vocabulary, special tokens.

Knows llama.cpp's keys for Llama-like families and their tokenizers. Does not know files of weights
or edits. What the keys cannot say is refused, never left out.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sst_ui.errors import UserError


@dataclass(frozen=True)
class Family:
    """How llama.cpp keeps a family.

    Attributes:
        arch: its name there.
        paired: whether rotary pairs are neighbours there, so that rows of q and k change places.
    """

    arch: str
    paired: bool


FAMILIES = {
    "llama": Family("llama", True),
    "mistral": Family("llama", True),
    "qwen2": Family("qwen2", False),
    "qwen3": Family("qwen3", False),
}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_WORDS + _REST: "qwen2", _WORDS + "{1,3}" + _REST: "llama-bpe"}  # llama.cpp's names
NORMAL, CONTROL, USER, UNUSED, BYTE = 1, 3, 4, 5, 6  # kinds of tokens


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
            ("partial_rotary_factor", rope.get("partial_rotary_factor") or 1.0, 1.0),
            ("sliding_window", _window(config), None),
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
        "context_length": config.max_position_embeddings,
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


def vocabulary(writer: Any, folder: Path, size: int, template: str) -> str:
    """Write tokens, merges, special tokens and the chat template.

    Args:
        writer: a GGUFWriter.
        folder: with tokenizer.json.
        size: of the model's vocabulary; ids without a token are filled up.

    Returns:
        What is not certain, as a sentence, or ''.

    Raises:
        UserError: no tokenizer.json, or one that is no BPE.
    """
    import gguf

    try:
        data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"a GGUF file needs tokenizer.json, which cannot be read: {error}"
        ) from error
    model = data["model"]
    if model.get("type") != "BPE":
        raise UserError(
            f"the tokenizer is {model.get('type')}, and only BPE is written here; export format "
            "model and convert it with llama.cpp's convert_hf_to_gguf.py."
        )
    pieces = bool(model.get("byte_fallback"))  # SentencePiece's BPE
    texts = [f"[PAD{i}]" for i in range(size)]
    kinds = [UNUSED] * size
    for text, number in model["vocab"].items():
        texts[number] = text
        byte = pieces and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kinds[number] = BYTE if byte else NORMAL
    for token in data.get("added_tokens", ()):
        texts[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    name, unsure = ("default", "") if pieces else _split(data.get("pre_tokenizer") or {})
    writer.add_tokenizer_pre(name)
    writer.add_token_list(texts)
    if pieces:  # a piece's score is the place of the merge that makes it
        scores = np.full(size, -1e6)
        for place, merge in enumerate(model["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            number = model["vocab"].get(left + right)
            if number is not None:
                scores[number] = max(scores[number], -place)
        writer.add_token_scores(scores.tolist())
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=not pieces, n_vocab=size)
    special.chat_template = template
    special.add_to_gguf(writer, quiet=True)
    return unsure


def _split(pre: Mapping[str, Any]) -> tuple[str, str]:
    """llama.cpp's name for how text is cut before merging, and a doubt about it."""
    parts = pre.get("pretokenizers", [pre])
    for part in parts:
        if part.get("type") == "Split":
            pattern = part["pattern"].get("Regex", "")
            if pattern in SPLITS:
                return SPLITS[pattern], ""
            return "default", (
                "llama.cpp has no name here for how this tokenizer cuts text (written: default); "
                "compare its tokens before you rely on the file."
            )
    spaced = any(part.get("add_prefix_space") for part in parts)
    doubt = "The tokenizer puts a space in front of a text, which llama.cpp does not."
    return "gpt-2", doubt if spaced else ""


def _rope(config: Any) -> Mapping[str, Any]:
    old = getattr(config, "rope_scaling", None) or {}
    new = getattr(config, "rope_parameters", None) or {}
    return {"rope_theta": getattr(config, "rope_theta", None), **old, **new}


def _window(config: Any) -> int | None:
    """The sliding window, where it is in use and shorter than the context."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return None
    return None if window >= config.max_position_embeddings else window
