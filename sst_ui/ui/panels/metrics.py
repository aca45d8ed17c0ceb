"""The metrics panel: base → edited with interval, n and verdict, filled in while they are computed.

A row is a button: it opens the prompts and both answers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from sst_ui.jobs.evaluate.evaluate import limits
from sst_ui.metrics.registry import METRICS, Derived, Metric
from sst_ui.metrics.results import Good, MetricResult, Verdict, change
from sst_ui.recipe import Evaluation, Recipe
from sst_ui.schema import setting
from sst_ui.ui.panels import prompt_files
from sst_ui.ui.state.form import measured_by
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets import samples
from sst_ui.ui.widgets.definitions import of_metric
from sst_ui.ui.widgets.html import CLICKS, safe
from sst_ui.ui.widgets.inputs import HIDDEN, Dropdown, Number, Radio
from sst_ui.ui.widgets.messages import note_in
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.numbers import exact, interval, number, scale, spark, track
from sst_ui.ui.widgets.samples import Sample
from sst_ui.ui.widgets.texts import empty, has, say, t

Named = Verdict | Literal["none"]  # none where nothing was compared
LEGEND: tuple[Verdict, ...] = ("better", "worse", "negligible", "noise")
MEASURED: tuple[Verdict, ...] = ("changed", "negligible", "noise")  # where nothing is good or bad
MARKS: dict[Named, str] = {
    "better": "✓",
    "worse": "✗",
    "changed": "≠",
    "negligible": "≪",
    "noise": "≈",
    "none": "·",
}

ARROWS: dict[Good, tuple[str, str]] = {
    "high": ("↑", "metrics.better.higher"),
    "low": ("↓", "metrics.better.lower"),
    "": ("", "metrics.better.neither"),
}


@dataclass(frozen=True)
class MetricsPanel:
    rows: gr.HTML
    grown: gr.HTML
    progress: gr.HTML
    run: gr.Button
    cancel: gr.Button
    advice: gr.HTML
    limits: gr.HTML
    metrics: gr.Dropdown
    metric_preset: gr.Radio
    metric_samples: gr.Number
    metric_tokens: gr.Number
    judge: gr.Textbox
    labels: gr.Textbox
    metric_goal: gr.Radio
    upload: prompt_files.UploadPanel
    files: tuple[gr.DownloadButton, ...]


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
                visible=HIDDEN,
                min_width=70,
            )
        with gr.Accordion(t("metrics.settings"), open=False, elem_id="metrics-settings"):
            settings = _settings(measured_by(Evaluation()))
        progress = gr.HTML(elem_id="metrics-progress")
        rows = gr.HTML(empty("metrics.none"), elem_id="metrics", js_on_load=CLICKS)
        grown = gr.HTML(visible=HIDDEN)  # changes where a first number does: all is drawn anew
        advice = gr.HTML(elem_id="advice", js_on_load=CLICKS)
        with gr.Row(elem_id="metric-files"):
            gr.HTML(t("metrics.files"))
            files = tuple(
                gr.DownloadButton(
                    t(f"metrics.files.{kind}"),
                    size="sm",
                    visible=HIDDEN,
                    elem_id=f"download-{kind}",
                    min_width=40,
                )
                for kind in ("csv", "items", "json", "labels")
            )
    return MetricsPanel(rows, grown, progress, run, cancel, advice, files=files, **settings)


def _settings(start: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured, on how much; the controls begin with the values of `start`."""
    made: dict[str, Any] = {
        "metric_goal": Radio(
            [(t(f"goal.{name}"), name) for name in setting("evaluation.goal").choices],
            value=start["metric_goal"],
            label=t("goal"),
            elem_id="metric-goal",
        ),
        "metric_preset": Radio(
            [(t(f"preset.{name}"), name) for name in setting("evaluation.preset").choices],
            value=start["metric_preset"],
            label=t("metrics.preset"),
            elem_id="metric-preset",
        ),
        "limits": gr.HTML(elem_id="metric-limits", elem_classes="hint"),
    }
    with gr.Row(elem_classes="pair"):
        for name in ("samples", "tokens"):
            made[f"metric_{name}"] = Number(
                start[f"metric_{name}"], label=t(f"metrics.{name}"), elem_id=f"metric-{name}"
            )
    made["metrics"] = Dropdown(
        choices(METRICS),
        value=start["metrics"],
        multiselect=True,
        label=t("metrics.choose"),
        elem_id="metric-names",
        allow_custom_value=True,
    )
    made["judge"] = gr.Textbox(
        start["judge"],
        label=t("metrics.judge"),
        placeholder=t("metrics.judge.hint"),
        max_lines=1,
        elem_id="judge",
    )
    made["labels"] = gr.Textbox(
        start["labels"], label=t("metrics.labels"), max_lines=1, elem_id="labels-file"
    )
    made["upload"] = prompt_files.create("metrics", ("metrics",), _targets())
    return made


def told_limits(language: str, recipe: Recipe) -> str:
    """How much a recipe's settings measure, in words."""
    samples, tokens = limits(recipe.evaluation, recipe.model.id)
    key = "metrics.limits.all" if samples is None else "metrics.limits"
    return safe(say(language, key, samples=samples, tokens=tokens))


def title(language: str, name: str, fallback: str) -> str:
    """A metric's title in the visitor's language, else the registry's."""
    bare, other, prompts = name.partition("@")
    if not has(key := f"metric.{bare}"):
        return fallback
    text = say(language, key)
    return f"{text} ({Path(prompts.partition('?')[0]).name})" if other else text


def choices(rows: Iterable[Metric | Derived]) -> list[tuple[Any, str]]:
    """Metrics as the choices of a menu, in the language of the page."""
    return [(t(key) if has(key := f"metric.{m.name}") else m.title, m.name) for m in rows]


def _targets() -> list[tuple[Any, str]]:
    """Metrics with prompts of their own, which others can take the place of."""
    return choices(m for m in METRICS if isinstance(m, Metric))


def verdict(result: MetricResult) -> Named:
    """The verdict's name on the screen; none where nothing was compared."""
    return result.verdict or "none"


def render(board: Board, pending: bool = False) -> str:
    """All rows as HTML; the opened metric's is marked. `pending`: more are being computed."""
    lang, results = board.language, board.now
    if not results and not pending:
        return f'<p class="empty">{say(lang, "metrics.none")}</p>'
    ends = {}
    for unit in {r.unit for r in results}:
        same = [r for _, found in board.measured for r in found.values() if r.unit == unit]
        ends[unit] = scale(unit, [v for r in same for v in (r.base, r.edited)])
    rows = [_row(board, r, ends[r.unit]) for r in results]
    if pending:
        rows.append('<div class="metric ghost"><i></i><i></i></div>' * (1 if results else 4))
    verdicts = "".join(
        f'<span class="v-{name}" title="{safe(meaning(lang, name))}">{MARKS[name]} '
        f"{say(lang, f'verdict.short.{name}')}</span>"
        for name in (LEGEND if any(r.better for r in results) or not results else MEASURED)
    )
    legend = (
        f'<div class="legend"><div><span class="is-base">{say(lang, "chat.base")}</span>'
        f'<span class="is-edited">{say(lang, "answers.edited")} [95 %]</span></div>'
        f"<div>{verdicts}</div></div>"
    )
    return legend + _goal(board) + _first(board, pending) + "".join(rows)


def _goal(board: Board) -> str:
    """Which way is good, where that was said."""
    said = board.variants.now.recipe.evaluation.goal if board.variants.now else "auto"
    if said == "auto":
        return ""
    return f'<div class="goal">{say(board.language, f"goal.{said}.said")}</div>'


def _first(board: Board, pending: bool) -> str:
    """What the numbers rest on while they are first ones."""
    if (first := board.first) is None:
        return ""
    lang, all_ = board.language, say(board.language, "metrics.first.all")
    key = "metrics.first.growing" if pending else "metrics.first"
    text = say(lang, key, prompts=first.prompts, tokens=first.tokens,
               whole=first.whole or all_, length=first.length)  # fmt: skip
    return f'<div class="goal first">{safe(text)}</div>'


def _row(board: Board, result: MetricResult, end: float) -> str:
    lang, unit, kind = board.language, result.unit, verdict(result)
    arrow, key = ARROWS[result.better]
    way = say(lang, key)
    word = say(lang, f"verdict.{kind}")
    name = title(lang, result.name, result.title)
    tip = f"{way} · {word} ({meaning(lang, kind)}) · {told(lang, result)}"
    if what := of_metric(lang, result.name):
        tip = f"{what}\n{tip}"
    history = [
        (shown_name(lang, variant), edited)
        for variant, found in board.measured
        if result.name in found and (edited := found[result.name].edited) is not None
    ]
    line = spark(
        result.base, history, shown_name(lang, board.variants.current), end, unit,
        say(lang, "metrics.spark"), _unequal(board, result),
    )  # fmt: skip
    tracks = track(result.base, end, "is-base") + track(result.edited, end, "is-edited")
    shown = result.base if result.edited is None else result.edited
    opened = " open" if result.name == board.opened else ""
    base = Sample(result.base.n, result.tokens)
    mark = samples.mark(lang, Sample.of(result), base)
    if board.first and result.name in board.first.names:
        mark += samples.first(lang)
    return (
        f'<div class="metric {kind}{opened}" role="button" tabindex="0" '
        f'data-pick="{safe(result.name)}" title="{safe(tip)}"><div class="line">'
        f'<span class="name">{safe(name)}<em>{arrow}</em></span>'
        f"{corrected(lang, board.counts.get(result.name, 0))}"
        f'<span class="values"><s>{number(result.base, unit)}</s>'
        f"<b>{number(result.edited, unit)}</b></span>"
        f'<span class="mark" role="img" aria-label="{word}" title="{safe(meaning(lang, kind))}">'
        f"{MARKS[kind]}</span></div>"
        f'<div class="line second"><div class="tracks">{tracks}</div>{line}'
        f'<span class="ci">{interval(shown, unit)}</span>'
        f'<span class="n">n {shown.n}{length(lang, result, "metrics.length.short")}{mark}</span>'
        f"</div>{_note(lang, result)}</div>"
    )


def _unequal(board: Board, result: MetricResult) -> set[str]:
    """The variants whose number rests on another sample than the one in this row."""
    mine = Sample.of(result)
    return {
        variant
        for variant, found in board.measured
        if result.name in found and not Sample.of(found[result.name]).equals(mine)
    }


def length(language: str, result: MetricResult, key: str = "metrics.length") -> str:
    """How long the answers were that it was read off; empty for a metric that reads none."""
    return f" · {say(language, key, tokens=result.tokens)}" if result.tokens else ""


def _note(language: str, result: MetricResult) -> str:
    """What a reader should know before trusting the number, under it."""
    note = safe(note_in(language, result.note))
    return f'<div class="told">{note}</div>' if note else ""


def meaning(language: str, kind: Named) -> str:
    """What a verdict means."""
    return say(language, f"verdict.{kind if kind == 'none' else change(kind)}.means")


def corrected(language: str, count: int) -> str:
    """How many labels were corrected by hand; empty for none."""
    if not count:
        return ""
    return (
        f'<span class="fixed" title="{say(language, "metrics.corrected.tip")}">✎ '
        f"{say(language, 'metrics.corrected', count=count)}</span>"
    )


def told(language: str, result: MetricResult) -> str:
    """Both values and their difference with intervals in one line, and the verdict's threshold."""
    sides = (
        ("chat.base", result.base, result.unit),
        ("answers.edited", result.edited, result.unit),
        ("metrics.difference", result.difference, apart(result.unit)),
    )
    words = [
        f"{say(language, key)} {exact(value, unit)}"
        for key, value, unit in sides
        if value is not None
    ]
    if result.verdict is not None:
        words.append(say(language, "metrics.threshold", size=threshold(result)))
    return " · ".join(words) + length(language, result)


def apart(unit: str) -> str:
    """The unit of a difference: of a perplexity's, nats/token."""
    return "nats/token" if unit == "perplexity" else unit


def threshold(result: MetricResult) -> str:
    """The size up to which a change of this metric is negligible, with its unit."""
    if result.unit == "rate":
        return f"{result.negligible * 100:g} %"
    return f"{result.negligible:g} {apart(result.unit)}"
