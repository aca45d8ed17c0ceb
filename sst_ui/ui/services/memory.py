"""Giving memory that is free back to the system.

What many threads compute leaves holes in the C library's heaps: an hour of chats and edits took the
program from .9 to 2 GB, though it held no more than before. glibc gives whole pages back when it is
told to; elsewhere there is nothing to tell.
"""

import ctypes
import os
import threading
import time
from pathlib import Path

PAUSE = 30.0  # seconds between two looks
GROWN = 64 * 10**6  # bytes since the last time from which it is worth a pause of some milliseconds


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def trim() -> bool:
    """Give free memory back; False where the C library cannot."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


def watch() -> None:
    """Give memory back from now on, whenever enough has come together; returns at once."""
    threading.Thread(target=_watch, name="memory", daemon=True).start()


def _watch() -> None:
    least = resident()
    while least:
        time.sleep(PAUSE)
        if resident() > least + GROWN:
            trim()
            least = resident()
        least = min(least, resident())
