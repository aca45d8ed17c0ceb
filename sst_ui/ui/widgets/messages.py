"""Sentences that the program writes in English, errors above all, in the visitor's language.

They are composed where something is wrong, far from any visitor; here they are recognised again
(presets/messages.yaml). What is not known stays English.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import yaml

from sst_ui.paths import PRESETS

HOLE = re.compile(r"\{[#']?\}")
KINDS = {"{}": "(.*?)", "{#}": r"([-+−\d.,e]*\d)", "{'}": "(['\"].*?)"}
# Where one sentence ends and another begins.
SENTENCES = re.compile(r"(?<=[.:]) (?=[A-Z])")
Row = tuple[tuple[str, ...], re.Pattern[str], str]  # what it holds for certain, all of it, Japanese


def say_in(language: str, text: str) -> str:
    """A sentence of the program's in that language, or several, one after the other."""
    if language != "ja" or not text:
        return text
    found = _sentence(text)
    if found is None:
        parts = [_sentence(part) for part in SENTENCES.split(text)]
        found = "".join(filter(None, parts)) if all(parts) else None
    return text if found is None else found


def note_in(language: str, text: str) -> str:
    """What a job notes of itself, parts of it by themselves."""
    if language != "ja" or not text:
        return text
    parts = text.split("; ")
    found = [_value(part) for part in parts]
    if all(one != part for one, part in zip(found, parts, strict=True)):
        return "；".join(found)
    return _sentence(text) or "；".join(found)


def _sentence(text: str) -> str | None:
    """None for what is not known. English begins with a capital on the screen only."""
    return next(_matches(text, "sentences"), None) or next(
        _matches(text[:1].lower() + text[1:], "sentences"), None
    )


def _value(text: str) -> str:
    """What stands in a sentence: a sentence itself, a part that is known, or left as it is."""
    if not re.search("[a-z]{2}|[0-9] to", text):
        return text
    return _sentence(text) or next(_matches(text, "parts"), text)


def _matches(text: str, kind: str) -> Iterator[str]:
    for pieces, pattern, japanese in _rows()[kind]:
        if all(piece in text for piece in pieces) and (found := pattern.fullmatch(text)):
            values = [_value(value) for value in found.groups()]
            yield _filled(japanese, values)


def _filled(japanese: str, values: Sequence[str]) -> str:
    """With its values; a space stands between Japanese and Latin letters only."""

    def value(hole: re.Match[str]) -> str:
        found = values[int(hole[2])]
        before, after = found[:1].isascii(), found[-1:].isascii()
        return (hole[1] if before else "") + found + (hole[3] if after else "")

    return re.sub(r"( ?)\{(\d+)\}( ?)", value, japanese)


@cache
def table() -> Mapping[str, Mapping[str, str]]:
    """English -> Japanese, of `sentences` and of `parts`."""
    return yaml.safe_load((PRESETS / "messages.yaml").read_text(encoding="utf-8"))


@cache
def _rows() -> Mapping[str, list[Row]]:
    """Those that say most first: `{} is {}` fits nearly everything."""
    found = {}
    for kind, texts in table().items():
        rows = []
        for english, japanese in texts.items():
            pieces = tuple(filter(None, HOLE.split(english)))
            holes = [KINDS[hole] for hole in HOLE.findall(english)] + [""]
            split = HOLE.split(english)
            pattern = "".join(re.escape(p) + h for p, h in zip(split, holes, strict=True))
            rows.append((pieces, re.compile(pattern, re.DOTALL), japanese))
        found[kind] = sorted(rows, key=lambda row: -len("".join(row[0])))
    return found
