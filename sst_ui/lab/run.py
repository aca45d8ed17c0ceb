"""A whole recipe without a screen: load, measure, evaluate, write what came out.

Knows the order of the jobs and the files of a run. Does not know progress bars or exit codes.
"""

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.lab.evaluate import MetricResult, evaluate
from sst_ui.lab.measure import resolve
from sst_ui.metrics.registry import find
from sst_ui.model.adapters import write_adapter
from sst_ui.model.host import Host, load
from sst_ui.model.live import Edit, EditReport, RowDelta
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe

FILES = ("recipe.yaml", "metrics.json", "directions.safetensors")


@dataclass(frozen=True)
class Run:
    """What a recipe came to: the resolved edits, their self-check, and every metric."""

    recipe: Recipe
    edits: tuple[Edit, ...]
    report: EditReport
    results: tuple[MetricResult, ...]


def run(
    recipe: Recipe, out: Path, host: Host | None = None, force: bool = False
) -> Generator[Progress | MetricResult, None, Run]:
    """Carry out a recipe and write `recipe.yaml`, `metrics.json` and `directions.safetensors`.

    With several edits the second and later directions go to `directions_2.safetensors` and so on; a
    merge leaves a PEFT adapter in the folder `adapter` (`adapter_2`, ...).
    The files appear together at the end; a run that fails or is cancelled leaves none.

    Args:
        recipe: what to do.
        out: folder for the results; made if missing.
        host: a loaded model to use; None loads the recipe's own.
        force: overwrite the results of another recipe in `out`.

    Raises:
        UserError: bad input, or `out` cannot be written or holds another recipe's results.
    """
    _refuse_to_overwrite(recipe, out, force)
    for name in recipe.evaluation.metrics:  # a misspelt name should not show after a download
        find(name)
    with _staged(out) as folder:
        if host is None:
            host = yield from load(recipe.model)
        edits = yield from resolve(host, recipe)
        with host.step():
            report = host.live.check(edits)
        results = yield from evaluate(host, edits, recipe.evaluation)
        (folder / "recipe.yaml").write_text(recipes.to_yaml(recipe), encoding="utf-8")
        for number, edit in enumerate(edits, 1):
            suffix = "" if number == 1 else f"_{number}"
            if isinstance(edit, RowDelta):
                write_adapter(folder / f"adapter{suffix}", edit.deltas, host)
            else:
                edit.directions.save(folder / f"directions{suffix}.safetensors")
        rows = [result.to_json() for result in results]
        (folder / "metrics.json").write_text(
            json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return Run(recipe, edits, report, tuple(results))


def _refuse_to_overwrite(recipe: Recipe, out: Path, force: bool) -> None:
    if out.is_file():
        raise UserError(f"{out} is a file; give a folder for the results.")
    earlier = out / "recipe.yaml"
    if force or not earlier.exists():
        return
    try:
        same = recipes.load(earlier).digest() == recipe.digest()
    except UserError:
        same = False
    if not same:
        raise UserError(
            f"{out} holds the results of another recipe; choose another folder or add --force."
        )


@contextmanager
def _staged(out: Path):
    """A temporary folder beside `out` whose files move into it only when all went well."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}.") from error
    try:
        yield folder
        out.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir()):
            if file.is_dir():  # one folder cannot replace another that holds something
                shutil.rmtree(out / file.name, ignore_errors=True)
            file.replace(out / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
