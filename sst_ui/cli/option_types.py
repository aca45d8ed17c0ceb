"""Options: those of a setting, with the setting's own range, choices and help; and plain numbers.

A wrong value is said in a line.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

from sst_ui.checked import LARGEST
from sst_ui.errors import UserError, shown
from sst_ui.schema import Setting, setting


def add(parser: argparse.ArgumentParser, name: str, flag: str = "", **more: Any) -> None:
    """Add the option of a setting.

    Args:
        name: of the setting, such as `weights.peak`.
        flag: where it is not the setting's own name (`--peak`).
        more: for `add_argument`; a `help` takes the place of the setting's. Without a `default` an
            option that was not given is None, so that a recipe or its own default decides.
    """
    row = setting(name)
    notes = [] if row.choices or not row.range else [row.range]
    notes += [f"default {more['default']}"] if more.get("default") is not None else []
    text = more.get("help", row.help()) + (f" ({'; '.join(notes)})" if notes else "")
    more["help"] = text.replace("`", "").replace("%", "%%")
    if row.limits.kind is bool:
        more |= {"action": "store_true", "default": None}
    elif row.choices or row.limits.kind in (int, float):
        more |= {"type": reader(row), "choices": row.choices or None}
        more.setdefault("metavar", None if row.choices else "N")
    parser.add_argument(flag or f"--{name.partition('.')[2].replace('_', '-')}", **more)


def reader(row: Setting) -> Callable[[str], Any]:
    """A type for `add_argument`: what the setting takes."""
    numbers = {int: whole(), float: real()}

    def read(text: str) -> Any:
        value = text if row.choices else numbers[row.limits.kind](text)
        try:
            row.check(value)
        except UserError as error:
            said = (
                str(error).rstrip(".")
                if row.choices
                else f"{shown(text)} is out of range; it must be {row.range}"
            )
            raise argparse.ArgumentTypeError(said) from None
        return value

    return read


def whole(low: int = -LARGEST, high: int = LARGEST) -> Callable[[str], int]:
    """A type for `add_argument`: a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also more digits than Python reads
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None
        _check(text, value, low, high)
        return value

    return read


def real(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A type for `add_argument`: a finite number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a finite number")
        _check(text, value, low, high)
        return value

    return read


def _check(text: str, value: float, low: float, high: float) -> None:
    if low <= value <= high:
        return
    bounds = [f"{low:.12g} or more"] * (low > -LARGEST)
    bounds += [f"at most {high:.12g}"] * (high < LARGEST)
    told = f"must be {' and '.join(bounds)}" if bounds else "is too large"
    raise argparse.ArgumentTypeError(f"{shown(text)} {told}")
