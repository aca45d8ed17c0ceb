"""Which rows of a fused matrix are q, k and v, or gate and up, by family.

A layout that stands in no table here is not guessed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sst_ui.recipe import FUSED

Rows = dict[str, Tensor]  # part -> its row numbers, in order


def rows_of(config: Any, kind: str, out: int) -> Rows | None:
    """The rows of each part of a fused matrix.

    Args:
        config: of the text model.
        kind: `qkv` or `gate_up`.
        out: rows of the matrix, as [out, in].

    Returns:
        part -> row numbers; None where the family's layout is not known or is of another size.
    """
    layout = LAYOUTS[kind].get(config.model_type)
    labels = None if layout is None else layout(config)
    if labels is None or len(labels) != out:
        return None
    return {part: (labels == i).nonzero().flatten() for i, part in enumerate(FUSED[kind])}


def _heads(config: Any) -> tuple[int, int, int]:
    """(query heads, key-value heads, size of a head)."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, size


def _labels(pattern: list[int], size: int, times: int = 1) -> Tensor:
    """Part numbers of all rows: each of the pattern `size` times, the whole of it `times` times."""
    return torch.tensor(pattern).repeat_interleave(size).repeat(times)


def _stacked(config: Any) -> Tensor:
    """All of q, then k, then v."""
    heads, pairs, size = _heads(config)
    return _labels([0] * heads + [1] * pairs + [2] * pairs, size)


def _by_head(config: Any) -> Tensor:
    """q, k and v of the first head, then of the second, ..."""
    heads, _, size = _heads(config)
    return _labels([0, 1, 2], size, heads)


def _falcon(config: Any) -> Tensor:
    heads, _, size = _heads(config)
    if config.new_decoder_architecture:  # groups of queries with their key and value
        pairs = config.num_kv_heads
        return _labels([0] * (heads // pairs) + [1, 2], size, pairs)
    return _labels([0] * heads + [1, 2], size) if config.multi_query else _by_head(config)


def _bigcode(config: Any) -> Tensor:
    heads, _, size = _heads(config)
    return _labels([0] * heads + [1, 2], size) if config.multi_query else _by_head(config)


def _codegen(config: Any) -> Tensor:
    """Four shards of q, v, k, in this order."""
    heads, _, size = _heads(config)
    return _labels([0, 2, 1], heads * size // 4, 4)


def _halves(config: Any) -> Tensor:
    """All of gate, then all of up."""
    return _labels([0, 1], config.intermediate_size)


Layout = Callable[[Any], Tensor]
LAYOUTS: Mapping[str, Mapping[str, Layout]] = {
    "qkv": {
        **dict.fromkeys(("phi3", "gpt2", "mpt"), _stacked),
        **dict.fromkeys(("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon"), _by_head),
        "falcon": _falcon,
        "gpt_bigcode": _bigcode,
        "codegen": _codegen,
    },
    "gate_up": dict.fromkeys(("phi3", "glm", "glm4"), _halves),
}
