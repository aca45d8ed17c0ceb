"""`compare`: what was done to a model, from its files and those of its base."""

import argparse
from pathlib import Path

from sst_ui.cli import streams, with_bar
from sst_ui.recipe import ModelSpec


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
    parser.add_argument("--json", action="store_true", help="everything about every tensor")


def run(given: argparse.Namespace) -> None:
    """Compare and print."""
    from sst_ui.jobs.audit.compare import compare
    from sst_ui.jobs.audit.report import text

    base, other = ModelSpec(id=given.base), ModelSpec(id=given.other)
    audit = with_bar(compare(base, other, given.directions))
    print(streams.to_json(audit.to_json()) if given.json else text(audit))
