"""How fast a model reads prompts and answers: measured once, and corrected by every evaluation."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from math import exp
from statistics import median
from weakref import WeakKeyDictionary

from sst_ui.data import prompt_sets
from sst_ui.model.inference.batch import rows_for
from sst_ui.model.inference.generate import generate
from sst_ui.model.inference.replies import Reply, together_with_chats
from sst_ui.model.inference.running_batch import together
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

SETS = ("demo/harmful_heldout", "demo/harmless_heldout")  # what it is measured on
# Rows, and tokens of their answers at most: a larger batch takes less for each row.
SIZES = ((8, 8), (64, 24))
PATIENCE = 10.0  # seconds that the next size may take, if it took as much for each row
LONGEST = 3.0  # seconds that answers are read and written for, of one size
LEAST = 4  # tokens of an answer, the one after the prompt included


@dataclass(frozen=True)
class Speed:
    """What one row of a batch takes.

    Attributes:
        prompt: seconds per token of a prompt that is read.
        token: seconds per token of an answer.
        usual: tokens after which answers end on average; None where none ended yet.
    """

    prompt: float
    token: float
    usual: float | None = None

    def length(self, limit: int) -> float:
        """Expected tokens of an answer that may have `limit`: answers end at a constant rate."""
        return limit if self.usual is None else self.usual * (1 - exp(-limit / self.usual))


def measure(host: Host) -> Generator[Progress, None, Speed]:
    """The speed of this model; measured by answering a few prompts unless it is known.

    Raises:
        UserError: a prompt does not fit its context.
    """
    if (known := _known.get(host)) is not None:
        return known
    half = [prompt_sets.load(name, SIZES[-1][0] // 2) for name in SETS]
    prompts = [
        host.encode(each.messages(prompt))
        for pair in zip(*(each.prompts for each in half), strict=True)
        for each, prompt in zip(half, pair, strict=True)
    ]
    for place, (rows, tokens) in enumerate(SIZES):
        begun = time.monotonic()
        speed = yield from _tried(host, prompts[:rows], tokens)
        more = SIZES[min(place + 1, len(SIZES) - 1)][0] / rows
        if (time.monotonic() - begun) * more > PATIENCE:
            break
    return _known.setdefault(host, speed)


def learning(
    host: Host,
    prompts: Sequence[Sequence[int]],
    job: Generator[Progress, None, list[Reply]],
) -> Generator[Progress, None, list[Reply]]:
    """Drive a job that answers these prompts, and correct the model's speed by what it took."""
    took = 0.0
    while True:
        begun = time.monotonic()
        try:
            step = next(job)
        except StopIteration as end:
            _learn(host, prompts, end.value, took + time.monotonic() - begun)
            return end.value
        took += time.monotonic() - begun
        yield step


_known: "WeakKeyDictionary[Host, Speed]" = WeakKeyDictionary()


def _learn(
    host: Host, prompts: Sequence[Sequence[int]], found: Sequence[Reply], seconds: float
) -> None:
    """Half of what was known stays, so that a pause of the machine does not count for all."""
    speed = _known.get(host)
    said = sum(len(reply.tokens) for reply in found)
    if speed is None or not said:
        return
    expected = speed.prompt * sum(map(len, prompts)) + speed.token * said
    factor = (1 + seconds / expected) / 2
    _known[host] = replace(speed, prompt=speed.prompt * factor, token=speed.token * factor)


def _tried(
    host: Host, prompts: Sequence[Sequence[int]], tokens: int
) -> Generator[Progress, None, Speed]:
    """Answer these prompts for a while."""
    columns = partial(together, job=True) if together_with_chats(host) else generate
    took, each, alive = 0.0, list[float](), len(prompts)
    said, read = 0, 0.0
    yield Progress("speed", 0, tokens)
    begun = time.monotonic()
    with closing(columns(host, prompts, rows_for(prompts, None), tokens)) as job:
        for number, column in enumerate(job, start=1):
            now = time.monotonic() - begun
            took, said, alive = took + now, said + len(column), len(column)
            if number == 1:
                read = now
            else:
                each.append(now / len(column))
            yield Progress("speed", number, tokens)
            if took > LONGEST and number >= LEAST:
                break
            begun = time.monotonic()
        else:
            alive = alive if len(each) == tokens - 1 else 0
    ended = len(prompts) - alive
    return Speed(
        prompt=read / sum(map(len, prompts)),
        token=median(each) if each else read / len(prompts),
        usual=said / ended if ended and said else None,
    )
