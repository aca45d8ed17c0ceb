"""The command `evaluate`: the metrics of a recipe, without a folder of results.

It measures the recipe's own evaluation; options override parts of it. Heavy imports happen inside.
"""

import argparse
from collections.abc import Generator
from dataclasses import replace
from typing import Any

from sst_ui.cli import streams, tables
from sst_ui.cli.history import remember
from sst_ui.cli.option_types import add
from sst_ui.cli.progress_bars import with_bar
from sst_ui.recipe import Evaluation, Recipe, to_dict
from sst_ui.schema import build, settings


def options(parser: argparse.ArgumentParser) -> None:
    """What to measure, in place of what the recipe says."""
    parser.add_argument("--metrics", help="comma-separated names; see `metrics`")
    for name in ("goal", "preset", "samples", "max_new_tokens", "judge"):
        add(parser, f"evaluation.{name}")
    add(parser, "evaluation.labels", metavar="FILE.jsonl")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(given: argparse.Namespace, recipe: Recipe) -> None:
    """Measure and print; the run is remembered."""
    parts = {n: getattr(given, n) for n in settings(Evaluation) if getattr(given, n) is not None}
    if "metrics" in parts:
        parts["metrics"] = [name.strip() for name in parts["metrics"].split(",") if name.strip()]
    wanted = build(Evaluation, to_dict(recipe.evaluation) | parts, "evaluation")
    recipe = replace(recipe, evaluation=wanted)

    from sst_ui.jobs.directions.measure import resolve
    from sst_ui.jobs.evaluate.evaluate import evaluate
    from sst_ui.metrics.registry import find
    from sst_ui.model.runtime.host import load

    for name in wanted.metrics:  # a misspelt name should not show after a download
        find(name)

    def job() -> Generator[Any, None, Any]:
        host = yield from load(recipe.model)
        edits = yield from resolve(host, recipe)
        return (yield from evaluate(host, edits, wanted))

    results = with_bar(job())
    remember(recipe, results)
    if given.json:
        rows = [
            r.to_json() | r.judgement() | {"prompts": r.prompts, "note": r.note} for r in results
        ]
        print(streams.to_json({"recipe": recipe.digest(), "metrics": rows}))
        return
    tables.metrics(results)
    for result in results:
        if result.note:
            print(f"note: {result.name}: {result.note}")
    print(f"recipe {recipe.digest()}")
