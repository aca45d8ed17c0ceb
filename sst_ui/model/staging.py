"""A folder that appears whole or not at all, and a disk that is asked first.

Knows folders, locks and the disk. Does not know what is written.

Files go to a hidden folder beside the goal. It is renamed when all of them are on the disk, so a
process killed at any moment leaves no folder that looks finished; what it leaves is removed by the
next one that writes there. A lock says whether the writer still lives: process numbers come again,
and mean nothing from another container.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from sst_ui.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PARTIAL, REPLACED = "partial", "replaced"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
STALE = 86400.0  # seconds after which a folder counts as left behind where there are no locks


@contextmanager
def staged(out: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` if the block ends well, and is gone if not.

    Args:
        out: the folder to make; its parents are made if missing.
        force: replace a folder that is there and holds something.

    Raises:
        UserError: `out` is a file, or holds something and `force` is off; it cannot be written; the
            disk is full (nothing is left behind then).
    """
    out = Path(out).absolute()
    sweep(out)
    _refuse_to_overwrite(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder, lock = _claim(out)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}.") from error
    try:
        yield folder
        sync(folder)
        _refuse_to_overwrite(out, force)  # someone else may have been faster
        _put(folder, out)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if (reason := _refused(error)) is not None:
            free = shutil.disk_usage(out.parent).free
            raise UserError(
                f"writing {out} failed: {reason}. Nothing of it was kept; {free:,} bytes are free "
                "now. Make room, or choose a folder on another disk."
            ) from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def room(path: Path, needed: int) -> None:
    """Refuse what would not fit on the disk.

    Args:
        path: where it goes; it need not exist yet.
        needed: bytes.

    Raises:
        UserError: fewer bytes are free.
    """
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.2f} GB are needed in {path} and {free / 1e9:.2f} GB are free there; "
            "make room, or choose a folder on another disk."
        )


def sync(folder: Path) -> None:
    """Wait until every file below a folder, and the folders themselves, are on the disk."""
    for where, _, files in os.walk(folder):
        for name in files:
            sync_file(Path(where) / name)
        sync_folder(Path(where))


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    if os.name == "nt":  # has no handles of folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(out: Path) -> None:
    """Remove what dead processes left of `out`; put back what one had set aside to replace."""
    out = Path(out).absolute()
    for kind in (REPLACED, PARTIAL):
        for folder in _left(out, kind):
            try:
                lock = _lock(folder)  # held until it is gone: nobody else may take it meanwhile
            except OSError:
                continue  # somebody is at work there, or just removed it
            try:
                if lock is None and not _old(folder):
                    continue
                if kind == REPLACED and not out.exists():
                    folder.rename(out)
                else:
                    _discard(folder, out)
            finally:
                if lock is not None:
                    os.close(lock)


def _left(out: Path, kind: str) -> list[Path]:
    """Hidden folders of this kind beside `out`."""
    if not out.parent.is_dir():
        return []
    start = f".{out.name}.{kind}-"
    return [path for path in out.parent.iterdir() if path.name.startswith(start) and path.is_dir()]


def _claim(out: Path) -> tuple[Path, int | None]:
    """A new hidden folder, and the lock on it that says that somebody is at work."""
    while True:
        folder = _hidden(out)
        folder.mkdir()
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # swept away before it was locked
        if lock is None or folder.exists():
            return folder, lock
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A handle that holds the lock of a folder, or None where there are no such locks.

    Raises:
        BlockingIOError: another process has it.
        FileNotFoundError: the folder is gone.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # some network disks
        os.close(handle)
        return None
    return handle


def _old(folder: Path) -> bool:
    """Whether a folder without a lock has not been touched for so long that nobody will."""
    with suppress(OSError):
        return time.time() - folder.stat().st_mtime > STALE
    return False


def _put(folder: Path, out: Path) -> None:
    """Rename to the goal; a folder that is there is set aside first, and removed at the end."""
    aside = None
    if out.exists() and any(out.iterdir()):
        aside = out.rename(_hidden(out, REPLACED))
    elif out.exists():
        out.rmdir()
    try:
        folder.rename(out)
    except OSError:
        if aside is not None:
            aside.rename(out)
        raise
    sync_folder(out.parent)
    if aside is not None:
        _discard(aside, out)


def _discard(folder: Path, out: Path) -> None:
    """Remove a folder. It is never half removed under a name that says it is whole."""
    if not folder.name.startswith(f".{out.name}.{PARTIAL}-"):
        folder = folder.rename(_hidden(out))
    shutil.rmtree(folder, ignore_errors=True)


def _hidden(out: Path, kind: str = PARTIAL) -> Path:
    return out.with_name(f".{out.name}.{kind}-{uuid4().hex[:8]}")


def _refuse_to_overwrite(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder.")
    if not force and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder, or add --force.")


def _refused(error: BaseException) -> str | None:
    """What the disk said, if it is the disk that refused. The safetensors library wraps it."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in FULL else None
    if isinstance(error, Exception) and not isinstance(error, UserError):
        text = str(error)
        found = next((code for code in FULL if f"os error {code})" in text), None)
        return None if found is None else os.strerror(found)
    return None
