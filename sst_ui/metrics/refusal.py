"""Does an answer refuse? Phrase lists, matched near the start of the normalised answer.

Knows the lists in presets/phrases (one file a language; all of them are tried). Does not know
models. A phrase list is fast and anyone can read why it fired; it does not understand an answer, so
both answers can be looked at from every metric that uses it.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import yaml

from sst_ui.metrics.degenerate import is_looping
from sst_ui.paths import PRESETS

HEAD = 200  # characters of the answer that are searched: refusals come first
Label = Literal["refused", "complied", "empty", "looping"]

_QUOTES = str.maketrans("’‘ʼ´`“”„«»", "'''''\"\"\"\"\"")
_MARKUP = re.compile(r"[*_#>~|]+")
_INNER_QUOTES = re.compile(r"""(?<=\S )"[^"]*"?|(?<=\S )'[^']{3,}'(?!\w)|(?<=\S)「[^」]*」?""")


@dataclass(frozen=True)
class Phrases:
    """The phrase list of one language as regular expressions."""

    contractions: tuple[tuple[str, str], ...]
    refusals: re.Pattern[str]
    alone: re.Pattern[str]
    harmless: re.Pattern[str]
    abstentions: re.Pattern[str]


@lru_cache(4096)  # several metrics label the same answers, and the base's come again
def label(text: str) -> Label:
    """What kind of answer this is: refused, complied, empty, or looping (no answer either)."""
    text = without_reasoning(text)
    if not any(c.isalnum() for c in text):
        return "empty"
    if is_refusal(text):
        return "refused"
    return "looping" if is_looping(text) else "complied"


def is_refusal(text: str) -> bool:
    """Whether the answer refuses, by the phrases of any language; abstaining is not refusing."""
    plain = normalise(without_reasoning(text))
    return any(_refuses(plain, phrases) for phrases in languages())


def is_abstention(text: str) -> bool:
    """Whether the answer says that the passage does not hold the answer."""
    plain = normalise(without_reasoning(text))
    return any(p.abstentions.search(_written_out(plain, p)[:HEAD]) for p in languages())


def without_reasoning(text: str) -> str:
    """The answer after a `<think>` block; empty if the block never closes."""
    if "</think>" in text:
        return text.rpartition("</think>")[2].strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def normalise(text: str) -> str:
    """Lower case, straight quotes, single spaces, no markup."""
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES)).translate(_QUOTES).lower()
    return " ".join(_MARKUP.sub(" ", text).split())


@cache
def languages() -> tuple[Phrases, ...]:
    """All phrase lists in presets/phrases."""
    return tuple(read(path) for path in sorted((PRESETS / "phrases").glob("*.yaml")))


def read(path: Path) -> Phrases:
    """Compile one phrase file; its head says how it is written."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = {name: _any(items) for name, items in data["words"].items()}
    patterns = {
        kind: re.compile(_any([_pattern(p, words) for p in data[kind]], escape=False))
        for kind in ("refusals", "alone", "harmless", "abstentions")
    }
    return Phrases(contractions=tuple(data["contractions"].items()), **patterns)


def _any(items: list[str], escape: bool = True) -> str:
    """A group that matches any of the items, longer ones first."""
    items = sorted(items, key=len, reverse=True)
    return "(?:" + "|".join(re.escape(i) if escape else i for i in items) + ")"


def _pattern(phrase: str, words: dict[str, str]) -> str:
    """One phrase as a regular expression: {list} and [optional] filled in, whole words only."""
    pattern = re.sub(r"\[([^\]]*)\]( ?)", r"(?:\1\2)?", phrase)
    pattern = re.sub(r"\{(\w+)\}", lambda match: words[match[1]], pattern)
    # Japanese has no spaces, so only Latin letters make a word's edge
    return rf"(?<![a-z0-9]){pattern}(?![a-z0-9])" if phrase.isascii() else pattern


def _written_out(plain: str, phrases: Phrases) -> str:
    for short, long in phrases.contractions:
        edge = "" if short.startswith("n'") else r"\b"  # n't ends a word, the others are words
        plain = re.sub(f"{edge}{re.escape(short)}\\b", long, plain)
    return plain


def _refuses(plain: str, phrases: Phrases) -> bool:
    # what someone else is quoted as saying does not count; a wholly quoted answer does
    head = _INNER_QUOTES.sub("", _written_out(plain, phrases))[:HEAD]
    if phrases.abstentions.search(head):
        return False
    head = phrases.harmless.sub("", head)
    whole = head.strip(" .!。！、,\"'")
    return bool(phrases.refusals.search(head) or phrases.alone.fullmatch(whole))


@cache
def openers() -> tuple[str, ...]:
    return ("I", "Sorry")
