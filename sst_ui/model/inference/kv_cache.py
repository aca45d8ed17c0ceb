"""The cache of keys and values that a model's steps share, for families that take the usual one.

Some families insist on a cache class of their own, some take no cache at all. Whether a model
computes the same with transformers' `DynamicCache` is tried once per host, on a few random tokens;
where it does not, answers are computed without a cache: slower, and the same.
"""

import logging
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache

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
