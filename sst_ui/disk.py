"""Files and folders that appear whole or not at all, and one-line errors for what the system
refuses.

What is being written lies in a hidden folder beside its goal and is moved there at the end, so a
process killed at any moment leaves nothing that looks finished. A lock on that folder says whether
its writer still lives (process numbers come again, and mean nothing from another container); the
next writer beside it removes what dead ones left.
"""

import atexit
import errno
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

from sst_ui.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

PARTIAL, REPLACED = "partial", "replaced"
HIDDEN = re.compile(rf"\.(.+)\.({PARTIAL}|{REPLACED})-[0-9a-f]{{8}}", re.DOTALL)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# what else a system may say of a path or a disk; a broken pipe or connection is none of these
OTHER = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EIO, errno.EINVAL, errno.EBUSY, errno.ETXTBSY, errno.EMFILE, errno.ENFILE,
    errno.EXDEV, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EMLINK,
)  # fmt: skip
CODES = (*FULL, *FORBIDDEN, *OTHER)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
SQLITE = {  # SQLite tells the same in words of its own
    "database or disk is full": errno.ENOSPC,
    "disk i/o error": errno.EIO,
    "attempt to write a readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
}
LINE = 300  # characters of a path in a message
AHEAD = 60 * 10**9  # nanoseconds by which the clock of a network disk may be ahead
STALE = 86400.0  # seconds after which a folder counts as left behind where there are no locks


def refusal(error: BaseException) -> int | None:
    """The `errno` of an error with which the system refused a file, or None for any other error.

    The safetensors library and SQLite wrap it in errors of their own.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in CODES else None
    if isinstance(error, UserError) or not isinstance(error, Exception):
        return None
    text = str(error).lower()
    if isinstance(error, sqlite3.OperationalError):
        return next((code for words, code in SQLITE.items() if words in text), None)
    return next((code for code in CODES if f"os error {code})" in text), None)


def damaged(error: BaseException | None) -> bool:
    """Whether SQLite says that a file is no database, or a broken one."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in DAMAGED


def advice(code: int) -> str:
    """What to do about an `errno`, in half a sentence."""
    if code in FULL:
        return "make room, or choose a place on another disk"
    if code in FORBIDDEN:
        return "choose a place where you may write"
    return "choose another place"


def refused(path: str | Path, code: int, doing: str = "write") -> UserError:
    """A `UserError` of one line about a path that the system refused."""
    name = str(path)
    name = name if len(name) <= LINE else f"{name[: LINE // 2]}…{name[-LINE // 2 :]}"
    return UserError(f"cannot {doing} {name}: {os.strerror(code)}; {advice(code)}.")


def real(path: str | Path) -> Path:
    """The absolute path that a name stands for, `~` and symbolic links resolved.

    Raises:
        UserError: it cannot be a path, or its links lead in a circle.
    """
    try:
        return Path(os.path.realpath(os.path.expanduser(path)))
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)[:200]!r} cannot be a path: {error}.") from error


@contextmanager
def claimed(goal: Path) -> Iterator[Path]:
    """A new hidden folder beside `goal`, locked while the block lasts and gone after it.

    Folders above `goal` are made where they are missing, and removed again if the block fails.
    Raises OSError where none can be made.
    """
    made = []
    above = goal.parent
    while not above.exists():
        made.append(above)
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        sweep(goal.parent)
        folder, lock = _claim(goal)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    except BaseException:
        for path in made:
            with suppress(OSError):  # something else lies there by now
                path.rmdir()
        raise


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A name to write a file to; it takes the place of `path` when the block ends well.

    A reader of `path` finds the file of before or the whole new one, whoever else writes it too.

    Raises:
        UserError: the disk is full, the place may not be written to (nothing is left there).
    """
    goal = real(path)
    try:
        with claimed(goal) as folder:
            part = folder / goal.name
            yield part
            settle(part, goal)
    except BaseException as error:
        code = refusal(error)
        if code is None or not about(error, goal):
            raise
        raise refused(path, code) from error


def settle(part: Path, goal: Path) -> None:
    """Move a finished file to its goal, with the rights that it had there or any new file gets."""
    try:
        mode = goal.stat().st_mode & 0o777
    except OSError:
        mode = part.parent.stat().st_mode & 0o666  # of a folder made by `mkdir`: without the umask
    with suppress(OSError):  # some disks have no rights
        part.chmod(mode)
    sync_file(part)
    os.replace(part, goal)
    sync_folder(goal.parent)


def temporary() -> Path:
    """The folder of this process for all that is temporary: gone when it ends, and if it was killed
    when the next one begins.

    Raises OSError where the system's folder for such things cannot be written to.
    """
    if not (folder := _temporary()).is_dir():  # somebody tidied up
        _temporary.cache_clear()
        folder = _temporary()
    return folder


@cache
def _temporary() -> Path:
    stack = ExitStack()
    folder = stack.enter_context(claimed(Path(tempfile.gettempdir()).absolute() / "sst-studio"))
    atexit.register(stack.close)
    return folder


def probe(path: str | Path) -> None:
    """Find out before long work whether something can be written at `path`.

    Raises:
        UserError: it cannot.
    """
    try:
        with claimed(real(path)) as folder:
            (folder / "probe").write_bytes(b"\0" * 4096)
            raise _Enough  # so that folders above that are missing stay so
    except _Enough:
        pass
    except OSError as error:
        if (code := refusal(error)) is None:
            raise
        raise refused(path, code) from error


class _Enough(Exception):
    pass


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes of ours from the same block for this path; waits for them."""
    handle = os.open(path.parent, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def set_aside(path: Path, word: str = "damaged") -> Path:
    """Rename a file that cannot be read, so that it is kept and out of the way; the new path."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        more = f"-{number}" if number else ""
        goal = path.with_name(f"{path.stem}.{word}-{stamp}{more}{path.suffix}")
        if not os.path.lexists(goal):
            break
    os.rename(path, goal)
    return goal


def set_database_aside(path: Path) -> Path | None:
    """Keep a damaged SQLite file under another name; None if it can be read after all.

    Another process may have done so a moment ago, and begun a new file that is good. Raises OSError
    where nothing can be renamed.
    """
    with alone(path):
        with closing(sqlite3.connect(path, timeout=15)) as db:
            try:
                if db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                    return None
            except sqlite3.DatabaseError:
                pass
        kept = set_aside(path)
        for more in ("-wal", "-shm"):
            with suppress(OSError):
                os.rename(f"{path}{more}", f"{kept}{more}")
        return kept


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


def sweep(folder: Path) -> None:
    """Remove what dead writers left in a folder; put back what one had set aside to replace."""
    try:
        found = [match for name in os.listdir(folder) if (match := HIDDEN.fullmatch(name))]
    except OSError:
        return
    for kind in (REPLACED, PARTIAL):
        for match in found:
            path = folder / match[0]
            if match[2] == kind and path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # somebody is at work there, or just removed it
                    _sweep(path, folder / match[1], kind)


def _sweep(path: Path, goal: Path, kind: str) -> None:
    lock = lock_of(path)  # held until it is gone: nobody else may take it meanwhile
    try:
        if lock is None and not _old(path):
            return
        if kind == REPLACED and not os.path.lexists(goal):
            path.rename(goal)
        else:
            discard(path, goal)
    finally:
        if lock is not None:
            os.close(lock)


def discard(folder: Path, goal: Path) -> None:
    """Remove a folder. It is never half removed under a name that says it is whole."""
    match = HIDDEN.fullmatch(folder.name)
    if match is None or match[2] != PARTIAL:
        folder = folder.rename(hidden(goal))
    shutil.rmtree(folder, ignore_errors=True)


def hidden(goal: Path, kind: str = PARTIAL) -> Path:
    """A new hidden name beside `goal`."""
    return goal.with_name(f".{goal.name}.{kind}-{uuid4().hex[:8]}")


def share(handle: int) -> None:
    """Take the shared lock of an open file, where there are locks and nobody has the other one."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


def lock_of(path: Path) -> int | None:
    """A handle that holds the lock of a file or folder, or None where there are no such locks.

    Raises:
        BlockingIOError: another process has it.
        FileNotFoundError: it is gone.
    """
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # some network disks
        os.close(handle)
        return None
    return handle


def _claim(goal: Path) -> tuple[Path, int | None]:
    """A new hidden folder, and the lock on it that says that a writer is at work."""
    while True:
        folder = hidden(goal)
        folder.mkdir()
        try:
            lock = lock_of(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # swept away before it was locked
        if lock is None or folder.exists():
            return folder, lock
        os.close(lock)


def touched(path: Path, about: os.stat_result) -> int:
    """When a file was last written or used, in nanoseconds.

    One from the future, which the clock was set back from, counts as of now and ages from there: it
    would outlive all that is written until the clock is there again.
    """
    now = time.time_ns()
    if about.st_mtime_ns <= now + AHEAD:
        return about.st_mtime_ns
    with suppress(OSError):  # of somebody else
        os.utime(path)
    return now


def _old(folder: Path) -> bool:
    """Whether a folder without a lock has not been touched for so long that nobody will."""
    with suppress(OSError):
        return time.time_ns() - touched(folder, folder.stat()) > STALE * 1e9
    return False


def about(error: BaseException, goal: Path) -> bool:
    """Whether a refusal is about what was being written to a goal, not a file that was read."""
    given = (getattr(error, name, None) for name in ("filename", "filename2"))  # of a copy: both
    names = [name for name in given if isinstance(name, str | bytes | os.PathLike)]
    if not names:
        return refusal(error) in (*FULL, *FORBIDDEN, errno.EIO)
    return any(_near(Path(os.fsdecode(name)).absolute(), goal) for name in names)


def _near(path: Path, goal: Path) -> bool:
    """Whether a path is a goal, the hidden folder beside it, in one of them, or above both."""
    if path == goal.parent or path in goal.parents:
        return True
    if goal.parent not in path.parents:
        return False
    first = path.relative_to(goal.parent).parts[0]
    return first == goal.name or first.startswith(f".{goal.name}.")
