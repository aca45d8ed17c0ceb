"""Makes observations for several rows of edits at once: answers, letters, first words, divergence,
likelihoods.
"""

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sst_ui.data.prompt_sets import LETTERS, PromptSet
from sst_ui.errors import UserError
from sst_ui.jobs.evaluate import speed
from sst_ui.metrics.families.divergence import TOKENS, Divergence, kl_by_token
from sst_ui.metrics.registry import Reads
from sst_ui.metrics.results import Shown
from sst_ui.metrics.text.answer import Answer
from sst_ui.metrics.text.refusal_phrases import is_refusal, openers
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.inference.generate import logprobs, teacher_forced
from sst_ui.model.inference.replies import replies
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

Row = tuple[Edit, ...]
Seen = list[Shown]  # one per prompt
Reader = Generator[Progress, None, list[Seen]]  # in the end the observations of every row

_UNSEEN = Shown("", None)
BYTES = 256 << 20  # of log-probabilities held at a time
SMOOTH = 1e-6  # added to both probabilities of an odds
SMALL = 2e8  # parameters; below it a larger batch is faster on a CPU too


@dataclass(frozen=True)
class Task:
    """One kind of observation on one prompt set; `tokens` are the encoded prompts."""

    reads: Reads
    prompts: PromptSet
    tokens: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    title: str


def answers(host: Host, task: Task, rows: list[Row]) -> Reader:
    """Greedy answers; the rows of one prompt stand side by side and so share a batch."""
    texts = [ids for ids in task.tokens for _ in rows]
    job = replies(
        host,
        texts,
        rows * len(task.tokens),
        task.max_new_tokens,
        batch=64 if host.parameters < SMALL or host.device.type != "cpu" else 16,
        stage=task.title,
    )
    found = yield from speed.learning(host, texts, job)
    shown = []
    for place, reply in enumerate(found):
        request = task.prompts.prompts[place // len(rows)].user
        answer = Answer(host.answer(reply.tokens), ended=reply.ended, request=request)
        shown.append(Shown(str(answer), answer, reply.tokens))
    return [shown[i :: len(rows)] for i in range(len(rows))]


def choices(host: Host, task: Task, rows: list[Row]) -> Reader:
    """Log-likelihood of each letter as the first token of the answer."""
    letters = [spellings(host, letter) for letter in LETTERS]

    def read(i: int, line: Tensor) -> Shown:
        options = task.prompts.prompts[i].choices
        scores = [float(line[letters[c]].max()) for c in range(len(options))]
        best = int(np.argmax(scores))
        return Shown(f"{LETTERS[best]}. {options[best]}", scores)

    return (yield from _next_token(host, task, rows, read))


def first_words(host: Host, task: Task, rows: list[Row]) -> Reader:
    """Log-odds that the answer begins as refusals do: ln p − ln(1 − p), nats.

    p is the probability of all first tokens of the openers in presets/phrases (the refusal score of
    Arditi et al. 2024 with more than one token).
    """
    ids = _openers(host)

    def read(i: int, line: Tensor) -> Shown:
        others = line.double().clone()
        others[ids] = -torch.inf
        odds = float(line[ids].double().logsumexp(0) - others.logsumexp(0))
        return Shown(host.decode([int(line.argmax())]), odds)

    return (yield from _next_token(host, task, rows, read))


def refusals(host: Host, task: Task, rows: list[Row], written: Sequence[Sequence[int]]) -> Reader:
    """Log-odds that a row refuses where the base began to, nats.

    Read after the prompt and the base's own answer up to its refusal: nothing for most, a compliant
    beginning where a refusal comes late. What counts as refusing is the token with which the base
    began, and those of the openers in presets/phrases. Where the base does not refuse, the first
    token of the answer. Smoothed, so that no prompt counts for more than ln(1 / SMOOTH).

    Args:
        written: the base's own answers, as tokens.
    """
    openers_ = _openers(host)
    places = [onset(host, own) for own in written]
    # the last token is predicted and never read
    forced = [
        [host.pad] if place is None else list(own[: place + 1])
        for own, place in zip(written, places, strict=True)
    ]
    seen: list[Seen] = [[_UNSEEN] * len(task.tokens) for _ in rows]
    done, longest = 0, max(map(len, forced))
    for group in _groups(host, task.tokens, len(rows), columns=longest):
        yield Progress(task.title, done, len(task.tokens))
        distributions = teacher_forced(
            host,
            [task.tokens[i] for i in group for _ in rows],
            [forced[i] for i in group for _ in rows],
            rows * len(group),
        )
        for place, distribution in enumerate(distributions):  # [tokens, vocabulary]
            _sound(distribution)
            i, r = group[place // len(rows)], place % len(rows)
            own = set() if places[i] is None else {forced[i][-1]}
            line = distribution[-1]
            odds = _odds(line, sorted({*openers_, *own}))
            seen[r][i] = Shown(host.decode([int(line.argmax())]), odds)
        done += len(group)
    yield Progress(task.title, done, len(task.tokens))
    return seen


def onset(host: Host, tokens: Sequence[int]) -> int | None:
    """The place in an answer's tokens at which it begins to refuse; None where it does not.

    The first sentence that refuses by itself; the beginning where only all of it does.
    """
    text = host.decode(list(tokens))
    if not is_refusal(text):
        return None
    starts = [0, *(found.end() for found in re.finditer(r"[.!?。！？\n]\s*(?=\S)", text))]
    ends = [*starts[1:], len(text)]
    first = next((s for s, e in zip(starts, ends, strict=True) if is_refusal(text[s:e])), 0)
    if not first:
        return 0
    return next(t for t in range(len(tokens)) if len(host.decode(list(tokens[: t + 1]))) > first)


def _openers(host: Host) -> list[int]:
    """First tokens of the words that refusals begin with.

    Where the first token of an opener is a part of a character, which any Japanese answer may begin
    with, that opener does not count.
    """
    found = {token for opener in openers() for token in spellings(host, opener)}
    return sorted(token for token in found if "\ufffd" not in host.template.decode([token]))


def _odds(line: Tensor, ids: list[int]) -> float:
    """Smoothed log-odds of a set of tokens: of a distribution [vocabulary], nats."""
    others = line.double().clone()
    others[ids] = -torch.inf
    inside, outside = line[ids].double().exp().sum(), others.exp().sum()
    return float(((inside + SMOOTH) / (outside + SMOOTH)).log())


def _next_token(
    host: Host, task: Task, rows: list[Row], read: Callable[[int, Tensor], Shown]
) -> Reader:
    """Read something off the distribution [vocabulary] of the first token of each answer."""
    seen: list[Seen] = [[_UNSEEN] * len(task.tokens) for _ in rows]
    done = 0
    for group in _groups(host, task.tokens, len(rows), columns=1):
        yield Progress(task.title, done, len(task.tokens))
        after = logprobs(host, [task.tokens[i] for i in group for _ in rows], rows * len(group))
        for place, line in enumerate(after):
            _sound(line)
            i, r = group[place // len(rows)], place % len(rows)
            seen[r][i] = read(i, line)
        done += len(group)
    yield Progress(task.title, done, len(task.tokens))
    return seen


def text(host: Host, task: Task, rows: list[Row]) -> Reader:
    """Log-probability of every token of a plain text after its first one."""
    seen: list[Seen] = [[_UNSEEN] * len(task.tokens) for _ in rows]
    done, longest = 0, max(len(ids) for ids in task.tokens)
    for group in _groups(host, task.tokens, len(rows), columns=longest):
        yield Progress(task.title, done, len(task.tokens))
        texts = [task.tokens[i] for i in group for _ in rows]
        begun, rest = [ids[:1] for ids in texts], [ids[1:] for ids in texts]
        distributions = teacher_forced(host, begun, rest, rows * len(group), plain=True)
        for place, distribution in enumerate(distributions):  # [tokens - 1, vocabulary]
            _sound(distribution)
            i, r = group[place // len(rows)], place % len(rows)
            index = torch.tensor(texts[place][1:])[:, None]
            picked = distribution.gather(1, index)[:, 0].double().numpy()
            seen[r][i] = Shown(task.prompts.prompts[i].text, picked)
        done += len(group)
    yield Progress(task.title, done, len(task.tokens))
    return seen


def divergence(
    host: Host, task: Task, rows: Sequence[Row], written: list[list[int]]
) -> Generator[Progress, None, tuple[Seen, list[Seen]]]:
    """KL(base ‖ row) at each token of the base's own greedy answer, all read in one batch.

    Args:
        written: the tokens of those answers.
    """
    base: Seen = []
    for ids in written:
        pieces = tuple(host.decode([token]) or "(end)" for token in ids)
        base.append(Shown(host.decode(ids), Divergence(np.zeros(len(ids)), pieces)))
    if not rows:
        return base, []
    side = len(rows) + 1  # the base is read beside them
    seen: list[Seen] = [[_UNSEEN] * len(base) for _ in rows]
    done = 0
    for group in _groups(host, task.tokens, side, columns=TOKENS):
        yield Progress(task.title, done, len(task.tokens))
        distributions = teacher_forced(
            host,
            [task.tokens[i] for i in group for _ in range(side)],
            [written[i] for i in group for _ in range(side)],
            [(), *rows] * len(group),
        )
        before: Tensor | None = None
        for place, distribution in enumerate(distributions):  # [T, vocabulary]
            i, r = group[place // side], place % side - 1
            if r < 0:
                before = distribution
                continue
            assert before is not None  # each group begins with its base
            _sound(distribution)
            said = host.decode(distribution.argmax(-1).tolist())
            pieces = base[i].observation.tokens
            seen[r][i] = Shown(said, Divergence(kl_by_token(before, distribution), pieces))
        done += len(group)
    yield Progress(task.title, done, len(task.tokens))
    return base, seen


def openings(host: Host, task: Task) -> Generator[Progress, None, list[tuple[int, ...]]]:
    """The first tokens of the base's own greedy answers."""
    found = yield from replies(host, task.tokens, None, TOKENS, stage=task.title)
    return [reply.tokens for reply in found]


def spellings(host: Host, word: str) -> list[int]:
    """Tokens that an answer beginning with this word may begin with.

    With and without a space before it, where that is one token; else the first token of the word.
    """
    unknown = host.tokenizer.unk_token_id
    spaced = (
        word,
        "\u0120" + word,
        "\u2581" + word,
    )  # of byte-level and SentencePiece vocabularies
    ids = {host.tokenizer.convert_tokens_to_ids(spelling) for spelling in spaced}
    ids |= {tokens[0] for text in (word, f" {word}") if len(tokens := host.tokens(text)) == 1}
    return sorted(ids - {None, unknown}) or host.tokens(word)[:1]


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


READERS: dict[str, Callable[..., Reader]] = {
    "answer": answers,
    "choice": choices,
    "first_words": first_words,
    "text": text,
}
