"""The command `search`: a grid of kernels, and the best of them as a recipe.

Knows arguments and a table. Which kernels and which is best is `lab.search`. Heavy imports happen
inside.
"""

import argparse
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sst_ui.errors import UserError
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe, to_yaml
from sst_ui.terminal.looks import with_bar


def options(parser: argparse.ArgumentParser) -> None:
    """Where the best goes, and what counts as good enough."""
    parser.add_argument("--out", type=Path, metavar="BEST.yaml", help="write the best recipe there")
    parser.add_argument("--samples", type=int, help="prompts of each set")
    parser.add_argument("--target", type=float, default=0.02,
                        help="share of refusals at most; of those the least KL wins")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="every candidate as JSON")


def run(given: argparse.Namespace, recipe: Recipe) -> None:
    """Search, print, and write the best recipe."""
    if not 0 <= given.target <= 1:
        raise UserError(f"--target is {given.target}; it must be a share, 0 to 1.")
    if given.samples is not None and given.samples < 2:
        raise UserError(f"--samples is {given.samples}; it must be 2 or more.")
    if given.out is not None and given.out.exists():
        raise UserError(f"{given.out} exists already; give a file that does not.")

    from sst_ui.lab.search import best, grid
    from sst_ui.model.host import load

    def job() -> Generator[Progress, None, Any]:
        host = yield from load(recipe.model)
        return (yield from grid(host, recipe, samples=given.samples))

    found = with_bar(job())
    chosen = best(found, given.target)
    if given.out is not None:
        given.out.write_text(to_yaml(chosen.recipe), encoding="utf-8")
    if given.json:
        rows = [candidate.to_json() for candidate in found]
        print(json.dumps({"best": chosen.recipe.digest(), "candidates": rows}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("peak", "width", "refusals", "KL, 16 tokens", "", box=None)
    for candidate in found:
        peak, width = candidate.place
        numbers = (f"{candidate.refusals.value:.3f}", f"{candidate.divergence.value:.2e}")
        table.add_row(f"{peak:g}", f"{width:g}", *numbers, "best" if candidate is chosen else "")
    Console().print(table)
    print(f"recipe {chosen.recipe.digest()}" + (f": saved {given.out}" if given.out else ""))
