"""Peak memory since a moment: of the GPU where there is one, else of the process."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Starts counting where it is created; `added` says by how much the peak exceeds that."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._cuda = device if device.type == "cuda" else None
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._start = torch.cuda.memory_allocated(self._cuda)
            return
        if sys.platform == "linux":
            _give_back()  # freed memory that the allocator still holds would hide new memory
            CLEAR.write_text("5")  # the kernel's way to start the peak from here
            self._start = _status("VmRSS")
        else:
            self._start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def added(self) -> int:
        """Bytes above the start at the highest point since then.

        On other systems than Linux the peak counts from the process's start, so that what stays
        under an earlier peak is missed.
        """
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda) - self._start
        if sys.platform == "linux":
            return max(0, _status("VmHWM") - self._start)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._start


def resident() -> int:
    """Bytes that the process has in memory, what the allocator would give back left out; 0 where
    the system does not say."""
    if sys.platform != "linux":
        return 0
    _give_back()
    return _status("VmRSS")


def _status(name: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _give_back() -> None:
    # another C library has no such call: the reading is a little coarser then
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
