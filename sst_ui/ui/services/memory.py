"""Giving memory that is free back to the system.

What many threads compute leaves holes in the C library's heaps, of which glibc makes eight for each
processor: an hour of one person in the page took it from .75 to 2.1 GB, though it held no more.
Threads share two heaps here, and what is free goes back whenever glibc is told to (measured by
`python -m benchmarks.load`). Elsewhere there is nothing to tell.
"""

import ctypes
import os
import threading
import time
from pathlib import Path

M_ARENA_MAX = -8  # of glibc's malloc.h
PAUSE = 30.0  # seconds between two looks
GROWN = 64 * 10**6  # bytes since the last time from which it is worth a pause of some milliseconds


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def few_heaps() -> bool:
    """Let threads share two heaps from now on; False where the C library cannot."""
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2))
    except (AttributeError, OSError, TypeError):
        return False


def trim() -> bool:
    """Give free memory back; False where the C library cannot."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


def watch() -> None:
    """Give memory back from now on, whenever enough has come together; returns at once.

    Before other threads begin.
    """
    few_heaps()
    threading.Thread(target=_watch, name="memory", daemon=True).start()


def _watch() -> None:
    least = resident()
    while least:
        time.sleep(PAUSE)
        if resident() > least + GROWN:
            trim()
            least = resident()
        least = min(least, resident())
