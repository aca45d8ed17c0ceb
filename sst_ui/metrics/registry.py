"""The registry: a metric is one row of facts about it and one function that scores one prompt.

To add a metric, write the function and decorate it:

    @metric("polite", title="Says please", unit="rate", better="high", prompts="demo/harmless")
    def polite(prompt: Prompt, answer: str) -> bool:
        return "please" in answer.lower()
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sst_ui.errors import unknown
from sst_ui.registry import Registry

Unit = Literal["rate", "score", "nats", "nats/token", "perplexity"]  # rate: yes or no, 0..1
Better = Literal["high", "low"]
Reads = Literal["answer", "choice", "first_words", "refusals", "divergence", "text"]

# Changes up to this size are negligible, however sure they are; a metric may set its own.
# A percentage point; a hundredth of a ROUGE-L F1; 0.1 nats of log-odds; of KL 0.01 nats/token,
# about 1 % of a token's probability; of perplexity the same, as means are compared before exp.
NEGLIGIBLE: Mapping[Unit, float] = {
    "rate": 0.01, "score": 0.01, "nats": 0.1, "nats/token": 0.01, "perplexity": 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """What one answer is worth: `value` None leaves the prompt out; `label` is a word about it."""

    value: float | None
    label: str = ""


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    Attributes:
        unit: rates get Wilson intervals and McNemar's test, everything else the bootstrap.
        better: which way is good; `follows_goal` turns it round where refusal is being reinforced.
        prompts: the prompt set it runs on.
        reads: what `score` gets beside the prompt: the greedy `answer` (see `Answer`), `choice`
            (one log-likelihood per letter), `first_words` (log-odds that the answer begins like a
            refusal), `refusals` (log-odds that it refuses where the base's answer does),
            `divergence` (KL at each token of the base's answer), `text` (log-probability of each
            token of a plain text).
        score: (prompt, observation) -> Score, number, bool, or None to leave the prompt out.
        labels: whether it goes by `answer.label`, so that a judge or a corrected label counts.
        default: whether an evaluation that names no metrics computes it.
        negligible: changes up to this size are negligible, however sure they are. Of a perplexity,
            in nats/token.
        transform: applied to the mean and its bounds (perplexity is the exponential of a mean).
    """

    name: str
    title: str
    unit: Unit
    better: Better
    prompts: str
    reads: Reads
    score: Callable[[Any, Any], Any]
    negligible: float
    follows_goal: bool = False
    labels: bool = False
    default: bool = True
    transform: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Derived:
    """A number made of other metrics.

    Attributes:
        sources: names of the metrics it is made of.
        negligible: as of a `Metric`.
        combine: mapping of source name -> MetricResult, to the base's and the edited model's Value;
            the second is None where the edited model was not measured.
    """

    name: str
    title: str
    unit: Unit
    better: Better
    sources: tuple[str, ...]
    combine: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    negligible: float
    follows_goal: bool = False
    default: bool = True


METRICS: Registry[Metric | Derived] = Registry("metric")
# What an edit is judged by in any case: a search's last word, lists of runs and of variants.
SUMMARY = ("refusal_rate", "kl_16", "quality")


def metric(
    name: str,
    *,
    title: str,
    unit: Unit,
    better: Better,
    prompts: str,
    reads: Reads = "answer",
    negligible: float | None = None,
    **more: Any,
) -> Callable[[Callable], Callable]:
    """Decorate a scoring function to make it a metric; `more` are further fields of `Metric`.

    Args:
        negligible: by default what NEGLIGIBLE says of the unit.

    Raises:
        UserError: a unit, direction or kind of observation that there is not, or a name that is
            taken.
    """
    for what, value, kind in (("unit", unit, Unit), ("better", better, Better)):
        if value not in get_args(kind):
            raise unknown(f"{what} of metric {name!r}", value, get_args(kind))
    if reads not in get_args(Reads):
        raise unknown(f"reads of metric {name!r}", reads, get_args(Reads))
    size = NEGLIGIBLE[unit] if negligible is None else negligible

    def add(function: Callable) -> Callable:
        METRICS.add(Metric(name, title, unit, better, prompts, reads, function, size, **more))
        return function

    return add


def derived(
    name: str,
    *,
    title: str,
    unit: Unit,
    better: Better,
    sources: tuple[str, ...],
    negligible: float | None = None,
    **more: Any,
) -> Callable[[Callable], Callable]:
    """Decorate a combining function to make it a derived metric; `negligible` as in `metric`."""
    size = NEGLIGIBLE[unit] if negligible is None else negligible

    def add(function: Callable) -> Callable:
        METRICS.add(Derived(name, title, unit, better, sources, function, size, **more))
        return function

    return add


def find(name: str) -> Metric | Derived:
    """A metric by name; `refusal_rate@mine.jsonl` is that metric on other prompts.

    Raises:
        UserError: unknown name, or other prompts for a metric that has none of its own.
    """
    bare, at, prompts = name.partition("@")
    row = METRICS[bare.strip()]
    if not at:
        return row
    if isinstance(row, Derived):
        raise unknown("metric with prompts of its own", name, _with_prompts())
    place, query, settings = prompts.partition("?")
    title = f"{row.title} ({Path(place).name}{query}{settings})"
    return replace(row, name=name, title=title, prompts=prompts.strip())


def prompts_named(name: str) -> str | None:
    """The prompts that a name such as `refusal_rate@mine.jsonl` asks for; None where it does not.

    Raises:
        UserError: as `find`.
    """
    row = find(name)
    return row.prompts if "@" in name and isinstance(row, Metric) else None


def describe(row: Metric | Derived) -> dict[str, Any]:
    """A row of the registry as plain data; `what` is the first sentence of its function's text."""
    text = inspect.getdoc(row.score if isinstance(row, Metric) else row.combine) or ""
    return {
        "name": row.name,
        "title": row.title,
        "unit": row.unit,
        "better": row.better,
        "follows_goal": row.follows_goal,
        "default": row.default,
        "negligible": row.negligible,
        "reads": row.reads if isinstance(row, Metric) else None,
        "prompts": row.prompts if isinstance(row, Metric) else None,
        "sources": [] if isinstance(row, Metric) else list(row.sources),
        "what": " ".join(text.split("\n\n")[0].split()),
    }


def default_metrics() -> list[str]:
    """Names of the metrics that an evaluation computes when it names none."""
    return [row.name for row in METRICS if row.default]


def _with_prompts() -> list[str]:
    return [row.name for row in METRICS if isinstance(row, Metric)]
