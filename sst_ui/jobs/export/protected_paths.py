"""Paths an export must not overwrite: what a recipe reads, and folders that hold more than
results.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.model.load.source import is_local
from sst_ui.paths import DEMO, PACKAGE, PRESETS, cache_dir, data_dir
from sst_ui.recipe import Ablation, Merge, ModelSpec, Recipe


def check(out: str | Path, reads: Recipe | ModelSpec) -> None:
    """Refuse a place for results where something else would be replaced, or mixed with them.

    Args:
        out: a file or folder that is to be written; it need not exist.
        reads: what the work reads.

    Raises:
        UserError: `out`, links followed, is a folder that must stay, holds one, or lies in what is
            read; the message names it.
    """
    goal = disk.real(out)
    for path, what in _kept():
        if _holds(goal, path):
            raise UserError(f"{out} is or holds {what} ({path}); choose a folder of its own.")
    for given, what in inputs_of(reads):
        if not given or not os.path.exists(path := disk.real(given)):
            continue
        if _holds(goal, path):
            raise UserError(f"{out} is or holds {what} ({path}); choose another place.")
        if path.is_dir() and _holds(path, goal):
            raise UserError(f"{out} lies in {what} ({path}); choose a place outside of it.")


def inputs_of(reads: Recipe | ModelSpec) -> Iterator[tuple[str | Path, str]]:
    """(path, what it is) of everything on this machine that a recipe may read."""
    model = reads.model if isinstance(reads, Recipe) else reads
    yield _local(model.id), "the base model"
    yield model.chat_template or "", "the chat template"
    if isinstance(reads, ModelSpec):
        return
    for edit in reads.edits:
        if isinstance(edit, Ablation):
            yield edit.directions.file or "", "the directions"
            spec = edit.directions
            beside = (spec.concepts or "", edit.filter.lookalikes or "")
            for name in (spec.harmful, spec.harmless, *beside):
                yield from _prompts(name)
        elif isinstance(edit, Merge):
            yield _local(edit.utility), "the utility adapter"
            yield _local(edit.safety), "the safety adapter"
            yield _local(edit.unaligned or ""), "the unaligned checkpoint"
            for name in (edit.utility_prompts, edit.safety_prompts, edit.lookalikes or ""):
                yield from _prompts(name)
    yield _local(reads.evaluation.judge or ""), "the judge"
    yield reads.evaluation.labels or "", "the labels"
    for name in reads.evaluation.metrics:
        yield from _prompts(name.partition("@")[2])


def _local(name: str) -> str | Path:
    return DEMO if name == "demo" else name if name and is_local(name) else ""


def _prompts(text: str) -> Iterator[tuple[str, str]]:
    """The files that the name of a prompt set, `FILE?key=value`, may mean."""
    name, _, query = text.partition("?")
    yield text, "the prompts"
    yield name, "the prompts"
    with suppress(ValueError):
        for key, value in parse_qsl(query):
            if key in ("file", "shots_file"):
                yield value, "the prompts"


def _kept() -> Iterable[tuple[Path, str]]:
    """Folders that results must not be, nor hold."""
    yield Path.cwd(), "the current folder"
    yield PACKAGE, "the studio"
    yield PRESETS, "the studio's presets"
    yield cache_dir(), "the cache"
    with suppress(UserError):
        yield data_dir(), "the run history"
    with suppress(RuntimeError):
        yield Path.home(), "your home folder"


def _holds(outer: Path, inner: Path) -> bool:
    """Whether a place is another one, or somewhere above it, by whatever name."""
    for path in (inner, *inner.parents):
        if path == outer:
            return True
        with suppress(OSError):
            if os.path.samefile(path, outer):
                return True
    return False
