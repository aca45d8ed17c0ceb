"""The table of methods: all merges of the two adapters on the same prompts, at one click."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import gradio as gr

from sst_ui.jobs.merge.compare_methods import ALONE, COLUMNS
from sst_ui.jobs.purpose import goal_of
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import direction
from sst_ui.recipe import Merge, Recipe
from sst_ui.ui.events.binding import MANY, PRIVATE, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw, fill
from sst_ui.ui.panels.ladder import AskPanel, create_asking
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services import job_runner, merge_forecasts
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import told
from sst_ui.ui.services.merge_forecasts import Line
from sst_ui.ui.state.form import evaluation, measuring, split
from sst_ui.ui.widgets.definitions import definition, of_metric, titled
from sst_ui.ui.widgets.html import CLICKS, notice, safe
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.numbers import exact, number
from sst_ui.ui.widgets.texts import empty, has, say, t


@dataclass(frozen=True)
class MethodsPanel:
    run: gr.Button
    cancel: gr.Button
    progress: gr.HTML
    table: gr.HTML
    each: AskPanel


def create() -> MethodsPanel:
    with gr.Row(elem_id="methods-tools"):
        run = gr.Button(
            t("methods.run"), size="sm", variant="primary", elem_id="run-methods", scale=0,
            min_width=150,
        )  # fmt: skip
        cancel = gr.Button(
            t("cancel"), size="sm", variant="stop", elem_id="cancel-methods", visible=HIDDEN,
            scale=0, min_width=70,
        )  # fmt: skip
        progress = gr.HTML(elem_id="methods-progress")
    table = gr.HTML(empty("methods.none"), elem_id="methods", js_on_load=CLICKS)
    return MethodsPanel(run, cancel, progress, table, create_asking("each-method"))


def render(language: str, lines: Sequence[Line], now: Merge | None = None) -> str:
    """The table as HTML; the best of the merges in each column is bold, a row is a button."""
    if not lines:
        return f'<p class="empty">{say(language, "methods.none")}</p>'
    heads = "".join(
        f"<th{titled(of_metric(language, name))}>{safe(_heading(language, name))}</th>"
        for name in COLUMNS
    )
    predicted = titled(definition(language, "column.predicted"))
    best = {name: _best(name, lines) for name in COLUMNS}
    order = {name: i for i, name in enumerate(ALONE)}
    rows = "".join(
        _row(language, line, best, now)
        for line in sorted(lines, key=lambda line: order.get(line.name, len(ALONE)))
    )
    tokens = {line.tokens for line in lines if line.tokens is not None}
    lengths = "".join(f" {say(language, 'answers.length', tokens=t)}" for t in sorted(tokens))
    if any(line.first for line in lines):
        lengths += f" {say(language, 'methods.first', prompts=merge_forecasts.SAMPLES)}"
    return (
        f'<div class="methods"><table><thead><tr><th></th>{heads}'
        f"<th{predicted}>{say(language, 'methods.predicted')}</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        f'<p class="faint">{say(language, "methods.hint")}{lengths}</p></div>'
    )


def _row(language: str, line: Line, best: dict, now: Merge | None) -> str:
    cells, values = "", dict(line.values)
    for name in COLUMNS:
        value, unit = values.get(name), find(name).unit
        shown = "·" if value is None else number(value, unit)
        tip = "" if value is None else f"{exact(value, unit)} · n {value.n}"
        first = value is not None and line.name not in ALONE and value.value == best[name]
        top = ' class="best"' if first else ""
        cells += f'<td{top} title="{safe(tip)}">{shown}</td>'
    kl = "·" if line.predicted is None else f"{line.predicted:.2g}"
    title = say(language, f"methods.{line.name}") if line.name in ALONE else line.title
    pick, kind = "", line.name if line.name in ALONE else ""
    if line.spec is not None and line.name not in ALONE:
        pick = f' role="button" tabindex="0" data-pick="{safe(line.name)}"'
        kind += " current" if line.spec == now else ""
    return f'<tr class="{kind}"{pick}><th>{safe(title)}</th>{cells}<td>{kl}</td></tr>'


def _heading(language: str, name: str) -> str:
    key = f"methods.{name.partition('@')[0]}"
    return say(language, key) if has(key) else COLUMNS[name]


def _best(name: str, lines: Sequence[Line]) -> float | None:
    values = [dict(line.values).get(name) for line in lines if line.name not in ALONE]
    found = [value.value for value in values if value is not None]
    choose = max if direction(find(name), goal_of("merged")) == "high" else min
    return choose(found) if found else None


def connect(
    panel: MethodsPanel, editor: Editor, session: Session, status: gr.HTML, tabs: gr.Tabs,
    engine: Engine,
) -> None:  # fmt: skip
    """Wire the button, its cancel, and the rows.

    Args:
        status: where it is said that a row's settings are in the controls.
        tabs: of the edits; the merge is shown.
    """
    lines = session.methods
    panel.run.click(
        **call(partial(run, panel, lines, engine), editor.draft, may="measure"),
        outputs=[panel.table, panel.progress, panel.run, panel.cancel, lines],
        concurrency_id="metrics",
        concurrency_limit=MANY,
        **PRIVATE,
    )
    panel.cancel.click(
        **call(partial(stop, engine), session.language), outputs=panel.cancel, **PRIVATE
    )
    panel.table.click(
        **call(partial(use, panel, editor, status, tabs, engine), editor.draft, lines),
        outputs=[*editor.outputs, panel.table, status, tabs],
        **PRIVATE,
    )


def run(
    panel: MethodsPanel, known: gr.State, engine: Engine, draft: Draft, request: gr.Request
) -> Iterator[dict]:
    """Measure all methods, line by line."""
    stopped = engine.begin(job_runner.name("methods", request))
    lang = draft.language
    lines: tuple[Line, ...] = ()
    busy = {
        panel.cancel: gr.update(visible=True, interactive=True),
        panel.run: gr.update(visible=HIDDEN),
    }
    idle = {panel.cancel: gr.update(visible=HIDDEN), panel.run: gr.update(visible=True)}

    def one_more(line: Line) -> dict:
        nonlocal lines
        lines = (*(each for each in lines if each.name != line.name), line)
        return {panel.table: render(lang, lines, spec), known: lines}

    try:
        on = draft.form._replace(merge_on=True)
        spec, _ = split(replace(draft, form=on).recipe())
        assert spec is not None  # it is switched on
        wanted = replace(evaluation(*measuring(draft.form)), metrics=())
        yield {panel.table: render(lang, ()), known: (), **busy}
        yield from job_runner.watched(
            lang,
            engine.merges.compare(draft.loaded.key, spec, wanted),
            lambda bar: {panel.progress: bar},
            one_more,
            notes=False,
            stopped=stopped,
        )
    except Exception as error:
        yield {panel.progress: told(error, lang), **idle}
        return
    yield {panel.progress: "", **idle}


def stop(engine: Engine, language: str, request: gr.Request) -> dict:
    """Ask the running job to stop; it says the rest when it has ended."""
    engine.stop(job_runner.name("methods", request))
    return gr.update(interactive=False)


def use(
    panel: MethodsPanel, editor: Editor, status: gr.HTML, tabs: gr.Tabs, engine: Engine,
    draft: Draft, lines: Sequence[Line], event: gr.EventData,
) -> dict:  # fmt: skip
    """A row's merge into the controls."""
    lang, line = draft.language, next((line for line in lines if line.name == event.pick), None)
    if line is None or line.spec is None:
        return {}
    edits = (line.spec, *((draft.ablation(),) if draft.form.ablation_on else ()))
    recipe = Recipe(model=draft.loaded.spec, edits=edits, evaluation=draft.recipe().evaluation)
    updates, form, extras = fill(editor.controls, recipe, draft)
    return {
        **updates,
        **draw(editor.drawing, engine, replace(draft, form=form, extras=extras)),
        panel.table: render(lang, lines, line.spec),
        status: notice(say(lang, "methods.used"), "info"),
        tabs: gr.update(selected="merge"),
    }
