"""Opening a metric, filtering its prompts, and correcting a label that was read wrong.

A correction goes to the browser's store and is drawn at once, everywhere: no model is asked.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui.metrics import corrections
from sst_ui.ui.events import show_results
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.events.show_results import ResultsView
from sst_ui.ui.panels import answers, metrics
from sst_ui.ui.panels.session import Session
from sst_ui.ui.state.results_board import Board

# One after the other: what is drawn last has read what was clicked before it.
DRAWN: dict[str, Any] = {**PRIVATE, "concurrency_id": "board", "concurrency_limit": 1}


def connect(
    panel: answers.AnswersPanel, results: ResultsView, board: Reads, session: Session, tabs: gr.Tabs
) -> None:
    """Wire the way from a metric's row down to its prompts."""
    results.rows.click(
        **call(partial(open_metric, panel, results, session, tabs), board),
        outputs=[session.opened, panel.table, panel.label, tabs, results.rows],
        **DRAWN,
    )
    gr.on(  # a textbox that is emptied has no input event, only a change
        [panel.only.input, panel.label.input, panel.search.change],
        **call(refilter, board),
        outputs=panel.table,
        trigger_mode="always_last",
        **DRAWN,
    )
    panel.table.click(
        **call(partial(search_topic, panel), board), outputs=[panel.search, panel.table], **DRAWN
    )
    panel.table.select(
        **call(partial(correct, results, session), board),
        outputs=[session.corrections, *results.outputs],
        **DRAWN,
    )


def open_metric(
    panel: answers.AnswersPanel,
    results: ResultsView,
    session: Session,
    tabs: gr.Tabs,
    board: Board,
    event: gr.EventData,
) -> dict:
    """The prompts of the metric whose row was clicked."""
    board = replace(board, opened=event.pick)
    choices = answers.labels(board.language, board.find(board.opened))
    if board.label not in {value for _, value in choices}:
        board = replace(board, label=answers.ANY)
    return {
        session.opened: board.opened,
        panel.table: answers.render(board),
        panel.label: gr.Dropdown(choices=choices, value=board.label),
        tabs: gr.update(selected="answers"),
        results.rows: metrics.render(board),
    }


def refilter(board: Board) -> str:
    """The prompts that pass another filter."""
    return answers.render(board)


def search_topic(panel: answers.AnswersPanel, board: Board, event: gr.EventData) -> dict:
    """Search for a topic; a second click on it lets it go."""
    wanted = "" if board.search == event.pick else event.pick
    return {panel.search: wanted, panel.table: answers.render(replace(board, search=wanted))}


def correct(results: ResultsView, session: Session, board: Board, event: gr.EventData) -> dict:
    """Keep a corrected label in the browser, and draw everything anew."""
    result = board.find(board.opened)
    if result is None or not 0 <= event.item < len(result.items):
        return {}
    item = result.items[event.item]
    label = None if event.label == answers.AS_DETECTED else event.label
    answer = item.base if event.side == "base" else item.edited or ""
    board = replace(board, kept=corrections.correct(board.kept, item.prompt, answer, label))
    kept = corrections.rows(board.kept)
    return {session.corrections: kept, **show_results.refresh(results, board)}
