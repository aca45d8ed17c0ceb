"""What the bytes of large files are: SHA-256 of all of them, computed once and remembered on disk.

A file that was hashed is known again by its path, size, times and inode; where any of them moved
it is read once more. The change time is among them because no program can set it back, as it can
the modification time.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from sst_ui import cache
from sst_ui.errors import UserError
from sst_ui.progress import Progress

PIECE = 1 << 24  # bytes read between two signs of progress
# Seconds. A file written to shortly before it was read could be written to again within the same
# tick of the clock, and nothing would have moved; so it is not remembered yet.
FRESH = 2.0

Stamp = tuple[int, int, int, int, int]


def stamp(path: Path) -> Stamp:
    """(size, modification time, change time, inode, device): what moves when a file is changed."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def state(*paths: str | None) -> tuple:
    """What moves when one of these files, or a file in one of these folders, is changed.

    For results that are kept in memory under a path. What is not there counts as well.
    """
    found: list = []
    for name in filter(None, paths):
        path = Path(name).expanduser()
        with contextlib.suppress(OSError, ValueError):
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            found += [(file.name, *stamp(file)) for file in inside]
        found.append(None)
    return tuple(found)


def fingerprints(paths: Sequence[Path]) -> Generator[Progress, None, tuple[str, ...]]:
    """Hash files, or remember what they hashed to.

    Yields:
        Progress in bytes of those that have to be read, if there are any.

    Returns:
        Of each file, 64 hex digits.

    Raises:
        UserError: a file cannot be read, or changes while it is read.
    """
    try:
        stamps = {path: stamp(path) for path in paths}
        recalled = {path: _recall(path, stamps[path]) for path in paths}
        known = {path: digest for path, digest in recalled.items() if digest is not None}
        total = sum(stamps[path][0] for path in paths if path not in known)
        done = 0
        for path in paths:
            if path in known:
                continue
            began, seen = time.time(), hashlib.sha256()
            with path.open("rb", buffering=0) as file:
                while piece := file.read(PIECE):
                    seen.update(piece)
                    done += len(piece)
                    yield Progress("hash", min(done, total), total, path.name)
            if stamp(path) != stamps[path]:
                raise UserError(f"{path.name} changed while it was read; try again.")
            known[path] = seen.hexdigest()
            if began - stamps[path][2] / 1e9 > FRESH:
                _remember(path, stamps[path], known[path])
    except OSError as error:
        name = Path(error.filename or "a file").name
        raise UserError(f"{name} cannot be read: {error.strerror}.") from error
    return tuple(known[path] for path in paths)


def _memo(path: Path) -> tuple[str, Path]:
    """A file's real path, and where its hash is kept."""
    real = os.path.realpath(path)
    key = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    return ascii(real), cache.place("fingerprints", f"{key}.json")


def _recall(path: Path, now: Stamp) -> str | None:
    """What a file hashed to, if it has not moved since; a damaged memo counts as none."""
    real, memo = _memo(path)
    with cache.used(memo) as there:
        try:
            kept = json.loads(memo.read_text(encoding="utf-8")) if there else {}
            if kept["path"] != real or tuple(kept["stamp"]) != now:
                return None
            found = kept["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
    return found if isinstance(found, str) and len(found) == 64 else None


def _remember(path: Path, when: Stamp, found: str) -> None:
    real, memo = _memo(path)
    text = json.dumps({"path": real, "stamp": when, "sha256": found})
    cache.keep(memo, lambda part: part.write_text(text, encoding="utf-8"))
