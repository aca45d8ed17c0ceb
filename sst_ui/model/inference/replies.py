"""Answers to many prompts: what jobs ask for, beside the chats.

Where a pass is short however many rows it has, and rounds in float32, the rows of jobs join the
running batch: both go on with every pass, and what is kept of a job's tokens has one bound for all
jobs. Elsewhere a job answers in a loop of its own, pass by pass in turn with the chats: a large
model's rows would hold these up, and in half precision a job's numbers would depend on who chats.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from sst_ui.model.inference.batch import Room, Row, rows_for, tokens_a_step
from sst_ui.model.inference.generate import generate
from sst_ui.model.inference.joining import able
from sst_ui.model.inference.prefill import arranged, fitting
from sst_ui.model.inference.running_batch import together
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Joint, Midway, Progress

ROWS = 32  # answers at a time; more would not be faster, and a step would hold up a chat
SHORT = 2048  # tokens in one short pass, from which on its rows hardly matter


def together_with_chats(host: Host) -> bool:
    """Whether jobs' answers are computed in the batch of the chats."""
    short = tokens_a_step(host) >= SHORT
    return short and host.model.dtype == torch.float32 and able(host)


@dataclass(frozen=True)
class Reply:
    """The tokens of one answer; `ended` says that the model ended it, not the length limit."""

    tokens: tuple[int, ...]
    ended: bool


def replies(
    host: Host,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Row] | None,
    max_new_tokens: int,
    batch: int | None = None,
    stage: str = "answers",
) -> Generator[Progress, None, list[Reply]]:
    """Greedy answers to many prompts, in their order.

    Prompts of similar length share a batch; a batch that does not fit the memory is halved.

    Args:
        batch: rows at a time (default: as many as the device can take in a short step).

    Yields:
        Progress in finished answers, several times a second.
    """
    rows = rows_for(prompts, rows)
    joint = together_with_chats(host)
    columns = partial(together, job=True) if joint else generate
    amid, between = (Joint, Joint) if joint else (Midway, Progress)
    room = Room(batch or ROWS)
    waiting = arranged(host, prompts, rows)
    found = [Reply((), True)] * len(prompts)
    done, told = 0, 0.0
    yield Progress(stage, 0, len(prompts))
    while waiting:
        longest = len(prompts[waiting[0]])
        chunk = waiting[: room.size]
        if not batch:
            texts, edits = [prompts[i] for i in chunk], [rows[i] for i in chunk]
            chunk = chunk[: fitting(host, texts, edits, [1] * len(chunk), tokens_a_step(host))]
        tokens: dict[int, list[int]] = {i: [] for i in chunk}
        with room.attempt(len(chunk), longest):
            texts, edits = [prompts[i] for i in chunk], [rows[i] for i in chunk]
            for column in columns(host, texts, edits, max_new_tokens):
                for row, token in column.items():
                    tokens[chunk[row]].append(token)
                if time.monotonic() - told > 0.2:
                    told = time.monotonic()
                    yield amid(stage, done + len(chunk) - len(column), len(prompts))
        if room.failed:
            yield Progress(stage, done, len(prompts), warning=room.said)
            continue
        for i in chunk:
            found[i] = Reply(tuple(tokens[i]), len(tokens[i]) < max_new_tokens)
        waiting = waiting[len(chunk) :]
        done += len(chunk)
        yield between(stage, done, len(prompts))
    return found
