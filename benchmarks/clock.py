"""Time a piece of work, and write numbers short enough for a table."""

import time
from collections.abc import Callable

import torch


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of a piece of work, the device's queue emptied before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def short(number: float) -> str:
    """Two significant digits, written out: 0.98, 1.4, 23, 1,900."""
    rounded = float(f"{number:.2g}")
    return f"{rounded:.2g}" if rounded < 10 else f"{rounded:,.0f}"
