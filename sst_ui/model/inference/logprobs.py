"""What the model thinks of given text: log-probabilities, without generating anything."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sst_ui.model.inference.batch import Room, Row, forward, rows_for, tokens_a_step
from sst_ui.model.inference.prefill import Texts, arranged, fitting, start
from sst_ui.model.runtime.host import Host

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
        logits = _logits(host, prompts, rows, [1] * len(prompts), chunk)  # [chunk, 1, vocabulary]
        for i, row in zip(chunk, logits[:, -1].float().log_softmax(-1).cpu(), strict=True):
            result[i] = row

    _in_chunks(host, prompts, rows, [1] * len(prompts), run)
    return torch.stack(result) if result else torch.empty(0, _vocabulary(host))


def teacher_forced(
    host: Host,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    rows: Sequence[Row] | None = None,
    plain: bool = False,
) -> list[Tensor]:
    """Log-probabilities at every token of a given continuation.

    Args:
        prompts, continuations: token lists of equal number.
        plain: both together are a text and no conversation, so that no prompt ends in it.

    Returns:
        For each prompt [len(continuation), vocabulary] float32 on the CPU: row t is the
        distribution from which continuation[t] would have been drawn.
    """
    rows = rows_for(prompts, rows)
    # the last token of a continuation is predicted but never read
    texts = [[*p, *c][:-1] for p, c in zip(prompts, continuations, strict=True)]
    result: list[Tensor] = [torch.empty(0)] * len(prompts)
    tails = [max(1, len(continuation)) for continuation in continuations]

    def run(chunk: list[int]) -> None:
        # [chunk, longest tail, vocabulary]
        logits = _logits(host, texts, rows, tails, chunk, plain)
        for i, row in zip(chunk, logits, strict=True):
            row = row[len(row) - len(continuations[i]) :]
            result[i] = row.float().log_softmax(-1).cpu()

    _in_chunks(host, texts, rows, tails, run)
    return result


def _logits(
    host: Host,
    texts: Texts,
    rows: Sequence[Row],
    tails: Sequence[int],
    chunk: list[int],
    plain: bool = False,
) -> Tensor:
    """[chunk, longest tail, vocabulary] logits in the model's dtype."""
    tails = [tails[i] for i in chunk]
    some, edits = [texts[i] for i in chunk], [rows[i] for i in chunk]
    first = start(host, some, edits, tails, plain=plain)
    return first.finish(forward(host, first.batch, first.plan, max(tails), first.cache, first.new))


def _in_chunks(
    host: Host,
    texts: Texts,
    rows: Sequence[Row],
    tails: Sequence[int],
    run: Callable[[list[int]], None],
) -> None:
    """Call `run` with indices of similar length, few enough for a turn and for their logits.

    A chunk that does not fit the memory is halved.

    Args:
        tails: last positions of each text that logits are wanted for.
    """
    waiting = arranged(host, texts, rows)
    room = Room(len(waiting))
    while waiting:
        logits = max(tails) * _vocabulary(host)
        chunk = waiting[: max(1, min(room.size, LOGITS // logits))]
        count = fitting(
            host,
            [texts[i] for i in chunk],
            [rows[i] for i in chunk],
            [tails[i] for i in chunk],
            tokens_a_step(host),
        )
        chunk = chunk[:count]
        with room.attempt(len(chunk), max(1, len(texts[chunk[0]]))):
            run(chunk)
        if not room.failed:
            waiting = waiting[len(chunk) :]


def _vocabulary(host: Host) -> int:
    return host.model.config.get_text_config().vocab_size
