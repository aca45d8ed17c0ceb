"""Figures, but for the curve (widgets/curve.py). Grey-blue is what the base model is, orange what
the edit does to it, everywhere.

Backgrounds are transparent and text and grid take their colours from assets/style.css, so one
figure serves light and dark.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from sst_ui.ui.widgets.texts import say

BASE, EDITED, SECOND = "#7189a3", "#d9622b", "#e8a84c"
OTHERS = (  # variants beside the current one; none is near the orange of the edited model
    "#2b8290", "#8a6fae", "#5a9367", "#b0892f", "#c46a8b", "#5aa7c7", "#8c6d4f", "#7a8f3c",
)  # fmt: skip
HEIGHT = 232


def probe(language: str, base: np.ndarray, edited: np.ndarray, variant: str) -> go.Figure:
    """Projection of the last message on each layer's direction, [layers] for base and edited.

    Args:
        variant: which one `edited` is; the figure stays when another one is applied.
    """
    figure = blank(say(language, "curve.layer"), say(language, "probe.axis"))
    for values, colour, name in (
        (base, BASE, say(language, "chat.base")),
        (edited, EDITED, f"{say(language, 'answers.edited')} · {variant}"),
    ):
        figure.add_scatter(
            x=np.arange(len(values)),
            y=values,
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            hovertemplate="%{y:.2f}",
        )
    return figure


def ladder(language: str, lines: Sequence[tuple[str, np.ndarray]]) -> go.Figure:
    """The probe of one message at several strengths.

    Args:
        lines: name and [layers] projection of each, in the order of the strengths.
    """
    figure = blank(say(language, "curve.layer"), say(language, "probe.axis"))
    colours = sample_colorscale("Turbo", np.linspace(0.1, 0.9, max(len(lines), 2)).tolist())
    for (name, values), colour in zip(lines, colours, strict=False):
        figure.add_scatter(
            x=np.arange(len(values)),
            y=values,
            name=name,
            mode="lines",
            line={"color": colour, "width": 2},
            hovertemplate="%{y:.2f}",
        )
    return figure


def tradeoff(
    x_title: str,
    y_title: str,
    points: Sequence[tuple[str, float, float]],
    front: Sequence[str],
    current: str,
) -> go.Figure:
    """Variants as points (name, x, y); the Pareto front's names are joined by a line."""
    figure = blank(x_title, y_title)
    best = sorted((p for p in points if p[0] in front), key=lambda p: p[1])
    figure.add_scatter(
        x=[p[1] for p in best],
        y=[p[2] for p in best],
        mode="lines",
        line={"color": BASE, "width": 1, "dash": "dot"},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=[p[1] for p in points],
        y=[p[2] for p in points],
        text=[p[0] for p in points],
        mode="markers+text",
        textposition="top center",
        textfont={"size": 12},
        marker={
            "size": [13 if p[0] == current else 9 for p in points],
            "color": [EDITED if p[0] == current else BASE for p in points],
        },
        cliponaxis=False,
        hovertemplate="%{text}<br>%{x:.4g} · %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(tickformat="~g", exponentformat="none", rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return figure


@dataclass(frozen=True)
class Line:
    """A variant in the comparison.

    Attributes:
        heights: on every axis value, lower and upper bound, 0 (worst) to 1 (best); nan for none.
        told: what the tip says on every axis.
        hollow: on every axis, whether the sample is another one than the current variant's.
    """

    name: str
    heights: Sequence[tuple[float, float, float]]
    told: Sequence[str]
    hollow: Sequence[bool]


def compare(axes: Sequence[tuple[str, str, str]], lines: Sequence[Line], current: str) -> go.Figure:
    """Parallel coordinates: up is good on every axis. The first line is the base.

    Args:
        axes: of each its title and what stands at its best and its worst end.
        current: the variant drawn as the edited one; it and the base show their intervals.
    """
    figure = blank("", "")
    places = list(range(len(axes)))
    others = [line.name for line in lines[1:] if line.name != current]
    order = sorted(lines, key=lambda line: (line.name == current, line is lines[0]))
    for line in order:
        mine, base = line.name == current, line is lines[0]
        colour = EDITED if mine else BASE if base else OTHERS[others.index(line.name) % len(OTHERS)]
        values = [h[0] for h in line.heights]
        figure.add_scatter(
            x=places,
            y=values,
            name=line.name,
            mode="lines+markers",
            line={"color": colour, "width": 2.6 if mine else 2 if base else 1.4,
                  "dash": "dot" if base else "solid"},
            marker={"size": [(7 if mine else 5) + 2 * each for each in line.hollow],
                    "color": colour,
                    "symbol": ["circle-open" if each else "circle" for each in line.hollow]},
            opacity=1 if mine or base else 0.8,
            error_y=_spread(line) if mine or base else None,
            customdata=line.told,
            hovertemplate="%{customdata}",
            legendrank=lines.index(line),
            cliponaxis=False,
        )  # fmt: skip
    for place, (_, best, worst) in enumerate(axes):
        for y, text, anchor in ((1.03, best, "bottom"), (-0.03, worst, "top")):
            figure.add_annotation(
                x=place, y=y, text=text, showarrow=False, yanchor=anchor, font={"size": 12}
            )
        figure.add_shape(
            type="line", x0=place, x1=place, y0=0, y1=1, layer="below",
            line={"color": BASE, "width": 1}, opacity=0.35,
        )  # fmt: skip
    figure.update_xaxes(
        tickvals=places,
        ticktext=[title for title, _, _ in axes],
        tickfont={"size": 12},
        range=[-0.45, len(axes) - 0.55],
        showline=False,
        ticks="",
        tickangle=0,
    )
    figure.update_yaxes(range=[-0.12, 1.13], visible=False)
    wide = sum(6 * len(line.name) + 46 for line in lines)  # pixels, about
    top = 26 + 17 * (wide // 660)  # the legend takes another row
    figure.update_layout(margin={"l": 8, "r": 8, "t": top, "b": 40})
    figure.update_layout(legend={"y": 0.995, "yanchor": "top", "yref": "container"})
    return figure


def _spread(line: Line) -> dict:
    """The intervals of a line as Plotly's error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [h[2] - h[0] for h in line.heights],
        "arrayminus": [h[0] - h[1] for h in line.heights],
        "thickness": 1.2,
        "width": 3,
    }


def wrapped(text: str, width: int = 11) -> str:
    """A title broken into lines that fit under an axis."""
    if text.isascii():
        return "<br>".join(textwrap.wrap(text, width))
    return "<br>".join(text[i : i + 6] for i in range(0, len(text), 6))  # kana and kanji are wide


def empty(text: str) -> go.Figure:
    """A sentence where a figure will be."""
    figure = blank("", "")
    figure.add_annotation(
        x=0.5, y=0.5, xref="paper", yref="paper", text=text, showarrow=False, font={"size": 13}
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def blank(x_title: str, y_title: str) -> go.Figure:
    """An empty figure in the look of the studio."""
    figure = go.Figure()
    axis = {"zeroline": False, "title": {"standoff": 6, "font": {"size": 12}}, "fixedrange": True}
    figure.update_layout(
        template="none",
        height=HEIGHT,
        margin={"l": 44, "r": 12, "t": 30, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12, "family": "system-ui, sans-serif"},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.19, "font": {"size": 12}},
        hovermode="x unified",
        dragmode=False,
        bargap=0.25,
        uirevision="studio",
        xaxis=axis,
        yaxis=axis,
    )
    figure.update_xaxes(title_text=x_title, showgrid=False)
    figure.update_yaxes(title_text=y_title)
    return figure
