"""Token by token: our own decoding loop, with an edit per row.

The loop is a generator that gives one column of tokens per step; closing it stops it, and
between two steps the model is free for other work.
"""

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.model.inference.batch import Batch, Room, Row, forward, rows_for, tokens_a_step
from sst_ui.model.inference.kv_cache import fresh_cache
from sst_ui.model.inference.logprobs import logprobs, teacher_forced
from sst_ui.model.inference.prefill import Prefill, arranged, fitting, start
from sst_ui.model.load.reasoning import shown
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

__all__ = ["generate", "logprobs", "replies", "teacher_forced", "written"]

ROWS = 32  # answers at a time; more would not be faster, and a step would hold up a chat


def generate(
    host: Host,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Row] | None,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    top_p: float = 1.0,
) -> Generator[dict[int, int]]:
    """Continue every prompt under its own edits.

    Args:
        prompts: token lists, each shorter than the context.
        rows: the edits of each prompt, or None for the base model.
        max_new_tokens: longest continuation; the end of the context ends a row too.
        temperature: 0 is greedy.
        seed: every row draws from its own copy of this random stream: neighbours do not matter, and
            columns of a comparison differ by their edit alone. A list gives one seed per row.
        top_p: sample from the smallest set of tokens with this probability.

    Yields:
        One column of tokens, row number -> token. A row that has ended is missing from then on;
        the token that ended it is not part of the answer and is not given.

    Raises:
        UserError: a prompt is empty or too long, or the edited model computes no numbers any more.
    """
    rows = rows_for(prompts, rows)
    if not prompts:
        return
    check_lengths(host, prompts)
    # 1. All rows start together.
    running = _Running(host, prompts, rows)
    lengths = [len(prompt) for prompt in prompts]
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    dice = [torch.Generator().manual_seed(s) for s in seeds]
    for _ in range(max_new_tokens):
        # 2. One forward pass in turn with everybody else; logits [active, vocabulary].
        active = running.active
        chosen = pick(running.logits(), temperature, top_p, [dice[row] for row in active])
        # 3. Rows that end leave the batch.
        stay = [i for i, token in enumerate(chosen) if token not in host.stop]
        column = {active[i]: chosen[i] for i in stay}
        if column:
            yield column
        for row in column:
            lengths[row] += 1
        stay = [i for i in stay if lengths[active[i]] < host.context]
        if not stay:
            return
        if len(stay) < len(active):
            running.keep(stay)
        # 4. The chosen tokens become the next column.
        running.append([chosen[i] for i in stay])


class _Running:
    """The rows that have not ended: tokens, cache and edits.

    Attributes:
        active: their numbers among the prompts.
    """

    def __init__(self, host: Host, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> None:
        """Pad on the left, so that all rows end in the same column.

        What they share (layers under the edits, a beginning) is computed once.
        """
        self.active = list(range(len(prompts)))
        self._host, self._cache = host, fresh_cache(host)
        begun = start(host, prompts, rows, cache=self._cache)
        self._first: Prefill | None = begun
        self._batch, self._plan = begun.batch, begun.plan
        self._said = 0  # tokens of every answer so far
        self._new = begun.new  # the prefill computes every column, later steps only the last

    def logits(self) -> Tensor:
        """[active, vocabulary] float32 for the next token, by one forward pass.

        Raises:
            UserError: the edited model computes no numbers any more.
        """
        computed = forward(
            self._host, self._batch, self._plan, keep=1, cache=self._cache, new=self._new
        )
        logits = computed[:, -1].float()
        if (first := self._first) is not None:
            logits = first.finish(logits)
            self._batch, self._plan, self._first = first.whole, first.each, None
        if bool(logits.amax(-1).isnan().any()):
            raise no_numbers()
        return logits

    def keep(self, stay: Sequence[int]) -> None:
        """Drop the other rows, with their part of the cache and of the plan.

        Args:
            stay: places in `active`.
        """
        index = torch.tensor(stay, device=self._host.device)
        # reorder_cache, since batch_select_indices is missing from linear attention layers
        if self._cache is not None:
            self._cache.reorder_cache(index)
        self._batch = Batch(self._batch.ids[index], self._batch.mask[index])
        self._plan = self._plan.select(stay)
        self.active = [self.active[i] for i in stay]

    def append(self, tokens: Sequence[int]) -> None:
        """Add a column, one token for each active row."""
        ids, mask = self._batch.ids, self._batch.mask
        fresh = torch.tensor(tokens, device=self._host.device)[:, None]  # [active, 1]
        self._batch = Batch(
            torch.cat([ids, fresh], 1), torch.cat([mask, torch.ones_like(fresh)], 1)
        )
        self._said += 1
        self._new = 1
        if self._cache is None:  # everything is read again, the end of the prompt too
            self._new = None
            self._plan = self._plan.ending([self._said + 1] * len(tokens))


def no_numbers() -> UserError:
    """The error where an edited model computes nothing that could be read."""
    return UserError("the edited model computes NaN; lower the strength, or load it in float32.")


def check_lengths(host: Host, prompts: Sequence[Sequence[int]]) -> None:
    """Raises UserError for a prompt that is empty or leaves no room for an answer."""
    for prompt in prompts:
        if not 0 < len(prompt) < host.context:
            raise UserError(
                f"a prompt has {len(prompt)} tokens; {host.name} reads 1 to {host.context - 1}."
            )


def pick(
    logits: Tensor, temperature: float, top_p: float, dice: Sequence[torch.Generator]
) -> list[int]:
    """Choose one token per row: the largest logit, or a draw with one uniform number per row.

    Args:
        logits: [rows, vocabulary] float32.
        dice: one random generator per row, so that neighbours do not change a row's draw.
    """
    if temperature <= 0:
        return logits.argmax(-1).tolist()
    uniform = torch.stack([torch.rand((), generator=die) for die in dice]).to(logits.device)
    probabilities, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    total = probabilities.cumsum(-1)  # [rows, vocabulary] increasing to 1
    # the nucleus: tokens up to and including the one that reaches top_p
    size = (total < top_p).sum(-1, keepdim=True).clamp(max=total.shape[-1] - 1)
    threshold = uniform[:, None] * total.gather(-1, size)
    place = torch.searchsorted(total, threshold, right=True).minimum(size)
    return order.gather(-1, place)[:, 0].tolist()


class Text:
    """The text of a growing token list, without half characters.

    A token may hold part of a character (kana in a byte-level vocabulary), and a token's text may
    depend on the one before it (leading spaces). So a short tail is decoded again with each token,
    and its text counts once it ends in a whole character.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ids: list[int] = []
        self._start = self._read = (
            0  # tokens before `read` are in `text`; `start` gives them context
        )
        self.text = ""

    def push(self, token: int) -> None:
        """Add one token."""
        self._ids.append(token)
        tail = self._ids[self._start :]
        before = self._host.template.written(tail[: self._read - self._start])
        after = self._host.template.written(tail)
        if len(after) > len(before) and not after.endswith("\ufffd"):
            self.text += after[len(before) :]
            self._start, self._read = self._read, len(self._ids)


def written(host: Host, columns: Iterable[dict[int, int]], rows: int) -> Generator[list[str]]:
    """The whole text of every row so far, only whole characters, with every column of tokens.

    What was thought stands in a `<think>` block, whatever the model's own marks are.
    """
    texts = [Text(host) for _ in range(rows)]
    for column in columns:
        for row, token in column.items():
            texts[row].push(token)
        yield [shown(host.template.opened + text.text) for text in texts]


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
            steps = generate(
                host, [prompts[i] for i in chunk], [rows[i] for i in chunk], max_new_tokens
            )
            for column in steps:
                for row, token in column.items():
                    tokens[chunk[row]].append(token)
                if time.monotonic() - told > 0.2:
                    told = time.monotonic()
                    yield Progress(stage, done + len(chunk) - len(column), len(prompts))
        if room.failed:
            yield Progress(stage, done, len(prompts), warning=room.said)
            continue
        for i in chunk:
            found[i] = Reply(tuple(tokens[i]), len(tokens[i]) < max_new_tokens)
        waiting = waiting[len(chunk) :]
        done += len(chunk)
        yield Progress(stage, done, len(prompts))
    return found
