"""Figures of a search: which one a view is, the Pareto scatter, and the grid as a heat map.

Orange is the search result, grey-blue the base model. The figures of single strategies are in
`search_strategy_plots`.
"""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sst_ui.jobs.search.candidates import Candidate
from sst_ui.maths import kernel
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import NOTHING
from sst_ui.ui.panels.search_strategy_plots import (
    importance,
    layers,
    parallel,
    sentence,
    stages,
    tip,
)
from sst_ui.ui.panels.search_table import name_of
from sst_ui.ui.state.search_results import Found
from sst_ui.ui.widgets.numbers import number
from sst_ui.ui.widgets.plots import BASE, EDITED, OTHERS, blank
from sst_ui.ui.widgets.texts import say

TRIED, GREY, GOOD = OTHERS[0], "#98a3ae", "rgba(47,133,82,.11)"


def figure(language: str, found: Found, picked: str, view: str, metric: str) -> go.Figure:
    """The figure of a view; a sentence while there is nothing to draw."""
    if found.aim is None or not found.candidates:
        waiting = found.phase == "running"
        return sentence(say(language, "search.waiting" if waiting else "search.empty"))
    if view == "own" and found.spec.strategy == "grid":
        return heat(language, found, picked, metric)
    if view == "own" and found.spec.strategy == "sensitivity":
        return layers(language, found, metric)
    if view == "own":
        return (stages if found.spec.strategy == "staged" else parallel)(language, found)
    if view == "importance":
        return importance(language, found)
    return scatter(language, found, picked)


def scatter(language: str, found: Found, picked: str) -> go.Figure:
    """The metric with the target over the cost (over the trial where there is none)."""
    first, second = found.aims.decides, found.aims.cost
    across = name_of(language, second) if second else say(language, "search.number")
    drawn = blank(across, name_of(language, first))

    def place(each: Candidate) -> tuple[float, float]:
        return each.value(second) if second else float(each.number), each.value(first)

    def add(rows: Sequence[Candidate], name: str, **marker: Any) -> None:
        if rows:
            points = [place(each) for each in rows]
            drawn.add_scatter(
                x=[p[0] for p in points], y=[p[1] for p in points], mode="markers", name=name,
                marker=marker, customdata=[tip(language, each, found) for each in rows],
                hovertemplate="%{customdata}<extra></extra>", cliponaxis=False,
            )  # fmt: skip

    if math.isfinite(found.aims.target):
        _target(language, drawn, found)
    front = {each.number for each in found.front}
    line = sorted(place(each) for each in found.front)
    drawn.add_scatter(
        x=[p[0] for p in line], y=[p[1] for p in line], mode="lines", hoverinfo="skip",
        line={"color": TRIED, "width": 1.5, "dash": "dot"}, showlegend=False,
    )  # fmt: skip
    rest = [each for each in found.done if each.number not in front]
    feasible = [each for each in rest if each.feasible]
    broken = [each for each in rest if not each.feasible]
    add(broken, say(language, "search.infeasible"), symbol="x-thin", size=8, color=GREY,
        line={"width": 2, "color": GREY})  # fmt: skip
    add(feasible, say(language, "search.tried"), size=8, color=TRIED, opacity=0.45)
    add(found.front, say(language, "search.front"), size=10, color=TRIED)
    if found.own is not None:
        add([found.own], say(language, "search.own"), symbol="diamond-open", size=15, color=BASE,
            line={"width": 2})  # fmt: skip
    if found.best is not None:
        add([found.best], say(language, "search.best"), symbol="star", size=14, color=EDITED)
    mine = found.get(picked)
    if mine is not None and mine is not found.best and mine.state == "done":
        add([mine], say(language, "search.picked"), symbol="circle-open", size=16, color=EDITED,
            line={"width": 2})  # fmt: skip
    least = _decades(found, second)
    if second:
        _base(language, drawn, found, least)
    if least:
        drawn.update_xaxes(type="log", dtick=1, exponentformat="power")
    _ruled_out(language, drawn, found, second)
    ys = [place(each)[1] for each in found.done]
    ys += [each.base.get(first, NOTHING).value for each in found.done]
    _ranges(drawn, [y for y in ys if math.isfinite(y)], find(first).unit == "rate")
    drawn.update_layout(
        hovermode="closest",
        margin={"t": 46},  # room for two lines of the legend
        legend={"y": 1.02, "yanchor": "bottom"},
        xaxis={"tickfont": {"size": 10}},
    )
    if not least:
        drawn.update_xaxes(tickformat="~g", exponentformat="none")
    return drawn


def _target(language: str, drawn: go.Figure, found: Found) -> None:
    """The band of the first objective's values that are good enough."""
    low = found.aims.falls
    ends = (-9, found.aims.target) if low else (found.aims.target, 9)
    drawn.add_hrect(*ends, fillcolor=GOOD, line_width=0, layer="below")
    drawn.add_annotation(
        x=1, xref="paper", xanchor="right", y=found.aims.target, showarrow=False,
        yanchor="bottom" if low else "top", font={"size": 10},
        text=f"{say(language, 'search.target.band')} {'≤' if low else '≥'} "
        f"{found.aims.target:g}",
    )  # fmt: skip


def _base(language: str, drawn: go.Figure, found: Found, least: float) -> None:
    """The base model's point, at the left end of an axis of decades."""
    if not found.done:
        return
    first, second = found.aims.decides, found.aims.cost
    known = found.done[0]
    x, y = (known.base.get(name or "", NOTHING).value for name in (second, first))
    if math.isfinite(y):
        x = x if math.isfinite(x) else 0.0
        drawn.add_scatter(
            x=[max(x, least / 2) if least else x], y=[y], mode="markers",
            name=say(language, "chat.base"), cliponaxis=False,
            marker={"size": 11, "color": BASE, "symbol": "square"},
            hovertemplate=f"{x:.3g} · %{{y:.3g}}<extra></extra>",
        )  # fmt: skip


def _decades(found: Found, metric: str | None) -> float:
    """The least value of a divergence that spans decades; 0 for what is drawn evenly."""
    if metric is None or not find(metric).unit.startswith("nats"):
        return 0.0
    values = [each.value(metric) for each in found.done]
    least = min(values, default=0.0)
    return least if least > 0 and max(values) > 50 * least else 0.0


def _ruled_out(language: str, drawn: go.Figure, found: Found, second: str | None) -> None:
    """The pruned as marks along the upper edge: they have no value of the first objective."""
    rows = [each for each in found.candidates if each.state == "pruned"]
    rows = [each for each in rows if second and math.isfinite(each.value(second))]
    if second and rows:
        drawn.add_scatter(
            x=[each.value(second) for each in rows], y=[1.0] * len(rows), yaxis="y2",
            mode="markers", name=say(language, "search.pruned"),
            marker={"symbol": "line-ns", "size": 9, "line": {"width": 1.5, "color": GREY}},
            customdata=[tip(language, each, found) for each in rows],
            hovertemplate="%{customdata}<extra></extra>", cliponaxis=False,
        )  # fmt: skip
        drawn.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False})


def _ranges(drawn: go.Figure, values: Sequence[float], rate: bool) -> None:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.07 * ((high - low) or 1.0)
    drawn.update_yaxes(
        range=[low - room, high + room], tickformat=".0%" if rate else "~g", selector={"side": None}
    )


def heat(language: str, found: Found, picked: str, metric: str) -> go.Figure:
    """A metric over peak and width; what was not tried yet is blank."""
    grid = kernel.grid()
    peaks, widths = (sorted({point[i] for point in grid}) for i in (0, 1))
    known = {(e.params.get("peak"), e.params.get("width")): e for e in found.candidates}
    unit = find(metric).unit
    rows = [[known.get((peak, width)) for peak in peaks] for width in widths]
    values = [[each.value(metric) if each else math.nan for each in row] for row in rows]
    drawn = blank(say(language, "weights.peak"), say(language, "weights.width"))
    names = [f"{peak:g}" for peak in peaks], [f"{width:g}" for width in widths]
    drawn.add_heatmap(
        z=values, x=names[0], y=names[1], xgap=2, ygap=2,
        colorscale=[[0, "rgba(113,137,163,.12)"], [1, EDITED]], opacity=0.9,
        text=[[_cell(e, metric, e is found.best) for e in row] for row in rows],
        texttemplate="%{text}", textfont={"size": 11},
        customdata=[[tip(language, e, found) if e else "" for e in row] for row in rows],
        hovertemplate="%{customdata}<extra></extra>", hoverongaps=False,
        colorbar={"thickness": 8, "outlinewidth": 0,
                  "tickformat": ".0%" if unit == "rate" else "~g"},
    )  # fmt: skip
    mine = found.get(picked)
    if mine is not None:
        x, y = peaks.index(mine.params["peak"]), widths.index(mine.params["width"])
        drawn.add_shape(
            type="rect", x0=x - 0.49, x1=x + 0.49, y0=y - 0.48, y1=y + 0.48,
            line={"color": EDITED, "width": 2},
        )  # fmt: skip
    drawn.update_layout(hovermode="closest", margin={"l": 52, "t": 10})
    drawn.update_xaxes(type="category", showgrid=False)
    drawn.update_yaxes(type="category", showgrid=False)
    return drawn


def _cell(each: Candidate | None, metric: str, best: bool) -> str:
    if each is None:
        return ""
    return ("★ " if best else "") + number(each.values.get(metric), find(metric).unit)
