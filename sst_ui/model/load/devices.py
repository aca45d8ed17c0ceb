"""Devices: which one a setting means on this machine, and how much memory is free there."""

from pathlib import Path

import psutil
import torch

from sst_ui.errors import UserError

DEVICE_MAPS = ("balanced", "balanced_low_0", "sequential")  # accelerate's, beside `auto`
SEVERAL = "cuda:*"


def free_memory(device: str) -> tuple[str, int]:
    """The device a setting means on this machine, and its free bytes.

    Raises:
        UserError: there is no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device in ("auto", *DEVICE_MAPS):
        if gpus == 0:
            mps = torch.backends.mps.is_available() and device == "auto"
            return free_memory("mps" if mps else "cpu")
        if gpus == 1:
            return free_memory("cuda:0")
        return SEVERAL, sum(torch.cuda.mem_get_info(i)[0] for i in range(gpus))
    kind, _, number = device.partition(":")
    if device == "cpu":
        return "cpu", _free_ram()
    if kind == "cuda" and (not number or number.isdigit()):
        index = int(number or 0)
        if index >= gpus:
            raise UserError(
                f"model.device is {device}; this machine has {gpus} CUDA devices. Use auto or cpu."
            )
        return f"cuda:{index}", torch.cuda.mem_get_info(index)[0]
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                "model.device is mps, which this machine does not have; use auto or cpu."
            )
        return "mps", torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    raise UserError(
        f"model.device {device!r} is unknown; use auto, cpu, cuda, cuda:1, mps, or one of "
        f"{', '.join(DEVICE_MAPS)}."
    )


def roomiest_gpu() -> tuple[str, int]:
    """The CUDA device with the most free memory, and its free bytes."""
    free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
    return f"cuda:{free.index(max(free))}", max(free)


def _free_ram() -> int:
    """Free memory, within what a container may use."""
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not Linux, or not in a container
    return free
