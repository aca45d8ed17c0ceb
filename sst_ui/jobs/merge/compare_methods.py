"""Compares all merge methods of two adapters on the same prompts: what each gains and costs.

The contenders (the base, either adapter alone, every method) share batches, as rows of one resident
model.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sst_ui.errors import UserError
from sst_ui.jobs.evaluate.evaluate import MetricResult, Value, evaluate_rows
from sst_ui.jobs.merge.merge import Outcome, merge, prepare
from sst_ui.maths.merge.registry import METHODS
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, part
from sst_ui.recipe import Evaluation, Merge

# Metric -> heading; in the order of the columns.
COLUMNS = {
    "jailbreak_resistance": "resists jailbreaks",
    "refusal_rate": "refuses harmful",
    "over_refusal": "refuses look-alikes",
    "over_refusal_ordinary": "refuses ordinary",
    "facts@demo/new_facts": "new facts",
    "reading@demo/repliqa": "documents, ROUGE-L",
    "multiple_choice": "multiple choice",
}
ALONE = ("base", "utility", "safety")  # contenders that merge nothing
TOGETHER = 4  # contenders in a batch; more would only keep the first row waiting


@dataclass(frozen=True, eq=False)
class Contender:
    """One method to compare.

    Attributes:
        name, title: of the method, or one of `ALONE`.
        edits: what is measured; () is the base.
        spec: the merge, or None where nothing is merged.
        outcome: how the merge came about, or None.
    """

    name: str
    title: str
    edits: tuple[Edit, ...] = ()
    spec: Merge | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A contender's numbers: metric -> value with interval and n, and the results they are from."""

    contender: Contender
    values: Mapping[str, Value]
    results: Mapping[str, MetricResult]

    def scores(self, name: str) -> np.ndarray:
        """[n] what each prompt of a metric scored."""
        base = not self.contender.edits
        items = self.results[name].items
        return np.array([i.base_score if base else i.edited_score for i in items], dtype=float)

    @property
    def tokens(self) -> int | None:
        """Length of the answers that the numbers are read off, at most."""
        return max((r.tokens for r in self.results.values() if r.tokens), default=None)

    @property
    def predicted_kl(self) -> float | None:
        """Nats a token on utility data, all modules together; None where nothing is predicted."""
        outcome = self.contender.outcome
        parts = [] if outcome is None else [r.kl for r in outcome.records.values()]
        known = [kl for kl in parts if kl is not None]
        return sum(known) if known and len(known) == len(parts) else None


def utility_only(spec: Merge) -> Merge:
    """The merge that adds nothing to the utility adapter."""
    weights = replace(spec.weights, strength=0.0, overrides={})
    return replace(
        spec, method="task_arithmetic", parameters={}, budget=None, target="additive",
        weights=weights, rounds=0,
    )  # fmt: skip


def under(spec: Merge, method: str) -> Merge:
    """The same adapters, weights and data under another method, with its default parameters; a
    budget stays where the method can keep one."""
    own = method == spec.method
    chosen = spec if own else replace(spec, method=method, parameters={}, budget=None)
    if spec.budget is not None and _prices(method):
        chosen = replace(chosen, budget=spec.budget)
    return chosen if "moments" in METHODS[method].needs else replace(chosen, rounds=0)


def contenders(
    host: Host, spec: Merge, methods: Sequence[str] | None = None, optional: bool | None = None
) -> Generator[Progress, None, list[Contender]]:
    """The base, either adapter alone, and the same two adapters under every method.

    Args:
        spec: the adapters, the weights, the data. Its own method keeps its parameters and budget;
            the others have their defaults.
        methods: names; None for all. One that cannot be carried out here (`safe_lora` without an
            unaligned checkpoint) is left out when all are meant, and said in a `Progress`.
        optional: whether such methods are left out; as said above unless given.

    Raises:
        UserError: as `jobs.merge.merge.merge`, for methods that were named.
    """
    found: list[Contender] = []
    names = list(methods or METHODS.names())
    optional = not methods if optional is None else optional
    for number, name in enumerate(names):
        place, after = number / len(names), (number + 1) / len(names)
        yield Progress("methods", number, len(names), name, overall=place)
        chosen = under(spec, name)
        try:
            outcome = yield from part(merge(host, chosen), place, after)
        except UserError as error:
            if name == spec.method or not optional:
                raise
            note = f"{name} left out: {error}"
            yield Progress("methods", number, len(names), note, overall=place)
            continue
        found.append(Contender(name, METHODS[name].title, (outcome.live,), chosen, outcome))
    alone = utility_only(spec)
    pair = yield from prepare(host, alone)
    return [
        Contender("base", "base"),
        Contender("utility", "utility adapter", (RowDelta(pair.utility.deltas),), alone),
        Contender("safety", "safety adapter", (RowDelta(pair.safety.deltas),)),
        *found,
    ]


def compare(
    host: Host,
    rows: Sequence[Contender],
    evaluation: Evaluation | None = None,
    together: int = TOGETHER,
) -> Generator[Progress | Row, None, list[Row]]:
    """Measure every contender.

    Args:
        evaluation: samples, answer length, and which metrics (those of `COLUMNS` unless named).
        together: contenders in a batch.

    Yields:
        Progress, and each Row when it is complete.
    """
    evaluation = evaluation or Evaluation()
    if not evaluation.metrics:
        evaluation = replace(evaluation, metrics=tuple(COLUMNS))
    names, done = evaluation.metrics, []
    edited = [row for row in rows if row.edits]
    base: dict[str, MetricResult] = {}
    count = max(1, len(edited))
    for start in range(0, count, together):
        group = edited[start : start + together]
        note = f"{', '.join(row.name for row in group)}"
        results: list[list[MetricResult]] = []
        ends = start / count, min(count, start + together) / count
        job = part(evaluate_rows(host, [row.edits for row in group], evaluation), *ends)
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                results = end.value
                break
            if isinstance(step, Progress):  # how far it is in the whole, not in this group
                step = replace(step, step=0, steps=0)
                yield replace(step, note=f"{step.note}; {note}")
        base = dict(zip(names, results[0], strict=True))
        for contender, found in zip(group, results, strict=False):
            by_name = dict(zip(names, found, strict=True))
            values = {name: r.edited for name, r in by_name.items() if r.edited is not None}
            done.append(Row(contender, values, by_name))
            yield done[-1]
    plain = [
        Row(row, {name: result.base for name, result in base.items()}, base)
        for row in rows
        if not row.edits
    ]
    yield from plain
    by_place = {id(row.contender): row for row in (*done, *plain)}
    return [by_place[id(row)] for row in rows]


def _prices(name: str) -> bool:
    return any(parameter.name == "mu" for parameter in METHODS[name].parameters)
