"""The one error for bad input, suggestions for misspelt names, and values shortened to a line.

The studio shows a `UserError` at the control, the terminal prints it as one line and exits with
code 2; anything else is a defect of ours.
"""

import re
import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

BITS = 3000  # of a whole number that is written out: Python itself refuses 4,300 digits
LINE = 1500  # characters of a message at most; what is known of a name may take some


class UserError(ValueError):
    """Bad input. The message says what was wrong, with what value, and what to do."""


class _Short(reprlib.Repr):
    """`repr` that stays short and quick, however large, deep or shared a value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 3
        self.maxstring = self.maxother = 60
        self.maxlong = 24

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > BITS:
            return f"a number of about {int(x.bit_length() * 0.30103):,} digits"
        return super().repr_int(x, level)

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(x[: 4 * self.maxstring] if len(x) > self.maxstring else x, level)


_SHORT = _Short()
_LONG = re.compile("[!-~]{200,}")  # a word or a path that nobody reads to its end


def shown(value: object) -> str:
    """A value for a message, as Python writes it and never longer than a line.

    >>> shown("narow"), shown([1] * 10**6)
    ("'narow'", '[1, 1, 1, ...]')
    """
    text = _SHORT.repr(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 120 else f"{text[:117]}..."


def line_of(message: object, length: int = 240) -> str:
    """A message as one line of bounded length, every value in it shorter than a line too."""
    text = " ".join(str(message).split()).encode("utf-8", "backslashreplace").decode()
    text = _LONG.sub(lambda found: f"{found[0][:80]}...{found[0][-40:]}", text)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """An error for a name that is not in `known`, with the nearest one as a suggestion.

    >>> str(unknown("profile", "narow", ["default", "narrow"]))
    "profile 'narow' is unknown; did you mean 'narrow'? Known: default, narrow."
    """
    names = sorted(known)
    name = name if isinstance(name, str) else shown(name)
    near = get_close_matches(name[:100], names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UserError(f"{what} {shown(name)} is unknown{hint} Known: {', '.join(names)}.")
