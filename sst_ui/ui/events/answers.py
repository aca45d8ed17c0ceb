"""Opening a metric, filtering its prompts, and correcting a label that was read wrong.

A correction goes to the browser's store and is drawn at once, everywhere: no model is asked.
"""

from dataclasses import replace

import gradio as gr

from sst_ui.metrics import corrections
from sst_ui.ui.events import show_results
from sst_ui.ui.panels import answers, metrics
from sst_ui.ui.services.errors import guarded
from sst_ui.ui.state.results_board import Board

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
# One after the other: what is drawn last has read what was clicked before it.
DRAWN = {**PRIVATE, "concurrency_id": "board", "concurrency_limit": 1}


def connect(studio) -> None:
    """Wire the way from a metric's row down to its prompts."""
    session, panel = studio.session, studio.answers

    @guarded
    def open_metric(lang, event: gr.EventData, *values):
        board = replace(Board.of(lang, *values), opened=event.pick)
        choices = answers.labels(lang, board.find(board.opened))
        if board.label not in {value for _, value in choices}:
            board = replace(board, label=answers.ANY)
        return {
            session.opened: board.opened,
            panel.table: answers.render(board),
            panel.label: gr.Dropdown(choices=choices, value=board.label),
            studio.tabs: gr.update(selected="answers"),
            studio.metrics.rows: metrics.render(board),
        }

    @guarded
    def refilter(lang, *values):
        return answers.render(Board.of(lang, *values))

    @guarded
    def search_topic(lang, event: gr.EventData, *values):
        board = Board.of(lang, *values)
        wanted = "" if board.search == event.pick else event.pick
        return {panel.search: wanted, panel.table: answers.render(replace(board, search=wanted))}

    @guarded
    def correct(lang, event: gr.EventData, *values):
        board = Board.of(lang, *values)
        result = board.find(board.opened)
        if result is None or not 0 <= event.item < len(result.items):
            return {}
        item = result.items[event.item]
        label = None if event.label == answers.AS_DETECTED else event.label
        answer = item.base if event.side == "base" else item.edited or ""
        board = replace(board, kept=corrections.correct(board.kept, item.prompt, answer, label))
        kept = corrections.rows(board.kept)
        return {session.corrections: kept, **show_results.refresh(studio, board)}

    studio.metrics.rows.click(
        open_metric,
        studio.board,
        [session.opened, panel.table, panel.label, studio.tabs, studio.metrics.rows],
        **DRAWN,
    )
    gr.on(  # a textbox that is emptied has no input event, only a change
        [panel.only.input, panel.label.input, panel.search.change],
        refilter,
        studio.board,
        panel.table,
        trigger_mode="always_last",
        **DRAWN,
    )
    panel.table.click(search_topic, studio.board, [panel.search, panel.table], **DRAWN)
    panel.table.select(
        correct, studio.board, [session.corrections, *show_results.outputs(studio)], **DRAWN
    )
