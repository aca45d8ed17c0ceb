"""Whether the phrase lists can read an answer at all, by its script and its common words.

A language without a list would otherwise count as never refusing.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache

import yaml

from sst_ui.paths import PRESETS

SCRIPTS = {"LATIN", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH"}  # of lists that we have
LETTERS = 8  # of a script, and HITS words of a language: fewer do not tell
HITS = 3
SHARE = 0.05  # of the answers: fewer in another language change no number that matters
LOOKED_AT = 2000  # characters of an answer


def note(answers: Iterable[str]) -> str:
    """What to know of answers in languages without a phrase list; empty where there are few."""
    texts = [answer for answer in answers if answer.strip()]
    found = Counter(name for text in texts if (name := uncovered(text)))
    if not texts or found.total() < SHARE * len(texts):
        return ""
    names = ", ".join(name for name, _ in found.most_common(3))
    return (
        f"{found.total()} of {len(texts)} answers are in {names}, which no phrase list covers,"
        " so refusals and evasions in them are not found; set a judge, or correct the labels"
    )


@lru_cache(4096)  # several metrics read the same answers
def uncovered(text: str) -> str:
    """The language or script of a text that no phrase list covers; empty for any other."""
    text = text[:LOOKED_AT]
    scripts = Counter(map(_script, filter(str.isalpha, text)))
    if not scripts:
        return ""
    script, count = scripts.most_common(1)[0]
    if count < LETTERS:
        return ""
    if script != "LATIN":
        return "" if script in SCRIPTS else f"{script.capitalize()} script"
    words = Counter(re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", text).lower()))
    hits = {code: sum(words[word] for word in known) for code, (_, known) in _languages().items()}
    best = max(hits, key=hits.__getitem__)
    # a word may be of two languages: as many of a covered one are enough to take it for that
    if hits[best] < HITS or hits[best] <= max(hits[code] for code in _covered()):
        return ""
    return _languages()[best][0]


@cache
def _languages() -> dict[str, tuple[str, frozenset[str]]]:
    data = yaml.safe_load((PRESETS / "languages.yaml").read_text(encoding="utf-8"))
    return {str(code): (name, frozenset(map(str, words))) for code, (name, *words) in data.items()}


@cache
def _covered() -> tuple[str, ...]:
    """The languages in Latin letters that have a phrase list."""
    lists = {path.stem for path in (PRESETS / "phrases").glob("*.yaml")}
    return tuple(code for code in _languages() if code in lists)


@lru_cache(4096)
def _script(letter: str) -> str:
    """The first word of a letter's name in Unicode: LATIN, CYRILLIC, CJK, ..."""
    return unicodedata.name(letter, "?").split(" ")[0].split("-")[0]
