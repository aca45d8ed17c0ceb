"""Preparing for visitors where there may be any: what they can name, and what they leave behind."""

import threading
import time
from contextlib import suppress
from pathlib import Path

from gradio.utils import get_upload_folder

from sst_ui import disk, reach
from sst_ui.paths import ASSETS, PRESETS, directions_dir
from sst_ui.ui.services import roles

ROOM = 2 * 10**9  # bytes of uploads, and of saved directions, each
PAUSE = 60.0  # seconds between two looks at them


def admit(model: str) -> bool:
    """Prepare for visitors.

    Args:
        model: the owner's, which everybody's recipes name.

    Returns:
        Whether others may use the program.
    """
    if roles.may("name files of the machine"):
        return False
    own = [] if model == "demo" else [model]
    left = (Path(get_upload_folder()), directions_dir())
    reach.limit((ASSETS, PRESETS, *left, *own))
    threading.Thread(target=_tidy, args=(left,), name="tidy", daemon=True).start()
    return True


def _tidy(folders: tuple[Path, ...]) -> None:
    while True:
        for folder in folders:
            make_room(folder, ROOM)
        time.sleep(PAUSE)


def make_room(folder: Path, room: int) -> None:
    """Remove the oldest files until the others fit: Gradio limits a file, not how many there are.

    Args:
        room: bytes.
    """
    files = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                files.append((disk.touched(path, stat), stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files, key=lambda each: each[0]):
        if total <= room:
            return
        with suppress(OSError):
            path.unlink()
            total -= size
