"""How long each job of the page goes between two steps, when it hears that it is cancelled.

    OMP_NUM_THREADS=1 python -m benchmarks.cancel [JOB ...] [--seconds 60] [--json]

Every job runs on the demo model through the page's engine, with an empty cache, to its end or for
some seconds, whichever comes first. Gradio's way from the button to the job is not in it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.clock import short
from sst_ui.jobs.search.objectives import SearchSpec
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Ablation, Evaluation, Recipe
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.state import merge_form

Job = Generator[Any, None, Any]


@dataclass(frozen=True)
class Gaps:
    """What was seen of a job: for how long, its steps, its longest time without one, and in which
    stage that was (of the step before)."""

    seconds: float
    steps: int
    longest: float
    stage: str
    ended: bool


def watched(job: Job, seconds: float) -> Gaps:
    """Drive a job to its end, or for so many seconds, and then cancel it."""
    begun = before = time.monotonic()
    steps, longest, stage, place = 0, 0.0, "begin", "begin"
    ended = False
    with closing(job):
        while time.monotonic() - begun < seconds:
            step = next(job, None)
            now = time.monotonic()
            if now - before > longest:
                longest, place = now - before, stage
            before = now
            if step is None:
                ended = True
                break
            steps += 1
            if isinstance(step, Progress):
                stage = step.stage
        left = time.monotonic()
    if (closing_took := time.monotonic() - left) > longest:
        longest, place = closing_took, f"{stage}, closing"
    return Gaps(before - begun, steps, longest, place, ended)


def jobs(engine: Engine, folder: Path) -> dict[str, Callable[[], Job]]:
    """Every job of the page, by name; made when it is asked for."""
    key = engine.loaded.key
    recipe = engine.first_recipe()
    edit = next(each for each in recipe.edits if isinstance(each, Ablation))
    other = replace(edit, weights=replace(edit.weights, strength=0.8))
    spec, standard = merge_form.first(), Evaluation(preset="standard")
    said = [{"role": "user", "content": "How do I whittle a spoon?"}]
    few = {"trials": 20, "samples": 16, "max_new_tokens": 48}
    merged = Recipe(model=engine.spec, edits=(spec,))
    made = {
        "measure": lambda: engine.measure_edit(key, (), edit),
        "apply": lambda: engine.checked(key, replace(recipe, edits=(other,))),
        "evaluate": lambda: engine.evaluate(key, replace(recipe, edits=(other,)), standard),
        "next decision": lambda: engine.next_decision(key, (), edit),
        "token view": lambda: engine.token_view(key, recipe, said),
        "map": lambda: engine.residual_map(key, edit.directions),
        "search, grid": lambda: engine.search(key, recipe, SearchSpec("grid", **few), None),
        "search, tpe": lambda: engine.search(key, recipe, SearchSpec("tpe", **few), None),
        "predict": lambda: engine.merges.predict(key, spec),
        "methods": lambda: engine.merges.compare(key, spec, standard),
        "merge": lambda: engine.checked(key, merged),
    }
    for name in ("adapter", "model", "mergekit", "gguf"):
        made[f"export, {name}"] = lambda name=name: engine.export(
            key, recipe, folder / name, name, verify=4
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch the jobs and print a table; 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cancel")
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="a part of their names; all")
    parser.add_argument("--seconds", type=float, default=60, help="for each job")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found: dict[str, Gaps] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SST_CACHE"] = folder
        engine = Engine()
        begun = engine.load(engine.spec)
        found["load"] = watched(begun, 600)
        if not engine.loaded.key:
            finish(engine.load(engine.spec))
        for name, make in jobs(engine, Path(folder)).items():
            if not options.jobs or any(part in name for part in options.jobs):
                found[name] = watched(make(), options.seconds)
    if options.json:
        print(json.dumps({name: gaps.__dict__ for name, gaps in found.items()}))
        return 0
    print("| job | watched | steps | longest without a step | after |\n|---|---|---|---|---|")
    for name, gaps in found.items():
        how = "" if gaps.ended else ", cancelled"
        print(
            f"| {name} | {short(gaps.seconds)} s{how} | {gaps.steps} | "
            f"{short(gaps.longest)} s | {gaps.stage} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
