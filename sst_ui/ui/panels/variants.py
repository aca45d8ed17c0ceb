"""The list of applied recipes, and the figure of what each removes against what it costs."""

import math
from dataclasses import dataclass

import gradio as gr
from plotly.graph_objects import Figure

from sst_ui.maths import pareto
from sst_ui.metrics.registry import SUMMARY
from sst_ui.metrics.results import MetricResult
from sst_ui.ui.panels import metrics
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets import plots, samples
from sst_ui.ui.widgets.definitions import of_metric, titled
from sst_ui.ui.widgets.html import CLICKS, safe
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.numbers import number
from sst_ui.ui.widgets.samples import Sample
from sst_ui.ui.widgets.texts import say, t

RENAMES = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-rename]');
  if (!button) return;
  event.stopImmediatePropagation();
  const row = button.closest('.variant'), name = row.querySelector('b');
  const box = Object.assign(document.createElement('input'), {
    value: button.dataset.rename, maxLength: 60, ariaLabel: button.title,
  });
  row.replaceChild(box, name);
  box.select();
  let over = false;  // taking the box away makes it lose the focus, which ends it once more
  const end = (keep) => {
    if (over) return;
    over = true;
    row.replaceChild(name, box);
    const named = box.value.trim();
    if (keep && named && named !== button.dataset.rename)
      trigger('click', {pick: button.dataset.rename, named});
  };
  box.addEventListener('keydown', (key) => {
    key.stopPropagation();
    if (key.key === 'Enter' || key.key === 'Escape') end(key.key === 'Enter');
  });
  box.addEventListener('click', (click) => click.stopImmediatePropagation());
  box.addEventListener('blur', () => end(true));
});
element.addEventListener('keydown', (event) => {  // a press of the pencil picks nothing
  if (event.target.closest('[data-rename]')) event.stopImmediatePropagation();
});
"""  # a pencil makes the name of the current variant a box; what it says reaches Python beside pick
COST, GAIN = "kl_16", "refusal_rate"  # the axes of the trade-off


@dataclass(frozen=True)
class VariantsPanel:
    rows: gr.HTML


def create() -> VariantsPanel:
    with gr.Group(elem_id="variants-panel", elem_classes="panel"):
        gr.HTML(t("section.variants"), elem_classes="title")
        rows = gr.HTML(elem_id="variants", js_on_load=RENAMES + CLICKS)
    return VariantsPanel(rows)


def render(board: Board) -> str:
    """The list, newest first; a row is a button that brings its settings back."""
    variants, known = board.variants, dict(board.measured)
    lang = board.language
    head = "".join(
        f"<span{titled(of_metric(lang, name))}>{safe(say(lang, f'variants.{name}'))}</span>"
        for name in SUMMARY
    )
    rows = [f'<div class="variant heads"><b></b>{head}</div>']
    beside = {name: _beside(board, name) for name in SUMMARY}
    for variant in reversed(variants.items):
        found = known.get(variant.name, {})
        cells = "".join(_cell(board.language, found.get(n), beside[n]) for n in SUMMARY)
        current, name = variant.name == variants.current, safe(variant.name)
        pencil = _pencil(board.language, name) if current else ""
        shown = safe(shown_name(lang, variant.name))
        rows.append(
            f'<div class="variant{" current" if current else ""}" data-pick="{name}"><b>'
            f'<button class="name" data-pick="{name}">{shown}</button>{pencil}</b>{cells}</div>'
        )
    return "".join(rows) if variants.items else ""


def _pencil(language: str, name: str) -> str:
    """The button that makes a name a box to write in."""
    tip = safe(say(language, "variants.rename"))
    return (
        f' <button class="pencil" data-rename="{name}" title="{tip}" aria-label="{tip}">✎</button>'
    )


def _beside(board: Board, name: str) -> Sample | None:
    """What the current variant's number rests on, else what most variants' do."""
    found = {variant: rows[name] for variant, rows in board.measured if name in rows}
    if (mine := found.get(board.variants.current)) is not None:
        return Sample.of(mine)
    return samples.usual(Sample.of(each) for each in found.values())


def _cell(language: str, result: MetricResult | None, beside: Sample | None) -> str:
    """A number, marked where its sample is another one, with the length of the answers as its
    tip."""
    if result is None:
        return "<span>·</span>"
    tip = safe(metrics.length(language, result).removeprefix(" · "))
    mark = samples.mark(language, Sample.of(result), beside)
    return f'<span title="{tip}">{number(result.edited, result.unit)}{mark}</span>'


def tradeoff(board: Board) -> Figure:
    """Refusals against divergence, one point per variant; a sentence while there is none."""
    language, points = board.language, [("base", 0.0, math.nan)]
    for name, found in board.measured:
        if COST not in found or GAIN not in found:
            continue
        cost, gain = found[COST].edited, found[GAIN].edited
        if cost and gain:
            points[0] = (say(language, "chat.base"), 0.0, found[GAIN].base.value)
            points.append((shown_name(language, name), cost.value, gain.value))
    if len(points) < 2:
        return plots.empty(say(language, "tradeoff.empty"))
    return plots.tradeoff(
        metrics.title(language, COST, COST),
        metrics.title(language, GAIN, GAIN),
        points,
        pareto.front(points),
        shown_name(language, board.variants.current),
    )
