"""Figures of a merge: the predicted trade-off, the spectrum of λ, what each module kept.

Orange is the merge that the controls say, diamonds are measured.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from sst_ui.jobs.merge.forecast import Forecast, Point, Share
from sst_ui.recipe import MODULES
from sst_ui.ui.widgets.plots import BASE, EDITED, OTHERS, SECOND, blank
from sst_ui.ui.widgets.texts import say

TINY = 1e-7  # nats per token; what lies below is drawn here, the axis being logarithmic
LINES = 400  # points of a spectrum's line
WRITTEN = 20  # columns of a map whose cells have room for a number


def budget(
    language: str, found: Forecast, measured: Sequence[tuple[str, Point, bool]]
) -> go.Figure:
    """Cost against what is left undone, both in nats per token.

    Args:
        measured: name, point, and whether it is the merge that the controls say.
    """
    drawn = blank(say(language, "merge.axis.cost"), say(language, "merge.axis.residual"))
    lines = [("μ", found.curve, BASE, "solid")]
    lines += [("k", found.steps, SECOND, "dot")] if found.steps else []
    top = max(found.curve.residual)
    for sign, curve, colour, dash in lines:
        x = np.maximum(curve.kl, TINY)
        keep = np.array(curve.kl) >= TINY
        drawn.add_scatter(
            x=x[keep],
            y=np.array(curve.residual)[keep],
            customdata=np.stack([curve.mus, np.array(curve.kept) * 100], 1)[keep],
            name=say(language, "merge.predicted", sign=sign),
            mode="lines",
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate=f"{sign} %{{customdata[0]:.3g}}<br>%{{x:.2g}} · %{{y:.3g}}<br>"
            f"{say(language, 'merge.tip.kept')}<extra></extra>",
        )
    if found.chosen is not None:
        drawn.add_scatter(
            x=[max(found.chosen.cost, TINY)],
            y=[found.chosen.residual],
            name=say(language, "merge.chosen"),
            mode="markers",
            marker={"size": 13, "color": EDITED},
            hovertemplate="%{x:.3g} · %{y:.3g}<extra></extra>",
        )
    if measured:
        drawn.add_scatter(
            x=[max(point.cost, TINY) for _, point, _ in measured],
            y=[point.residual for _, point, _ in measured],
            text=[name for name, _, _ in measured],
            name=say(language, "merge.measured"),
            mode="markers",
            marker={
                "symbol": "diamond-open",
                "size": 11,
                "color": [EDITED if mine else BASE for _, _, mine in measured],
                "line": {"width": 2},
            },
            hovertemplate=f"%{{text}}<br>{say(language, 'merge.tip.measured')}<br>"
            "%{x:.3g} · %{y:.3g}<extra></extra>",
        )
        top = max(top, *(point.residual for _, point, _ in measured))
    drawn.update_layout(hovermode="closest")
    drawn.update_xaxes(type="log", exponentformat="power", dtick=1)
    drawn.update_layout(margin={"l": 58})
    drawn.update_yaxes(range=[-0.04 * top, 1.08 * top], tickformat="~g")
    return drawn


def spectrum(
    language: str,
    values: Mapping[str, np.ndarray],
    mu: float | None,
    k: int | None,
    share: Share | None,
) -> go.Figure:
    """λ of every kind of module, largest first, and what the filter does to them.

    Args:
        values: kind -> [n] λ of its modules together, sorted; the lines show the mean module.
        mu: price of the filter, drawn as the line λ = μ. k: directions kept in each module.
        share: of a method with a price: what its filter keeps of each direction.
    """
    drawn = blank(say(language, "merge.axis.rank"), "λ")
    for kind, colour in zip(ordered(values), OTHERS * 3, strict=False):
        line = values[kind]
        place = np.unique(np.geomspace(1, len(line), min(LINES, len(line))).astype(int))
        drawn.add_scatter(
            x=place, y=np.maximum(line[place - 1], 1e-12), name=kind, mode="lines",
            line={"width": 1.6, "color": colour}, hovertemplate="%{y:.2g}",
        )  # fmt: skip
        if mu and share is not None:
            drawn.add_scatter(
                x=place, y=share(line[place - 1]), yaxis="y2", mode="lines",
                line={"width": 1, "dash": "dot", "color": colour}, opacity=0.6,
                showlegend=False, name=f"g {kind}", hovertemplate="%{y:.2f}",
            )  # fmt: skip
    if mu:
        drawn.add_hline(mu, line={"color": EDITED, "width": 1.5, "dash": "dash"})
        drawn.add_annotation(
            x=0, xref="paper", xanchor="left", y=np.log10(mu), text=f"μ = {mu:.3g}",
            showarrow=False, yanchor="bottom", xshift=4, font={"color": EDITED, "size": 11},
        )  # fmt: skip
    if k:
        drawn.add_vline(k, line={"color": EDITED, "width": 1.5, "dash": "dash"})
    drawn.update_xaxes(type="log", tickformat="~g", dtick=1)
    drawn.update_yaxes(type="log", exponentformat="power", dtick=3)
    drawn.update_layout(
        margin={"r": 40},
        yaxis2={"overlaying": "y", "side": "right", "range": [0, 1.02], "title": {"text": "g(λ)"},
                "showgrid": False, "fixedrange": True, "type": "linear", "visible": bool(mu)},
    )  # fmt: skip
    return drawn


def ordered(kinds: Iterable[str]) -> list[str]:
    """Kinds of modules as they come in a layer, the head last."""
    place = {kind: i for i, kind in enumerate(MODULES)}
    return sorted(kinds, key=lambda kind: place.get(kind, len(place)))


def kept(language: str, values: Mapping[tuple[str, int | None], float]) -> go.Figure:
    """What each module keeps of the safety edit's effect, layers across, kinds down.

    More than the whole edit (a weight or a factor above 1) is marked, and said at the scale.
    """
    kinds = ordered({kind for kind, _ in values})
    layers = sorted({layer for _, layer in values if layer is not None})
    columns: list = [str(layer) for layer in layers]
    columns += ["head"] if any(layer is None for _, layer in values) else []
    table = [
        [values.get((kind, None if c == "head" else int(c)), np.nan) for c in columns]
        for kind in kinds
    ]
    drawn = blank(say(language, "curve.layer"), "")
    shares = np.array(table) * 100
    above = np.nan_to_num(shares).round() > 100
    written = np.where(np.isnan(shares), "", np.char.mod("%.0f", np.nan_to_num(shares)))
    drawn.add_heatmap(
        z=shares,
        x=columns,
        y=kinds,
        zmin=0,
        zmax=max(100.0, float(np.nanmax(shares))),
        # pale enough for the numbers in them, on white as on black; dark and light without a hue
        colorscale=[[0, "rgba(113,137,163,.08)"], [1, "rgba(217,98,43,.62)"]],
        xgap=1,
        ygap=1,
        text=np.char.add(written, np.where(above, "▲", "")),
        customdata=np.where(above, f"<br>{say(language, 'merge.kept.above')}", ""),
        hovertemplate="%{y}, %{x}: %{z:.0f} %%{customdata}<extra></extra>",
        colorbar={"thickness": 8, "outlinewidth": 0, "ticksuffix": " %"},
        texttemplate="%{text}" if len(columns) <= WRITTEN else None,
        textfont={"size": 12},
    )
    if above.any():
        drawn.add_annotation(
            text=f"▲ {say(language, 'merge.kept.above')}", x=1, y=1, xref="paper", yref="paper",
            xanchor="right", yanchor="bottom", showarrow=False, font={"size": 12},
        )  # fmt: skip
    top = 24 if above.any() else 12
    drawn.update_layout(hovermode="closest", margin={"l": 52, "t": top})
    drawn.update_xaxes(type="category")
    drawn.update_yaxes(autorange="reversed")
    return drawn
