"""The command `search`: candidates by a strategy, a table of them, the best as a recipe.

Heavy imports happen inside.
"""

import argparse
import json
import os
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sst_ui.cli.option_types import add as setting_option
from sst_ui.cli.option_types import whole
from sst_ui.cli.progress_bars import with_bar
from sst_ui.errors import UserError
from sst_ui.options import SearchOptions
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe, to_yaml

if TYPE_CHECKING:
    from sst_ui.jobs.search.candidates import Candidate
    from sst_ui.jobs.search.objectives import Aims, SearchSpec
    from sst_ui.jobs.search.trials import Measurer, Numbers


def options(parser: argparse.ArgumentParser) -> None:
    """What to try, what to go by, where to keep it."""
    add = parser.add_argument
    unless = SearchOptions()
    setting_option(parser, "search.strategy", default=unless.strategy)
    add("--objective", action="append", default=[], metavar="METRIC", dest="objectives",
        help="to optimise, the first one with a target; may be given several times")  # fmt: skip
    add("--constraint", action="append", default=[], metavar="'quality >= 0.7'", dest="constraints")
    for name in ("target", "trials", "minutes"):
        setting_option(parser, f"search.{name}")
    setting_option(parser, "search.samples", default=unless.samples)
    setting_option(
        parser, "search.max_new_tokens", "--tokens", dest="tokens", default=unless.max_new_tokens
    )
    for name in ("seed", "round", "start"):
        setting_option(parser, f"search.{name}", default=getattr(unless, name))
    add("--no-prune", action="store_true", help="generate answers for every candidate")
    add("--storage", metavar="URL", help="an Optuna storage URL; by default SQLite in the data "
        "folder; 'memory' keeps nothing")  # fmt: skip
    add("--name", help="of the study; by default the same command finds its own study again")
    add("--ray", metavar="ADDRESS", help="measure on a Ray cluster: 'auto', 'local' or an address")
    add("--workers", type=whole(1, 10_000), metavar="N", help="on the Ray cluster; by default "
        "one per GPU, or one per 2 processors")  # fmt: skip
    add("--held-out", action="store_true", help="measure the best on prompts the search never saw")
    add("--out", type=Path, metavar="BEST.yaml", help="write the best recipe there")
    add("--json", action="store_true", help="print every candidate, as JSON")


def run(given: argparse.Namespace, recipe: Recipe) -> None:
    """Search, print, and write the best recipe."""
    if given.out is not None and os.path.lexists(given.out):
        raise UserError(f"{given.out} already exists; give a new file.")

    from sst_ui import disk
    from sst_ui.jobs.export import protected_paths
    from sst_ui.jobs.search.candidates import chosen, fitted
    from sst_ui.jobs.search.objectives import SearchSpec, aims
    from sst_ui.jobs.search.search import search

    spec = SearchSpec(
        given.strategy, tuple(given.objectives), tuple(given.constraints), given.target,
        given.trials, given.minutes, given.samples, given.tokens, given.seed, given.start,
        not given.no_prune, given.round,
    )  # fmt: skip
    aim = aims(recipe, spec)
    if given.out is not None:
        protected_paths.check(given.out, recipe)
        disk.probe(given.out)

    def job(stack: ExitStack) -> Generator[Any, None, tuple]:
        measurer = yield from _measurer(given, recipe, stack)
        found = yield from search(recipe, spec, measurer, given.storage, given.name)
        best = chosen(found, aim, spec)
        made = None if best is None else best.recipe
        if spec.strategy == "sensitivity" and found:
            made, _ = fitted(found, recipe, aim, measurer.layers)
        unseen = None
        if given.held_out and made is not None:
            unseen = yield from _held_out(measurer, made, aim, spec)
        return found, best, made, unseen

    with ExitStack() as stack:
        found, best, made, unseen = with_bar(job(stack))
    if made is not None and given.out is not None:
        with disk.written(given.out) as part:
            part.write_text(to_yaml(made), encoding="utf-8")
    if given.json:
        print(json.dumps({
            "tokens": aim.tokens,
            "best": None if made is None else made.digest(),
            "number": None if best is None else best.number,
            "candidates": [each.to_json() for each in found],
            "held_out": None if unseen is None
            else {name: value.to_json() for name, value in unseen.values.items()},
        }))  # fmt: skip
        return
    _table(found, best, aim)
    print(f"answers of at most {aim.tokens} tokens")
    if made is None:
        print("no candidate could be measured")
        return
    print(f"{made.name}: recipe {made.digest()}" + (f", saved {given.out}" if given.out else ""))
    if unseen is not None:
        values = (f"{name} {value.value:.3g}" for name, value in unseen.values.items())
        print(f"on held-out prompts: {', '.join(values)}{unseen.error}")


def _measurer(
    given: argparse.Namespace, recipe: Recipe, stack: ExitStack
) -> Generator[Progress, None, "Measurer"]:
    if given.ray is not None:
        from sst_ui.jobs.search.ray_workers import Cluster

        cluster = Cluster(recipe.model, given.ray, given.workers)
        stack.callback(cluster.close)
        yield from cluster.open()
        return cluster
    if given.workers is not None:
        raise UserError("--workers needs a Ray cluster: add --ray ADDRESS.")

    from sst_ui.jobs.search.trials import Local
    from sst_ui.model.runtime.host import load

    return Local((yield from load(recipe.model)))


def _held_out(
    measurer: "Measurer", made: Recipe, aim: "Aims", spec: "SearchSpec"
) -> Generator[Progress, None, "Numbers"]:
    from sst_ui.jobs.search.objectives import held_out

    found = None
    for step in measurer.numbers([made], held_out(made, aim, spec)):
        if isinstance(step, Progress):
            yield step
        else:
            found = step[1]
    assert found is not None  # one recipe, one answer
    return found


def _table(found: "list[Candidate]", best: "Candidate | None", aim: "Aims") -> None:
    from rich.console import Console
    from rich.table import Table

    from sst_ui.jobs.search.space import describe
    from sst_ui.metrics.registry import find

    right: dict[str, Any] = {"justify": "right"}
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("#", **right)
    table.add_column("settings", overflow="fold", min_width=28)
    for name in aim.metrics:
        table.add_column(find(name).title, max_width=14, **right)
    table.add_column("")
    for each in found:
        values = (each.value(name) for name in aim.metrics)
        shown = ["–" if value != value else f"{value:.3g}" for value in values]
        word = "best" if each is best else each.note
        if each.state == "done" and not each.feasible:
            word = "breaks a constraint"
        settings = describe(each.params)
        style = "bold" if each is best else None
        table.add_row(str(each.number), settings, *shown, word, style=style)
    Console().print(table)
