"""Folders of the cache that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sst_ui import disk
from sst_ui.paths import cache_dir


def models() -> Path:
    """Where models that can be made again lie. The cache's size limit does not reach them."""
    return cache_dir() / "models"


@contextmanager
def whole(goal: Path) -> Iterator[Path]:
    """A folder to fill that becomes `goal` when the block ends well, and is gone if not.

    Raises:
        UserError: it cannot be written.
    """
    goal = disk.real(goal)
    try:
        with disk.claimed(goal) as hidden:
            part = hidden / goal.name
            part.mkdir()
            yield part
            disk.sync(part)
            if not goal.exists():  # else another process was as far a moment ago
                part.rename(goal)
                disk.sync_folder(goal.parent)
    except BaseException as error:
        code = disk.refusal(error)
        if code is None or not disk.about(error, goal):
            raise
        raise disk.refused(goal, code) from error
