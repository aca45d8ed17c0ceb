"""The recipe as text: used in the controls, uploaded, downloaded, and as a link."""

from dataclasses import replace
from functools import partial

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.ui.events.binding import PRIVATE, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw, fill
from sst_ui.ui.events.edit import usable
from sst_ui.ui.panels.recipe_text import LINK, SAVE, RecipePanel
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say


def connect(panel: RecipePanel, editor: Editor, language: gr.State, engine: Engine) -> None:
    """Wire the Recipe tab."""
    written = [*editor.outputs, panel.status]
    panel.use.click(
        **call(partial(use, panel.status, editor, engine), editor.draft, panel.text),
        outputs=written,
        **PRIVATE,
    )
    panel.upload.upload(
        **call(
            partial(upload, panel.status, editor, engine),
            editor.draft,
            panel.upload,
            may="upload",
        ),
        outputs=written,
        **PRIVATE,
    )
    panel.link.click(None, panel.text, None, js=LINK, **PRIVATE)
    panel.download.click(
        **call(download, language, panel.text, check=partial(readable, panel.text)),
        outputs=panel.status,
        **PRIVATE,
    ).success(None, panel.text, None, js=SAVE, **PRIVATE)


def use(status: gr.HTML, editor: Editor, engine: Engine, draft: Draft, text: str | None) -> dict:
    """The text's settings into the controls."""
    try:
        recipe = usable(draft.language, draft.loaded, recipes.from_yaml(text or ""))
        updates, form, extras = fill(editor.controls, recipe, draft)
        drawn = draw(editor.drawing, engine, replace(draft, form=form, extras=extras))
    except UserError as error:
        return {status: notice(message(error, draft.language), "bad")}
    told = notice(say(draft.language, "recipe.used"), "good")
    return {**updates, **drawn, status: told}


def upload(status: gr.HTML, editor: Editor, engine: Engine, draft: Draft, path: str | None) -> dict:
    """A file's settings into the controls."""
    if not path:
        return {}
    try:
        text = recipes.read_text(path)
    except UserError as error:
        binary = isinstance(error.__cause__, UnicodeDecodeError)
        lang = draft.language
        told = say(lang, "recipe.not_utf8") if binary else message(error, lang)
        return {status: notice(told, "bad")}
    return use(status, editor, engine, draft, text)


def readable(shown: gr.Code, language: str, text: str | None) -> dict:
    """What is saved as a recipe is one."""
    try:
        recipes.from_yaml(text or "")
    except UserError as error:
        return {shown: message(error, language)}
    return {}


def download(language: str, text: str) -> str:
    """Nothing to say: the browser saves the text that it has."""
    return ""
