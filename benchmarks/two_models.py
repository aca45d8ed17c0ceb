"""The two models that speed is measured on, and the options of the benchmarks that do so."""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.methods import random_qwen2
from sst_ui.paths import DEMO

TITLES = {"demo": "demo", "qwen2-0.5b": "Qwen2 0.5B, random weights"}


def options(
    parser: argparse.ArgumentParser,
    meanings: Mapping[str, str] | None = None,
    usual: Mapping[str, object] | None = None,
) -> None:
    """Which models, where, in which type.

    Args:
        meanings: numbers of a benchmark's own -> what they are; 1 or more each.
        usual: model -> an object with these numbers as attributes.
    """
    parser.add_argument("--model", choices=(*TITLES, "both"), default="both")
    for name, meaning in (meanings or {}).items():
        told = ", ".join(f"{m} {getattr(sizes, name)}" for m, sizes in (usual or {}).items())
        parser.add_argument(f"--{name}", type=_count, help=f"{meaning}; default {told}")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json", action="store_true")


def chosen(given: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Name and folder of each model; the random one is written when its turn comes, and removed."""
    if given.model in ("demo", "both"):
        yield "demo", DEMO
    if given.model in ("qwen2-0.5b", "both"):
        with tempfile.TemporaryDirectory(prefix="sst-bench-") as folder:
            random_qwen2(Path(folder), DEMO, getattr(torch, given.dtype))
            yield "qwen2-0.5b", Path(folder)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
