"""Where each decision to refuse lies: layer against token of the answer, over how far refused
answers and those that they were compared with lie apart there."""

from collections.abc import Sequence

import plotly.graph_objects as go

from sst_ui.maths.decisions import Decision
from sst_ui.ui.widgets import plots
from sst_ui.ui.widgets.texts import say


def draw(language: str, decisions: Sequence[Decision]) -> go.Figure:
    """The decisions as numbered marks; behind them the newest one's map."""
    if not decisions:
        return plots.empty(say(language, "rounds.empty"))
    figure = plots.blank(say(language, "rounds.position"), say(language, "rounds.layer"))
    chart = decisions[-1].map
    if chart.numel():
        figure.add_heatmap(
            z=chart.T.tolist(),
            name=say(language, "rounds.map"),
            colorscale=[[0, "rgba(113,137,163,0)"], [1, plots.BASE]],
            colorbar={"thickness": 8, "title": {"text": say(language, "rounds.map"),
                                                "side": "right", "font": {"size": 10}}},
            hovertemplate="%{z:.3f}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=[each.position for each in decisions],
        y=[each.layer for each in decisions],
        mode="markers+text",
        text=[str(number) for number in range(1, len(decisions) + 1)],
        textposition="middle right",
        textfont={"size": 12},
        marker={"size": 11, "color": plots.EDITED, "line": {"width": 1, "color": "white"}},
        customdata=[
            say(language, "rounds.told", number=number, position=each.position, layer=each.layer,
                prompts=len(each.heads))
            for number, each in enumerate(decisions, 1)
        ],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )  # fmt: skip
    last = max(each.position for each in decisions)
    figure.update_xaxes(range=[-0.5, max(last, chart.shape[0] - 1, 4) + 0.5])
    figure.update_layout(hovermode="closest")
    return figure
