"""The states of a window: what it knows beside what its controls show."""

from dataclasses import dataclass

import gradio as gr

from sst_ui.ui.panels import runs
from sst_ui.ui.state.form import Extras
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.window import Conversation, Variants


@dataclass(frozen=True)
class Session:
    """The states of a window: small frozen data, each written by one kind of event.

    `saved`, `corrections` and `talk` are kept by the browser and survive a restart: the recipes
    applied so far, as YAML, the labels that were corrected, and the chat; on a Space also the
    `runs`, which elsewhere are the user's history. `search` is kept there too: the ticket of a
    search that goes on while the page is away (see `services.lasting_jobs`). `job` names the
    metrics now being computed; `drawn` is the profile and its numbers that the figure shows (see
    `draw_draft.shape`); `figure` is the tab of the figures that is open.
    """

    language: gr.State
    loaded: gr.State
    extras: gr.State
    drawn: gr.State
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
    figure: gr.State
    search: gr.BrowserState


def create() -> Session:
    """The states of a window that just opened."""
    return Session(
        language=gr.State("en"),
        loaded=gr.State(Loaded()),
        extras=gr.State(Extras()),
        drawn=gr.State(),
        variants=gr.State(Variants()),
        saved=gr.BrowserState({}, storage_key="sst-studio-variants", secret="sst-studio"),
        results=gr.State({}),
        corrections=gr.BrowserState([], storage_key="sst-studio-corrections", secret="sst-studio"),
        job=gr.State(""),
        opened=gr.State(""),
        runs=gr.BrowserState([], storage_key="sst-studio-runs", secret="sst-studio"),
        view=gr.State(runs.View()),
        conversation=gr.State(Conversation()),
        talk=gr.BrowserState({}, storage_key="sst-studio-chat", secret="sst-studio"),
        methods=gr.State(()),
        figure=gr.State("curve"),
        search=gr.BrowserState("", storage_key="sst-studio-search", secret="sst-studio"),
    )
