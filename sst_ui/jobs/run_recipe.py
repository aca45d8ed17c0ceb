"""Runs a whole recipe without a screen: load, measure, evaluate, write the results."""

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.evaluate.evaluate import MetricResult, evaluate
from sst_ui.jobs.export import protected_paths
from sst_ui.metrics.registry import find
from sst_ui.model.hooks.live_edits import Edit, EditReport, RowDelta, RowEdit, RowFilter
from sst_ui.model.lora.adapters import write_adapter
from sst_ui.model.runtime.host import Host, load
from sst_ui.model.weights.staged_folder import refuse_to_overwrite, staged
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """The result of a recipe: the resolved edits, their self-check, and every metric."""

    recipe: Recipe
    edits: tuple[Edit, ...]
    report: EditReport
    results: tuple[MetricResult, ...]


def run(
    recipe: Recipe, out: Path, host: Host | None = None, force: bool = False
) -> Generator[Progress | MetricResult, None, Run]:
    """Carry out a recipe and write `recipe.yaml`, `metrics.json` and `directions.safetensors`.

    With several edits the second and later directions go to `directions_2.safetensors` and so on; a
    merge leaves a PEFT adapter in the folder `adapter` (`adapter_2`, ...), a filtered ablation
    both.
    The folder appears at the end with all of them; a run that fails or is cancelled leaves none.

    Args:
        recipe: what to do.
        out: folder for the results; made if missing, replaced if it holds those of this recipe.
        host: a loaded model to use; None loads the recipe's own.
        force: replace the results of another recipe in `out`.

    Raises:
        UserError: bad input; `out` cannot be written, holds another recipe's results, or anything
            that no run left there.
    """
    protected_paths.check(out, recipe)
    force = force or _same(recipe, out)
    _refuse_to_overwrite(out, force)
    for name in recipe.evaluation.metrics:  # a misspelt name should not show after a download
        find(name)
    with staged(out, force, "run") as folder:
        if host is None:
            host = yield from load(recipe.model)
        edits = yield from resolve(host, recipe)
        with host.step():
            report = host.live.check(edits)
        results = yield from evaluate(host, edits, recipe.evaluation)
        (folder / recipes.FILE).write_text(recipes.to_yaml(recipe), encoding="utf-8")
        for number, edit in enumerate(edits, 1):
            suffix = "" if number == 1 else f"_{number}"
            if isinstance(edit, RowDelta) and (edit.active() or not isinstance(edit, RowFilter)):
                write_adapter(folder / f"adapter{suffix}", edit.weighed(), host)
            if isinstance(edit, RowEdit | RowFilter):
                edit.directions.save(folder / f"directions{suffix}.safetensors")
        rows = [result.to_json() for result in results]
        (folder / "metrics.json").write_text(
            json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return Run(recipe, edits, report, tuple(results))


def _same(recipe: Recipe, out: Path) -> bool:
    """Whether a folder holds what came of this recipe before."""
    try:
        return recipes.load(out / recipes.FILE).digest() == recipe.digest()
    except UserError:
        return False


def _refuse_to_overwrite(out: Path, force: bool) -> None:
    if not force and (out / recipes.FILE).exists():
        raise UserError(
            f"{out} holds the results of another recipe; choose another folder or add --force."
        )
    refuse_to_overwrite(out, force, "run")
