"""Numeric option types: finite, within range, and a one-line error for a wrong value.

Ranges that belong to a recipe are checked there; these are for options that no recipe has.
"""

import argparse
import math
from collections.abc import Callable

from sst_ui.checked import LARGEST
from sst_ui.errors import shown


def whole(low: int = -LARGEST, high: int = LARGEST) -> Callable[[str], int]:
    """A type for `add_argument`: a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also more digits than Python reads
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None
        return _within(text, value, low, high)

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
        return _within(text, value, low, high)

    return read


def _within(text: str, value: float, low: float, high: float) -> float:
    if low <= value <= high:
        return value
    bounds = [f"{low:.12g} or more"] * (low > -LARGEST)
    bounds += [f"at most {high:.12g}"] * (high < LARGEST)
    told = f"must be {' and '.join(bounds)}" if bounds else "is too large"
    raise argparse.ArgumentTypeError(f"{shown(text)} {told}")
