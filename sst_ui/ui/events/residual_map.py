"""The map of residuals: drawn when its tab is opened, and when its direction is another."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from sst_ui.progress import Progress
from sst_ui.ui.events.binding import MANY, PRIVATE, call
from sst_ui.ui.events.draw_draft import Draft, Editor
from sst_ui.ui.panels.figures import MAP, FiguresPanel
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.widgets import token_grid


def connect(
    figures: FiguresPanel,
    editor: Editor,
    session: Session,
    opened: Any,
    measured: Sequence[Any],
    engine: Engine,
) -> None:
    """Wire the tab.

    Args:
        opened: the event after which it is open.
        measured: events after which the draft's directions may be others.
    """
    drawn: dict[str, Any] = {
        **call(partial(look, figures, engine), editor.draft, session.figure, may="measure"),
        "outputs": figures.map,
        "trigger_mode": "multiple",
        "concurrency_limit": MANY,
        **PRIVATE,
    }
    for event in (opened, *measured):
        event.success(**drawn)


def look(
    figures: FiguresPanel, engine: Engine, draft: Draft, figure: str, request: gr.Request
) -> Iterator[dict]:
    """Draw the residuals of the draft's direction, if the tab is open."""
    if figure != MAP:
        yield {}
        return
    lang, key = draft.language, draft.loaded.key
    mine = engine.answering(f"{request.session_hash}:map")
    try:
        spec = draft.ablation().directions
        with closing(engine.residual_map(key, spec)) as job:
            while True:
                try:
                    _: Progress = next(job)
                except StopIteration as end:
                    found = end.value
                    break
                if mine.replaced:
                    return
        signal = engine.suggestion(key, spec)
        best = draft.loaded.layers // 2 if signal is None else int(np.argmax(signal))
        control = spec.estimator == "random"
        yield {figures.map: token_grid.points(lang, found, best, control)}
    except Exception as error:
        yield {figures.map: token_grid.nothing(message(error, lang))}
    finally:
        mine.over.set()
