"""The command `search`: candidates by a strategy, a table of them, the best as a recipe.

Heavy imports happen inside.
"""

import argparse
import json
import os
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sst_ui.cli.option_types import add as setting_option
from sst_ui.cli.option_types import whole
from sst_ui.cli.progress_bars import with_bar
from sst_ui.errors import UserError
from sst_ui.options import SearchOptions
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe, to_yaml
from sst_ui.schema import setting

if TYPE_CHECKING:
    from sst_ui.jobs.search.candidates import Candidate
    from sst_ui.jobs.search.objectives import Aims, SearchSpec
    from sst_ui.jobs.search.trials import Measurer, Numbers

MISSED = 3  # exit code of a search whose target was missed


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
    for name in ("seed", "round", "start", "patience"):
        setting_option(parser, f"search.{name}", default=getattr(unless, name))
    add("--no-prune", action="store_true", help="generate answers for every candidate")
    add("--storage", metavar="URL", help="an Optuna storage URL; by default SQLite in the data "
        "folder; 'memory' keeps nothing")  # fmt: skip
    add("--name", help="of the study; by default the same command finds its own study again")
    add("--ray", metavar="ADDRESS", help="measure on a Ray cluster: 'auto', 'local' or an address")
    add("--workers", type=whole(1, 10_000), metavar="N", help="on the Ray cluster; by default "
        "one per GPU, or one per 2 processors")  # fmt: skip
    add("--select", nargs=2, metavar="SET", default=[], help=setting("search.select").help())
    add("--test", nargs=2, metavar="SET", default=[], help=setting("search.test").help())
    add("--held-out", action="store_true", help="measure the best more closely on test "
        "prompts: also its quality, and the bell that a scan of the layers fits")  # fmt: skip
    add("--out", type=Path, metavar="BEST.yaml", help="write the best recipe there; nothing is "
        "written, and the exit code is 3, where the target was missed")  # fmt: skip
    add("--anyway", action="store_true", help="write the nearest recipe if the target was missed")
    add("--json", action="store_true", help="print every candidate, as JSON")


@dataclass(frozen=True)
class _Ended:
    """A search that is over.

    Attributes:
        notes: what was left out of the prompts.
        best: who reached the target on the test prompts, or None.
        nearest: who came nearest, where nobody did.
        made: the recipe that may be written: the best's, or the bell of a scan.
        unseen: of such a bell, its numbers on the test prompts, if they were asked for.
    """

    aim: "Aims"
    found: "list[Candidate]"
    notes: tuple[str, ...]
    looks: int
    best: "Candidate | None"
    nearest: "Candidate | None"
    made: Recipe | None
    unseen: "Numbers | None"

    @property
    def missed(self) -> bool:
        """Whether there was something to reach, and nobody reached it."""
        return self.made is None


def run(given: argparse.Namespace, recipe: Recipe) -> None:
    """Search, print, and write the best recipe.

    Exits with code 3 where the target was missed; then no recipe is written, unless `--anyway`.
    """
    if given.out is not None and os.path.lexists(given.out):
        raise UserError(f"{given.out} already exists; give a new file.")

    from sst_ui import disk
    from sst_ui.jobs.export import protected_paths
    from sst_ui.jobs.search.objectives import SearchSpec, aims

    spec = SearchSpec(
        given.strategy, tuple(given.objectives), tuple(given.constraints), given.target,
        given.trials, given.minutes, given.samples, given.tokens, given.seed, given.start,
        not given.no_prune, given.round, given.patience, tuple(given.select), tuple(given.test),
    )  # fmt: skip
    aims(recipe, spec)
    if given.out is not None:
        protected_paths.check(given.out, recipe)
        disk.probe(given.out)
    with ExitStack() as stack:
        ended = with_bar(_job(given, recipe, spec, stack))
    made = ended.made
    if made is None and given.anyway and ended.nearest is not None:
        made = ended.nearest.recipe
    if made is not None and given.out is not None:
        with disk.written(given.out) as part:
            part.write_text(to_yaml(made), encoding="utf-8")
    if given.json:
        print(json.dumps(_data(ended)))
    else:
        _print(ended, spec, None if made is None else given.out)
    if ended.missed:
        raise SystemExit(MISSED)


def _job(
    given: argparse.Namespace, recipe: Recipe, spec: "SearchSpec", stack: ExitStack
) -> Generator[Any, None, _Ended]:
    from sst_ui.jobs.search.candidates import chosen, fitted, nearest
    from sst_ui.jobs.search.search import Opened, search

    measurer = yield from _measurer(given, recipe, stack)
    steps = search(recipe, spec, measurer, given.storage, given.name)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            found = end.value
            break
        if isinstance(step, Opened):
            opened = step
        yield step
    aim, recipe = opened.aim, opened.recipe
    best, near, unseen = chosen(found, aim, spec), nearest(found, aim, spec), None
    made = None if best is None else best.recipe
    if spec.strategy == "sensitivity":
        near = None
        made, _ = fitted(found, recipe, aim, measurer.layers) if found else (None, None)
    if given.held_out and made is not None:
        unseen = yield from _held_out(measurer, made, aim, spec)
    return _Ended(aim, found, opened.notes, opened.study.looks(), best, near, made, unseen)


def _data(ended: _Ended) -> dict[str, Any]:
    best, near = ended.best, ended.nearest
    return {
        "best": None if ended.made is None else ended.made.digest(),
        "number": None if best is None else best.number,
        "tokens": ended.aim.tokens,
        "target": str(ended.aim) if ended.aim.targeted else None,
        "reached": not ended.missed,
        "nearest": None if near is None else near.number,
        "notes": list(ended.notes),
        "looks": ended.looks,
        "candidates": [each.to_json() for each in ended.found],
        "held_out": None if ended.unseen is None
        else {name: value.to_json() for name, value in ended.unseen.values.items()},
    }  # fmt: skip


def _print(ended: _Ended, spec: "SearchSpec", out: Path | None) -> None:
    from sst_ui.jobs.search.verdict import missed, numbers

    _table(ended.found, ended.best, ended.aim)
    print(f"answers of at most {ended.aim.tokens} tokens")
    for note in ended.notes:
        print(f"note: {note}")
    if ended.looks > 1:
        print(f"note: the test prompts were looked at {ended.looks} times; the more often, the "
              "less they say.")  # fmt: skip
    saved = f", saved {out}" if out else ""
    if ended.missed:
        print(missed(ended.found, ended.aim, spec))
        if ended.nearest is not None and out is not None:
            print(f"saved {out} all the same: #{ended.nearest.number}, which misses the target")
        elif ended.nearest is not None:
            print("No recipe was written; --anyway writes the nearest one.")
        return
    assert ended.made is not None
    print(f"{ended.made.name}: recipe {ended.made.digest()}{saved}")
    if ended.best is not None:
        tested = sum(bool(each.test) for each in ended.found)
        print(f"on test prompts: {numbers(ended.best, ended.aim)}; one of {tested} tested")
    if ended.unseen is not None:
        values = (f"{name} {value.value:.3g}" for name, value in ended.unseen.values.items())
        print(f"on held-out prompts: {', '.join(values)}{ended.unseen.error}")


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

    from sst_ui.jobs.search.candidates import moved
    from sst_ui.jobs.search.space import describe
    from sst_ui.metrics.registry import find

    right: dict[str, Any] = {"justify": "right"}
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("#", **right)
    table.add_column("settings", overflow="fold", min_width=28)
    for name in aim.metrics:
        table.add_column(find(name.partition("@")[0]).title, max_width=14, **right)
    table.add_column("")
    for each in found:
        values = (each.value(name) for name in aim.metrics)
        shown = ["–" if value != value else f"{value:.3g}" for value in values]
        word = "best" if each is best else each.note
        if each.state == "done" and not each.feasible:
            word = "breaks a constraint"
        elif each.state == "done" and not moved(each, aim):
            word = "changes too little"
        elif each is not best and each.test:
            word = "tested"
        settings = describe(each.params)
        style = "bold" if each is best else None
        table.add_row(str(each.number), settings, *shown, word, style=style)
    Console().print(table)
