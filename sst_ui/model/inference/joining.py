"""Rows that come and go between two steps: a batch with its cache, and which models let them.

Rows that join are put below the others, padded on the left to one width; where one leaves, columns
in front that only it filled are cut off. Whether a model computes the same then is tried once for
each host, on a few random tokens.
"""

import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from sst_ui.model.hooks.row_plan import Plan
from sst_ui.model.inference.batch import Batch, below, forward, left_padded, out_of_memory
from sst_ui.model.inference.kv_cache import cut, fresh_cache, join, joins
from sst_ui.model.inference.prefill import stretched
from sst_ui.model.runtime.host import Host

TOLERANCE = 1e-4  # relative, root mean square; or so many roundings where those are more
ROUNDINGS = 32


class Block:
    """Rows that have read their prompts: the cache holds all tokens but the last of each.

    Attributes:
        batch: all tokens.
        lengths: tokens of each row.
    """

    def __init__(self, batch: Batch, cache: DynamicCache, lengths: Sequence[int]) -> None:
        self.batch, self.lengths = batch, [*lengths]
        self._cache = cache

    def logits(self, host: Host, plan: Plan | None) -> Tensor:
        """[rows, vocabulary] float32 for the next token, by one forward pass."""
        return forward(host, self.batch, plan, 1, self._cache, 1)[:, -1].float()

    def append(self, tokens: Sequence[int]) -> None:
        """One token more for every row."""
        ids, mask = self.batch.ids, self.batch.mask
        fresh = torch.tensor(tokens, device=ids.device)[:, None]  # [rows, 1]
        self.batch = Batch(torch.cat([ids, fresh], 1), torch.cat([mask, torch.ones_like(fresh)], 1))
        self.lengths = [length + 1 for length in self.lengths]

    def keep(self, stay: Sequence[int]) -> None:
        """Drop the other rows, and columns that are padding for all of these."""
        if len(stay) == len(self.lengths):
            return
        ids, mask = self.batch.ids, self.batch.mask
        index = torch.tensor(stay, device=ids.device)
        self.lengths = [self.lengths[i] for i in stay]
        spare = ids.shape[1] - max(self.lengths)
        self._cache.reorder_cache(index)
        if spare:
            cut(self._cache, spare)
        self.batch = Batch(ids[index, spare:], mask[index, spare:])

    def join(self, other: "Block", pad: int) -> None:
        """Take in the rows of another block, below one's own."""
        join(self._cache, other._cache)
        self.batch = below(self.batch, other.batch, pad)
        self.lengths += other.lengths


_known: WeakKeyDictionary[Host, bool] = WeakKeyDictionary()


def able(host: Host) -> bool:
    """Whether rows of this model can join others."""
    if host not in _known:
        problem = _tried(host)
        _known[host] = not problem
        if problem:
            logging.getLogger(__name__).info("%s answers one by one: %s", host.name, problem)
    return _known[host]


def _tried(host: Host) -> str:
    """What is wrong with joining; '' if nothing is."""
    if not joins(fresh_cache(host)):
        return "its cache is not made of keys and values alone"
    if stretched(host):
        return "what a position means depends on the longest row"
    draw = torch.Generator().manual_seed(0)
    size = host.model.config.get_text_config().vocab_size
    long, short = (torch.randint(size, (n,), generator=draw).tolist() for n in (9, 5))
    try:
        plain = [_told(host, text).logits(host, None) for text in (long, short[:-1], short)]
        block = _told(host, long)
        block.join(_told(host, short[:-1]), host.pad)
        both = block.logits(host, None)
        block.append([0, short[-1]])
        block.keep([1])
        alone = block.logits(host, None)
    except Exception as error:  # a family can refuse in any way
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    wanted, found = torch.cat(plain), torch.cat([both, alone])
    off = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
    limit = max(TOLERANCE, ROUNDINGS * torch.finfo(host.model.dtype).eps)
    return "" if off <= limit else f"logits differ by {off:.1e}"


def _told(host: Host, text: Sequence[int]) -> Block:
    """A block of one row that has read two tokens, and was given the others one by one."""
    cache = fresh_cache(host)
    assert cache is not None  # see `joins`
    block = Block(left_padded([text[:2]], host.pad, host.device), cache, [2])
    forward(host, block.batch, None, 1, cache)
    for token in text[2:-1]:
        block.append([token])
        block.logits(host, None)
    block.append(text[-1:])
    return block
