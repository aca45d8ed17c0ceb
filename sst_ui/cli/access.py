"""Who may come in: names with passwords for the page, keys for the endpoints; and which models.

From files (`--auth`, `--api-keys`), or where there is no file from the environment (SST_AUTH,
SST_API_KEYS, with commas for lines), as a Space keeps its secrets. `--models` likewise.
"""

import argparse
import hmac
import os
from collections.abc import Callable
from pathlib import Path

from sst_ui.errors import UserError, shown

SHORTEST = 8  # characters of a password or key
SOURCES = {"auth": "SST_AUTH", "api_keys": "SST_API_KEYS"}


def options(parser: argparse.ArgumentParser) -> None:
    """The two files."""
    parser.add_argument(
        "--auth", type=Path, metavar="FILE",
        help="a line NAME:PASSWORD for each person who may open the page",
    )  # fmt: skip
    parser.add_argument(
        "--api-keys", type=Path, metavar="FILE", help="a line for each key to call the endpoints"
    )
    parser.add_argument(
        "--models", default=os.environ.get("SST_MODELS", ""), metavar="ID,ID",
        help="models that visitors too may open, for everybody; 'hub' for any of the Hub",
    )  # fmt: skip


def models(chosen: argparse.Namespace) -> tuple[str, ...]:
    """What visitors may open beside the model of the start."""
    return tuple(name.strip() for name in chosen.models.split(",") if name.strip())


def people(chosen: argparse.Namespace) -> Callable[[str, str], bool] | None:
    """What says whether a name and a password belong together; None where nobody signs in.

    Raises:
        UserError: a file that cannot be read, a line that is none.
    """
    known: dict[str, str] = {}
    for number, line in enumerate(_lines(chosen, "auth"), 1):
        name, colon, password = line.partition(":")
        if not colon or not name.strip() or name.strip() in known:
            raise _wrong("auth", number, "is not NAME:PASSWORD with a name of its own")
        known[name.strip()] = _long_enough("auth", number, password)
    if not known:
        return None

    def belongs(name: str, password: str) -> bool:
        right = known.get(name, "")
        same = hmac.compare_digest(password.encode(), right.encode())
        return same and bool(right)

    return belongs


def keys(chosen: argparse.Namespace) -> tuple[str, ...]:
    """The keys; none where the endpoints want none.

    Raises:
        UserError: as `people`.
    """
    lines = enumerate(_lines(chosen, "api_keys"), 1)
    return tuple(_long_enough("api_keys", number, line) for number, line in lines)


def _lines(chosen: argparse.Namespace, what: str) -> list[str]:
    path: Path | None = getattr(chosen, what)
    if path is None:
        text = os.environ.get(SOURCES[what], "").replace(",", "\n")
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{_option(what)} {shown(str(path))} cannot be read: {error}") from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if path is not None and not found:  # who gives an empty file does not want an open door
        raise UserError(f"{_option(what)} {shown(str(path))} has no line.")
    return found


def _long_enough(what: str, number: int, text: str) -> str:
    if len(text.strip()) < SHORTEST:
        raise _wrong(what, number, f"has fewer than {SHORTEST} characters of a secret")
    return text.strip()


def _wrong(what: str, number: int, why: str) -> UserError:
    return UserError(f"{_option(what)}: line {number} {why}.")  # never the line itself


def _option(what: str) -> str:
    return f"--{what.replace('_', '-')} ({SOURCES[what]})"
