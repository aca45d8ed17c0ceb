"""The figures over the chat: the curve with its table, the probe, the token view and others."""

from collections.abc import Mapping
from dataclasses import dataclass

import gradio as gr

from sst_ui.recipe import KINDS
from sst_ui.ui.widgets import curve as curves
from sst_ui.ui.widgets import plots, token_grid
from sst_ui.ui.widgets.inputs import Dropdown, Radio
from sst_ui.ui.widgets.texts import say, t

SIGNALS = ("evidence", "quality", "cohens_d", "auroc", "snr", "cosine", "purity", "norm")
VIEWS = ("budget", "spectrum", "kept")  # of a merge
TOKENS, MAP = "tokens", "map"  # tabs whose figures are drawn while they are open


@dataclass(frozen=True)
class FiguresPanel:
    tabs: gr.Tabs
    curve: gr.HTML  # with the table beside it
    signal: gr.Dropdown
    table_note: gr.HTML
    reset: gr.Button
    row: gr.Textbox
    target: gr.Dropdown
    use: gr.Button
    probe: gr.Plot
    tokens: gr.HTML
    tokens_tab: gr.Tab
    token_note: gr.HTML
    side: gr.Radio
    map: gr.HTML
    map_tab: gr.Tab
    tradeoff: gr.Plot
    compare: gr.Plot
    decisions: gr.Plot
    decisions_tab: gr.Tab
    merge: gr.Plot
    merge_view: gr.Radio
    others: Mapping[str, gr.Tab]  # the other tabs


def create(layers: int) -> FiguresPanel:
    with (
        gr.Group(elem_id="figures", elem_classes="panel"),
        gr.Tabs(elem_id="figure-tabs", selected="curve") as tabs,
    ):
        with gr.Tab(t("tab.curve"), id="curve") as curve_tab:
            signal = Dropdown(
                [(t(f"signal.{name}"), name) for name in SIGNALS],
                value="evidence",
                label=t("curve.signal"),
                show_label=False,
                container=False,
                elem_id="signal",
                min_width=120,
            )
            curve = curves.create()
            table_note, reset, row, target, use = _table()
        with gr.Tab(t("tab.probe"), id="probe") as probe_tab:
            probe = _empty("probe", "probe.empty")
        with gr.Tab(t("tab.tokens"), id=TOKENS, elem_id="tokens-tab") as tokens_tab:
            side, tokens, token_note = _tokens()
        with gr.Tab(t("tab.map"), id=MAP, elem_id="map-tab") as map_tab:
            points = token_grid.create("residual-map", "residualMap")
        with gr.Tab(t("tab.tradeoff"), id="tradeoff") as tradeoff_tab:
            tradeoff = _empty("tradeoff", "tradeoff.empty")
        with gr.Tab(t("tab.compare"), id="compare", elem_id="compare-tab") as compare_tab:
            compare = _empty("compare", "compare.empty")
        with gr.Tab(t("tab.decisions"), id="decisions", elem_id="decisions-tab") as decisions_tab:
            decisions = _empty("decisions", "rounds.empty")
        with gr.Tab(t("tab.merge"), id="merge", elem_id="merge-tab") as merge_tab:
            merge_view, merge = _merge()
    others = {
        "curve": curve_tab, "probe": probe_tab, "tradeoff": tradeoff_tab, "compare": compare_tab,
        "decisions": decisions_tab, "merge": merge_tab,
    }  # fmt: skip
    return FiguresPanel(
        tabs, curve, signal, table_note, reset, row, target, use, probe, tokens, tokens_tab,
        token_note, side, points, map_tab, tradeoff, compare, decisions, decisions_tab, merge,
        merge_view, others,
    )  # fmt: skip


def _tokens() -> tuple[gr.Radio, gr.HTML, gr.HTML]:
    """The token view: whose answer is read, the figure, and what is said below it."""
    side = Radio(
        [(t("tokens.left"), "left"), (t("tokens.right"), "right")],
        value="right",
        label=t("tokens.side"),
        show_label=False,
        container=False,
        elem_id="token-side",
    )
    return side, token_grid.create("token-view", "tokens"), gr.HTML(elem_id="token-note")


def _merge() -> tuple[gr.Radio, gr.Plot]:
    """What a merge keeps and spends."""
    view = Radio(
        [(t(f"merge.view.{name}"), name) for name in VIEWS],
        value="budget",
        label=t("tab.merge"),
        show_label=False,
        container=False,
        elem_id="merge-view",
    )
    return view, _empty("merge", "merge.off")


def _table() -> tuple:
    """What is done with the whole table."""
    with gr.Row(elem_id="table-tools"):
        row = gr.Textbox(
            label=t("table.paste"),
            show_label=False,
            container=False,
            placeholder=t("table.paste"),
            max_lines=1,
            elem_id="paste-row",
            scale=4,
        )
        target = Dropdown(
            [
                (t("table.target.curve"), "curve"),
                *((t(f"kind.{kind}"), kind) for kind in KINDS),
            ],
            value="curve",
            label=t("table.target"),
            show_label=False,
            container=False,
            scale=1,
            min_width=90,
            elem_id="paste-target",
        )
        use = gr.Button(t("table.use"), size="sm", scale=0, min_width=60, elem_id="use-row")
        reset = gr.Button(
            t("table.reset"), size="sm", scale=0, min_width=110, elem_id="reset-table"
        )
    table_note = gr.HTML(elem_id="table-note")
    return table_note, reset, row, target, use


def _empty(name: str, why: str) -> gr.Plot:
    """A figure with nothing to draw yet."""
    return gr.Plot(
        plots.empty(say("en", why)), show_label=False, container=False, elem_id=name, buttons=[]
    )
