"""The command `export`: a recipe becomes an adapter, a model, a mergekit file or a GGUF file.

Heavy imports happen inside.
"""

import argparse
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sst_ui.cli import streams
from sst_ui.cli.option_types import add
from sst_ui.cli.progress_bars import with_bar
from sst_ui.errors import UserError
from sst_ui.options import ExportOptions
from sst_ui.recipe import Evaluation, Recipe

MEASURED = (
    "refusal_rate", "delivered", "evaded", "degenerate_harmful", "over_refusal",
    "over_refusal_ordinary", "jailbreak_resistance",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    """Where to, in which form, and what to do afterwards."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    for name, default in vars(ExportOptions()).items():
        add(parser, f"export.{name}", default=default)
    parser.add_argument("--unmeasured", action="store_true",
                        help="do not measure for the card where no run has metrics")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--push",
        metavar="USER/NAME",
        help="push to the Hub afterwards; needs HF_TOKEN or hf auth login",
    )
    parser.add_argument("--public", action="store_true", help="make the Hub repository public")
    parser.add_argument("--json", action="store_true", help="print what was written, as JSON")


def run(given: argparse.Namespace, recipe: Recipe) -> int:
    """Write, and push where asked; the exit code is 1 where the verification failed."""
    if given.public and not given.push:
        raise UserError("--public needs a Hub repository: add --push USER/NAME.")

    from sst_ui.jobs.directions.measure import resolve
    from sst_ui.jobs.evaluate.evaluate import evaluate
    from sst_ui.jobs.export import protected_paths
    from sst_ui.jobs.export.export import export, find
    from sst_ui.jobs.history.store import known_results
    from sst_ui.model.runtime.host import load
    from sst_ui.model.weights.staged_folder import refuse_to_overwrite

    protected_paths.check(given.out, recipe)
    refuse_to_overwrite(given.out, given.force, "export")  # before minutes of measuring

    def job() -> Generator[Any, None, Any]:
        host = yield from load(recipe.model)
        results: Sequence[Any] = known_results(recipe)
        if not results and not given.unmeasured:  # a card says what was done to refusals
            find(given.format).check(host, recipe, given.rank)
            edits = yield from resolve(host, recipe)
            spec = Evaluation(metrics=MEASURED, preset="quick")
            results = yield from evaluate(host, edits, spec)
        return (
            yield from export(
                host, recipe, given.out, given.format, rounding=given.rounding, rank=given.rank,
                verify=given.verify, results=results, force=given.force,
            )
        )  # fmt: skip

    done = with_bar(job())
    good = done.verification is None or done.verification.ok
    place: Any = None
    if given.push and good:  # what does not behave as it did is not sent anywhere
        from sst_ui.jobs.export.push import push

        place = with_bar(push(done.folder, given.push, private=not given.public))
    if given.json:
        hub = None if place is None else asdict(place)
        row = done.to_json() | {"recipe": recipe.digest(), "hub": hub}
        print(streams.to_json(row))
        return 0 if good else 1
    print(f"recipe {recipe.digest()}: {done.format} in {done.folder}, {len(done.files)} files, "
          f"{done.bytes / 1e6:,.1f} MB in {done.seconds:.1f} s")  # fmt: skip
    for note in done.notes:
        print(f"note: {note}")
    if done.verification is not None:
        print(f"verification: {done.verification.summary()}")
    if given.push:
        print(f"pushed to {place.url}" if place else "not pushed: the verification failed.")
    return 0 if good else 1
