"""A folder of results that appears whole or not at all, and replaces only what we wrote before.

With every folder goes a manifest of its files. `--force` replaces a folder that has one, if all
that lies in it is as it was written: whatever else it is, it is not ours to delete.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sst_ui import disk
from sst_ui.disk import REPLACED, claimed, discard, hidden, sweep, sync, sync_file, sync_folder
from sst_ui.errors import UserError

__all__ = ["room", "staged", "strangers", "sweep", "sync", "sync_file", "sync_folder"]

MANIFEST = ".sst-studio.json"
WHOLE = 64 << 20  # bytes up to which a file is known by its hash; above, by size and time
NOT_HIS = (".DS_Store", "Thumbs.db", "desktop.ini")  # what systems leave in folders by themselves
KINDS = {"export": "an export", "run": "the results of a run", "merge": "a merged adapter"}
NAMED = 3  # files that a message names


@contextmanager
def staged(out: Path, force: bool = False, kind: str | None = "export") -> Iterator[Path]:
    """A temporary folder that becomes `out` if the block ends well, and is gone if not.

    Args:
        out: the folder to make; its parents are made if missing.
        force: replace a folder of this kind that was written here before.
        kind: a key of `KINDS`; None for a part of something larger, without a manifest.

    Raises:
        UserError: `out` is a file; it holds something and `force` is off, or something that is not
            ours; it cannot be written; the disk is full (nothing is left behind then).
    """
    goal = disk.real(out)
    try:
        sweep(goal.parent)  # an earlier folder may have to be put back first
        refuse_to_overwrite(out, force, kind)
        with claimed(goal) as folder:
            yield folder
            if kind is not None:
                mark(folder, kind)
            sync(folder)
            refuse_to_overwrite(out, force, kind)  # someone may have been here meanwhile
            _put(folder, goal)
    except BaseException as error:
        code = disk.refusal(error)
        if code is None or not disk.about(error, goal):
            raise
        if code not in disk.FULL:
            raise disk.refused(out, code, "write to") from error
        raise UserError(
            f"writing {out} failed: {os.strerror(code)}. Nothing of it was kept; {_free(goal)} "
            "bytes are free now. Make room, or choose a folder on another disk."
        ) from error


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


def refuse_to_overwrite(out: Path, force: bool, kind: str | None) -> None:
    """Raise a `UserError` if `out` holds anything that may not be replaced."""
    goal = disk.real(out)
    if goal.exists() and not goal.is_dir():
        raise UserError(f"{out} is a file; give a folder.")
    if not goal.exists() or not any(goal.iterdir()):
        return
    if not force or kind is None:
        raise UserError(f"{out} is not empty; choose another folder, or add --force.")
    listed = manifest(goal)
    if listed is None:
        raise UserError(
            f"{out} was not written by this studio ({_named(_files(goal))}); --force replaces "
            "earlier results only. Choose another folder."
        )
    if listed["kind"] != kind:
        held = KINDS.get(listed["kind"], "other results")
        raise UserError(f"{out} holds {held}, not {KINDS[kind]}; choose another folder.")
    if others := strangers(goal, listed):
        raise UserError(
            f"{out} holds what was added or changed since it was written ({_named(others)}); move "
            "that away, or choose another folder."
        )


def mark(folder: Path, kind: str) -> None:
    """Write the manifest of a folder that is complete."""
    files = {name: _facts(folder / name) for name in _files(folder)}
    text = json.dumps({"program": "SST Studio", "kind": kind, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        kind, files = found["kind"], found["files"]
        known = isinstance(kind, str) and all(isinstance(each, dict) for each in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return found if known else None


def strangers(folder: Path, listed: dict[str, Any]) -> list[str]:
    """Names of the files in a folder that its manifest does not list, or lists otherwise."""
    return [name for name in _files(folder) if not _same(folder / name, listed["files"].get(name))]


def _files(folder: Path) -> list[str]:
    """Everything below a folder that is not a folder, links included, but for the manifest."""

    def failed(error: OSError) -> None:
        raise error  # what cannot be looked into may hold anything

    found = []
    for where, folders, files in os.walk(folder, onerror=failed):
        links = [name for name in folders if (Path(where) / name).is_symlink()]
        found += [(Path(where) / name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(n for n in found if n != MANIFEST and n.rpartition("/")[2] not in NOT_HIS)


def _facts(path: Path) -> dict[str, Any]:
    about = path.stat()
    if about.st_size > WHOLE:
        return {"bytes": about.st_size, "mtime_ns": about.st_mtime_ns}
    with path.open("rb") as file:
        return {"bytes": about.st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _same(path: Path, listed: dict[str, Any] | None) -> bool:
    if listed is None or path.is_symlink() or not path.is_file():
        return False
    return _facts(path) == listed


def _put(folder: Path, out: Path) -> None:
    """Rename to the goal; a folder that is there is set aside first, and removed at the end."""
    aside = None
    if out.exists() and any(out.iterdir()):
        aside = out.rename(hidden(out, REPLACED))
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
        discard(aside, out)


def _named(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "") or "empty folders"


def _free(goal: Path) -> str:
    there = goal.parent
    while not there.exists():
        there = there.parent
    with suppress(OSError):
        return f"{shutil.disk_usage(there).free:,}"
    return "no"
