"""The cache of keys and values that a model's steps share, for families that take the usual one.

Some families insist on a cache class of their own, some take no cache at all. Whether a model
computes the same with transformers' `DynamicCache` is tried once per host, on a few random tokens;
where it does not, answers are computed without a cache: slower, and the same.
"""

import logging
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from sst_ui.model.inference.batch import Batch, forward, out_of_memory
from sst_ui.model.runtime.host import Host

# Relative deviation of logits, root mean square: far above what half precision or another choice of
# experts makes, far below what comes out when a model does not see the tokens before.
TOLERANCE = 0.25

_known: WeakKeyDictionary[Host, bool] = WeakKeyDictionary()


def fresh_cache(host: Host) -> DynamicCache | None:
    """An empty cache, or None for a model that cannot use one: then every step computes all."""
    if host not in _known:
        problem = _tried(host)
        _known[host] = not problem
        if problem:
            logging.getLogger(__name__).info("%s computes without a cache: %s", host.name, problem)
    return DynamicCache(config=host.model.config) if _known[host] else None


def joins(cache: DynamicCache | None) -> bool:
    """Whether every layer keeps a column for each token, or for the last ones: then rows can be
    put below others, and columns in front cut off."""
    layers = [] if cache is None else cache.layers
    return bool(layers) and all(
        type(x) in (DynamicLayer, DynamicSlidingWindowLayer) for x in layers
    )


def join(first: DynamicCache, second: DynamicCache) -> None:
    """Put the rows of the second cache below those of the first, which is changed.

    What is shorter gets columns in front, which the mask leaves out.
    """
    for one, other in zip(first.layers, second.layers, strict=True):
        if other.keys is None or one.keys is None:
            continue  # a layer that reads another one's
        length = max(one.keys.shape[-2], other.keys.shape[-2])
        one.keys = _below(one.keys, other.keys, length)
        one.values = _below(one.values, other.values, length)
        if isinstance(one, DynamicSlidingWindowLayer):
            one.cumulative_length = max(one.cumulative_length, other.cumulative_length)


def _below(first: Tensor, second: Tensor, length: int) -> Tensor:
    """[rows, heads, columns, width] of both, padded in front to so many columns."""
    wide = [torch.nn.functional.pad(x, (0, 0, length - x.shape[-2], 0)) for x in (first, second)]
    return torch.cat(wide)


def cut(cache: DynamicCache, columns: int) -> None:
    """Take off so many columns in front. No row may have a token in them."""
    for layer in cache.layers:
        if layer.keys is None:
            continue
        kept = layer.keys.shape[-2] - columns
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length -= columns
            kept = min(layer.keys.shape[-2], layer.cumulative_length)
        layer.keys, layer.values = layer.keys[..., -kept:, :], layer.values[..., -kept:, :]


def _tried(host: Host) -> str:
    """What is wrong with the usual cache; '' if nothing is."""
    draw = torch.Generator().manual_seed(0)
    size = host.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(size, (2, 5), generator=draw).to(host.device)
    whole, begin = (Batch(x, torch.ones_like(x)) for x in (ids, ids[:, :4]))
    wanted = forward(host, whole, None, 1)
    try:
        cache = DynamicCache(config=host.model.config)
        forward(host, begin, None, 1, cache)
        cache.reorder_cache(torch.tensor([0, 1], device=host.device))
        found = forward(host, whole, None, 1, cache, 1)
    except Exception as error:  # a family can refuse in any way
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    wanted = wanted.float() - wanted.float().mean(-1, keepdim=True)
    found = found.float() - found.float().mean(-1, keepdim=True)
    off = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
    return "" if off <= TOLERANCE else f"logits differ by {off:.1e}"
