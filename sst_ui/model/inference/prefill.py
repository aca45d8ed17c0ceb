"""The first forward pass over a batch of prompts, with what its rows share computed once.

Rows with the same tokens share the layers below their edits (see `model.hooks.layer_sharing`), and
prompts that begin alike share the beginning: it is read once for each distinct row of edits.
Whether a model lets itself be called like that is tried on random tokens before it is first done;
where it does not, all rows go the plain way through all layers.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sst_ui.maths import directions
from sst_ui.model.hooks.layer_sharing import Fork, first_layer, fork
from sst_ui.model.hooks.row_plan import Plan, RowEdit
from sst_ui.model.inference.batch import Batch, Row, forward, left_padded, out_of_memory
from sst_ui.model.inference.kv_cache import fresh_cache
from sst_ui.model.runtime.host import Host

PREFIX = 8  # tokens; a shorter beginning is not worth a forward pass
SAVED = 32  # tokens over all rows; nor is one that saves no more, with few rows or edits all unlike
TOLERANCE = 1e-4  # relative, root mean square; or eight roundings where those are more

Texts = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Prefill:
    """A first forward pass, ready to run: `forward(host, batch, plan, keep, cache, new)`.

    Attributes:
        batch, plan, new, cache: what to call `forward` with.
        whole, each: batch and plan of all rows in the caller's order, for the steps after it.
        fork: how the rows share layers; None where they do not.
    """

    batch: Batch
    plan: Plan
    new: int | None
    cache: DynamicCache | None
    whole: Batch
    each: Plan
    fork: Fork | None

    def finish(self, logits: Tensor) -> Tensor:
        """Put the pass's logits [rows, ...], and its cache, into the caller's order."""
        if self.fork is None:
            return logits
        if self.cache is not None:
            for number, layer in enumerate(self.cache.layers):
                rows = self.fork.holders(number)
                layer.reorder_cache(torch.tensor(rows, device=logits.device))
        return logits[self.fork.places]


def start(
    host: Host,
    texts: Texts,
    rows: Sequence[Row],
    tails: Sequence[int] | None = None,
    cache: DynamicCache | None = None,
    plain: bool = False,
    plan: Plan | None = None,
) -> Prefill:
    """Prepare the first forward pass. A shared beginning is computed here, in a turn of its own.

    Args:
        texts: token lists.
        rows: the edits of each.
        tails: last positions of each that logits are wanted for, one by default. The first of them
            is where its prompt ends.
        plain: these are texts and no conversations: no prompt ends in them.
        cache: empty, for the steps that follow; without one a shared beginning gets its own.
        plan: the rows' edits compiled, if they are already.
    """
    tails = tails or [1] * len(texts)
    firsts = _firsts(host, rows)
    keys = [tuple(text) for text in texts]
    shared = fork(keys, firsts, host.layers)
    length = _beginning(keys, tails, rows)
    if (shared or length) and not ability(host).forks:
        shared = None
    if length and not ability(host).prefixes:
        length = 0
    ends = [0] * len(texts) if plain else tails
    return _prepared(host, texts, rows, shared, length, cache, ends, plan)


def arranged(host: Host, texts: Texts, rows: Sequence[Row]) -> list[int]:
    """The order to take them in, as indices: the longest first, rows of one text side by side, and
    of these the ones that share most first, so that a cut between two turns costs least."""
    place: dict[tuple, int] = {}
    where = [place.setdefault(tuple(text), number) for number, text in enumerate(texts)]
    firsts = _firsts(host, rows)
    return sorted(range(len(texts)), key=lambda i: (-len(texts[i]), where[i], -firsts[i]))


def fitting(
    host: Host, texts: Texts, rows: Sequence[Row], tails: Sequence[int], tokens: int
) -> int:
    """How many of these, from the first on, are no more work than so many tokens of one row.

    What they share counts once: layers under the edits, and a beginning that all texts have. The
    language-model head counts for the positions that it is asked for.

    Args:
        texts: the longest one first.
    """
    longest = max(1, len(texts[0]))
    keys, firsts = [tuple(text) for text in texts], _firsts(host, rows)
    length = _beginning(keys, tails, rows)
    if not (length or fork(keys, firsts, host.layers)):
        return max(1, tokens // longest)
    able = ability(host)
    length = length if able.prefixes else 0
    head = min(0.5, host.model.get_output_embeddings().weight.numel() / max(1, host.parameters))
    done: dict[tuple, int] = {}  # of each text, and of each row's beginning

    def layers(key: tuple, first: int) -> int:
        """Layers that one more row costs: all above its first edit, and all of a trunk."""
        if not able.forks or key not in done:
            done[key] = first
            return host.layers
        later, done[key] = max(0, first - done[key]), max(first, done[key])
        return host.layers - first + later

    work, begun = 0.0, set()
    for number, (key, row, first) in enumerate(zip(keys, rows, firsts, strict=True)):
        columns = (longest - length) * layers(key, first)
        if length and row not in begun:
            begun.add(row)
            columns += length * layers(("beginning",), first)
        work += (1 - head) * columns / host.layers + head * tails[number]
        if work > tokens:
            return max(1, number)
    return len(texts)


@dataclass(frozen=True)
class Ability:
    """What a model lets us share, and why not more."""

    forks: bool
    prefixes: bool
    note: str = ""


_known: WeakKeyDictionary[Host, Ability] = WeakKeyDictionary()


def ability(host: Host) -> Ability:
    """What this model computes the same in a shared pass as row by row. Tried once for each host,
    on a few random tokens; a chat beside it waits no longer than for other short prompts."""
    if host not in _known:
        _known[host] = _tried(host)
        if _known[host].note:
            logging.getLogger(__name__).info("%s: %s", host.name, _known[host].note)
    return _known[host]


def _tried(host: Host) -> Ability:
    random = directions.random(host.layers, host.hidden)
    rows: list[Row] = [()]
    for first in (host.layers // 2, host.layers - 1):  # strong, so that a mixed-up row is seen
        alpha = torch.zeros(host.layers, 2).double().numpy()
        alpha[first:] = -4.0
        rows.append((RowEdit(random, alpha),))
    draw = torch.Generator().manual_seed(0)

    def tokens(number: int) -> list[int]:
        return torch.randint(
            host.model.config.get_text_config().vocab_size, (number,), generator=draw
        ).tolist()

    def differs(texts: Texts, length: int) -> str:
        """What is wrong with sharing; '' if nothing is."""
        asked, edits = [text for text in texts for _ in rows], rows * len(texts)
        ends = [1] * len(asked)
        shared = fork([tuple(text) for text in asked], _firsts(host, edits), host.layers)
        try:
            one = _prepared(host, asked, edits, None, 0, fresh_cache(host), ends)
            plain = _steps(host, one)
            other = _prepared(host, asked, edits, shared, length, fresh_cache(host), ends)
            tried = _steps(host, other)
        except Exception as error:
            if out_of_memory(error):
                raise
            return f"{type(error).__name__}: {error}"
        off = (tried - plain).square().mean().sqrt() / plain.square().mean().sqrt()
        limit = max(TOLERANCE, 8 * torch.finfo(host.model.dtype).eps)
        return "" if bool(off <= limit) else f"logits differ by {float(off):.1e}"

    # two prompts of unlike length; then two of two tokens, so that no other size can pass for rows
    problem = differs([tokens(5), tokens(4)], 0) or differs([tokens(2), tokens(2)], 0)
    if problem:
        return Ability(False, False, f"rows do not share layers: {problem}")
    if not _full_attention(host):
        return Ability(True, False, "a beginning is not shared: not every layer sees all of it")
    begin = tokens(3)
    problem = differs([begin + tokens(3), begin + tokens(1)], 3)
    return Ability(True, not problem, problem and f"a beginning is not shared: {problem}")


def _steps(host: Host, prefill: Prefill) -> Tensor:
    """[rows, 2, vocabulary] float32 logits of a prefill and of one token after it."""
    first = prefill.finish(
        forward(host, prefill.batch, prefill.plan, 1, prefill.cache, prefill.new)
    )
    column = torch.ones_like(prefill.whole.ids[:, :1])
    after = Batch(*(torch.cat([x, column], 1) for x in (prefill.whole.ids, prefill.whole.mask)))
    new = None if prefill.cache is None else 1
    second = forward(host, after, prefill.each, 1, prefill.cache, new)
    return torch.cat([first, second], 1).float()


def _prepared(
    host: Host,
    texts: Texts,
    rows: Sequence[Row],
    shared: Fork | None,
    length: int,
    cache: DynamicCache | None,
    ends: Sequence[int],
    plan: Plan | None = None,
) -> Prefill:
    """The pass with these sharings; `length` is that of the beginning, 0 for none, and `ends` are
    the plan's `tails`."""
    compiled = host.live.compile(rows) if plan is None else plan
    each = compiled.ending([0] * len(rows))  # the steps after it read answers
    first = each.ending(ends)
    whole = left_padded([text[length:] for text in texts], host.pad, host.device)
    new = None
    if length:
        new = whole.ids.shape[1]
        cache = fresh_cache(host) if cache is None else cache
        begin = torch.tensor(texts[0][:length], device=host.device).expand(len(texts), -1)
        whole = Batch(
            torch.cat([begin, whole.ids], 1), torch.cat([torch.ones_like(begin), whole.mask], 1)
        )
        _begin(host, list(texts[0][:length]), rows, shared, cache, each)
    if shared is None:
        return Prefill(whole, first, new, cache, whole, each, None)
    trunks = list(shared.order[: shared.trunks])
    batch = Batch(whole.ids[trunks], whole.mask[trunks])
    return Prefill(batch, first.forked(shared), new, cache, whole, each, shared)


def _begin(
    host: Host,
    begin: list[int],
    rows: Sequence[Row],
    shared: Fork | None,
    cache: DynamicCache,
    each: Plan,
) -> None:
    """Fill the cache with the beginning, for the rows that each layer will see."""
    edits = list(dict.fromkeys(rows))
    number = {row: n for n, row in enumerate(edits)}
    same = fork([()] * len(edits), _firsts(host, edits), host.layers) if shared else None
    plan = each.select([rows.index(row) for row in edits])
    prefill = _prepared(host, [begin] * len(edits), edits, same, 0, cache, [0] * len(edits), plan)
    prefill.finish(forward(host, prefill.batch, prefill.plan, 1, cache))
    order = range(len(rows)) if shared is None else shared.order
    index = torch.tensor([number[rows[row]] for row in order], device=host.device)
    for layer, kept in enumerate(cache.layers):
        kept.reorder_cache(index if shared is None else index[: shared.sizes[layer]])


def _beginning(keys: Sequence[tuple[int, ...]], tails: Sequence[int], rows: Sequence[Row]) -> int:
    """Tokens that all of several texts begin with, what is wanted left out; 0 for too few."""
    distinct = set(keys)
    if len(distinct) < 2:
        return 0
    one, other = min(distinct), max(distinct)  # all others lie between them
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    same = min(same, *(len(key) - max(1, tail) for key, tail in zip(keys, tails, strict=True)))
    return same if same >= PREFIX and same * (len(rows) - len(set(rows))) >= SAVED else 0


def _firsts(host: Host, rows: Sequence[Row]) -> list[int]:
    known = {row: first_layer(host.architecture, row) for row in dict.fromkeys(rows)}
    return [known[row] for row in rows]


def _full_attention(host: Host) -> bool:
    """Whether every layer's cache holds all tokens, and positions mean the same in a short pass."""
    cache = fresh_cache(host)
    layers = [] if cache is None else cache.layers
    whole = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return whole and not stretched(host)


def stretched(host: Host) -> bool:
    """Whether what a position means depends on the longest row of a pass."""
    config = host.model.config.get_text_config(decoder=True)
    rope = str(getattr(config, "rope_parameters", ""))
    return any(word in rope for word in ("dynamic", "longrope"))
