"""Whether a matrix holds only the few levels that a quantisation leaves."""

import torch
from torch import Tensor

from sst_ui.maths.audit.pair import Pair

LINES = 24  # rows that are looked at
WINDOWS = (4096, 1024, 256, 128, 64, 32)  # numbers that may share a scale, the widest first
BITS = (2, 3, 4, 8)
SPREAD = 1.5  # times as many different numbers must the base have


def bits(pair: Pair) -> int | None:
    """The fewest bits that hold the levels of every group of numbers in the other matrix.

    Args:
        pair: rows as they are stored; groups lie along them, or (of a whole column) across.

    Returns:
        2, 3, 4 or 8; None where there are more levels, as in any matrix that was not quantised, or
        too few numbers to tell.
    """
    base, other = pair.read(0, min(pair.shape[0], LINES))
    for window in WINDOWS:
        if window > base.shape[1] and window != WINDOWS[-1]:
            continue
        most, usual = max(_counts(other, window)), min(_counts(base, window))
        for number in BITS:
            enough = min(window, base.shape[1]) > 2**number and usual >= SPREAD * most
            if most <= 2**number and enough:
                return number
    return None


def _counts(values: Tensor, window: int) -> list[int]:
    """How many different numbers each group holds; groups of zeros are left out."""
    full = min(window, values.shape[1])
    groups = [part for row in values for part in row.split(window) if len(part) == full]
    found = [len(torch.unique(part)) for part in groups if bool(part.any())]
    return found or [1 << 30]
