"""`compare`: what was done to a model, from its files and those of its base."""

import argparse
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sst_ui import disk
from sst_ui.cli import streams, with_bar
from sst_ui.cli.option_types import whole
from sst_ui.errors import UserError
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec

SAMPLES = 32  # prompts of each kind


def options(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("base", metavar="BASE", help="the model before: a folder, a Hub id or demo")
    parser.add_argument(
        "other", metavar="OTHER",
        help="the model after, or a LoRA adapter of the base: a folder or a Hub id",
    )  # fmt: skip
    parser.add_argument(
        "--directions", type=Path, metavar="F.safetensors",
        help="what measure saved: recovered directions are compared with these",
    )  # fmt: skip
    parser.add_argument(
        "--measure", type=whole(2), nargs="?", const=SAMPLES, metavar="N",
        help="also load both, one after the other: refusal gap and refusal rate on N prompts of "
        f"each kind (default {SAMPLES}), and α of a filter whose recipe lies beside the other",
    )  # fmt: skip
    parser.add_argument(
        "--figure", type=Path, metavar="FILE.svg", help="draw α, or the change, of every layer"
    )
    parser.add_argument("--json", action="store_true", help="everything about every tensor")


def run(given: argparse.Namespace) -> None:
    """Compare and print."""
    if given.figure is not None:
        _check(given.figure)

    from sst_ui.jobs.audit.compare import compare
    from sst_ui.jobs.audit.figure import figure
    from sst_ui.jobs.audit.report import text

    base, other = ModelSpec(id=given.base), ModelSpec(id=given.other)

    def job() -> Generator[Progress, None, Any]:
        audit = yield from compare(base, other, given.directions)
        if given.measure is None:
            return audit
        from sst_ui.jobs.audit.behaviour import behave

        return (yield from behave(audit, base, other, given.measure, given.directions))

    audit = with_bar(job())
    if given.figure is not None:
        with disk.written(given.figure) as part:
            part.write_text(figure(audit), encoding="utf-8")
    print(streams.to_json(audit.to_json()) if given.json else text(audit))


def _check(path: Path) -> None:
    """Fail before the work where the figure cannot be saved; only another figure is replaced."""
    goal = disk.real(path)
    if path.suffix != ".svg" or goal.is_dir() or not goal.parent.is_dir():
        raise UserError(f"cannot write {path}: give a file name .svg in an existing folder.")
    if goal.exists() and not goal.read_bytes().startswith(b"<svg"):
        raise UserError(f"{path} exists and is not an SVG figure; give another file name.")
    disk.probe(path)
