"""The whole screen: panels in their places, states of a window, and their events connected."""

from dataclasses import dataclass

import gradio as gr

from sst_ui.ui import api
from sst_ui.ui.events import (
    advice,
    evaluate,
    merge_methods,
    open_page,
    prompt_files,
    search_choices,
)
from sst_ui.ui.events import (
    answers as answers_events,
)
from sst_ui.ui.events import (
    apply as apply_events,
)
from sst_ui.ui.events import (
    chat as chat_events,
)
from sst_ui.ui.events import (
    edit as edit_events,
)
from sst_ui.ui.events import (
    export as export_events,
)
from sst_ui.ui.events import (
    merge as merge_events,
)
from sst_ui.ui.events import (
    runs as runs_events,
)
from sst_ui.ui.events import (
    search as search_events,
)
from sst_ui.ui.panels import (
    answers,
    chat,
    figures,
    header,
    metrics,
    model,
    runs,
    variants,
    weights,
)
from sst_ui.ui.panels import (
    export as export_panel,
)
from sst_ui.ui.panels import (
    merge as merge_panel,
)
from sst_ui.ui.panels import recipe_text as recipe_panel
from sst_ui.ui.panels import (
    search as search_panel,
)
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.state.form import Extras, Form
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.run_store import shared
from sst_ui.ui.state.window import Conversation, Variants
from sst_ui.ui.widgets.texts import t

HOUR = 3600  # seconds; how long what was uploaded or offered as a download is kept


@dataclass(frozen=True)
class Session:
    """The states of a window: small frozen data, each written by one kind of event.

    `saved`, `corrections` and `talk` are kept by the browser and survive a restart: the recipes
    applied so far, as YAML, the labels that were corrected, and the chat; on a Space also the
    `runs`, which elsewhere are the user's history. `job` names the metrics now being computed.
    """

    language: gr.State
    loaded: gr.State
    extras: gr.State
    variants: gr.State
    saved: gr.BrowserState
    results: gr.State
    corrections: gr.BrowserState
    job: gr.State
    opened: gr.State
    runs: gr.BrowserState
    view: gr.State
    conversation: gr.State
    talk: gr.BrowserState
    methods: gr.State


@dataclass(frozen=True)
class Studio:
    """All panels and states, for the wiring. `form` lists every control of the recipe."""

    session: Session
    header: header.Header
    model: model.ModelPanel
    weights: weights.WeightsPanel
    direction: weights.DirectionPanel
    merge: merge_panel.MergePanel
    edits: gr.Tabs
    apply: weights.ApplyBar
    figures: figures.FiguresPanel
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
    metrics: metrics.MetricsPanel
    variants: variants.VariantsPanel
    form: Form

    @property
    def draft(self) -> list:
        """Inputs of every handler that needs the draft (see `Draft.of`)."""
        s, f = self.session, self.figures
        return [s.language, s.loaded, s.extras, s.variants, f.signal, f.merge_view, *self.form]

    @property
    def board(self) -> list:
        """Inputs of every handler that shows results (see `Board.of`)."""
        s, a = self.session, self.answers
        return [
            s.language, s.variants, s.results, s.corrections, s.opened, a.only, a.label, a.search,
        ]  # fmt: skip


def build(engine: Engine) -> gr.Blocks:
    """The page over an engine; launch it with `theme.launch_options()`."""
    with gr.Blocks(
        title="SST Studio",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(HOUR, 24 * HOUR if shared() else 7 * 24 * HOUR),
    ) as page:
        studio = _panels(engine)
        changed = apply_events.connect(studio, engine)
        edit_events.connect(studio, engine)
        merge_events.connect(studio, engine, changed)
        merge_methods.connect(studio, engine)
        chat_events.connect(studio.chat, engine, studio.session, studio.figures.probe)
        opened = open_page.connect(page, studio, engine)
        chat_events.restore(studio.chat, studio.session, opened)
        interrupts = [studio.apply.apply.click, studio.apply.undo.click, studio.variants.rows.click]
        measured = evaluate.connect(studio, engine, [*changed, opened], interrupts)
        runs_events.connect(studio, engine, opened, changed[0], measured)
        export_events.connect(studio, engine)
        search_events.connect(studio, engine, opened)
        search_choices.connect(studio, engine)
        answers_events.connect(studio)
        advice.connect(studio, engine)
        prompt_files.connect(studio, engine)
        api.connect(engine)
    return page


def _panels(engine: Engine) -> Studio:
    session = Session(
        language=gr.State("en"),
        loaded=gr.State(Loaded()),
        extras=gr.State(Extras()),
        variants=gr.State(Variants()),
        saved=gr.BrowserState([], storage_key="sst-studio-variants", secret="sst-studio"),
        results=gr.State({}),
        corrections=gr.BrowserState([], storage_key="sst-studio-corrections", secret="sst-studio"),
        job=gr.State(""),
        opened=gr.State(""),
        runs=gr.BrowserState([], storage_key="sst-studio-runs", secret="sst-studio"),
        view=gr.State(runs.View()),
        conversation=gr.State(Conversation()),
        talk=gr.BrowserState({}, storage_key="sst-studio-chat", secret="sst-studio"),
        methods=gr.State(()),
    )
    top = header.create()
    with gr.Row(elem_id="studio"):
        with gr.Column(elem_id="left", min_width=260):
            with gr.Column(elem_id="controls", min_width=240):
                model_panel = model.create()
                with gr.Tabs(elem_id="edit-tabs", selected="ablation") as edits:
                    with gr.Tab(t("tab.ablation"), id="ablation", elem_id="ablation-tab"):
                        weights_panel = weights.create_weights()
                        direction_panel = weights.create_direction()
                    with gr.Tab(t("tab.merge"), id="merge", elem_id="merging-tab"):
                        merge = merge_panel.create()
            apply_bar = weights.create_apply()
        with gr.Column(elem_id="middle", min_width=300):
            figures_panel = figures.create(engine.loaded.layers)
            with (
                gr.Group(elem_id="work", elem_classes="panel"),
                gr.Tabs(elem_id="work-tabs", selected="chat") as tabs,
            ):
                with gr.Tab(t("tab.chat"), id="chat", elem_id="chat-tab"):
                    chat_panel = chat.create()
                with gr.Tab(t("tab.answers"), id="answers", elem_id="answers-tab"):
                    answers_panel = answers.create()
                with gr.Tab(t("tab.recipe"), id="recipe", elem_id="recipe-tab"):
                    with gr.Row(elem_id="recipe-row"):
                        with gr.Column(elem_id="recipe-column", min_width=240):
                            recipe = recipe_panel.create()
                        export = export_panel.create()
                with gr.Tab(t("tab.runs"), id="runs", elem_id="runs-tab") as runs_tab:
                    runs_panel = runs.create()
                with gr.Tab(t("tab.methods"), id="methods", elem_id="methods-tab"):
                    methods_panel = merge_methods.create()
                with gr.Tab(t("tab.search"), id="search", elem_id="search-tab") as search_tab:
                    search = search_panel.create()
        with gr.Column(elem_id="right", min_width=260):
            metrics_panel = metrics.create()
            variants_panel = variants.create()
    sources = (weights_panel, direction_panel, metrics_panel)
    form = Form(
        **{
            name: merge.controls[name]
            if name in merge.controls
            else next(getattr(panel, name) for panel in sources if hasattr(panel, name))
            for name in Form._fields
        }
    )
    return Studio(
        session,
        top,
        model_panel,
        weights_panel,
        direction_panel,
        merge,
        edits,
        apply_bar,
        figures_panel,
        tabs,
        chat_panel,
        answers_panel,
        recipe,
        export,
        runs_panel,
        runs_tab,
        methods_panel,
        search,
        search_tab,
        metrics_panel,
        variants_panel,
        form,
    )
