"""The table of the demo model: before and after safety tuning, then profiles and strengths.

Knows which model directories stand in which row. Does not know how anything is measured (lab/).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sst_ui.lab import sweep
from sst_ui.model.host import load
from sst_ui.progress import Progress, finish
from sst_ui.recipe import ModelSpec

GROUPS = ("base", "profiles", "control")


def measure(model: Path, stage_1: Path | None = None) -> str:
    """The table as Markdown; `stage_1` is the model before safety tuning, if it is at hand."""
    settings = [s for s in sweep.settings() if s.group in GROUPS]
    rows = []
    if stage_1:
        before = replace(settings[0], name="after stage 1 (complies with everything)")
        rows += _rows(stage_1, [before])
    return sweep.markdown(rows + _rows(model, settings))


def _rows(folder: Path, settings: list[sweep.Setting]) -> list[sweep.Row]:
    """Measure one model under some settings, telling which one is being measured."""
    with Console(stderr=True).status("table") as status:

        def tell(step: object) -> None:
            if isinstance(step, Progress):
                status.update(f"{step.stage} {step.done}/{step.total} {step.note}")

        host = finish(load(ModelSpec(id=str(folder))), tell)
        return finish(sweep.sweep(host, settings), tell)
