"""Degenerate answers: empty, going round in circles, or never ending."""

import re
import zlib
from collections import Counter

LONG = 60  # characters; shorter texts repeat too little to tell
COMPRESSION = 5.0  # plain English of a few hundred characters compresses about 1.5 to 2 times
REPEATS = 0.5  # share of four-word pieces that were there before
# the same letters again and again, nothing between: a word six times, a sentence four times
CIRCLE = re.compile(r"(.{1,20}?)\1{5,}|(.{21,60}?)\2{3,}")
MARKS = re.compile(r"^\s*\d+[.)]\s|[*#_>`]", re.MULTILINE)
SHORT, CIRCLES = 20, 0.6  # characters of a text, and the share of it that such circles make up


def is_degenerate(text: str, ended: bool = True) -> bool:
    """Empty (no letter or digit), looping, or never ending.

    Never ending: cut off by the length limit (`ended` False) after a second half that only
    repeats. A long answer alone is not broken.
    """
    if not any(c.isalnum() for c in text) or is_looping(text):
        return True
    return not ended and is_looping(text[len(text) // 2 :])


def is_looping(text: str) -> bool:
    """Whether the text repeats itself: it compresses far too well, or most of it is not new."""
    plain = " ".join(MARKS.sub(" ", text).split())  # the numbers of a list grow
    if len(plain) >= SHORT:
        circles = sum(len(found[0]) for found in CIRCLE.finditer(plain))
        if circles >= CIRCLES * len(plain):
            return True
    text = " ".join(text.split())
    if len(text) < LONG:
        return False
    raw = text.encode()
    if len(raw) / len(zlib.compress(raw, 9)) > COMPRESSION:
        return True
    return repeated(text) > REPEATS


def repeated(text: str, size: int = 4) -> float:
    """Share of the pieces of `size` words (characters of Japanese count as words) that repeat."""
    words = re.findall(r"[a-z0-9']+|[^\W\da-z_]", text.lower())
    pieces = Counter(zip(*(words[i:] for i in range(size)), strict=False))
    total = pieces.total()
    return 1 - len(pieces) / total if total else 0.0
