"""Draws everything on the screen that shows results at once, from one board, and writes the
downloads.
"""

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gradio as gr

from sst_ui import disk
from sst_ui import recipe as recipes
from sst_ui.metrics import result_files
from sst_ui.ui.events import advice as advice_events
from sst_ui.ui.panels import answers, comparison, metrics, variants
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.widgets.inputs import HIDDEN, visibility

OFFERED = 32  # boards whose files lie ready to be downloaded


@dataclass(frozen=True)
class ResultsView:
    """The components that show results."""

    rows: gr.HTML
    advice: gr.HTML
    files: tuple[gr.DownloadButton, ...]
    variants: gr.HTML
    tradeoff: gr.Plot
    compare: gr.Plot
    answers: gr.HTML
    label: gr.Dropdown

    @property
    def outputs(self) -> list:
        """The components that `refresh` may write to."""
        return [
            self.rows,
            self.advice,
            *self.files,
            self.variants,
            self.tradeoff,
            self.compare,
            self.answers,
            self.label,
        ]


def refresh(view: ResultsView, board: Board) -> dict:
    """Updates of everything that shows results."""
    choices = answers.labels(board.language, board.find(board.opened))
    known = {value for _, value in choices}
    label = board.label if board.label in known else answers.ANY
    return {
        view.rows: metrics.render(board),
        view.advice: advice_events.render(board),
        **dict(zip(view.files, files(board), strict=True)),
        view.variants: variants.render(board),
        view.tradeoff: variants.tradeoff(board),
        view.compare: comparison.figure(board),
        view.answers: answers.render(board),
        view.label: gr.Dropdown(choices=choices, value=label),
    }


def files(board: Board) -> list[dict]:
    """The downloads of the current variant; those that would be empty are not offered."""
    if not board.now:
        return [gr.update(visible=HIDDEN)] * 4
    assert board.variants.now is not None  # the results are its own
    recipe = board.variants.now.recipe
    folder = _folder() / recipes.digest([recipes.to_dict(recipe), board.now, board.kept])
    folder.mkdir(exist_ok=True)
    paths = result_files.write(folder, recipe, board.now, board.kept)
    _prune(folder)
    there = {"labels": bool(board.kept)}
    kinds = {"csv": "metrics", "items": "items", "json": "json", "labels": "corrections"}
    return [
        gr.update(value=str(paths[name]), visible=visibility(there.get(kind, True)))
        for kind, name in kinds.items()
    ]


def _folder() -> Path:
    """A folder that lives as long as the program; a download is copied out of it at once."""
    return Path(_offered().name)


@cache
def _offered() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="files-", dir=disk.temporary())


def _prune(newest: Path) -> None:
    """Keep the files of the last few boards only: a download is copied when it is offered."""
    newest.touch()
    with suppress(OSError):  # another window prunes as well
        others = [folder for folder in newest.parent.iterdir() if folder != newest]
        ages = {folder: disk.touched(folder, folder.stat()) for folder in others}
        for old in sorted(others, key=ages.__getitem__)[: max(0, len(others) + 1 - OFFERED)]:
            shutil.rmtree(old, ignore_errors=True)
