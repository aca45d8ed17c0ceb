"""The metrics panel: base → edited with intervals, filled in while they are computed.

Knows how results look. A row is a button: it opens the prompts and both answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from sst_ui.metrics.registry import METRICS
from sst_ui.metrics.results import MetricResult, Value
from sst_ui.ui.html import CLICKS, safe
from sst_ui.ui.texts import has, say, t


@dataclass(frozen=True)
class MetricsPanel:
    rows: gr.HTML
    progress: gr.HTML
    run: gr.Button
    cancel: gr.Button
    metrics: gr.Dropdown
    metric_samples: gr.Number
    metric_tokens: gr.Number


def create() -> MetricsPanel:
    with gr.Group(elem_id="metrics-panel", elem_classes="panel"):
        with gr.Row(elem_classes="head"):
            gr.HTML(t("section.metrics"), elem_classes="title")
            run = gr.Button(t("metrics.run"), size="sm", elem_id="run-metrics", min_width=70)
            cancel = gr.Button(
                t("cancel"),
                size="sm",
                variant="stop",
                elem_id="cancel-metrics",
                visible=False,
                min_width=70,
            )
        progress = gr.HTML(elem_id="metrics-progress")
        rows = gr.HTML(render("en", []), elem_id="metrics", js_on_load=CLICKS)
        with gr.Accordion(t("metrics.settings"), open=False, elem_id="metrics-settings"):
            metrics = gr.Dropdown(
                [(title("en", row.name, row.title), row.name) for row in METRICS],
                value=[],
                multiselect=True,
                label=t("metrics.choose"),
                elem_id="metric-names",
                allow_custom_value=True,
            )
            with gr.Row(elem_classes="pair"):
                samples = gr.Number(
                    0, label=t("metrics.samples"), precision=0, elem_id="metric-samples"
                )
                tokens = gr.Number(
                    0, label=t("metrics.tokens"), precision=0, elem_id="metric-tokens"
                )
    return MetricsPanel(rows, progress, run, cancel, metrics, samples, tokens)


def title(language: str, name: str, fallback: str) -> str:
    """A metric's title in the visitor's language, else the registry's."""
    key = f"metric.{name}"
    return say(language, key) if has(key) else fallback


def render(
    language: str, results: Sequence[MetricResult], opened: str = "", pending: bool = False
) -> str:
    """All rows as HTML; `opened` names the one whose answers are shown."""
    if not results and not pending:
        return f'<p class="empty">{say(language, "metrics.none")}</p>'
    scales = {r.unit: _scale(r.unit, results) for r in results}
    rows = [_row(language, r, scales[r.unit], r.name == opened) for r in results]
    if pending:
        rows.append('<div class="metric ghost"><i></i><i></i></div>' * (1 if results else 4))
    legend = (
        f'<div class="legend"><span class="is-base">{say(language, "chat.base")}</span>'
        f'<span class="is-edited">{say(language, "answers.edited")}</span>'
        f"<span>95 %</span></div>"
    )
    return legend + "".join(rows)


def number(value: Value | None, unit: str) -> str:
    """A value as people read it: rates as per cent, the rest with three digits."""
    if value is None or not math.isfinite(value.value):
        return "–"
    if unit == "rate":
        return f"{value.value * 100:.0f} %"
    size = abs(value.value)
    if size == 0:
        return "0"
    digits = 2 if size >= 0.1 else 3 if size >= 1e-3 else 4 if size >= 1e-4 else None
    return f"{value.value:.0e}" if digits is None else f"{value.value:.{digits}f}"


def _row(language: str, result: MetricResult, scale: float, opened: bool) -> str:
    better = say(language, f"metrics.better.{'higher' if result.better == 'high' else 'lower'}")
    verdict = result.verdict or "same"
    n = result.base.n
    tracks = _track(result.base, scale, "is-base") + _track(result.edited, scale, "is-edited")
    tip = f"{better} · {say(language, f'verdict.{verdict}')} · {_interval(language, result)}"
    arrow = "↑" if result.better == "high" else "↓"
    return (
        f'<div class="metric {verdict}{" open" if opened else ""}" role="button" tabindex="0" '
        f'data-pick="{safe(result.name)}" title="{safe(tip)}">'
        f'<div class="line"><span class="name">{safe(title(language, result.name, result.title))}'
        f'<em title="{better}">{arrow}</em></span><span class="values"><s>'
        f"{number(result.base, result.unit)}</s><b>{number(result.edited, result.unit)}</b></span>"
        f'</div><div class="tracks">{tracks}</div><span class="n">n {n}</span></div>'
    )


def _interval(language: str, result: MetricResult) -> str:
    parts = []
    for key, value in (("chat.base", result.base), ("answers.edited", result.edited)):
        if value is None or not math.isfinite(value.value):
            continue
        numbers = (value.value, value.low, value.high)
        if result.unit == "rate":
            middle, low, high = (f"{x * 100:.1f}" for x in numbers)
            middle += " %"
        else:
            middle, low, high = (f"{x:.3g}" for x in numbers)
        parts.append(f"{say(language, key)} {middle} [{low}, {high}]")
    return " · ".join(parts)


def _scale(unit: str, results: Sequence[MetricResult]) -> float:
    """Right end of the tracks of one unit: 1 for rates, else the largest bound there is."""
    if unit in ("rate", "score"):
        return 1.0
    bounds = [v.high for r in results if r.unit == unit for v in (r.base, r.edited) if v]
    return max([b for b in bounds if math.isfinite(b)] or [1.0]) * 1.05 or 1.0


def _track(value: Value | None, scale: float, kind: str) -> str:
    if value is None or not math.isfinite(value.value):
        return f'<div class="track {kind}"></div>'
    low, middle, high = (
        min(max(x / scale, 0), 1) * 100 if math.isfinite(x) else 0
        for x in (value.low, value.value, value.high)
    )
    return (
        f'<div class="track {kind}"><i style="left:{low:.1f}%;width:{max(high - low, 0.8):.1f}%">'
        f'</i><b style="left:{middle:.1f}%"></b></div>'
    )


def answers(language: str, result: MetricResult | None, changed_only: bool) -> str:
    """The prompts of a metric with both answers, as HTML."""
    if result is None:
        return f'<p class="empty">{say(language, "answers.none")}</p>'
    items = [i for i in result.items if not changed_only or i.base_label != i.edited_label]
    head = (
        f'<div class="answers-head"><b>{safe(title(language, result.name, result.title))}</b>'
        f"<span>{number(result.base, result.unit)} → {number(result.edited, result.unit)}</span>"
        f"<span>{_interval(language, result)}</span><span>"
        f"{say(language, 'answers.count', shown=len(items), total=len(result.items))}</span></div>"
    )
    if result.note:
        head += f'<p class="empty">{safe(result.note)}</p>'
    body = "".join(
        f"<tr><td>{safe(i.prompt)}{_small(i.topic)}</td>"
        f"<td>{_label(i.base_label, i.base_score)}{safe(i.base)}</td>"
        f"<td>{_label(i.edited_label, i.edited_score)}{safe(i.edited or '')}</td></tr>"
        for i in items
    )
    columns = "".join(
        f'<th class="{kind}">{say(language, key)}</th>'
        for key, kind in (
            ("answers.prompt", ""),
            ("chat.base", "is-base"),
            ("answers.edited", "is-edited"),
        )
    )
    return (
        head
        + _topics(language, result)
        + (
            f'<div class="answers"><table><thead><tr>{columns}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    )


def _topics(language: str, result: MetricResult) -> str:
    groups = result.topics()
    if len(groups) < 2:
        return ""
    chips = "".join(
        f"<span>{safe(topic)} <s>{number(base, result.unit)}</s> "
        f"<b>{number(edited, result.unit)}</b></span>"
        for topic, (base, edited) in groups.items()
    )
    return f'<div class="topics">{chips}</div>'


def _label(label: str, score: float | None) -> str:
    text = label or ("" if score is None else f"{score:.3g}")
    return f'<span class="label l-{safe(label)}">{safe(text)}</span>' if text else ""


def _small(text: str) -> str:
    return f"<small>{safe(text)}</small>" if text else ""
