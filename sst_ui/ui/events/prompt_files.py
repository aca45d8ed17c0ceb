"""Using a prompt file of one's own: open it, name its columns, put it into a control.

A file that cannot be read is reported in its panel, and nothing in the form changes.
"""

from dataclasses import replace

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.metrics.registry import default_metrics
from sst_ui.ui.events import draw_draft
from sst_ui.ui.events.draw_draft import Draft, draw
from sst_ui.ui.panels.metrics import title
from sst_ui.ui.panels.prompt_files import FIELDS, NONE, ROWS, Opened, UploadPanel, shown
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


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
            found = prompt_sets.preview(path, ROWS)
        except UserError as error:
            told = notice(message(error, lang), "bad")
            return {
                panel.preview: told,
                panel.mapping: gr.update(visible=False),
                panel.opened: Opened(),
            }
        opened = Opened(path, found.mapping, found.columns)
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
            found = prompt_sets.preview(opened.source(columns), ROWS)
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
    cut, control = len(studio.draft), getattr(studio.form, target)
    metric = [panel.metric] if panel.metric is not None else []

    @guarded
    def use(*values):
        draft, (opened, *columns) = Draft.of(*values[:cut]), values[cut:]
        chosen = columns.pop() if metric else ""
        name = opened.source(columns)
        try:
            count = len(prompt_sets.load(name))
        except UserError as error:
            return {panel.preview: notice(message(error, draft.language), "bad")}
        value, added = name, [(opened.name, name)]
        if target == "metrics":
            listed = [*(draft.form.metrics or default_metrics()), f"{chosen}@{name}"]
            value = list(dict.fromkeys(listed))
            added = [(title(draft.language, v, v), v) for v in value if "@" in v]
        draft = replace(draft, form=draft.form._replace(**{target: value}))
        told = say(draft.language, f"upload.used.{target}", count=count)
        try:
            updates = draw(studio, engine, draft)
        except UserError as error:  # some other control is wrong
            return {panel.preview: notice(message(error, draft.language), "bad")}
        return {
            **updates,
            control: gr.update(choices=[*control.choices, *added], value=value),
            panel.preview: notice(told, "good"),
        }

    button.click(
        use,
        [*studio.draft, panel.opened, *panel.fields, *metric],
        [*draw_draft.outputs(studio), control, panel.preview],
        **PRIVATE,
    )
