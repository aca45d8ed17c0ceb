"""An evaluation: every metric of the base and the edited model, with intervals and a verdict.

Metrics on the same prompt set share one pass over it. Nothing is written.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
import yaml

import sst_ui.metrics  # noqa: F401  registers the metrics
from sst_ui.errors import UserError
from sst_ui.jobs.evaluate.answer_labels import Labeller
from sst_ui.jobs.evaluate.apart import prompts
from sst_ui.jobs.evaluate.observations import Task, observe, prepare
from sst_ui.jobs.purpose import goal
from sst_ui.metrics.derived import derive
from sst_ui.metrics.registry import Derived, Metric, Reads, default_metrics, find
from sst_ui.metrics.results import Item, MetricResult, Value, compare
from sst_ui.metrics.text import languages
from sst_ui.model.hooks.live_edits import Edit, RowEdit, RowFilter
from sst_ui.model.runtime.host import Host
from sst_ui.paths import PRESETS
from sst_ui.progress import Progress
from sst_ui.recipe import Evaluation

__all__ = ["Item", "MetricResult", "Value", "evaluate", "evaluate_rows"]

T = TypeVar("T")
PROMPT = 4  # steps of a decoding that reading a prompt costs, about


def evaluate(
    host: Host, edits: tuple[Edit, ...], evaluation: Evaluation
) -> Generator[Progress | MetricResult, None, list[MetricResult]]:
    """Compute metrics on held-out prompts, greedily, base and edited in the same batches.

    Args:
        edits: what to compare with the base; () measures the base alone.
        evaluation: which metrics (empty: the default ones; `name@prompts` for other prompts), how
            many prompts of each set, how long the answers, who labels them.

    Yields:
        Progress, and each MetricResult as soon as it is known. Closing the generator stops the work
        within one token; what was yielded stays good.

    Returns:
        All results in the order in which they were asked for.

    Raises:
        UserError: an unknown metric or prompt set, a bad prompt file, a prompt that is too long, a
            judge that cannot be used; all before anything is computed.
    """
    with closing(evaluate_rows(host, [edits] if edits else [], evaluation)) as job:
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                return end.value[0]
            yield step[0] if isinstance(step, tuple) else step


def evaluate_rows(
    host: Host, rows: Sequence[tuple[Edit, ...]], evaluation: Evaluation
) -> Generator[Progress | tuple[MetricResult, ...], None, list[list[MetricResult]]]:
    """The same for many edits at once: all rows and the base share every batch.

    Args:
        rows: the edits of each row; none at all measures the base alone.

    Yields:
        Progress, and of each metric its results as a tuple, one per row (or the base's alone).

    Returns:
        For each row its results, in the order in which they were asked for.
    """
    wanted = [find(name) for name in dict.fromkeys(evaluation.metrics or default_metrics())]
    passes = _passes(host, wanted, evaluation)
    labeller = Labeller.of(evaluation)
    # an edit of strength 0 is the base: its answers are the base's, to the bit
    active = [tuple(edit for edit in edits if _acts(edit)) for edits in rows]
    aims = [goal(edits, evaluation.goal) for edits in rows or [()]]
    results: dict[str, tuple[MetricResult, ...]] = {}
    for number, (task, metrics) in enumerate(passes, start=1):
        labels = labeller if _labelled(metrics) else None
        job = _observed(host, task, [edits for edits in active if edits], labels)
        base, seen = yield from _counted(job, number, [_cost(task) for task, _ in passes])
        left = iter(seen)
        columns: list[list | None] = [next(left) if edits else base for edits in active] or [None]
        for metric in metrics:
            found = []
            for edited, edits, aim in zip(columns, rows or [()], aims, strict=True):
                result = compare(metric, task.prompts.prompts, base, edited, aim)
                notes = (_held_out(metric, edits), _labels(metric, labeller, result))
                tokens = task.max_new_tokens if metric.reads == "answer" else None
                note = "; ".join(filter(None, notes))
                found.append(replace(result, note=note, tokens=tokens))
            results[metric.name] = tuple(found)
            if metric in wanted:
                yield results[metric.name]
        for row in wanted:
            if not isinstance(row, Derived) or row.name in results:
                continue
            if results.keys() >= set(row.sources):
                results[row.name] = tuple(
                    derive(row, {name: results[name][place] for name in row.sources}, aim)
                    for place, aim in enumerate(aims)
                )
                yield results[row.name]
    return [[results[row.name][place] for row in wanted] for place in range(len(aims))]


def limits(evaluation: Evaluation, model: str) -> tuple[int | None, int]:
    """Prompts of each set (None: all) and tokens of an answer: the preset's unless said.

    Args:
        model: its id; the demo has lengths of its own.
    """
    preset = _presets()[evaluation.preset]
    samples = preset["samples"] if evaluation.samples is None else evaluation.samples
    length = preset["demo" if model == "demo" else "max_new_tokens"]
    return samples, evaluation.max_new_tokens or length


@cache
def _presets() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((PRESETS / "evaluation.yaml").read_text(encoding="utf-8"))


def _acts(edit: Edit) -> bool:
    return bool(np.any(edit.alpha) if isinstance(edit, RowEdit) else edit.active())


def _observed(
    host: Host, task: Task, rows: Sequence[tuple[Edit, ...]], labeller: Labeller | None
) -> Generator[Progress, None, tuple[list, list[list]]]:
    """What all of them do, labelled by the labeller where there is one."""
    base, seen = yield from observe(host, task, rows)
    if labeller is not None:
        prompts_ = [prompt.user for prompt in task.prompts.prompts]
        base = yield from labeller.label(prompts_, base)
        labelled = []
        for edited in seen:
            labelled.append((yield from labeller.label(prompts_, edited)))
        seen = labelled
    return base, seen


def _labelled(metrics: list[Metric]) -> bool:
    return any(metric.labels for metric in metrics)


def _labels(metric: Metric, labeller: Labeller, result: MetricResult) -> str:
    """Who labelled the answers, and whether the phrase lists could."""
    if not metric.labels or labeller.judge:
        return labeller.note if metric.labels else ""
    sides = ([item.base for item in result.items], [item.edited or "" for item in result.items])
    return "; ".join(filter(None, dict.fromkeys(languages.note(side) for side in sides)))


def _held_out(metric: Metric, edits: tuple[Edit, ...]) -> str:
    """A warning where directions were measured on the very prompt set of the metric."""
    sources = {
        edit.directions.meta.get(role, "").rpartition(" (")[0]
        for edit in edits
        if isinstance(edit, RowEdit | RowFilter)
        for role in ("harmful", "harmless", "concepts", "select")
    }
    sources |= {name for edit in edits if isinstance(edit, RowFilter) for name in edit.sources}
    if metric.prompts not in sources:
        return ""
    return f"not held out: directions were measured on {metric.prompts}"


def _leaves(wanted: Sequence[Metric | Derived]) -> list[Metric]:
    """The metrics that need answers, with the sources of derived ones."""
    leaves: dict[str, Metric] = {}
    for row in wanted:
        for metric in [find(n) for n in row.sources] if isinstance(row, Derived) else [row]:
            if isinstance(metric, Derived):
                raise UserError(
                    f"{row.title} ({row.name}) is made of {metric.name}, which is itself made of "
                    "others; give it metrics that score prompts."
                )
            leaves[metric.name] = metric
    return list(leaves.values())


def grouped(wanted: Sequence[Metric | Derived]) -> dict[tuple[Reads, str], list[Metric]]:
    """What is needed for these, by what is read on which prompts, in the order of first use: each
    group takes one pass."""
    groups: dict[tuple[Reads, str], list[Metric]] = {}
    for metric in _leaves(wanted):
        groups.setdefault((metric.reads, metric.prompts), []).append(metric)
    return groups


def _passes(
    host: Host, wanted: Sequence[Metric | Derived], evaluation: Evaluation
) -> list[tuple[Task, list[Metric]]]:
    """The work of each pass, with the metrics that come of it."""
    samples, tokens = limits(evaluation, host.spec.id)
    passes = []
    for (reads, name), members in grouped(wanted).items():
        title = members[0].title
        try:
            chosen = prompts(name, samples, evaluation)
        except UserError as error:
            raise UserError(f"{title}: {error}") from error
        passes.append((prepare(host, reads, chosen, tokens, title), members))
    return passes


def _cost(task: Task) -> float:
    """About how many forward passes of one prompt a task takes."""
    tokens = task.max_new_tokens if task.reads == "answer" else 0
    return len(task.tokens) * (PROMPT + tokens)


def _counted(
    job: Generator[Progress, None, T], number: int, costs: Sequence[float]
) -> Generator[Progress, None, T]:
    """The same job, its progress saying which part of the evaluation it is."""
    before, own, whole = sum(costs[: number - 1]), costs[number - 1], sum(costs) or 1.0
    reached = 0.0
    while True:
        try:
            step = next(job)
        except StopIteration as end:
            return end.value
        reached = max(reached, (before + own * step.fraction) / whole)  # a judge begins anew
        yield replace(step, step=number, steps=len(costs), overall=reached)
