"""Names of variants as the screen shows them.

A name that the studio made (`ui.state.window.title`) is stored as it was made, so that choices and
links hold in every language; only what is shown of it is in the visitor's. Other names stay.
"""

import re

from sst_ui.maths import kernel
from sst_ui.maths.merge.registry import METHODS
from sst_ui.profiles import OWN
from sst_ui.ui.widgets.texts import has, say

NUMBERS = re.compile(r"[×≤#μ₀k=+−-]*[\d.e−+-]*|KL|nats")  # ×2, ≤0.05, μ, 1, #2, +
WORDS = {
    "filter": "operation.filter",
    "add": "operation.add",
    "affine": "name.affine",
    "everywhere": "name.everywhere",
    "random": "name.random",
    "base": "chat.base",
    "utility": "name.utility",
    "adapter": "name.adapter",
}


def shown_name(language: str, name: str) -> str:
    """A variant's name as it is shown.

    >>> shown_name("ja", "default ×2 filter μ 1"), shown_name("ja", "My default")
    ('標準 ×2 フィルター μ 1', 'My default')
    """
    if language == "en":
        return name
    words = [_word(language, word) for word in name.split(" ")]
    return name if None in words else " ".join(filter(None, words))


def _word(language: str, word: str) -> str | None:
    """None for a word that the studio puts into no name."""
    if word in (*kernel.profiles(), *OWN) and has(f"profile.{word}"):
        return say(language, f"profile.{word}")
    if word in WORDS:
        return say(language, WORDS[word])
    return word if word in METHODS.names() or NUMBERS.fullmatch(word) else None
