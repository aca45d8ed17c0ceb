"""The command `merge`: its options, the job, and what it prints.

Options for a method's parameters come from the method's own signature. Heavy imports happen inside,
so that `--help` is quick.
"""

import argparse
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sst_ui.cli.option_types import add
from sst_ui.cli.progress_bars import with_bar
from sst_ui.errors import UserError, shown
from sst_ui.progress import Progress
from sst_ui.recipe import Merge, ModelSpec, Recipe, flat
from sst_ui.schema import build, setting


def options(parser: argparse.ArgumentParser) -> None:
    """The options of `merge`, beside those of the model."""
    add(parser, "merge.utility", required=True, metavar="DIR")
    add(parser, "merge.safety", required=True, metavar="DIR")
    add(parser, "merge.method", default=setting("merge.method").default)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="merged adapter")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER",
                        help="a parameter of the method, such as mu=3 or k=5")  # fmt: skip
    add(parser, "merge.budget")
    add(parser, "weights.strength", "--weight", help="safety weight")
    add(parser, "weights.peak")
    add(parser, "weights.width")
    for name in (
        "target", "fisher", "inputs", "utility_prompts", "safety_prompts", "lookalikes",
        "lookalike_weight", "rounds", "samples",
    ):  # fmt: skip
        add(parser, f"merge.{name}")
    add(parser, "merge.unaligned", metavar="DIR")
    add(parser, "merge.rank")
    parser.add_argument(
        "--json", action="store_true", help="print what happened to each module, as JSON"
    )


def run(given: argparse.Namespace, model: ModelSpec) -> None:
    """Merge and save; prints what was kept of the safety edit."""
    spec = _spec(given)

    from sst_ui.jobs.export import protected_paths
    from sst_ui.jobs.merge.merge import merge, settings
    from sst_ui.model.lora.adapters import write_files
    from sst_ui.model.runtime.host import load
    from sst_ui.model.weights.staged_folder import staged

    settings(spec)  # before a model is loaded
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise UserError(f"{given.out} already exists; give a new folder.")
    protected_paths.check(given.out, Recipe(model=model, edits=(spec,)))

    def job() -> Generator[Progress, None, Any]:
        with staged(given.out, kind="merge") as folder:
            host = yield from load(model)
            outcome = yield from merge(host, spec)
            write_files(folder, outcome.deltas, host)
        return outcome

    outcome = with_bar(job())
    rows = {
        name: {
            "kept": r.kept, "size": r.size, "kl": r.kl, "error": r.error, "rank": r.rank,
            "note": r.note,
        }
        for name, r in outcome.records.items()
    }  # fmt: skip
    if given.json:
        print(json.dumps({"parameters": outcome.parameters, "modules": rows}))
        return
    from rich.console import Console
    from rich.table import Column, Table

    names = Column("module", no_wrap=True, min_width=max(map(len, rows), default=0))
    table = Table(names, "kept", "size", "KL", "rank", "error", "", box=None)
    for name, r in rows.items():
        numbers = ["–" if r[k] is None else f"{r[k]:.2g}" for k in ("kept", "size", "kl")]
        table.add_row(name, *numbers, str(r["rank"]), f"{r['error']:.2g}", r["note"])
    Console().print(table)
    print(", ".join(f"{name} {value}" for name, value in outcome.parameters.items()))
    print(f"saved {given.out}")


def _spec(given: argparse.Namespace) -> Merge:
    names = ("utility", "safety", "method", "budget", "target", "fisher", "inputs",
             "utility_prompts", "safety_prompts", "lookalikes", "lookalike_weight", "rounds",
             "samples", "unaligned", "rank")  # fmt: skip
    values = {n: getattr(given, n) for n in names if getattr(given, n) is not None}
    parameters = {}
    for item in given.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set {shown(item)}: write NAME=NUMBER, for example mu=3.")
        parameters[name.strip()] = value.strip()
    spec = build(Merge, values | {"parameters": parameters}, "merge")
    weights = flat()
    if (given.peak is None) != (given.width is None):
        raise UserError("--peak and --width define a bell together; give both, or neither.")
    if given.peak is not None:
        weights = replace(weights, profile="custom", peak=given.peak, width=given.width)
    if given.weight is not None:
        weights = replace(weights, strength=given.weight)
    return replace(spec, weights=weights)
