"""Using a prompt file of one's own: open it, name its columns, put it into a control.

A file that cannot be read is reported in its panel, and nothing in the form changes.
"""

from dataclasses import replace
from functools import partial

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.metrics.registry import default_metrics
from sst_ui.ui.events.binding import PRIVATE, call, together
from sst_ui.ui.events.draw_draft import Draft, Editor, draw
from sst_ui.ui.panels.metrics import title
from sst_ui.ui.panels.prompt_files import FIELDS, NONE, ROWS, Opened, UploadPanel, shown
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say


def connect(
    directions: UploadPanel, metrics: UploadPanel, editor: Editor, language: gr.State,
    engine: Engine,
) -> None:  # fmt: skip
    """Wire both panels: the directions' and the metrics'."""
    for panel in (directions, metrics):
        _connect_preview(panel, language)
    targets = ("harmful", "harmless", "metrics")
    uses = zip((directions, directions, metrics), (*directions.uses, *metrics.uses), targets)  # noqa: B905
    for panel, button, target in uses:
        chosen = [panel.metric] if panel.metric is not None else []
        button.click(
            **call(
                partial(use, panel, editor, target, engine),
                editor.draft, panel.opened, together(panel.fields), *chosen,
            ),
            outputs=[
                *editor.drawing.outputs,
                getattr(editor.controls.form, target),
                panel.preview,
            ],
            **PRIVATE,
        )  # fmt: skip


def _connect_preview(panel: UploadPanel, language: gr.State) -> None:
    panel.upload.upload(
        **call(partial(open_file, panel), language, panel.upload, may="upload"),
        outputs=[panel.preview, panel.mapping, panel.opened, *panel.fields],
        **PRIVATE,
    )
    gr.on(
        [menu.input for menu in panel.fields],
        **call(map_columns, language, panel.opened, together(panel.fields)),
        outputs=panel.preview,
        **PRIVATE,
    )


def open_file(panel: UploadPanel, language: str, path: str) -> dict:
    """A new file: its first rows, and the columns as they would be guessed."""
    try:
        found = prompt_sets.preview(path, ROWS)
    except UserError as error:
        return {
            panel.preview: notice(message(error, language), "bad"),
            panel.mapping: gr.update(visible=False),
            panel.opened: Opened(),
        }
    opened = Opened(path, found.mapping, found.columns)
    choices = [(say(language, "upload.none"), NONE), *((c, c) for c in found.columns)]
    menus = {
        menu: gr.Dropdown(choices=choices, value=found.mapping.get(field, NONE))
        for field, menu in zip(FIELDS, panel.fields, strict=True)
    }
    return {
        **menus,
        panel.preview: shown(language, found, opened.name),
        panel.mapping: gr.update(visible=True),
        panel.opened: opened,
    }


def map_columns(language: str, opened: Opened, columns: tuple) -> str:
    """Other columns: the same rows, and whether they are prompts now."""
    if not opened.path:
        return ""
    try:
        found = prompt_sets.preview(opened.source(columns), ROWS)
    except UserError as error:
        return notice(message(error, language), "bad")
    return shown(language, found, opened.name)


def use(
    panel: UploadPanel, editor: Editor, target: str, engine: Engine,
    draft: Draft, opened: Opened, columns: tuple, metric: str = "",
) -> dict:  # fmt: skip
    """The set's string goes into a control of the form, if it can be read."""
    lang, control = draft.language, getattr(editor.controls.form, target)
    name = opened.source(columns)
    try:
        count = len(prompt_sets.load(name))
    except UserError as error:
        return {panel.preview: notice(message(error, lang), "bad")}
    value: str | list[str] = name
    added = [(opened.name, name)]
    if target == "metrics":
        listed = [*(draft.form.metrics or default_metrics()), f"{metric}@{name}"]
        value = list(dict.fromkeys(listed))
        added = [(title(lang, v, v), v) for v in value if "@" in v]
    draft = replace(draft, form=draft.form._replace(**{target: value}))
    try:
        updates = draw(editor.drawing, engine, draft)
    except UserError as error:  # some other control is wrong
        return {panel.preview: notice(message(error, lang), "bad")}
    return {
        **updates,
        control: gr.update(choices=[*control.choices, *added], value=value),
        panel.preview: notice(say(lang, f"upload.used.{target}", count=count), "good"),
    }
