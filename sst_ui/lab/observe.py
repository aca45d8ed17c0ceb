"""What the model does with a prompt set: answers, letters, divergence from the base, likelihoods.

Knows how each kind of observation is made, base and edited model in one batch. Does not know
metrics. What was observed of the base is kept in memory: it does not depend on the edit.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sst_ui.data.prompts import LETTERS, PromptSet
from sst_ui.errors import UserError
from sst_ui.lab.memory import Memory
from sst_ui.metrics.drift import TOKENS, Divergence, kl_by_token
from sst_ui.metrics.registry import Reads
from sst_ui.metrics.results import Shown
from sst_ui.model.generate import answers, generate, logprobs, teacher_forced
from sst_ui.model.host import Host
from sst_ui.model.live import RowEdit
from sst_ui.progress import Progress

Row = tuple[RowEdit, ...]
Seen = list[Shown]  # one a prompt
_UNSEEN = Shown("", None)
BYTES = 256 << 20  # of log-probabilities held at a time
SMALL = 2e8  # parameters; below it a larger batch is faster on a CPU too
KEPT = 64  # prompt sets of which the base's observations are remembered


@dataclass(frozen=True)
class Task:
    """One kind of observation on one prompt set; `tokens` are the encoded prompts."""

    reads: Reads
    prompts: PromptSet
    tokens: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    title: str


def prepare(host: Host, reads: Reads, prompts: PromptSet, max_new_tokens: int, title: str) -> Task:
    """Encode the prompts, so that bad ones are found before anything is computed.

    Raises:
        UserError: a prompt that does not fit the context, or lacks what the observation needs.
    """
    tokens = []
    for number, prompt in enumerate(prompts.prompts, start=1):
        where = f"{prompts.name}, prompt {number}"
        if reads == "text" and not prompt.text:
            raise UserError(f"{where} has no 'text'; {title} needs plain texts.")
        if reads != "text" and not prompt.prompt:
            raise UserError(f"{where} is plain text; {title} needs prompts.")
        if reads == "choice" and not prompt.choices:
            raise UserError(f"{where} has no 'choices'; {title} needs multiple choice questions.")
        try:
            ids = _plain(host, prompt.text) if reads == "text" else host.encode(prompt.messages())
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        tokens.append(tuple(ids))
    return Task(reads, prompts, tuple(tokens), max_new_tokens, title)


def observe(
    host: Host, task: Task, edits: Row | None
) -> Generator[Progress, None, tuple[Seen, Seen | None]]:
    """Observe the base and, unless `edits` is None, the edited model.

    Both sit in the same batches, unless the base is known already: then only the edited rows run.

    Returns:
        observations of the base and of the edited model, one a prompt.
    """
    if task.reads == "divergence":
        return (yield from _divergence(host, task, edits))
    key = (host.digest, task.prompts.digest, task.reads, task.max_new_tokens)
    base = _memory.get(key) if host.digest else None
    rows: list[Row] = ([()] if base is None else []) + ([] if edits is None else [edits])
    seen = (yield from _READERS[task.reads](host, task, rows)) if rows else []
    if base is None:
        base, *seen = seen
        _memory.put(key, base)
    return base, None if edits is None else seen[0]


_memory = Memory(KEPT)


def forget() -> None:
    """Drop everything remembered of base models."""
    _memory.clear()


def _answers(host: Host, task: Task, rows: list[Row]) -> Generator[Progress, None, list[Seen]]:
    """Greedy answers; the rows of one prompt stand side by side and so share a batch."""
    texts = yield from answers(
        host,
        [ids for ids in task.tokens for _ in rows],
        rows * len(task.tokens),
        task.max_new_tokens,
        batch=64 if host.parameters < SMALL or host.device.type != "cpu" else 16,
        stage=task.title,
    )
    texts = [text.strip() for text in texts]
    return [[Shown(t, t) for t in texts[i :: len(rows)]] for i in range(len(rows))]


def _choice(host: Host, task: Task, rows: list[Row]) -> Generator[Progress, None, list[Seen]]:
    """Log-likelihood of each letter as the first token of the answer."""
    letters = [letter_tokens(host, letter) for letter in LETTERS]
    seen: list[Seen] = [[_UNSEEN] * len(task.tokens) for _ in rows]
    done = 0
    for group in _groups(host, task.tokens, len(rows), columns=1):
        yield Progress(task.title, done, len(task.tokens))
        after = logprobs(host, [task.tokens[i] for i in group for _ in rows], rows * len(group))
        for place, i in enumerate(group):
            choices = task.prompts.prompts[i].choices
            for r in range(len(rows)):
                line = after[place * len(rows) + r]  # [vocabulary]
                _sound(line)
                scores = [float(line[letters[c]].max()) for c in range(len(choices))]
                best = int(np.argmax(scores))
                seen[r][i] = Shown(f"{LETTERS[best]}. {choices[best]}", scores)
        done += len(group)
    yield Progress(task.title, done, len(task.tokens))
    return seen


def _text(host: Host, task: Task, rows: list[Row]) -> Generator[Progress, None, list[Seen]]:
    """Log-probability of every token of a plain text after its first one."""
    seen: list[Seen] = [[_UNSEEN] * len(task.tokens) for _ in rows]
    done, longest = 0, max(len(ids) for ids in task.tokens)
    for group in _groups(host, task.tokens, len(rows), columns=longest):
        yield Progress(task.title, done, len(task.tokens))
        texts = [task.tokens[i] for i in group for _ in rows]
        distributions = teacher_forced(
            host, [ids[:1] for ids in texts], [ids[1:] for ids in texts], rows * len(group)
        )
        for place, distribution in enumerate(distributions):  # [tokens - 1, vocabulary]
            _sound(distribution)
            i, r = group[place // len(rows)], place % len(rows)
            index = torch.tensor(texts[place][1:])[:, None]
            picked = distribution.gather(1, index)[:, 0].double().numpy()
            seen[r][i] = Shown(task.prompts.prompts[i].text, picked)
        done += len(group)
    yield Progress(task.title, done, len(task.tokens))
    return seen


def _divergence(
    host: Host, task: Task, edits: Row | None
) -> Generator[Progress, None, tuple[Seen, Seen | None]]:
    """KL(base ‖ edited) at each token of the base's own greedy answer, both read in one batch."""
    answered = yield from _continuations(host, task)
    base: Seen = []
    for ids in answered:
        pieces = tuple(host.decode([token]) or "(end)" for token in ids)
        base.append(Shown(host.decode(ids), Divergence(np.zeros(len(ids)), pieces)))
    if edits is None:
        return base, None
    edited: Seen = [_UNSEEN] * len(base)
    done = 0
    for group in _groups(host, task.tokens, 2, columns=TOKENS):
        yield Progress(task.title, done, len(task.tokens))
        distributions = teacher_forced(
            host,
            [task.tokens[i] for i in group for _ in range(2)],
            [answered[i] for i in group for _ in range(2)],
            [(), edits] * len(group),
        )
        for place, i in enumerate(group):
            before, after = distributions[2 * place : 2 * place + 2]  # [T, vocabulary]
            _sound(after)
            said = host.decode(after.argmax(-1).tolist())
            pieces = base[i].observation.tokens
            edited[i] = Shown(said, Divergence(kl_by_token(before, after), pieces))
        done += len(group)
    yield Progress(task.title, done, len(task.tokens))
    return base, edited


def _continuations(host: Host, task: Task) -> Generator[Progress, None, list[list[int]]]:
    """The first tokens of the base's own greedy answers, with an end token where one ended."""
    key = (host.digest, task.prompts.digest, "continuations", TOKENS)
    known = _memory.get(key) if host.digest else None
    if known is not None:
        return known
    answered: list[list[int]] = [[] for _ in task.tokens]
    end = min(host.stop, default=host.pad)  # predicted, never read: any end token will do
    for group in _groups(host, task.tokens, 1, columns=TOKENS):
        yield Progress(task.title, 0, len(task.tokens), "the base model's own answers")
        for column in generate(host, [task.tokens[i] for i in group], None, TOKENS):
            for row, token in column.items():
                answered[group[row]].append(token)
    answered = [ids if len(ids) == TOKENS else [*ids, end] for ids in answered]
    _memory.put(key, answered)
    return answered


def letter_tokens(host: Host, letter: str) -> list[int]:
    """Tokens that an answer beginning with this letter may begin with.

    With and without a space before it, where that is one token; else the first token of the letter.
    """
    unknown = host.tokenizer.unk_token_id
    spellings = (
        letter,
        "\u0120" + letter,
        "\u2581" + letter,
    )  # spaces of byte-level and SentencePiece
    ids = {host.tokenizer.convert_tokens_to_ids(spelling) for spelling in spellings}
    ids |= {tokens[0] for text in (letter, f" {letter}") if len(tokens := host.tokens(text)) == 1}
    return sorted(ids - {None, unknown}) or host.tokens(letter)[:1]


def _sound(logprobs: Tensor) -> None:
    """Numbers that are none must not pass for an unchanged model."""
    if bool(logprobs.isnan().any()):
        raise UserError(
            "the edited model computes NaN; lower the strength, or load it in bfloat16 or float32."
        )


def _groups(
    host: Host, tokens: Sequence[Sequence[int]], rows: int, columns: int
) -> Iterator[list[int]]:
    """Prompts of similar length, as many as BYTES of log-probabilities allow, 32 at most."""
    vocabulary = host.model.get_output_embeddings().weight.shape[0]
    size = max(1, min(32, BYTES // (rows * columns * vocabulary * 4)))
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]), reverse=True)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _plain(host: Host, text: str) -> list[int]:
    """A plain text as tokens, BOS first where the tokenizer wants one."""
    bos = [host.tokenizer.bos_token_id] if host.template.adds_bos else []
    ids = bos + host.tokens(text)
    if not 2 <= len(ids) <= host.context:
        raise UserError(
            f"the text has {len(ids)} tokens; {host.name} reads 2 to {host.context} of a text."
        )
    return ids


_READERS: dict[str, Callable[[Host, Task, list[Row]], Generator[Progress, None, list[Seen]]]] = {
    "answer": _answers,
    "choice": _choice,
    "text": _text,
}
