"""The screen's texts, in the visitor's language (presets/texts.yaml).

Two ways, because Gradio has two: `t(key)` for texts of components, which the browser translates,
and `say(language, key, ...)` for sentences composed in Python.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import gradio as gr
import yaml

from sst_ui.paths import PRESETS

LANGUAGES = ("en", "ja")
CHOSEN = re.compile(r"(?:^|;\s*)sst-language=(\w+)")  # the cookie of the switch (assets/studio.js)


@cache
def _texts() -> Mapping[str, Mapping[str, str]]:
    return yaml.safe_load((PRESETS / "texts.yaml").read_text(encoding="utf-8"))


@cache
def translations() -> gr.I18n:
    """Every text for the browser's side of the translation."""
    texts = _texts()
    return gr.I18n(**{lang: {key: row[lang] for key, row in texts.items()} for lang in LANGUAGES})


def t(key: str) -> Any:
    """A text of a component, as Gradio translates it; KeyError for a key that has no text.

    Gradio takes it wherever a component has a text; a few of its signatures say `str` all the same.
    """
    if key not in _texts():
        raise KeyError(f"presets/texts.yaml has no {key!r}")
    return translations()(key)


def empty(key: str) -> str:
    """A sentence where there is nothing yet, as HTML that Gradio translates."""
    return f'<p class="empty">{t(key)}</p>'


def has(key: str) -> bool:
    """Whether there is a text of that name (metrics of others may have none)."""
    return key in _texts()


def say(language: str, key: str, **values: object) -> str:
    """A sentence in the given language, with its {names} filled in."""
    return _texts()[key][language].format(**values)


def raw(language: str, key: str) -> str:
    """A sentence whose {names} the page fills in."""
    return _texts()[key][language]


def chosen(headers: Mapping[str, str]) -> str:
    """The language that the visitor chose by the switch; '' where they chose none."""
    found = CHOSEN.search(headers.get("cookie", ""))
    return found[1] if found and found[1] in LANGUAGES else ""


def language(request: gr.Request | None) -> str:
    """What the visitor chose, else the first language of the browser's list that we speak; English
    otherwise."""
    return spoken(request.headers if request is not None else {})


def spoken(headers: Mapping[str, str]) -> str:
    """The language of a request with these headers, as `language`."""
    for part in [chosen(headers), *headers.get("accept-language", "").split(",")]:
        code = part.split(";")[0].strip().lower()[:2]
        if code in LANGUAGES:
            return code
    return "en"
