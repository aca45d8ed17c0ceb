"""The Runs view: every applied recipe with its numbers, and several of them side by side.

What happens on a click is in `ui.events.runs`: a row is a button that chooses it, and its own
buttons reach Python as `event.act` and `event.run`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.history.records import Comparison, Record, compare, value
from sst_ui.metrics.registry import SUMMARY
from sst_ui.ui.panels import metrics
from sst_ui.ui.services.errors import message
from sst_ui.ui.widgets import samples
from sst_ui.ui.widgets.definitions import definition, of_metric, titled
from sst_ui.ui.widgets.html import notice, safe
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.numbers import exact, interval, number
from sst_ui.ui.widgets.samples import Sample
from sst_ui.ui.widgets.texts import empty, say, t

ACTS = """
const act = (event) => {
  const target = event.target.closest('[data-act]');
  if (!target) return;
  const name = target.dataset.act;
  trigger(name === 'load' ? 'apply' : 'select', {act: name, run: Number(target.dataset.run)});
};
element.addEventListener('click', act);
element.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' && event.key !== ' ') return;
  if (event.target.closest('[data-act]')?.tagName === 'BUTTON') return;  // it clicks by itself
  event.preventDefault();
  act(event);
});
"""


@dataclass(frozen=True)
class RunsPanel:
    search: gr.Textbox
    compare: gr.Button
    delete: gr.Button
    undo: gr.Button
    back: gr.Button
    status: gr.HTML
    table: gr.HTML


@dataclass(frozen=True)
class View:
    """What a window does with its runs: which are chosen, which were just deleted.

    Attributes:
        chosen: ids, in the order in which they were chosen.
        comparing: whether the chosen ones are shown side by side.
        gone: what Undo would bring back.
    """

    chosen: tuple[int, ...] = ()
    comparing: bool = False
    gone: tuple[Record, ...] = ()


def create() -> RunsPanel:
    with gr.Row(elem_id="runs-tools"):
        search = gr.Textbox(
            "",
            label=t("runs.search"),
            placeholder=t("runs.search"),
            show_label=False,
            container=False,
            max_lines=1,
            elem_id="runs-search",
            min_width=140,
        )
        back = gr.Button(t("runs.back"), size="sm", elem_id="runs-back", visible=HIDDEN, scale=0)
        undo = gr.Button(t("runs.undo"), size="sm", elem_id="runs-undo", visible=HIDDEN, scale=0)
        both = gr.Button(
            t("runs.compare"), size="sm", variant="primary", elem_id="runs-compare",
            interactive=False, scale=0,
        )  # fmt: skip
        delete = gr.Button(
            t("runs.delete"), size="sm", elem_id="runs-delete", interactive=False, scale=0
        )
    status = gr.HTML(elem_id="runs-status")
    table = gr.HTML(empty("runs.none"), elem_id="runs", js_on_load=ACTS)
    return RunsPanel(search, both, delete, undo, back, status, table)


def listed(
    language: str, records: Sequence[Record], view: View, now: str, empty: str = "none"
) -> str:
    """The list, newest first.

    Args:
        now: digest of the recipe that is applied; its runs are marked.
        empty: `none` or `no_match`: what to say where there are none.
    """
    if not records:
        return f'<p class="empty">{say(language, f"runs.{empty}")}</p>'
    heads = [
        (say(language, f"runs.{name}"), definition(language, f"column.{name}"))
        for name in ("recipe", "model", "when")
    ]
    heads += [(say(language, f"variants.{name}"), of_metric(language, name)) for name in SUMMARY]
    head = "".join(f"<span{titled(what)}>{safe(name)}</span>" for name, what in heads)
    rows = [f'<div class="run heads"><i></i>{head}<span></span></div>']
    beside = {name: _beside([r.metric(name) for r in records]) for name in SUMMARY}
    rows += [_row(language, r, r.id in view.chosen, r.digest == now, beside) for r in records]
    return "".join(rows)


def _beside(rows: Iterable[Mapping[str, Any] | None]) -> Sample | None:
    """What most of a metric's numbers rest on."""
    return samples.usual(Sample.of_row(row) for row in rows if row)


def _row(
    language: str, record: Record, chosen: bool, current: bool, beside: Mapping[str, Sample | None]
) -> str:
    cells = "".join(
        f"<span>{_cell(language, record.metric(name), beside[name])}</span>" for name in SUMMARY
    )
    name = safe(shown_name(language, record.title))
    marks = f"{' chosen' if chosen else ''}{' current' if current else ''}"
    return (
        f'<div class="run{marks}" role="checkbox" aria-checked="{str(chosen).lower()}" '
        f'tabindex="0" data-act="choose" data-run="{record.id}"><i></i>'
        f'<b title="{name}">{name}<code>{safe(record.digest)}</code></b>'
        f'<span title="{safe(record.model)}">{safe(_short(record.model))}</span>'
        f"<span>{record.when}</span>{cells}"
        f'<button type="button" data-act="load" data-run="{record.id}" '
        f'title="{safe(say(language, "runs.load_tip"))}">{safe(say(language, "runs.load"))}'
        "</button></div>"
    )


def compared(language: str, records: Sequence[Record]) -> str:
    """The chosen runs side by side; a sentence where that cannot be."""
    try:
        found = compare(records)
    except UserError as error:
        return notice(message(error, language), "bad")
    heads = "".join(
        f"<th>{safe(shown_name(language, r.title))}"
        f"<small>{safe(_short(r.model))} · {r.when}</small>"
        f"<code>{safe(r.digest)}</code></th>"
        for r in found.records
    )
    return (
        f'<div class="compared"><table><thead><tr><th>{say(language, "runs.metric")}</th>{heads}'
        f"</tr></thead><tbody>{_metrics(language, found)}</tbody>"
        f"<tbody>{_differences(language, found)}</tbody></table></div>"
    )


def _metrics(language: str, found: Comparison) -> str:
    if not found.metrics:
        columns = len(found.records) + 1
        return f'<tr><td colspan="{columns}">{say(language, "runs.unmeasured")}</td></tr>'
    lines = []
    for metric, rows in found.metrics:
        unit, cells, beside = metric["unit"], [], _beside(rows)
        name = safe(metrics.title(language, metric["name"], metric["title"]))
        for row in rows:
            if row is None:
                cells.append("<td>·</td>")
                continue
            base, edited = value(row["base"]), row["edited"] and value(row["edited"])
            shown, kind = edited or base, row["verdict"] or "none"
            cells.append(
                f'<td title="{safe(exact(shown, unit))} · {say(language, f"verdict.{kind}")}">'
                f"<s>{number(base, unit)}</s>"
                f'<b class="v-{kind}">{number(shown, unit)}</b> '
                f"<small>{interval(shown, unit)} n {shown.n}{_length(language, row)}</small>"
                f"{samples.mark(language, Sample.of_row(row), beside)}</td>"
            )
        what = titled(of_metric(language, metric["name"]))
        lines.append(f"<tr><th{what}>{name}</th>{''.join(cells)}</tr>")
    return "".join(lines)


def _length(language: str, row: Mapping[str, Any]) -> str:
    """How long the answers were; empty where there were none, or the run does not say."""
    tokens = row.get("tokens")
    return f" · {say(language, 'metrics.length', tokens=tokens)}" if tokens else ""


def _differences(language: str, found: Comparison) -> str:
    columns = len(found.records) + 1
    key = "runs.differs" if found.differences else "runs.same"
    lines = [f'<tr class="part"><th colspan="{columns}">{say(language, key)}</th></tr>']
    for name, values in found.differences:
        cells = "".join(f"<td>{safe(v) or '–'}</td>" for v in values)
        lines.append(f"<tr><th><code>{safe(name)}</code></th>{cells}</tr>")
    return "".join(lines)


def _cell(language: str, row: Mapping[str, Any] | None, beside: Sample | None) -> str:
    if not row:
        return "·"
    shown = number(value(row["edited"] or row["base"]), row["unit"])
    shown += samples.mark(language, Sample.of_row(row), beside)
    return f'<span title="{length}">{shown}</span>' if (length := _length(language, row)) else shown


def _short(model: str) -> str:
    """The last part of a folder or Hub id."""
    return PurePath(model.replace("\\", "/")).name or model
