"""Residuals of every token of a text, and the logit lens: what the model would say after each
layer, if the layers behind it were left out.

The lens is the model's own ending (final norm, language-model head, scaling and capping of logits),
which no list of module names describes for every family. So the model itself is called, and what
its last layer returns is replaced by the residuals. That this gives the model's own logits is tried
on a few random tokens before it is first believed.

Reference: nostalgebraist, "interpreting GPT: the logit lens" (2020).
"""

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.model.hooks.row_plan import stream_of, with_stream
from sst_ui.model.hooks.stream_accounting import tolerance
from sst_ui.model.inference.batch import Batch, Row, arguments, left_padded, tokens_a_step
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

HELD = 256 << 20  # bytes of residuals that are kept at a time
LOGITS = 1 << 25  # numbers of one step's logits
TURNS = 20  # of about a second each, that a lens may take on a small machine

# How the last layer may be answered for: with any number of tokens; the same, but the model then
# takes each for a row; or with as many tokens as it was called with.
Way = Literal["any", "rows", "same"]


@dataclass(frozen=True, eq=False)
class Lens:
    """The most likely next tokens after every layer, and how far two rows lie apart.

    Attributes:
        tokens: [rows, L, N, k] int64, the most likely first.
        shares: [rows, L, N, k] float32, their probabilities.
        kl: [L, N] float32, KL(first row ‖ last row) in nats.
    """

    tokens: Tensor
    shares: Tensor
    kl: Tensor


def most(host: Host, rows: int) -> int:
    """How many tokens of a text fit the memory and the patience that a lens has."""
    head = host.model.get_output_embeddings()
    size = next(iter(host.model.parameters())).element_size()
    bytes_each = host.layers * rows * host.hidden * size
    work = tokens_a_step(host) * TURNS * host.parameters
    each = host.layers * rows * max(1, head.weight.numel())
    return max(8, min(HELD // bytes_each, work // each))


def streams(host: Host, ids: Sequence[int], prompt: int, rows: Sequence[Row], last: int) -> Tensor:
    """The residual stream after every layer, at the last tokens of a text, under several edits.

    Args:
        ids: the text, at most `host.context` tokens.
        prompt: how many of its tokens are the prompt's; some edits act at the last of them alone.
        rows: edits to read it under; () is the base model.
        last: how many tokens to keep, from the end.

    Returns:
        [L, rows, last, d] in the model's type, as the next layer reads it: before the final norm.

    Raises:
        UserError: the text is empty or too long.
    """
    if not 0 < len(ids) <= host.context:
        raise UserError(
            f"the conversation has {len(ids)} tokens; {host.name} reads 1 to {host.context}."
        )
    batch = left_padded([ids] * len(rows), host.pad, host.device)
    plan = host.live.compile(rows).ending([len(ids) - prompt + 1] * len(rows))
    decoder = host.architecture.decoder
    inputs: dict[str, Any] = {
        "input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False
    }  # fmt: skip
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        inputs["position_ids"] = batch.positions
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(stream_of(output)[:, -last:].to(host.device, copy=True))

    with (
        host.step(plan),
        torch.inference_mode(),
        _after(host.architecture.layers, keep),
    ):
        decoder(**inputs)
    return torch.stack(kept)


def lens(
    host: Host, found: Tensor, rows: Sequence[Row], top: int = 5
) -> Generator[Progress, None, Lens]:
    """The logit lens of residuals that `streams` gave. Other sessions' steps may come between.

    Args:
        found: [L, rows, N, d].
        rows: the edits they were read under: an adapter of the language-model head counts.
        top: how many tokens to keep of each distribution.

    Yields:
        Progress of the stage `lens`, in residuals of one row.

    Raises:
        UserError: the model's logits do not follow from its last residual alone.
    """
    layers, count, tokens, width = found.shape
    x = found.transpose(0, 1).reshape(count, layers * tokens, width)
    top = min(top, host.vocabulary)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    step, done = _step(host, count), 0
    yield Progress("lens", 0, x.shape[1])
    while done < x.shape[1]:
        some = x[:, done : done + step]
        with torch.inference_mode():
            logs = readout(host, some, rows).float().log_softmax(-1)  # [rows, step, vocabulary]
            likely = logs.topk(top, -1)
            apart = _divergence(logs[0], logs[-1])
            parts.append((likely.indices.cpu(), likely.values.exp().cpu(), apart.cpu()))
        done += some.shape[1]
        yield Progress("lens", done, x.shape[1])
    best, values, nats = zip(*parts, strict=True)
    shape = (count, layers, tokens, top)
    return Lens(
        torch.cat(best, 1).reshape(shape),
        torch.cat(values, 1).reshape(shape),
        torch.cat(nats).reshape(layers, tokens),
    )


def readout(host: Host, x: Tensor, rows: Sequence[Row]) -> Tensor:
    """What the model's own ending makes of residuals, in one turn.

    Args:
        x: [rows, n, d], as the last layer would return them.
        rows: their edits.

    Returns:
        [rows, n, vocabulary] logits in the model's type.

    Raises:
        UserError: the model's logits do not follow from its last residual alone.
    """
    way = _way(host)
    plan = host.live.compile(rows).ending([0] * len(rows))
    if way == "rows" and plan.deltas.keys() & set(host.architecture.linears.get("lm_head", ())):
        way = "same"
    with host.step(plan), torch.inference_mode():
        return _ended(host, x, way)


def _ended(host: Host, x: Tensor, way: Way) -> Tensor:
    """Call the model with `x` in place of what its last layer returns."""
    rows, tokens = x.shape[:2]
    ids = torch.full((rows, tokens if way == "same" else 1), host.pad, device=host.device)
    inputs = arguments(host, Batch(ids, torch.ones_like(ids)), tokens)

    def give(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return with_stream(output, x.to(stream_of(output)))

    with _after(host.architecture.layers[-1:], give):
        logits = host.model(**inputs, use_cache=False).logits
    return logits.reshape(rows, tokens, -1)


_known: WeakKeyDictionary[Host, Way | None] = WeakKeyDictionary()


def _way(host: Host) -> Way:
    if host not in _known:
        _known[host] = _tried(host)
    way = _known[host]
    if way is None:
        raise UserError(
            f"there is no logit lens for this {host.architecture.model_type}: its logits do not "
            "follow from what its last layer returns."
        )
    return way


@torch.inference_mode()
def _tried(host: Host) -> Way | None:
    """The first way in which a few random tokens get the logits that they have."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(host.vocabulary, (2, 5), generator=draw).to(host.device)
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(stream_of(output).clone())

    with host.step():
        with _after(host.architecture.layers[-1:], keep):
            inputs = arguments(host, Batch(ids, torch.ones_like(ids)), ids.shape[1])
            own = host.model(**inputs, use_cache=False).logits
        for way in ("any", "rows", "same"):
            try:
                got = _ended(host, kept[0], way)
            except (RuntimeError, ValueError, IndexError):  # another shape than it can take
                continue
            if way == "any" and _flattens(host, kept[0]):
                continue
            scale = own.float().abs().amax().clamp_min(1e-6)
            if float((got.float() - own.float()).abs().amax() / scale) <= tolerance(own.dtype):
                return way
    return None


def _flattens(host: Host, x: Tensor) -> bool:
    """Whether the model takes tokens that its layers never saw for rows."""
    head, seen = host.model.get_output_embeddings(), []
    with _after([head], lambda _m, _i, output: seen.append(output.shape[:-1])):
        _ended(host, x, "any")
    return seen[0] != x.shape[:-1]


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    """[n] KL(before ‖ after) in nats of two [n, vocabulary] tables of log-probabilities."""
    terms = before.exp() * (before - after)
    return torch.where(before.isneginf(), 0.0, terms).sum(-1).clamp_min(0)


def _step(host: Host, rows: int) -> int:
    """Residuals of each row in one turn."""
    weights = max(1, host.model.get_output_embeddings().weight.numel())
    work = tokens_a_step(host) * host.parameters // (weights * rows)
    most = host.context if _way(host) == "same" else work
    return max(1, min(work, LOGITS // (rows * host.vocabulary), most))


@contextmanager
def _after(modules: Sequence[nn.Module], hook: Callable) -> Iterator[None]:
    """Our hooks exist in our own turn only, behind those of the live edits."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
