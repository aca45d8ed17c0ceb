"""Exports a model that behaves as it did in the studio: the formats, and the order of the work.

To add a format, write a function (job, folder) and add a row.
"""

import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sst_ui import options
from sst_ui import recipe as recipes
from sst_ui.errors import unknown
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.export import formats, gguf_file, mergekit, protected_paths
from sst_ui.jobs.export.formats import Job, Made, pretended
from sst_ui.jobs.export.model_card import FIGURE, card, figure
from sst_ui.jobs.export.verify import Verification, verify
from sst_ui.metrics.results import MetricResult
from sst_ui.model.runtime.host import Host
from sst_ui.model.weights.staged_folder import staged
from sst_ui.options import Rounding
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe


@dataclass(frozen=True)
class Format:
    """One export format.

    Attributes:
        what: a sentence for the screen.
        needs: what must be installed beside the studio; empty for nothing.
        check: (host, recipe, rank) -> None; raises UserError for what cannot be written.
        write: (job, folder) -> how it went.
    """

    name: str
    title: str
    what: str
    needs: str
    check: Callable[[Host, Recipe, int | None], None]
    write: Callable[[Job, Path], Generator[Progress, None, Made]]


FORMATS = {
    row.name: row
    for row in (
        Format(
            "adapter",
            "PEFT adapter",
            "a LoRA adapter for the base model: small, and exact without norm preservation",
            "",
            formats.check_adapter,
            formats.adapter,
        ),
        Format(
            "model",
            "Whole model",
            "the base model's safetensors with the edited matrices replaced",
            "",
            formats.check_model,
            formats.model,
        ),
        Format(
            "mergekit",
            "mergekit YAML",
            "a configuration for mergekit; what it cannot express is written as an adapter",
            "mergekit, to run it",
            mergekit.check,
            mergekit.write,
        ),
        Format(
            "gguf",
            "GGUF",
            "one file for llama.cpp and the programs built on it",
            "the gguf package, or llama.cpp's converter",
            gguf_file.check,
            gguf_file.write,
        ),
    )
}


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where.
        format: a name of `FORMATS`.
        files: names in the folder.
        bytes: of all of them.
        seconds: from the measured directions to the finished folder, verification not counted.
        verification: what a fresh process found, or None where it was not asked.
        notes: what a person should know, in sentences.
        rounding, rank: as asked for.
    """

    folder: Path
    format: str
    files: tuple[str, ...]
    bytes: int
    seconds: float
    verification: Verification | None
    notes: tuple[str, ...]
    rounding: Rounding = "nearest"
    rank: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        checked = self.verification
        return {
            "folder": str(self.folder),
            "format": self.format,
            "files": list(self.files),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "verification": None if checked is None else checked.to_json(),
            "notes": list(self.notes),
            "rounding": self.rounding,
            "rank": self.rank,
        }


def find(name: str) -> Format:
    """A format by name.

    Raises:
        UserError: unknown; the message suggests the nearest.
    """
    if name not in FORMATS:
        raise unknown("format", name, FORMATS)
    return FORMATS[name]


def export(
    host: Host,
    recipe: Recipe,
    out: Path,
    format: options.Format = "adapter",
    *,
    rounding: Rounding = "nearest",
    rank: int | None = None,
    verify: int = 0,
    results: Sequence[MetricResult] = (),
    force: bool = False,
) -> Generator[Progress, None, Export]:
    """Write the edited model, its recipe and its card into a folder that appears when all is done.

    Args:
        host: the loaded base model; it is not touched.
        recipe: what was done to it.
        out: the folder to make.
        format: a name of `FORMATS`.
        rounding: of edited numbers to the stored type, `nearest` or `stochastic`.
        rank: of an adapter at most; with norm preservation it must be given.
        verify: prompts with which a fresh process compares the folder with the live model; 0 for
            none.
        results: metrics for the card.
        force: replace an earlier export, if nothing in its folder was added or changed since.

    Yields:
        Progress of measuring, merging and writing; of `answers` and `reread` when verifying.

    Raises:
        UserError: something that the format cannot hold, before anything is measured; `out` is
            taken; the disk is full (nothing is left behind).
    """
    kind = find(format)
    options.ExportOptions(format, rounding, rank, verify)
    out = Path(os.path.expanduser(out))
    protected_paths.check(out, recipe)
    protected_paths.check(out, host.spec)
    kind.check(host, recipe, rank)
    host.live.refuse(pretended(host, recipe))
    with staged(out, force) as folder:
        edits = yield from resolve(host, recipe)
        host.live.refuse(edits)
        started = time.monotonic()
        made = yield from kind.write(Job(host, recipe, edits, rounding, rank), folder)
        seconds = time.monotonic() - started
        (folder / recipes.FILE).write_text(recipes.to_yaml(recipe), encoding="utf-8")
        checked, notes = yield from _verified(host, edits, folder, verify, made)
        done = Export(out, format, (), 0, seconds, checked, notes, rounding, rank)
        _describe(folder, recipe, results, done, host.layers)
        done = _counted(done, folder)
        yield Progress("finish", 0, 1)
    yield Progress("finish", 1, 1)
    return done


def _verified(
    host: Host, edits: tuple, folder: Path, n: int, made: Made
) -> Generator[Progress, None, tuple[Verification | None, tuple[str, ...]]]:
    """What a fresh process found, if it was asked, and what a person should know."""
    if not n:
        return None, made.notes
    if not made.check:
        note = "Not verified: mergekit writes the model, and the studio does not run it."
        return None, (*made.notes, note)
    found = yield from verify(host, edits, folder, n=n, approximate=made.error > 0)
    return found, made.notes


def _describe(
    folder: Path, recipe: Recipe, results: Sequence[MetricResult], done: Export, layers: int
) -> None:
    """Write the card and its figure."""
    (folder / FIGURE).write_text(figure(recipe, layers), encoding="utf-8")
    text = card(recipe, results, done, layers)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _counted(done: Export, folder: Path) -> Export:
    """With the names and the size of everything in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = tuple(path.relative_to(folder).as_posix() for path in files)
    return replace(done, files=names, bytes=sum(path.stat().st_size for path in files))
