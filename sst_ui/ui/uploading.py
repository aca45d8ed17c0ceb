"""A prompt file of one's own: uploaded, looked at, its columns named, then used like any other set.

Knows the panel and its events. How files are read is in `data.prompts`; what leaves here is the
string that names the set, with the columns written out, in the controls of the form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlencode

import gradio as gr

from sst_ui.data import prompts
from sst_ui.data.spec import FORMATS
from sst_ui.errors import UserError
from sst_ui.metrics.registry import METRICS, Metric, default_metrics
from sst_ui.ui import drawing
from sst_ui.ui.drawing import Draft, draw
from sst_ui.ui.engine import Engine
from sst_ui.ui.errors import guarded, message
from sst_ui.ui.html import notice, safe
from sst_ui.ui.metrics import title
from sst_ui.ui.texts import say, t

FIELDS = ("prompt", "answer", "choices", "context", "topic", "system")  # what a column can be
NONE = ""  # no column
ROWS, LETTERS = 4, 70  # of the preview: rows, and letters of a cell
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class Opened:
    """The file that is open: its path, and the column that was guessed for each field."""

    path: str = ""
    guess: Mapping[str, str] = field(default_factory=dict)

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
        return f"{self.path}?{urlencode(said, quote_via=quote, safe=',')}" if said else self.path


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


def create(name: str, uses: Sequence[str], with_metric: bool = False) -> UploadPanel:
    """The controls; `name` sets their ids apart, `uses` are the buttons' (`upload.use.<use>`)."""
    opened = gr.State(Opened())
    with gr.Accordion(t("upload.title"), open=False, elem_id=f"{name}-upload"):
        upload = gr.UploadButton(
            t("upload.open"), size="sm", file_types=list(FORMATS), elem_id=f"{name}-file"
        )
        preview = gr.HTML(elem_id=f"{name}-preview", elem_classes="preview")
        with gr.Column(visible=False, elem_classes="mapping") as mapping:
            fields = tuple(
                gr.Dropdown(
                    [(t("upload.none"), NONE)],
                    value=NONE,
                    label=t(f"upload.field.{f}"),
                    allow_custom_value=True,  # several columns, joined by commas
                    elem_id=f"{name}-{f}",
                    min_width=90,
                )
                for f in FIELDS
            )
            metric = None
            if with_metric:
                metric = gr.Dropdown(
                    [(title("en", m.name, m.title), m.name) for m in METRICS if _own(m)],
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


def _own(row) -> bool:
    """Whether a metric has prompts of its own that others can take the place of."""
    return isinstance(row, Metric)


def shown(language: str, found: prompts.Preview, name: str) -> str:
    """The first rows as a table, and what is wrong with them so far."""
    head = "".join(f"<th>{safe(column)}</th>" for column in found.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{safe(_cell(row.get(c)))}</td>" for c in found.columns) + "</tr>"
        for row in found.rows
    )
    count = "?" if found.total is None else f"{found.total:,}"
    told = say(language, "upload.count", name=name, count=count)
    trouble = notice(f"{say(language, 'upload.problem')} {found.problem}", "warn")
    return (
        f'<p class="hint">{safe(told)}</p><div class="rows"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{trouble if found.problem else ''}"
    )


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def connect(studio, engine: Engine) -> None:
    """Wire both panels: the directions' and the metrics'."""
    for panel in (studio.direction.upload, studio.metrics.upload):
        _preview(studio, panel)
    harmful, harmless = studio.direction.upload.uses
    _use(studio, engine, studio.direction.upload, harmful, "harmful")
    _use(studio, engine, studio.direction.upload, harmless, "harmless")
    _use(studio, engine, studio.metrics.upload, studio.metrics.upload.uses[0], "metrics")


def _preview(studio, panel: UploadPanel) -> None:
    lang = studio.session.language

    @guarded
    def open_file(lang, path):
        """A new file: its first rows, and the columns as they would be guessed."""
        try:
            found = prompts.preview(path, ROWS)
        except UserError as error:
            told = notice(message(error, lang), "bad")
            return {
                panel.preview: told,
                panel.mapping: gr.update(visible=False),
                panel.opened: Opened(),
            }
        opened = Opened(path, found.mapping)
        choices = [(say(lang, "upload.none"), NONE), *((c, c) for c in found.columns)]
        menus = {
            menu: gr.Dropdown(choices=choices, value=found.mapping.get(f, NONE))
            for f, menu in zip(FIELDS, panel.fields, strict=True)
        }
        return {
            **menus,
            panel.preview: shown(lang, found, opened.name),
            panel.mapping: gr.update(visible=True),
            panel.opened: opened,
        }

    @guarded
    def map_columns(lang, opened: Opened, *columns):
        """Other columns: the same rows, and whether they are prompts now."""
        if not opened.path:
            return ""
        try:
            found = prompts.preview(opened.source(columns), ROWS)
        except UserError as error:
            return notice(message(error, lang), "bad")
        return shown(lang, found, opened.name)

    panel.upload.upload(
        open_file,
        [lang, panel.upload],
        [panel.preview, panel.mapping, panel.opened, *panel.fields],
        **PRIVATE,
    )
    gr.on(
        [menu.input for menu in panel.fields],
        map_columns,
        [lang, panel.opened, *panel.fields],
        panel.preview,
        **PRIVATE,
    )


def _use(studio, engine: Engine, panel: UploadPanel, button: gr.Button, target: str) -> None:
    """One button: the set's string goes into a control of the form, if it can be read."""
    cut = len(studio.draft)
    metric = [panel.metric] if panel.metric is not None else []

    @guarded
    def use(*values):
        draft, (opened, *columns) = Draft.of(*values[:cut]), values[cut:]
        chosen = columns.pop() if metric else ""
        name = opened.source(columns)
        try:
            count = len(prompts.load(name))
        except UserError as error:
            return {panel.preview: notice(message(error, draft.language), "bad")}
        value = name
        if target == "metrics":
            listed = list(draft.form.metrics or default_metrics())
            value = list(dict.fromkeys([*listed, f"{chosen}@{name}"]))
        draft = replace(draft, form=draft.form._replace(**{target: value}))
        told = say(draft.language, f"upload.used.{target}", count=count)
        return {
            **draw(studio, engine, draft),
            getattr(studio.form, target): value,
            panel.preview: notice(told, "good"),
        }

    button.click(
        use,
        [*studio.draft, panel.opened, *panel.fields, *metric],
        [*drawing.outputs(studio), getattr(studio.form, target), panel.preview],
        **PRIVATE,
    )
