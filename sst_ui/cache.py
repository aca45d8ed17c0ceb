"""The disk cache: results that can be computed again, all of them under one size limit.

A cache that cannot be written costs time and a warning, nothing else.
"""

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sst_ui import disk
from sst_ui.paths import cache_dir

log = logging.getLogger(__name__)
SETTING = "SST_CACHE_GB"
LIMIT = 4.0  # GB of all entries together, unless the setting says another number
KINDS = ("directions", "fingerprints", "moments", "residuals")
# what `place` names, and what earlier versions may have left half written; nothing else is removed,
# wherever SST_CACHE points to
ENTRY = re.compile(r"\.?[0-9a-f]{12,64}\.(json|safetensors|(safetensors\.[0-9a-f]{8}\.)?part)")
_told: set[str] = set()


def place(kind: str, name: str) -> Path:
    """Where an entry lies, there or not: `<cache>/<kind>/<name>`, the name being `ENTRY`'s."""
    if kind not in KINDS or not ENTRY.fullmatch(name):
        raise ValueError(f"{kind}/{name} would never be removed")
    return cache_dir() / kind / name


def limit() -> float:
    """Bytes that all entries may have together; 0 keeps nothing."""
    text = os.environ.get(SETTING, "").strip()
    if not text:
        return LIMIT * 1e9
    try:
        given = float(text)
    except ValueError:
        given = math.nan
    if not given >= 0:
        warn(f"{SETTING} is {text[:40]!r}; it must be a number of gigabytes. {LIMIT:g} is taken.")
        return LIMIT * 1e9
    return given * 1e9


@contextmanager
def used(path: Path | None) -> Iterator[bool]:
    """Whether an entry is there to be read. While the block lasts nobody makes room with it.

    It counts as used now, if the cache may be written to. None is never there.
    """
    try:
        handle = None if path is None else os.open(path, os.O_RDONLY)
    except OSError:
        handle = None
    if path is None or handle is None:
        yield False
        return
    try:
        disk.share(handle)
        with suppress(OSError):
            os.utime(path)
        yield True
    finally:
        os.close(handle)


def keep(path: Path | None, write: Callable[[Path], object]) -> None:
    """Write an entry, whole or not at all, and make room for it.

    Args:
        path: from `place`; None keeps nothing.
        write: writes the file at the path that it is given.
    """
    allowed = limit()
    if path is None or not allowed:
        return
    try:
        with disk.claimed(path) as folder:
            part = folder / path.name
            write(part)
            if part.stat().st_size <= allowed:
                disk.settle(part, path)
        trim(allowed)
    except Exception as error:
        code = disk.refusal(error)
        why = f"{type(error).__name__}: {error}"[:200] if code is None else os.strerror(code)
        warn(
            f"the cache {cache_dir()} cannot be written ({why}), so results will be computed "
            "again next time. Set SST_CACHE to another folder."
        )


def trim(allowed: float) -> None:
    """Remove the entries that were not used for longest, until the rest is within the limit."""
    found = []
    for kind in KINDS:
        with suppress(OSError), os.scandir(cache_dir() / kind) as entries:
            for entry in entries:
                if ENTRY.fullmatch(entry.name):
                    with suppress(OSError):  # somebody else makes room at the same time
                        about = entry.stat(follow_symlinks=False)
                        used = disk.touched(Path(entry.path), about)
                        found.append((used, about.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= allowed:
            return
        with suppress(OSError):  # in use, or gone
            lock = disk.lock_of(Path(path))
            try:
                os.unlink(path)
                total -= size
            finally:
                if lock is not None:
                    os.close(lock)


def warn(text: str) -> None:
    """Say something once in the life of the program."""
    if text not in _told:
        _told.add(text)
        log.warning(text)
