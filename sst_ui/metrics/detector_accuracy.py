"""Precision and recall of labels, on answers that people labelled (presets/labels)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from sst_ui.maths.statistics import wilson
from sst_ui.metrics.results import NOTHING, Value
from sst_ui.metrics.text.answer import Answer
from sst_ui.metrics.text.labels import LABELS, Label
from sst_ui.paths import PRESETS

ALL = "all"
Half = Literal["tune", "heldout"]
Set = Literal["labelled", "blind", "four"]
FILES: dict[Set, str] = {
    "labelled": "refusals.jsonl", "blind": "blind.jsonl", "four": "four.jsonl",
}  # fmt: skip
CUT_OFF = "cut_off"  # ends where the length limit was, not where the model would have
UNFINDABLE = "safe_advice_only"  # refuses without a word of refusal: no phrase list can tell
Detector = Callable[[str, str], Label]


@dataclass(frozen=True)
class Labelled:
    """An answer and what it is; presets/labels/README.md says what counts as what.

    Attributes:
        language: of the seven with a phrase list; the first two sets are in `en` and `ja`.
        kind: what makes the case easy or hard, e.g. `late`.
        half: the rules were tuned on `tune`, so only `heldout` counts.
    """

    prompt: str
    answer: str
    label: Label
    language: str
    kind: str
    half: Half


@dataclass(frozen=True)
class Error:
    """An answer that the detector took for something else."""

    case: Labelled
    found: Label


@dataclass(frozen=True)
class Quality:
    """How a detector did at one label, on the answers of one language, on all, or all but a kind.

    Attributes:
        answers: which ones, in a word.
        n: number of answers.
        precision: share of those called so that are; nan where none was.
        recall: share of those that are that were called so.
        errors: the answers behind what is missing to 1.
    """

    answers: str
    n: int
    precision: Value
    recall: Value
    errors: tuple[Error, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {"precision": self.precision.to_json(), "recall": self.recall.to_json()}
        errors = [asdict(error.case) | {"found": error.found} for error in self.errors]
        return {"answers": self.answers, "n": self.n, **numbers, "errors": errors}


@cache
def labelled(half: Half | None = None, which: Set = "labelled") -> tuple[Labelled, ...]:
    """The answers of one half, or all of them: the project's own, or the blind set's."""
    path = PRESETS / "labels" / FILES[which]
    lines = path.read_text(encoding="utf-8").splitlines()
    cases = (Labelled(**json.loads(line)) for line in lines)
    return tuple(case for case in cases if half in (None, case.half))


def report(
    label: Detector, half: Half | None = "heldout", which: Set = "labelled"
) -> tuple[Quality, ...]:
    """Precision and recall of refusals with 95 % intervals (Wilson), by language and for all.

    Args:
        label: what to call an answer, given (prompt, answer); the answer says whether it ended.
        half: `heldout`, `tune`, or None for both.
        which: the answers: `labelled`; `blind`, by an author who did not know the lists; `four`,
            with all four labels.

    Returns:
        One row per language, in order of their names, then `all`; for answers of the kind
        `safe_advice_only` (the blind set), last a row for all but those.
    """
    found = _found(label, half, which)
    languages = sorted({case.language for case, _ in found})
    rows = [_quality(name, [f for f in found if f[0].language == name]) for name in languages]
    rows.append(_quality(ALL, found))
    findable = [f for f in found if f[0].kind != UNFINDABLE]
    if len(findable) < len(found):
        rows.append(_quality(f"{ALL} but {UNFINDABLE}", findable))
    return tuple(rows)


def by_label(
    label: Detector, half: Half | None = "heldout", which: Set = "four"
) -> tuple[Quality, ...]:
    """Precision and recall of each of the four labels, on all answers; arguments as of `report`."""
    found = _found(label, half, which)
    return tuple(_quality(name, found, name) for name in LABELS)


def agreement(label: Detector, half: Half | None = "heldout", which: Set = "four") -> Value:
    """Share of the answers that got the label that people gave them."""
    found = _found(label, half, which)
    return _rate(sum(case.label == label for case, label in found), len(found))


def markdown(rows: Sequence[Quality], first: str = "answers") -> str:
    """A report as a table; `first` is the heading of its first column."""
    lines = [f"| {first} | n | precision | recall | wrong |", "|---|---|---|---|---|"]
    for row in rows:
        shares = f"{_share(row.precision)} | {_share(row.recall)}"
        lines.append(f"| {row.answers} | {row.n} | {shares} | {len(row.errors)} |")
    return "\n".join(lines)


def _found(label: Detector, half: Half | None, which: Set) -> list[tuple[Labelled, Label]]:
    """Every answer with what the detector calls it."""
    found = []
    for case in labelled(half, which):
        answer = Answer(case.answer, ended=False) if case.kind == CUT_OFF else case.answer
        found.append((case, label(case.prompt, answer)))
    return found


def _quality(
    answers: str, found: Sequence[tuple[Labelled, Label]], what: Label = "refused"
) -> Quality:
    hits = sum(case.label == label == what for case, label in found)
    return Quality(
        answers=answers,
        n=len(found),
        precision=_rate(hits, sum(label == what for _, label in found)),
        recall=_rate(hits, sum(case.label == what for case, _ in found)),
        errors=tuple(
            Error(case, label) for case, label in found if (case.label == what) != (label == what)
        ),
    )


def _rate(hits: int, n: int) -> Value:
    return Value(hits / n, *wilson(hits, n), n) if n else NOTHING


def _share(value: Value) -> str:
    if math.isnan(value.value):
        return "–"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
