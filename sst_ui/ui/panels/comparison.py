"""All variants over the main metrics in one figure."""

from collections.abc import Mapping, Sequence

from plotly.graph_objects import Figure

from sst_ui.metrics.results import MetricResult, Value
from sst_ui.ui.panels import metrics
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets import plots, samples
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.numbers import exact, number, scale
from sst_ui.ui.widgets.samples import Sample
from sst_ui.ui.widgets.texts import say

AXES = (
    "refusal_rate", "delivered", "evaded", "jailbreak_resistance", "jailbreak_refusal",
    "over_refusal", "over_refusal_ordinary", "degenerate", "kl_1", "facts",
    "multiple_choice", "reading", "quality",
)  # fmt: skip
LINES = 8  # variants beside the base, the newest


def figure(board: Board) -> Figure:
    """One line per variant, and the base; a sentence while nothing was measured."""
    lang, known = board.language, _shown(board)
    now = dict(known).get(board.variants.current) or (known[-1][1] if known else {})
    axes = [now[name] for name in AXES if name in now and now[name].edited is not None]
    if not axes:
        return plots.empty(say(lang, "compare.empty"))
    ends = {a.name: _end(a.name, known) for a in axes}
    names = [metrics.title(lang, a.name, a.title) for a in axes]
    ticks = []
    for axis, name in zip(axes, names, strict=True):
        worst, best = _limits(axis, ends[axis.name])
        ticks.append((plots.wrapped(name), best, worst))
    base = {a.name: (a.base, Sample(a.base.n, a.tokens)) for a in axes}
    lines = [(say(lang, "chat.base"), base)]
    for variant, found in known:
        measured = {n: (r.edited, Sample.of(r)) for n, r in found.items() if r.edited is not None}
        lines.append((shown_name(lang, variant), measured))
    drawn = [_line(lang, name, values, axes, ends) for name, values in lines]
    return plots.compare(ticks, drawn, shown_name(lang, board.variants.current))


def _line(
    language: str,
    name: str,
    values: Mapping[str, tuple[Value, Sample]],
    axes: Sequence[MetricResult],
    ends: Mapping[str, float],
) -> plots.Line:
    """One variant on all axes; hollow where its sample is not that of the axis."""
    nothing: tuple[Value | None, Sample | None] = (None, None)
    found = [values.get(a.name, nothing) for a in axes]
    return plots.Line(
        name,
        [_height(value, a, ends[a.name]) for a, (value, _) in zip(axes, found, strict=True)],
        [_told(language, value, sample, a)
         for a, (value, sample) in zip(axes, found, strict=True)],
        [sample is not None and not sample.equals(Sample.of(a))
         for a, (_, sample) in zip(axes, found, strict=True)],
    )  # fmt: skip


def _shown(board: Board) -> list[tuple[str, dict[str, MetricResult]]]:
    """The newest variants, the current one among them."""
    known = board.measured
    kept = known[-LINES:]
    mine = [pair for pair in known if pair[0] == board.variants.current]
    return kept if not mine or mine[0] in kept else [mine[0], *kept[1:]]


def _end(name: str, known: Sequence[tuple[str, Mapping[str, MetricResult]]]) -> float:
    results = [found[name] for _, found in known if name in found]
    return scale(results[0].unit, [v for r in results for v in (r.base, r.edited)])


def _height(value: Value | None, axis: MetricResult, end: float) -> tuple[float, float, float]:
    """Value and interval on an axis from 0 (worst) to 1 (best); nan where there is none."""
    if value is None:
        return (float("nan"),) * 3
    shares = [min(x / end, 1.0) for x in (value.value, value.low, value.high)]
    if axis.better == "high":
        return shares[0], shares[1], shares[2]
    return 1 - shares[0], 1 - shares[2], 1 - shares[1]


def _limits(axis: MetricResult, end: float) -> tuple[str, str]:
    low, high = (number(Value(x, x, x, 1), axis.unit) for x in (0.0, end))
    return (low, high) if axis.better == "high" else (high, low)


def _told(language: str, value: Value | None, sample: Sample | None, axis: MetricResult) -> str:
    if value is None or sample is None:
        return ""
    return f"{exact(value, axis.unit)} · {samples.told(language, sample)}"
