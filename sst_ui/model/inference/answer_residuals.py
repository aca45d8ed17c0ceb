"""Residuals along answers: what the stream holds after every layer, position by position, as means
over groups of conversations.

Position 0 is the prompt's last token, position p the answer's p-th: what is read there decides the
token that comes next. No residual of a single token is kept, so that long answers of a large model
cost no more memory than short ones of a small one.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.model.hooks.row_plan import stream_of
from sst_ui.model.inference.batch import Room, Row, arguments, left_padded, tokens_a_step
from sst_ui.model.inference.fisher_step import Conversation
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

HELD = 256 << 20  # bytes of residuals that a step may hold


@dataclass(frozen=True, eq=False)
class Along:
    """Residuals of a group of conversations.

    Attributes:
        mean: [P, L, d] float64; 0 where the group has no conversation that long.
        spread: [P, L] float64, mean squared distance from it.
        count: [P] conversations that reach each position.
    """

    mean: Tensor
    spread: Tensor
    count: Tensor


def along_answers(
    host: Host,
    conversations: Sequence[Conversation],
    groups: Sequence[int],
    positions: int,
    row: Row = (),
    stage: str = "residuals",
) -> Generator[Progress, None, list[Along]]:
    """Means of each group's residuals at the positions 0 to `positions` − 1.

    Other sessions' steps may come between ours.

    Args:
        conversations: prompts, and as much of each answer as counts.
        groups: the group of each conversation, from 0 on.
        row: edits under which the model reads them.

    Yields:
        Progress in conversations.

    Returns:
        One `Along` for each group up to the largest.

    Raises:
        UserError: no conversation, or one that is too long; residuals that are not finite.
    """
    if not conversations:
        raise UserError("there are no answers to measure at.")
    texts = [[*prompt, *answer[: positions - 1]] for prompt, answer in conversations]
    for text in texts:
        if not 0 < len(text) <= host.context:
            raise UserError(
                f"a prompt has {len(text)} tokens; {host.name} reads 1 to {host.context}."
            )
    sums = _Sums(max(groups) + 1, positions, host)
    waiting = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    one = 4 * positions * host.layers * host.hidden  # bytes of a conversation's residuals
    room = Room(max(1, min(len(texts), HELD // one)))
    yield Progress(stage, 0, len(texts))
    while waiting:
        longest = len(texts[waiting[0]])
        chunk = waiting[: min(room.size, max(1, tokens_a_step(host) // longest))]
        with room.attempt(len(chunk), longest):
            ends = [len(conversations[i][0]) for i in chunk]
            found, there = _forward(host, [texts[i] for i in chunk], ends, positions, row)
        if room.failed:
            continue
        sums.add(found, there, [groups[i] for i in chunk])
        waiting = waiting[len(chunk) :]
        yield Progress(stage, len(texts) - len(waiting), len(texts))
    return sums.means(host)


class _Sums:
    """Sums over conversations, by group and position."""

    def __init__(self, groups: int, positions: int, host: Host) -> None:
        shape = (groups, positions, host.layers)
        self._sum = torch.zeros(*shape, host.hidden, dtype=torch.float64)
        self._squares = torch.zeros(shape, dtype=torch.float64)
        self._count = torch.zeros(groups, positions, dtype=torch.int64)

    def add(self, found: Tensor, there: Tensor, groups: Sequence[int]) -> None:
        """Add [n, P, L, d] residuals; `there` [n, P] says which positions a conversation has."""
        for one, reached, group in zip(found.double(), there, groups, strict=True):
            one = one * reached[:, None, None]
            self._sum[group] += one
            self._squares[group] += one.square().sum(-1)
            self._count[group] += reached

    def means(self, host: Host) -> list[Along]:
        if not self._squares.isfinite().all():
            raise UserError(
                f"the residuals of {host.name} are not finite; load it in bfloat16 or float32."
            )
        n = self._count.clamp(min=1)[..., None].double()  # [groups, P, 1]
        mean = self._sum / n[..., None]
        spread = (self._squares / n - mean.square().sum(-1)).clamp(min=0)
        return [Along(*parts) for parts in zip(mean, spread, self._count, strict=True)]


def _forward(
    host: Host, texts: Sequence[Sequence[int]], ends: Sequence[int], positions: int, row: Row
) -> tuple[Tensor, Tensor]:
    """One step: residuals [n, P, L, d] float32 on the CPU, and which are there [n, P]."""
    batch = left_padded(texts, host.pad, host.device)
    length = batch.ids.shape[1]
    first = torch.tensor([length - len(t) + e - 1 for t, e in zip(texts, ends, strict=True)])
    columns = first[:, None] + torch.arange(positions)  # [n, P]
    there = columns < length
    tails = [len(text) - end + 1 for text, end in zip(texts, ends, strict=True)]
    plan = host.live.compile([row] * len(texts)).ending(tails)
    index = columns.clamp(max=length - 1)
    with host.step(plan), torch.inference_mode(), _columns(host, index) as collected:
        host.model(**arguments(host, batch, 1), use_cache=False)
    return torch.stack([layer.to("cpu", torch.float32) for layer in collected], dim=2), there


@contextmanager
def _columns(host: Host, index: Tensor) -> Iterator[list[Tensor]]:
    """Collect some columns of each layer's output, [n, P, d] per layer, in layer order."""
    collected: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = stream_of(output)  # [n, length, d]
        rows = torch.arange(len(index), device=hidden.device)[:, None]
        collected.append(hidden[rows, index.to(hidden.device)])

    # Registered after the live edits' hooks, hence they see the edited stream.
    handles = [layer.register_forward_hook(keep) for layer in host.architecture.layers]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()
