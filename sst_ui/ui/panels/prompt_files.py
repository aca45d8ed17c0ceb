"""A prompt file of one's own: uploaded, looked at, its columns named, then used like any other set.

What leaves here is the string that names the set, with the columns written out. What happens on a
click is in `ui.events.prompt_files`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.data.dataset_spec import FORMATS
from sst_ui.ui.widgets.html import notice, safe
from sst_ui.ui.widgets.inputs import Dropdown
from sst_ui.ui.widgets.messages import note_in
from sst_ui.ui.widgets.texts import say, t

FIELDS = ("prompt", "answer", "choices", "context", "topic", "system")  # what a column can be
NONE = ""  # no column
ROWS, LETTERS = 4, 70  # of the preview: rows, and letters of a cell


@dataclass(frozen=True)
class Opened:
    """The file that is open: its path, the column that was guessed for each field, all columns."""

    path: str = ""
    guess: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return self.path.replace("\\", "/").rpartition("/")[2]

    def source(self, columns: Sequence[str | None]) -> str:
        """The string that names the set: the file and a column for each of `FIELDS`.

        A field without a column is only written where one would be guessed.
        """
        named = {f: (c or "").strip() for f, c in zip(FIELDS, columns, strict=True)}
        said = {f: c for f, c in named.items() if c or self.guess.get(f)}
        query = "&".join(f"{f}={self._written(c)}" for f, c in said.items())
        return f"{self.path}?{query}" if said else self.path

    def _written(self, column: str) -> str:
        """A column's name, or several that are joined, in a query."""
        return quote(column, safe="") if column in self.columns else quote(column, safe="+,%")


@dataclass(frozen=True)
class UploadPanel:
    """`uses` are the buttons that put the set somewhere; `metric` where it goes to a metric."""

    upload: gr.UploadButton
    opened: gr.State
    preview: gr.HTML
    fields: tuple[gr.Dropdown, ...]
    mapping: gr.Column
    uses: tuple[gr.Button, ...]
    metric: gr.Dropdown | None


def create(name: str, uses: Sequence[str], metrics: Sequence[tuple[Any, str]] = ()) -> UploadPanel:
    """The controls.

    Args:
        name: sets their ids apart.
        uses: the buttons (`upload.use.<use>`).
        metrics: (title, name) of those the set can be for; none where it is for something else.
    """
    opened = gr.State(Opened())
    with gr.Accordion(t("upload.title"), open=False, elem_id=f"{name}-upload"):
        upload = gr.UploadButton(
            t("upload.open"), size="sm", file_types=list(FORMATS), elem_id=f"{name}-file"
        )
        preview = gr.HTML(elem_id=f"{name}-preview", elem_classes="preview")
        with gr.Column(visible=False, elem_classes="mapping") as mapping:
            fields = tuple(
                Dropdown(
                    [(t("upload.none"), NONE)],
                    value=NONE,
                    label=t(f"upload.field.{f}"),
                    allow_custom_value=True,  # several columns, joined by + or by commas
                    elem_id=f"{name}-{f}",
                    min_width=90,
                )
                for f in FIELDS
            )
            metric = None
            if metrics:
                metric = Dropdown(
                    list(metrics),
                    value="refusal_rate",
                    label=t("upload.metric"),
                    elem_id=f"{name}-metric",
                )
            with gr.Row(elem_classes="uses"):
                buttons = tuple(
                    gr.Button(t(f"upload.use.{use}"), size="sm", elem_id=f"{name}-use-{use}")
                    for use in uses
                )
    return UploadPanel(upload, opened, preview, fields, mapping, buttons, metric)


def shown(language: str, found: prompt_sets.Preview, name: str) -> str:
    """The first rows as a table, and what is wrong with them so far."""
    head = "".join(f"<th>{safe(column)}</th>" for column in found.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{safe(_cell(row.get(c)))}</td>" for c in found.columns) + "</tr>"
        for row in found.rows
    )
    count = "?" if found.total is None else f"{found.total:,}"
    told = say(language, "upload.count", name=name, count=count)
    problem = note_in(language, found.problem)
    trouble = notice(f"{say(language, 'upload.problem')} {problem}", "warn")
    return (
        f'<p class="hint">{safe(told)}</p><div class="rows"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{trouble if found.problem else ''}"
    )


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
