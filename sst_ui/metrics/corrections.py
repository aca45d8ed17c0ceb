"""Corrected labels: a person says what kind of answer it is, and the metrics follow.

The model is not asked again: an answer is scored with the label it was given. A correction belongs
to a prompt and an answer, not to a metric, so it counts wherever that answer is read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sst_ui import reach
from sst_ui import recipe as recipes
from sst_ui.data.prompt_sets import Prompt
from sst_ui.errors import UserError, unknown
from sst_ui.metrics.derived import derive
from sst_ui.metrics.registry import METRICS, Derived, Metric, Score, find
from sst_ui.metrics.results import (
    Goal,
    Item,
    MetricResult,
    difference,
    edited_scores,
    judge,
    measured,
)
from sst_ui.metrics.text.answer import Answer
from sst_ui.metrics.text.labels import EARLIER, LABELS, Label, current
from sst_ui.metrics.text.refusal_phrases import without_reasoning

FIELDS = ("prompt", "answer", "label")
SIDES = ("base", "edited")  # of a comparison


@dataclass(frozen=True)
class Correction:
    """What a person said an answer is; earlier versions' names of a label are understood."""

    prompt: str
    answer: str
    label: Label

    def __post_init__(self) -> None:
        label = current(self.label)
        if label is None:
            raise unknown("label", self.label, LABELS)
        object.__setattr__(self, "label", label)


@lru_cache(65_536)  # every panel that shows results asks for the same answers
def key(prompt: str, answer: str) -> str:
    """Twelve hex digits that stand for an answer to a prompt; its reasoning does not count."""
    return recipes.digest([prompt.strip(), without_reasoning(answer)])


def labels(corrections: Iterable[Correction]) -> dict[str, Label]:
    """Label by key, as `apply` wants it; of two about the same answer the later one counts."""
    return {key(c.prompt, c.answer): c.label for c in corrections}


def correct(
    corrections: Sequence[Correction], prompt: str, answer: str, label: Label | None
) -> tuple[Correction, ...]:
    """The corrections with one more; label None takes an answer's correction back."""
    name = key(prompt, answer)
    rest = tuple(c for c in corrections if key(c.prompt, c.answer) != name)
    return rest if label is None else (*rest, Correction(prompt, without_reasoning(answer), label))


def apply(
    results: Sequence[MetricResult], corrections: Mapping[str, Label]
) -> tuple[MetricResult, ...]:
    """The results as they are with corrected labels: items, values, verdicts, derived metrics.

    Args:
        results: as measured; those that read no label, or none of these answers, stay.
        corrections: label by `key` (see `labels` and `read`).
    """
    if not corrections:
        return tuple(results)
    known = {r.name: _rescored(r, corrections) if reads_labels(r) else r for r in results}
    changed = {name for r in results if known[name := r.name] is not r}
    for result in results:
        row = METRICS[result.name] if result.name in METRICS.names() else None
        if not isinstance(row, Derived) or not changed & set(row.sources):
            continue
        if known.keys() >= set(row.sources):
            known[row.name] = derive(row, {n: known[n] for n in row.sources}, _goal(row, result))
    return tuple(known[r.name] for r in results)


def counts(results: Sequence[MetricResult], corrections: Mapping[str, Label]) -> dict[str, int]:
    """How many corrected answers each metric reads; a derived one those of its sources."""
    hit = {}
    for result in results:
        found = {
            key(i.prompt, a) for i in result.items for a in (i.base, i.edited) if a is not None
        }
        hit[result.name] = (found & corrections.keys()) if reads_labels(result) else set()
    for name in hit:
        row = METRICS[name] if name in METRICS.names() else None
        if isinstance(row, Derived):
            hit[name] = set().union(*(hit.get(source, set()) for source in row.sources))
    return {name: len(found) for name, found in hit.items()}


def reads_labels(result: MetricResult) -> bool:
    """Whether a metric scores what kind of answer it is, so that a correction can change it."""
    return any(item.base_label in LABELS for item in result.items)


def rows(corrections: Iterable[Correction]) -> list[dict[str, str]]:
    """Corrections as plain data, for a browser to keep."""
    return [asdict(c) for c in corrections]


def from_rows(data: Any) -> tuple[Correction, ...]:
    """What `rows` gave; anything else in it is left out."""
    found = []
    for row in data if isinstance(data, list) else ():
        if isinstance(row, Mapping) and row.get("label") in (*LABELS, *EARLIER):
            prompt, answer = row.get("prompt"), row.get("answer")
            if isinstance(prompt, str) and isinstance(answer, str):
                found.append(Correction(prompt, answer, row["label"]))
    return tuple(found)


def read(path: str | Path) -> dict[str, Label]:
    """Labels by key from a JSON lines file of corrections (prompt, answer, label).

    Raises:
        UserError: the file cannot be read, or a line is no correction; it names the line.
    """
    path, found = Path(path), []
    reach.check(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"cannot read the labels {path}: {error.strerror}.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            found.append(_correction(line, f"{path.name}, line {number}"))
    return labels(found)


def to_jsonl(corrections: Iterable[Correction]) -> str:
    """JSON lines, one per correction; `read` understands them."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(corrections))


def _correction(line: str, where: str) -> Correction:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} (column {error.colno}).") from error
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is not a correction; it needs {', '.join(FIELDS)}.")
    for name in FIELDS:
        if not isinstance(row.get(name), str):
            raise UserError(f"{where}: {name} is {row.get(name)!r}; it must be text.")
    try:
        return Correction(*(row[name] for name in FIELDS))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _rescored(result: MetricResult, corrections: Mapping[str, Label]) -> MetricResult:
    metric = find(result.name)
    if not isinstance(metric, Metric):
        return result
    items = tuple(_item(metric, item, corrections) for item in result.items)
    if items == result.items:
        return result
    rate = metric.unit == "rate"
    before = [item.base_score for item in items]
    base, edited, apart = measured(before, rate, metric.transform), None, None
    if result.edited is not None:
        after = edited_scores(items)
        edited = measured(after, rate, metric.transform)
        apart = difference(before, after, rate)
    verdict = judge(apart, result.better, metric.negligible)
    return replace(result, items=items, base=base, edited=edited, difference=apart, verdict=verdict)


def _item(metric: Metric, item: Item, corrections: Mapping[str, Label]) -> Item:
    for side in SIDES:
        text = getattr(item, side)
        label = None if text is None else corrections.get(key(item.prompt, text))
        if label is None:
            continue
        score = metric.score(Prompt(item.prompt), Answer(text, label))
        if isinstance(score, Score) and score.value is not None:
            if side == "base":
                item = replace(item, base_label=score.label, base_score=float(score.value))
            else:
                item = replace(item, edited_label=score.label, edited_score=float(score.value))
    return item


def _goal(row: Derived, result: MetricResult) -> Goal:
    """What the edit was for, by which way was good then."""
    if not result.better:
        return "measure"
    return "remove" if result.better == row.better else "reinforce"
