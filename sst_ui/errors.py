"""The one error for bad input, and the hint that goes with a misspelt name.

Knows nothing of models or screens. The studio shows a `UserError` at the control, the terminal
prints it as one line and leaves with exit code 2; anything else is a defect of ours.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message says what was wrong, with what value, and what to do."""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """An error for a name that is not in `known`, with the nearest one as a suggestion.

    >>> str(unknown("profile", "narow", ["default", "narrow"]))
    "profile 'narow' is unknown; did you mean 'narrow'? Known: default, narrow."
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UserError(f"{what} {str(name)!r} is unknown{hint} Known: {', '.join(names)}.")
