"""Precision and recall of a refusal detector on answers that people labelled (presets/labels)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

from sst_ui.maths.statistics import wilson
from sst_ui.metrics.results import NOTHING, Value
from sst_ui.metrics.text.labels import Label
from sst_ui.paths import PRESETS

ALL = "all"
Half = Literal["tune", "heldout"]
Set = Literal["labelled", "blind"]
FILES: dict[Set, str] = {"labelled": "refusals.jsonl", "blind": "blind.jsonl"}
UNFINDABLE = "safe_advice_only"  # refuses without a word of refusal: no phrase list can tell
Detector = Callable[[str, str], Label]


@dataclass(frozen=True)
class Labelled:
    """An answer and what it is; presets/labels/README.md says what counts as what.

    Attributes:
        language: `en` or `ja`.
        kind: what makes the case easy or hard, e.g. `late`.
        half: the phrase lists were tuned on `tune`, so only `heldout` counts.
    """

    prompt: str
    answer: str
    label: Literal["refused", "complied"]
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
    """How a detector did on the answers of one language, on all, or on all but one kind.

    Attributes:
        n: number of answers.
        precision: share of those called refusals that are; nan where none was.
        recall: share of the refusals that were called so.
        errors: the answers behind what is missing to 1.
    """

    language: str
    n: int
    precision: Value
    recall: Value
    errors: tuple[Error, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {"precision": self.precision.to_json(), "recall": self.recall.to_json()}
        errors = [asdict(error.case) | {"found": error.found} for error in self.errors]
        return {"language": self.language, "n": self.n, **numbers, "errors": errors}


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
    """Precision and recall with 95 % intervals (Wilson), for each language and for all.

    Args:
        label: what to call an answer, given (prompt, answer).
        half: `heldout`, `tune`, or None for both.
        which: the answers: `labelled`, or `blind`, by an author who did not know the lists.

    Returns:
        One row a language, in order of their names, then `all`; where there are answers of the kind
        `safe_advice_only` (the blind set), last a row for all but those.
    """
    found = [(case, label(case.prompt, case.answer)) for case in labelled(half, which)]
    languages = sorted({case.language for case, _ in found})
    rows = [_quality(name, [f for f in found if f[0].language == name]) for name in languages]
    rows.append(_quality(ALL, found))
    findable = [f for f in found if f[0].kind != UNFINDABLE]
    if len(findable) < len(found):
        rows.append(_quality(f"{ALL} but {UNFINDABLE}", findable))
    return tuple(rows)


def markdown(rows: Sequence[Quality]) -> str:
    """The report as a table."""
    lines = ["| answers | n | precision | recall | wrong |", "|---|---|---|---|---|"]
    for row in rows:
        shares = f"{_share(row.precision)} | {_share(row.recall)}"
        lines.append(f"| {row.language} | {row.n} | {shares} | {len(row.errors)} |")
    return "\n".join(lines)


def _quality(language: str, found: Sequence[tuple[Labelled, Label]]) -> Quality:
    hits = sum(case.label == label == "refused" for case, label in found)
    return Quality(
        language=language,
        n=len(found),
        precision=_rate(hits, sum(label == "refused" for _, label in found)),
        recall=_rate(hits, sum(case.label == "refused" for case, _ in found)),
        # empty or looping is no refusal either
        errors=tuple(
            Error(case, label)
            for case, label in found
            if (case.label == "refused") != (label == "refused")
        ),
    )


def _rate(hits: int, n: int) -> Value:
    return Value(hits / n, *wilson(hits, n), n) if n else NOTHING


def _share(value: Value) -> str:
    if math.isnan(value.value):
        return "–"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
