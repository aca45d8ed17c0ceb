"""Residuals: what the stream holds after every layer, at one token of each prompt.

Costs one prefill of the prompts: the decoder runs without the language model head, and of every
layer's output only the wanted token is kept.
"""

import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.model.hooks.row_plan import stream_of
from sst_ui.model.inference.batch import Room, Row, left_padded, rows_for, tokens_a_step
from sst_ui.model.load.chat_template import Message
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

CPU = 512  # tokens a step at most there: its caches like small batches


def residuals(
    host: Host,
    prompts: Sequence[Sequence[int]],
    positions: Sequence[int] | None = None,
    rows: Sequence[Row] | None = None,
    batch_size: int | None = None,
    stage: str = "residuals",
    lengths: Sequence[int] | None = None,
) -> Generator[Progress, None, Tensor]:
    """The residual after each layer at one token of every prompt.

    Other sessions' steps may come between ours; the same prompts still give the same numbers.

    Args:
        host: the model.
        prompts: token lists, at most `host.context` long.
        positions: index of the wanted token in each prompt; None for the last.
        rows: edits of each prompt, None for the base model.
        batch_size: prompts per step; by default as many as take about a second. Halved on OOM.
        stage: name of the job in `Progress`.
        lengths: tokens of each that are the prompt's, where a part of an answer stands behind it;
            None where none does. Some edits act at the prompt's last token only.

    Yields:
        Progress in prompts.

    Returns:
        [n, L, d] float32 on the CPU, in the order of the prompts: the residual stream as the next
        layer reads it, hence before the final norm.

    Raises:
        UserError: a prompt is empty, too long or does not fit the memory.
    """
    rows = rows_for(prompts, rows)
    lengths = lengths or [len(prompt) for prompt in prompts]
    if positions is not None:
        prompts = [_upto(prompt, p) for prompt, p in zip(prompts, positions, strict=True)]
    # how far from the end the prompts end; 0: they are cut off before
    tails = [max(0, len(p) - n + 1) for p, n in zip(prompts, lengths, strict=True)]
    _fitting(host, prompts)
    result = torch.empty(len(prompts), host.layers, host.hidden)
    # Longest first: what does not fit the memory shows at once, and padding stays small.
    waiting = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    room = Room(batch_size or len(prompts))
    yield Progress(stage, 0, len(prompts))
    while waiting:
        longest = len(prompts[waiting[0]])
        fitting = room.size if batch_size else max(1, _tokens(host) // longest)
        chunk = waiting[: min(room.size, fitting)]
        with room.attempt(len(chunk), longest):
            some = [prompts[i] for i in chunk]
            found = _forward(host, some, [rows[i] for i in chunk], [tails[i] for i in chunk])
        if room.failed:
            continue
        result[chunk] = found
        waiting = waiting[len(chunk) :]
        yield Progress(stage, len(prompts) - len(waiting), len(prompts))
    return result


def _fitting(host: Host, prompts: Sequence[Sequence[int]]) -> None:
    for prompt in prompts:
        if not 0 < len(prompt) <= host.context:
            raise UserError(
                f"a prompt has {len(prompt)} tokens; {host.name} reads 1 to {host.context}."
            )


def instruction_end(host: Host, messages: Sequence[Message]) -> int:
    """Index, in `host.encode(messages)`, of the last token of the last user message.

    Raises:
        UserError: the tokenizer has no offsets, or the template rewrites the message.
    """
    if not host.tokenizer.is_fast:
        raise UserError(
            "directions.position 'instruction' needs a tokenizer with offsets (a tokenizer.json); "
            "use 'template'."
        )
    user = next(m["content"] for m in reversed(messages) if m["role"] == "user").strip()
    text = host.format(messages)
    end = text.rfind(user) + len(user)
    if not user or end < len(user):
        raise UserError(
            f"the chat template rewrites the message {user[:40]!r}, so that its last token cannot "
            "be found; use directions.position 'template'."
        )
    encoded = host.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    last = max(i for i, (start, stop) in enumerate(spans) if start < end and start < stop)
    return last + len(host.encode(messages)) - len(spans)  # a BOS that the template does not write


def _forward(
    host: Host, prompts: Sequence[Sequence[int]], rows: Sequence[Row], tails: Sequence[int]
) -> Tensor:
    """One step: [batch, L, d] float32 on the CPU.

    Args:
        tails: where the prompts end, see `Plan.tails`.
    """
    batch = left_padded(prompts, host.pad, host.device)
    plan = host.live.compile(rows).ending(tails)
    decoder = host.architecture.decoder
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        inputs["position_ids"] = batch.positions
    # Our hooks exist in our own turn only: nobody else's forward pass can meet them.
    with host.step(plan), torch.inference_mode(), _last_tokens(host) as collected:
        decoder(**inputs)
    return torch.stack([layer.to("cpu", torch.float32) for layer in collected], dim=1)


@contextmanager
def _last_tokens(host: Host) -> Iterator[list[Tensor]]:
    """Collect each layer's output at the last column, [batch, d] per layer, in layer order."""
    collected: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = stream_of(output)  # [batch, length, d]
        collected.append(hidden[:, -1].clone())  # a view would keep the whole sequence alive

    # Registered after the live edits' hooks, hence they see the edited stream.
    handles = [layer.register_forward_hook(keep) for layer in host.architecture.layers]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


def _upto(prompt: Sequence[int], position: int) -> Sequence[int]:
    """The prompt up to the wanted token: in a causal model nothing after it reaches it."""
    if not -len(prompt) <= position < len(prompt):
        raise ValueError(f"position {position} is outside a prompt of {len(prompt)} tokens")
    return prompt[: position % len(prompt) + 1]


def _tokens(host: Host) -> int:
    return tokens_a_step(host, CPU) if host.device.type == "cpu" else tokens_a_step(host)
