"""Inspecting a model and loading another one in its place.

A model that cannot be loaded is said in its panel; what was open stays open.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from sst_ui.recipe import ModelSpec
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.panels.model import ModelPanel, spec
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message, told
from sst_ui.ui.services.job_runner import Told, name, watched
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.messages import note_in, say_in
from sst_ui.ui.widgets.texts import say


def connect(panel: ModelPanel, engine: Engine, language: gr.State, loaded: gr.State) -> Any:
    """Wire inspect and load; returns the load event, whose success means a new model."""
    asked = Reads(panel.inputs, lambda *values: partial(spec, *values))
    panel.inspect.click(
        **call(partial(look, engine), language, asked, may="change the model"),
        outputs=panel.status,
        **PRIVATE,
    )
    event = gr.on(
        [panel.load.click, panel.id.submit],
        **call(partial(swap, engine), language, loaded, asked, may="change the model"),
        outputs=[panel.status, loaded, panel.cancel],
        concurrency_id="load",
        concurrency_limit=1,
        **PRIVATE,
    )
    panel.cancel.click(**call(partial(stop, engine), language), outputs=panel.cancel, **PRIVATE)
    return event


def look(engine: Engine, language: str, asked: Callable[[], ModelSpec]) -> str:
    """What the model would take, and whether it fits."""
    try:
        report = engine.inspect(asked())
    except Exception as error:
        return notice(message(error, language), "bad")
    verdict = say(language, "model.fits" if report.fits else "model.too_big")
    return notice(
        f"{note_in(language, report.summary())} — {verdict}", "good" if report.fits else "warn"
    )


def swap(
    engine: Engine,
    language: str,
    current: Loaded,
    asked: Callable[[], ModelSpec],
    request: gr.Request,
) -> Iterator[tuple]:
    """Load the model; status, model and the Cancel button as it goes."""
    stopped = engine.begin(name("load", request))
    try:
        current = yield from watched(
            language,
            engine.load(asked()),
            lambda bar: (bar, gr.skip(), gr.update(visible=True, interactive=True)),
            stopped=stopped,
            told=Told(language, toast=False),  # they stay under the button
        )
    except Exception as error:
        text = message(error, language)
        yield told(error, language), gr.skip(), gr.update(visible=HIDDEN)
        # what was open stays open, and what is wrong has been said
        raise gr.Error(text, visible=False, print_exception=False) from error
    engine.first.begin()
    warned = (say_in(language, each) for each in current.warnings)
    text = " ".join([say(language, "model.loaded", name=current.name), *warned])
    done = notice(text, "warn" if current.warnings else "good")
    yield done, current, gr.update(visible=HIDDEN)


def stop(engine: Engine, language: str, request: gr.Request) -> dict:
    """Ask the running job to stop; it says the rest when it has ended."""
    engine.stop(name("load", request))
    return gr.update(interactive=False)
