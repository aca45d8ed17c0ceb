"""Writes a model's files with the edits in their weights, streamed from the originals: shard by
shard, one tensor at a time, for models larger than memory. The live model is neither needed nor
touched.

What happens to a tensor is in `tensor_edits`, which tensor is which in `stored_tensors`. Every
shard keeps its name, its header and the place of every tensor. What no edit changes is copied by
the kernel in large pieces. Memory at the peak is one tensor, the largest that changes, and a
constant.
"""

import errno
import json
import mmap
import os
import zlib
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from sst_ui.errors import UserError, unknown
from sst_ui.model.architecture.discover import Architecture, discover
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.load.companion_files import CONFIG, carry, names
from sst_ui.model.load.source import open_source
from sst_ui.model.weights.staged_folder import room
from sst_ui.model.weights.stored_tensors import (
    DTYPES,
    Shard,
    Stored,
    locate,
    read_shard,
    skeleton,
    write_header,
)
from sst_ui.model.weights.tensor_edits import Added, Alterations, Change, alterations
from sst_ui.options import Rounding
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec

PIECE = 1 << 25  # bytes copied between two signs of progress
CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSOCK, errno.EPERM}


@dataclass(frozen=True)
class Rewritten:
    """What was written.

    Attributes:
        files: names in the folder, weights first.
        bytes: of all of them.
        changed: names of the stored tensors that an edit changed, or added.
        copied: bytes of tensors copied as they were.
        untied: whether the head was tied to the embedding before, and is not any more.
        flags: settings of config.json that are true now, for the sake of biases.
    """

    files: tuple[str, ...]
    bytes: int
    changed: tuple[str, ...]
    copied: int
    untied: bool = False
    flags: tuple[str, ...] = ()


def write_model(
    spec: ModelSpec,
    edits: Sequence[Edit],
    architecture: Architecture | None,
    out: Path,
    rounding: Rounding = "nearest",
    seed: int = 0,
) -> Generator[Progress, None, Rewritten]:
    """Write the model of `spec` with a row of edits in its weights, and what goes with it.

    Deltas come first and ablations after, as in the live model. Tensors keep the type they are
    stored in; the arithmetic is in float32 (float64 where they are that).

    Args:
        architecture: of the live model, or None to find it from config.json.
        out: a staging folder (`staging.staged`); made if missing.
        rounding: to the nearest number of the stored type, or stochastic.
        seed: of stochastic rounding; the same seed gives the same bytes.

    Yields:
        Progress in bytes.

    Raises:
        UserError: edits that no weights can hold; a tensor that is not in the files or quantised
            there; results beyond the range of the stored type; too little room on the disk.
    """
    if rounding not in get_args(Rounding):
        raise unknown("rounding", rounding, get_args(Rounding))
    out = Path(out)
    source = open_source(spec)
    folder = yield from source.download()
    shards = [read_shard(folder / name) for name in source.weights()]
    model = skeleton(spec, folder)
    plan = alterations(edits, architecture or discover(model), model, locate(model, shards))
    new = plan.untied[1].bytes if plan.untied else 0
    new += sum(added.stored.bytes for added in plan.added)
    total = sum(len(shard.header) + shard.end for shard in shards) + new
    room(
        out.absolute().parent, total + sum((folder / name).stat().st_size for name in names(folder))
    )
    out.mkdir(parents=True, exist_ok=True)
    work = _Work(plan, rounding, seed)
    done, written = 0, []
    for shard in shards:
        path = out / shard.path.name
        for count in work.shard(shard, path):
            done += count
            yield Progress("write", done, total, path.name)
        written.append(path.name)
    entry = source.entry()
    assert entry is not None  # `weights` refuses a model without
    written += _settings(folder, entry, out, plan)
    written += carry(spec, out)
    yield Progress("write", total, total)
    return _report(plan, shards, out, written)


def _report(
    plan: Alterations, shards: Sequence[Shard], out: Path, written: Sequence[str]
) -> Rewritten:
    fresh = [added.stored.name for added in plan.added]
    touched = sum(s.bytes for shard in shards for s in shard.tensors if s.name in plan.changes)
    return Rewritten(
        files=tuple(written),
        bytes=sum((out / name).stat().st_size for name in written),
        changed=(*plan.changes, *([plan.untied[0]] if plan.untied else []), *fresh),
        copied=sum(shard.end for shard in shards) - touched,
        untied=plan.untie,
        flags=plan.flags,
    )


@dataclass(eq=False)
class _Work:
    """Writes shards; keeps one buffer for all tensors that change."""

    plan: Alterations
    rounding: Rounding
    seed: int
    _buffer: Tensor | None = None

    def shard(self, shard: Shard, path: Path) -> Generator[int, None, None]:
        """Write one shard; yields the bytes written since the last time."""
        header, twin, end = shard.header, None, shard.end
        entries = {}
        if self.plan.untied and self.plan.untied[1] in shard.tensors:
            name, twin = self.plan.untied
            entries[name] = _entry(twin, end)
            end += twin.bytes
        biases = _beside(self.plan, shard)
        for added in biases:
            entries[added.stored.name] = _entry(added.stored, end)
            end += added.stored.bytes
        if entries:
            header = write_header(shard.entries() | entries)
        with shard.path.open("rb", buffering=0) as source, path.open("xb", buffering=0) as goal:
            _ahead(source)
            _reserve(goal, len(header) + end)
            _write(goal, memoryview(header))
            yield len(header)
            start = len(shard.header)
            at = flushed = 0
            for stored in shard.tensors:
                if stored.name in self.plan.changes:
                    yield from _copy(source, goal, start + at, stored.start - at)
                    yield self._change(source, goal, start, stored, self.plan.changes[stored.name])
                    at = stored.end
                    flushed = _flush(goal, flushed)
            yield from _copy(source, goal, start + at, shard.end - at)
            if twin is not None:
                assert self.plan.twin is not None  # what is added is the embedding's twin
                yield self._change(source, goal, start, twin, self.plan.twin, name)
            for added in biases:
                yield self._edited(goal, added.stored, added.change, _zeros(added.stored))

    def _change(
        self,
        source: FileIO,
        goal: FileIO,
        start: int,
        stored: Stored,
        change: Change,
        name: str | None = None,
    ) -> int:
        return self._edited(goal, stored, change, self._read(source, start, stored), name)

    def _edited(
        self, goal: FileIO, stored: Stored, change: Change, raw: Tensor, name: str | None = None
    ) -> int:
        """Change a tensor, [bytes] uint8, and write it; returns its bytes."""
        generator = None
        if self.rounding == "stochastic":
            generator = torch.Generator()
            generator.manual_seed(
                zlib.crc32((name or stored.name).encode(), self.seed & 0xFFFFFFFF)
            )
        tensor = raw.view(DTYPES[stored.dtype]).view(stored.shape)
        if not change.apply(tensor, generator):
            raise UserError(
                f"{name or stored.name} would hold numbers that are not finite in {stored.dtype}; "
                "the edit is too strong for that type, or the model is damaged."
            )
        _write(goal, raw.numpy().data)
        return stored.bytes

    def _read(self, source: FileIO, start: int, stored: Stored) -> Tensor:
        """[bytes] uint8 of a tensor, in a buffer that the next one will use again."""
        if self._buffer is None or self._buffer.numel() < stored.bytes:
            self._buffer = None  # the old one goes first
            self._buffer = _space(stored.bytes)
        raw = self._buffer[: stored.bytes]
        view = raw.numpy().data
        source.seek(start + stored.start)
        while len(view):
            if not (count := source.readinto(view)):
                raise UserError(f"{source.name} became shorter while it was read; start again.")
            view = view[count:]
        return raw


def _space(size: int) -> Tensor:
    """[size] uint8 in large pages where there are some: small ones slow the copies down."""
    space = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            space.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(space, dtype=torch.uint8)[:size]


def _beside(plan: Alterations, shard: Shard) -> list[Added]:
    """The biases that are added to a shard: those of the weights that lie there."""
    there = {stored.name for stored in shard.tensors}
    return [added for added in plan.added if added.beside in there]


def _zeros(stored: Stored) -> Tensor:
    """[bytes] uint8 of a tensor that no file has."""
    return torch.zeros(stored.bytes, dtype=torch.uint8)


def _entry(stored: Stored, start: int) -> dict:
    return {
        "dtype": stored.dtype,
        "shape": list(stored.shape),
        "data_offsets": [start, start + stored.bytes],
    }


def _reserve(goal: FileIO, size: int) -> None:
    """Take the room at once: a disk that is full says so early, and writing costs half the time."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(goal.fileno(), 0, size)


def _ahead(source: FileIO) -> None:
    """Have the system read the file in while the first tensors are worked on."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _flush(goal: FileIO, since: int) -> int:
    """Have the system begin to write what came since then; where the next time starts.

    Otherwise the disk idles until the end, and then everybody waits for it.
    """
    now = goal.tell()
    if now - since < PIECE or not hasattr(os, "posix_fadvise"):
        return since
    os.posix_fadvise(goal.fileno(), since, now - since, os.POSIX_FADV_DONTNEED)
    return now


def _write(goal: FileIO, view: memoryview) -> None:
    while len(view):
        view = view[goal.write(view) :]


def _copy(source: FileIO, goal: FileIO, start: int, length: int) -> Generator[int, None, None]:
    """Copy bytes to the goal's end, inside the kernel where it can; yields the bytes of a piece."""
    ways = [_within_files, _by_sendfile, _by_hand]
    while length:
        try:
            count = ways[0](source, goal, start, min(PIECE, length))
        except (OSError, AttributeError) as error:
            if len(ways) == 1 or getattr(error, "errno", errno.ENOSYS) not in CANNOT:
                raise
            del ways[0]  # not on this system, or not between these two disks
            continue
        if not count:
            raise UserError(f"{source.name} became shorter while it was read; start again.")
        start, length = start + count, length - count
        yield count


def _within_files(source: FileIO, goal: FileIO, start: int, count: int) -> int:
    return os.copy_file_range(source.fileno(), goal.fileno(), count, start)


def _by_sendfile(source: FileIO, goal: FileIO, start: int, count: int) -> int:
    return os.sendfile(goal.fileno(), source.fileno(), start, count)


def _by_hand(source: FileIO, goal: FileIO, start: int, count: int) -> int:
    source.seek(start)
    piece = source.read(min(count, 1 << 22))
    _write(goal, memoryview(piece))
    return len(piece)


def _settings(folder: Path, entry: str, out: Path, plan: Alterations) -> list[str]:
    """The index, byte for byte unless there are tensors that were not there before (the head, or
    biases); then config.json too.

    Args:
        entry: what leads to the weights (`Source.entry`). An index that is not it, left from
            earlier, is not copied.
    """
    written = []
    if entry.endswith(".json"):
        text = (folder / entry).read_bytes()
        new = [(added.stored.name, added.beside, added.stored.bytes) for added in plan.added]
        if plan.untied:
            name, twin = plan.untied
            new.append((name, twin.name, twin.bytes))
        if new:
            index = json.loads(text)
            for name, beside, size in new:
                index["weight_map"][name] = index["weight_map"][beside]
                if isinstance(index["metadata"].get("total_size"), int):
                    index["metadata"]["total_size"] += size
            text = (json.dumps(index, indent=2) + "\n").encode()
        (out / entry).write_bytes(text)
        written.append(entry)
    if plan.untie or plan.flags:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for part in (config, config.get("text_config")):
            if isinstance(part, dict) and plan.untie:
                part["tie_word_embeddings"] = False
        inner = config.get("text_config")
        (inner if isinstance(inner, dict) else config).update(dict.fromkeys(plan.flags, True))
        whole = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (out / CONFIG).write_text(whole, encoding="utf-8")
        written.append(CONFIG)
    return written
