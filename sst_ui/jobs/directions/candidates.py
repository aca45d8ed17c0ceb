"""Where the next decision may lie: positions of the answers that are still refused or evaded, each
with what the residuals there are compared with.

A refusal is decided before its first word is written, and again at the next ones ("I'm" may still
become "I'm glad"), so positions are looked at up to there; what differs later differs because other
words are said.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from sst_ui.maths.contrast import apart
from sst_ui.maths.decisions import ANSWER, PROMPT, REFUSAL, Decision
from sst_ui.maths.directions import Directions
from sst_ui.metrics.text.labels import Label
from sst_ui.metrics.text.refusal_phrases import is_refusal
from sst_ui.model.inference.answer_residuals import Along, along_answers
from sst_ui.model.inference.batch import Row
from sst_ui.model.inference.fisher_step import Conversation
from sst_ui.model.inference.residuals import residuals
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

FEW = 4  # answers that a mean is made of, at least
AT_ONCE = 2  # tokens of an answer before a refusal that counts as its beginning
BEFORE = (-1, 0)  # offsets from a late refusal's first token: the comma or full stop decides, or it
WITHIN = 2  # tokens of a refusal that are looked at
APOLOGY = 8  # tokens at most, as in "I'm sorry, but" before "I cannot"
ENDS = (".", "!", "?", ":", "。", "！", "？", "：")  # of a sentence
HELD, REFERENCE = 0, 1  # groups of conversations


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        prompt, answer: tokens.
        label: what kind of answer it is.
        onset: of a refusal, tokens before its first one; else None.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    label: Label
    onset: int | None = None

    @property
    def held(self) -> bool:
        """Whether it is still refused or evaded."""
        return self.label in ("refused", "evaded")

    @property
    def read(self) -> tuple[int, ...]:
        """The answer as far as it is looked at."""
        return self.answer if self.onset is None else self.answer[: self.onset + WITHIN]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A decision that may be the next, with its difference and reference, [L, d] each."""

    decision: Decision
    difference: Tensor
    reference: Tensor


def onset(host: Host, answer: Sequence[int]) -> int | None:
    """Tokens before the first refusal of an answer; None where none is found.

    The shortest beginning that refuses ends with the refusal; the shortest end of that which still
    refuses begins with it, or an apology a little before it in the same sentence does.
    """
    if not is_refusal(host.answer(answer)):
        return None
    n = len(answer)
    end = next((e for e in range(1, n + 1) if is_refusal(host.answer(answer[:e]))), n)
    start = next((s for s in range(end - 1, -1, -1) if is_refusal(host.decode(answer[s:end]))), 0)
    for earlier in range(start, max(-1, start - APOLOGY - 1), -1):
        if not earlier or host.decode(answer[earlier - 1 : earlier]).rstrip().endswith(ENDS):
            return earlier
    return start


def candidates(
    host: Host,
    directions: Directions,
    row: Row,
    said: Sequence[Said],
    harmless: Sequence[Conversation],
    active: Sequence[int],
    contrasts: Sequence[str],
) -> Generator[Progress, None, list[Candidate]]:
    """The decisions that may be next.

    Args:
        row: the edit that the answers were given under.
        said: the edited model's answers to the measuring prompts.
        harmless: harmless measuring prompts with their answers.
        active: layers that are edited.
        contrasts: of `harmless` and `inside`.
    """
    held = [each for each in said if each.held]
    longest = 1 + max(len(each.read) for each in held)
    number = len(directions.decisions) + 1
    references: dict[str, Sequence[Conversation]] = {
        "harmless": harmless,
        "inside": [(s.prompt, s.answer) for s in said if s.label == "delivered"],
    }
    found: list[Candidate] = []
    for name in contrasts:
        others = references[name]
        if len(others) < FEW:
            continue
        talks = [*((s.prompt, s.read) for s in held), *others]
        groups = [HELD] * len(held) + [REFERENCE] * len(others)
        mine, other = yield from along_answers(host, talks, groups, longest, row)
        chart = _chart(mine, other, directions)
        for anchor, offset, where in _places(held, chart, active):
            heads = [(*s.prompt, *s.answer[:p]) for s, p in where]
            lengths = [len(s.prompt) for s, _ in where]
            here = yield from residuals(host, heads, rows=[row] * len(heads), lengths=lengths)
            positions = [p for _, p in where]
            reference = torch.stack([other.mean[p] for p in positions]).mean(0)  # [L, d]
            mean = here.double().mean(0)
            score = apart(mean - reference, mean, reference, directions.vectors)  # [L]
            layer = max((float(score[i]), i) for i in active)[1]
            place = int(median(positions))
            decision = Decision(
                number, anchor, offset, place, layer, name, tuple(heads), chart.float()
            )
            found.append(Candidate(decision, mean - reference, reference))
    return found


def _chart(mine: Along, other: Along, directions: Directions) -> Tensor:
    """[P, L] how far the groups lie apart, nan where one has too few answers."""
    chart = apart(mine.mean - other.mean, mine.mean, other.mean, directions.vectors)
    few = torch.minimum(mine.count, other.count) < FEW
    chart[few] = float("nan")
    return chart


Place = tuple[str, int, list[tuple[Said, int]]]  # anchor, offset, answers with their positions


def _places(held: Sequence[Said], chart: Tensor, active: Sequence[int]) -> list[Place]:
    """Position classes to look at, none of them twice."""
    known = ~chart.isnan().all(-1)  # [P]
    at_once = [s for s in held if s.onset is not None and s.onset <= AT_ONCE]
    late = [s for s in held if s.onset is not None and s.onset > AT_ONCE]
    places: list[Place] = [(PROMPT, 0, [(s, 0) for s in at_once])]
    for offset in BEFORE:
        where = [(s, s.onset + offset) for s in late if s.onset is not None]
        places.append((REFUSAL, offset, where))
    score = chart[:, list(active)].nanmean(-1).nan_to_num(-1.0)  # [P]
    peak = int(score.argmax())
    places.append((ANSWER, peak, [(s, peak) for s in held if len(s.read) >= peak]))
    found: list[Place] = []
    seen: list[Counter[tuple[int, int]]] = []
    for anchor, offset, where in places:
        where = [(s, p) for s, p in where if known[p]]
        same = Counter((id(s), p) for s, p in where)
        if len(where) >= min(FEW, len(held)) and same not in seen:
            seen.append(same)
            found.append((anchor, offset, where))
    return found
