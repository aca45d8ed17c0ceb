"""Which files of this machine may be named: in a recipe, a control, a link or a call.

All of them, by whoever started the program. Where others use it, only those that came with it and
those that were handed to it (uploads, and directions that the page saved). Every reader of a path
that somebody names asks here first, before it looks whether anything stands there: else the answer
would tell what there is.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from sst_ui.errors import UserError, shown

_roots: tuple[str, ...] | None = None


def limit(roots: Iterable[str | Path] | None) -> None:
    """From now on only what lies in these folders may be named; None for everything."""
    global _roots
    _roots = None if roots is None else tuple(os.path.realpath(root) for root in roots)


def limited() -> bool:
    """Whether others use the program."""
    return _roots is not None


def check(path: str | Path) -> None:
    """Refuse a path that is out of reach; links count as what they lead to.

    Raises:
        UserError: it is.
    """
    if _roots is None:
        return
    name = str(path)
    real = "" if "\0" in name else os.path.realpath(os.path.expanduser(name))
    if not any(real == root or real.startswith(root + os.sep) for root in _roots):
        raise UserError(
            f"{shown(name)} cannot be read here: this studio is shared, and files of its machine "
            "are its owner's. Upload the file, or name one that came with the studio or is on the "
            "Hub."
        )
