"""The whole screen: panels in their places, and who is wired to whom.

The only file that has all panels in hand: the events get those that they read and write. What
happens is in `ui.events`, one file per part of the screen.
"""

import os
from dataclasses import dataclass
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from sst_ui.ui import api
from sst_ui.ui.events import (
    advice,
    each_method,
    edit,
    edit_recipe,
    edit_table,
    evaluate,
    merge_methods,
    open_page,
    prompt_files,
    search_choices,
)
from sst_ui.ui.events import answers as answers_events
from sst_ui.ui.events import apply as apply_events
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import export as export_events
from sst_ui.ui.events import filter as filter_events
from sst_ui.ui.events import ladder as ladder_events
from sst_ui.ui.events import merge as merge_events
from sst_ui.ui.events import residual_map as map_events
from sst_ui.ui.events import rounds as rounds_events
from sst_ui.ui.events import runs as runs_events
from sst_ui.ui.events import search as search_events
from sst_ui.ui.events import tokens as token_events
from sst_ui.ui.events.binding import Reads
from sst_ui.ui.events.draw_draft import Controls, Draft, Drawing, Editor
from sst_ui.ui.events.show_results import ResultsView
from sst_ui.ui.panels import answers, chat, figures, header, metrics, model, runs, variants, weights
from sst_ui.ui.panels import export as export_panel
from sst_ui.ui.panels import ladder as ladder_panel
from sst_ui.ui.panels import merge as merge_panel
from sst_ui.ui.panels import recipe_text as recipe_panel
from sst_ui.ui.panels import search as search_panel
from sst_ui.ui.panels import session as session_states
from sst_ui.ui.panels.weights import ApplyBar, DirectionPanel, WeightsPanel
from sst_ui.ui.services import leaving, zero_gpu
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.page_head import PageHead
from sst_ui.ui.services.progress_bars import ProgressBars
from sst_ui.ui.services.uploads import Uploads
from sst_ui.ui.state.form import Form, measuring
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.run_store import shared
from sst_ui.ui.widgets import theme
from sst_ui.ui.widgets.texts import t

WAITING = 1000  # events of all visitors on a Space whose GPU is lent
HOUR = 3600  # seconds; how long what was uploaded or offered as a download is kept


# A tab's components are in the page from the start. Gradio puts them in when it is opened, keeps
# what they were told until then, and may hand that on after what has come meanwhile: an older
# digest, no answers. (Not for figures, which take their size from what they can be seen in.)
THERE: dict[str, Any] = {"render_children": True}


@dataclass(frozen=True)
class Left:
    """The column of the recipe's controls."""

    model: model.ModelPanel
    edits: gr.Tabs
    weights: WeightsPanel
    direction: DirectionPanel
    merge: merge_panel.MergePanel
    apply: ApplyBar


@dataclass(frozen=True)
class Work:
    """The tabs below the figures."""

    tabs: gr.Tabs
    chat: chat.ChatPanel
    answers: answers.AnswersPanel
    recipe: recipe_panel.RecipePanel
    export: export_panel.ExportPanel
    runs: runs.RunsPanel
    runs_tab: gr.Tab
    methods: merge_methods.MethodsPanel
    search: search_panel.SearchPanel
    search_tab: gr.Tab
    ladder: ladder_panel.LadderPanel


@dataclass(frozen=True)
class Screen:
    """All panels and states, and what is read and drawn across them."""

    session: session_states.Session
    header: header.Header
    left: Left
    figures: figures.FiguresPanel
    work: Work
    metrics: metrics.MetricsPanel
    variants: variants.VariantsPanel

    @property
    def editor(self) -> Editor:
        """The recipe's controls, the draft, and what follows from it."""
        s, f, left, work = self.session, self.figures, self.left, self.work
        sources = (left.weights, left.direction, self.metrics)
        found = dict(left.merge.controls)
        for name in Form._fields:
            if name not in found:
                found[name] = next(getattr(p, name) for p in sources if hasattr(p, name))
        form = Form(**{name: found[name] for name in Form._fields})
        drawing = Drawing(
            curve=f.curve,
            notes=left.weights.notes,
            apply=left.apply.apply,
            pair=left.apply.pair,
            text=work.recipe.text,
            command=work.recipe.command,
            digest=work.recipe.digest,
            exported=work.export.what,
            limits=self.metrics.limits,
            merge_figure=f.merge,
            merge=left.merge,
            filter=left.weights.filter,
            drawn=s.drawn,
        )
        read = [s.language, s.loaded, s.extras, s.drawn, s.variants, f.signal, f.merge_view, *form]
        controls = Controls(form, left.merge, left.weights.filter, s.extras)
        return Editor(controls, drawing, Reads(read, Draft.of))

    @property
    def board(self) -> Reads:
        """What is read by every handler that shows results."""
        s, a = self.session, self.work.answers
        read = [s.language, s.variants, s.results, s.corrections, s.opened]
        return Reads([*read, a.only, a.label, a.search], Board.of)

    @property
    def results(self) -> ResultsView:
        """What shows results."""
        m, f, a = self.metrics, self.figures, self.work.answers
        return ResultsView(
            m.rows, m.advice, m.files, self.variants.rows, f.tradeoff, f.compare, a.table, a.label
        )

    @property
    def applied(self) -> apply_events.Applied:
        """What says which recipe is applied."""
        s = self.session
        pickers = self.work.chat.pickers
        return apply_events.Applied(self.header.line, s.variants, s.saved, self.results, pickers)


def build(engine: Engine) -> gr.Blocks:
    """The page over an engine; launch it with `launch_options()`."""
    # Gradio sums up the times of its last 10,000 events after every one of them.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    with gr.Blocks(
        title="SST Studio",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(HOUR, 24 * HOUR if shared() else 7 * 24 * HOUR),
    ) as page:
        _connect(page, panels(engine), engine)
        leaving.forget_windows(page)
    if zero_gpu.lent():  # there Gradio lets one event wait, and refuses the rest of a page's
        page.queue(max_size=WAITING)
    return page


def launch_options() -> dict[str, Any]:
    """What `Blocks.launch` needs: the look, and what stands in front of the routes."""
    before = [Middleware(each) for each in (Uploads, PageHead, ProgressBars)]
    return {**theme.launch_options(), "app_kwargs": {"middleware": before}}


def panels(engine: Engine) -> Screen:
    """All panels in their places, not wired yet."""
    session = session_states.create()
    top = header.create()
    with gr.Row(elem_id="studio"):
        with gr.Column(elem_id="left", min_width=260):
            left = _left()
        with gr.Column(elem_id="middle", min_width=300):
            figures_panel = figures.create(engine.loaded.layers)
            with gr.Group(elem_id="work", elem_classes="panel"):
                work = _work()
        with gr.Column(elem_id="right", min_width=260):
            metrics_panel = metrics.create()
            variants_panel = variants.create()
    return Screen(session, top, left, figures_panel, work, metrics_panel, variants_panel)


def _left() -> Left:
    with gr.Column(elem_id="controls", min_width=240):
        model_panel = model.create()
        with gr.Tabs(elem_id="edit-tabs", selected="ablation") as edits:
            with gr.Tab(t("tab.ablation"), id="ablation", elem_id="ablation-tab"):
                weights_panel = weights.create_weights()
                direction_panel = weights.create_direction()
            with gr.Tab(t("tab.merge"), id="merge", elem_id="merging-tab", **THERE):
                merge = merge_panel.create()
    bar = weights.create_apply()
    return Left(model_panel, edits, weights_panel, direction_panel, merge, bar)


def _work() -> Work:
    with gr.Tabs(elem_id="work-tabs", selected="chat") as tabs:
        with gr.Tab(t("tab.chat"), id="chat", elem_id="chat-tab"):
            chat_panel = chat.create()
        with gr.Tab(t("tab.answers"), id="answers", elem_id="answers-tab", **THERE):
            answers_panel = answers.create()
        with (
            gr.Tab(t("tab.recipe"), id="recipe", elem_id="recipe-tab", **THERE),
            gr.Row(elem_id="recipe-row"),
        ):
            with gr.Column(elem_id="recipe-column", min_width=240):
                recipe = recipe_panel.create()
            export = export_panel.create()
        with gr.Tab(t("tab.runs"), id="runs", elem_id="runs-tab", **THERE) as runs_tab:
            runs_panel = runs.create()
        with gr.Tab(t("tab.methods"), id="methods", elem_id="methods-tab", **THERE):
            methods = merge_methods.create()
        with gr.Tab(t("tab.search"), id="search", elem_id="search-tab") as search_tab:
            search = search_panel.create()
        with gr.Tab(t("tab.ladder"), id="ladder", elem_id="ladder-tab", **THERE):
            ladder = ladder_panel.create()
    return Work(
        tabs, chat_panel, answers_panel, recipe, export, runs_panel, runs_tab, methods, search,
        search_tab, ladder,
    )  # fmt: skip


def _connect(page: gr.Blocks, screen: Screen, engine: Engine) -> None:
    """Hand to every part of the screen what it reads and writes.

    Where one control has several events they run in this order.
    """
    session, left, work, figs = screen.session, screen.left, screen.work, screen.figures
    editor, board, results, applied = screen.editor, screen.board, screen.results, screen.applied
    lang, bar = session.language, left.apply
    jobs = apply_events.Screen(bar, editor, applied, figs.tabs)
    changed, measuring_now = apply_events.connect(jobs, left.direction.measure, lang, board, engine)
    rounds_events.connect(jobs, left.direction.decision, figs, engine)
    edit.connect(editor, bar, figs.signal, lang, engine)
    filter_events.connect(editor, engine)
    edit_table.connect(figs, editor, engine)
    edit_recipe.connect(work.recipe, editor, lang, engine)
    merge_events.connect(editor, figs, changed, engine)
    merge_methods.connect(work.methods, editor, session, bar.status, left.edits, engine)
    answered = chat_events.connect(work.chat, engine, session, changed)
    drawn, map_opened = token_events.connect(figs, editor, session, answered, changed, engine)
    chat_events.probing(engine, session, figs.probe, answered, drawn)
    map_events.connect(figs, editor, session, map_opened, [measuring_now, *changed], engine)
    each_method.connect(work.methods.each, work.chat, editor, session, engine)
    ladder_events.connect(work.ladder, work.chat, editor, session, figs.probe, engine)
    window = open_page.Screen(session, editor, applied, work.chat, bar.status, figs.probe)
    opened, looked = open_page.connect(page, window, board, left.model, engine)
    chat_events.restore(work.chat, session, opened)
    measured = evaluate.connect(
        screen.metrics,
        results,
        measuring(editor.controls.form),
        board,
        session,
        [*changed, opened, *looked],
        [bar.apply.click, bar.undo.click, bar.redo.click, screen.variants.rows.click],
        engine,
    )
    runs_events.connect(
        work.runs,
        session,
        editor,
        engine,
        [opened.success, work.runs_tab.select],
        changed[0],
        measured,
    )
    export_events.connect(work.export, board, session, engine)
    search_events.connect(work.search, editor, session, work.search_tab, opened, engine)
    search_choices.connect(work.search, editor, applied, board, session, engine)
    answers_events.connect(work.answers, results, board, session, work.tabs)
    advice.connect(results.advice, editor, board, figs.tabs, bar.status, engine)
    prompt_files.connect(left.direction.upload, screen.metrics.upload, editor, lang, engine)
    api.connect(engine)
