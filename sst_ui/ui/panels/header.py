"""The slim line on top: name, model, recipe digest, and the switches of language and theme."""

from dataclasses import dataclass

import gradio as gr

from sst_ui.model.load.memory import count
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.texts import LANGUAGES, say

STEPS = ("ask", "change", "compare")
LOGO = (  # a bell over the layers
    '<svg viewBox="0 0 28 20" aria-hidden="true"><path d="M1 18 C8 18 9 3 14 3 S20 18 27 18"/>'
    '<circle cx="14" cy="3" r="2.4"/></svg>'
)


@dataclass(frozen=True)
class Header:
    line: gr.HTML


def create() -> Header:
    """The header; `render` gives its text."""
    return Header(gr.HTML(render("en", Loaded(), ""), elem_id="header"))


def render(language: str, loaded: Loaded, digest: str, name: str = "") -> str:
    """The header's HTML for a model and the applied recipe."""
    if loaded.key:
        facts = (
            f"{count(loaded.parameters)} {say(language, 'header.params')}",
            f"{loaded.layers} {say(language, 'header.layers')}",
            loaded.dtype,
            loaded.device,
        )
        model = f"<b>{safe(loaded.name)}</b><span>{safe(' · '.join(facts))}</span>"
    else:
        model = f"<span>{say(language, 'header.loading')}</span>"
    recipe = ""
    if digest:
        recipe = (
            f'<span class="digest"><i></i>{safe(shown_name(language, name))} <code title="'
            f'{say(language, "header.recipe")}">{safe(digest)}</code></span>'
        )
    steps = _steps(language) if loaded.key else ""
    other = next(each for each in LANGUAGES if each != language)
    return f"""
<div class="brand">{LOGO}<b>SST Studio</b><span>{say(language, "header.tagline")}</span></div>
<div class="model" id="model-line">{model}</div>{steps}{recipe}
<button id="language-switch" type="button" data-language="{other}"
 lang="{other}" title="{say(other, "header.language")}">{say(other, "header.language")}</button>
<button id="theme-switch" type="button" title="{say(language, "header.theme")}"
 aria-label="{say(language, "header.theme")}">◐</button>"""


def _steps(language: str) -> str:
    """The first three things to do, until they are done: `studio.js` knows which are."""
    buttons = "".join(
        f'<button type="button" data-step="{step}" title="{say(language, f"first.{step}.tip")}">'
        f"<i>{number}</i>{say(language, f'first.{step}')}</button>"
        for number, step in enumerate(STEPS, start=1)
    )
    hide, named = say(language, "first.hide"), say(language, "first.steps")
    over = f'<button type="button" data-step="over" title="{hide}" aria-label="{hide}">×</button>'
    return f'<div class="steps" role="group" aria-label="{named}">{buttons}{over}</div>'
