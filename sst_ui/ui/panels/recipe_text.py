"""The recipe as text: copy, paste, download, upload, link, and the command without a screen."""

from dataclasses import dataclass

import gradio as gr

from sst_ui.program import program
from sst_ui.recipe import Recipe
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.texts import say, t

COMMAND = program() + " run recipe.yaml --out outputs/{name}"
LINK = """(text) => {
  const url = location.origin + location.pathname + '?recipe=' + encodeURIComponent(text);
  navigator.clipboard?.writeText(url);
  history.replaceState(null, '', url);
}"""

SAVE = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/yaml'}));
  link.download = 'recipe.yaml';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""  # the browser has the text: no file is written here for it


@dataclass(frozen=True)
class RecipePanel:
    text: gr.Code
    use: gr.Button
    download: gr.Button
    upload: gr.UploadButton
    link: gr.Button
    command: gr.Textbox
    status: gr.HTML
    digest: gr.HTML


def create() -> RecipePanel:
    with gr.Row(elem_id="recipe-tools"):
        use = gr.Button(t("recipe.use"), size="sm", variant="primary", elem_id="use-recipe")
        upload = gr.UploadButton(
            t("recipe.upload"), size="sm", file_types=[".yaml", ".yml"], elem_id="upload-recipe"
        )
        download = gr.Button(t("recipe.download"), size="sm", elem_id="download-recipe")
        link = gr.Button(t("recipe.link"), size="sm", elem_id="link-recipe")
    digest = gr.HTML(elem_id="recipe-digest")
    status = gr.HTML(elem_id="recipe-status")
    text = gr.Code(
        language="yaml", label=t("recipe.text"), show_label=False, elem_id="recipe-text", lines=12
    )
    command = gr.Textbox(
        COMMAND.format(name="recipe"),
        label=t("recipe.command"),
        interactive=False,
        buttons=["copy"],
        elem_id="command",
    )
    return RecipePanel(text, use, download, upload, link, command, status, digest)


def hashed(language: str, recipe: Recipe, applied: bool) -> str:
    """The hash of the recipe in the controls, and whether it is the edited model."""
    state = say(language, "recipe.applied" if applied else "recipe.draft")
    return f"{say(language, 'recipe.hash')} <code>{recipe.digest()}</code> · {safe(state)}"


def command(recipe: Recipe) -> str:
    """The exact command that does the same without a screen."""
    return COMMAND.format(name=recipe.name or recipe.digest())
