"""What the model thinks of given text: log-probabilities, without generating anything.

Knows prompts and continuations as token lists, rows as edits. Does not know metrics.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sst_ui.model.batch import Room, Row, forward, left_padded, rows_for, tokens_a_step
from sst_ui.model.host import Host

LOGITS = 1 << 27  # numbers of a forward pass's logits, half a gigabyte


def logprobs(
    host: Host, prompts: Sequence[Sequence[int]], rows: Sequence[Row] | None = None
) -> Tensor:
    """Log-probabilities of the next token.

    Returns:
        [prompts, vocabulary] float32 on the CPU.
    """
    rows = rows_for(prompts, rows)
    result: list[Tensor] = [torch.empty(0)] * len(prompts)

    def run(chunk: list[int]) -> None:
        batch = left_padded([prompts[i] for i in chunk], host.pad, host.device)
        plan = host.live.compile([rows[i] for i in chunk])
        logits = forward(host, batch, plan, keep=1)[:, -1]  # [chunk, vocabulary]
        for i, row in zip(chunk, logits.float().log_softmax(-1).cpu(), strict=True):
            result[i] = row

    _in_chunks(host, [len(prompt) for prompt in prompts], 1, run)
    return torch.stack(result) if result else torch.empty(0, _vocabulary(host))


def teacher_forced(
    host: Host,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    rows: Sequence[Row] | None = None,
) -> list[Tensor]:
    """Log-probabilities at every token of a given continuation.

    Args:
        prompts, continuations: token lists of equal number.

    Returns:
        For each prompt [len(continuation), vocabulary] float32 on the CPU: row t is the
        distribution from which continuation[t] would have been drawn.
    """
    rows = rows_for(prompts, rows)
    # the last token of a continuation is predicted but never read
    texts = [[*p, *c][:-1] for p, c in zip(prompts, continuations, strict=True)]
    result: list[Tensor] = [torch.empty(0)] * len(prompts)
    wanted = max((len(continuation) for continuation in continuations), default=1)

    def run(chunk: list[int]) -> None:
        batch = left_padded([texts[i] for i in chunk], host.pad, host.device)
        plan = host.live.compile([rows[i] for i in chunk])
        longest = max(1, max(len(continuations[i]) for i in chunk))
        logits = forward(host, batch, plan, keep=longest)  # [chunk, longest, vocabulary]
        for i, row in zip(chunk, logits, strict=True):
            row = row[len(row) - len(continuations[i]) :]
            result[i] = row.float().log_softmax(-1).cpu()

    _in_chunks(host, [len(text) for text in texts], wanted, run)
    return result


def _in_chunks(
    host: Host, lengths: Sequence[int], longest: int, run: Callable[[list[int]], None]
) -> None:
    """Call `run` with indices of similar length, few enough for a turn and for their logits.

    A chunk that does not fit the memory is halved.

    Args:
        lengths: tokens of each text.
        longest: most positions of a text that logits are wanted for.
    """
    waiting = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    room = Room(len(waiting))
    while waiting:
        tokens = max(1, lengths[waiting[0]])
        logits = max(1, longest) * _vocabulary(host)
        size = max(1, min(room.size, tokens_a_step(host) // tokens, LOGITS // logits))
        with room.attempt(len(waiting[:size]), tokens):
            run(waiting[:size])
        if not room.failed:
            waiting = waiting[size:]


def _vocabulary(host: Host) -> int:
    return host.model.config.get_text_config().vocab_size
