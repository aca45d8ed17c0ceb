"""Edits of model organisms, on harmful words that took no part in measuring.

    python -m benchmarks.organisms [NAME ...] [--ways WAY ...] [--json]

The ways of editing are those of benchmarks/ways.py. Organisms that are missing are made first, in
minutes each (`python -m training.organisms`). The last table is made on those of the group `final`;
`tuning` are for choosing defaults.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.effectiveness import (
    Measure,
    Row,
    choice,
    compare,
    footer,
    markdown,
    measure,
    options,
)
from benchmarks.ways import Choice, Sets
from sst_ui.errors import UserError
from sst_ui.model.runtime.host import load
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from training.organisms import make
from training.organisms.__main__ import chosen
from training.organisms.plans import Plan
from training.organisms.prompts import TOKENS


def run(plan: Plan, part: str = "test", wanted: Choice | None = None) -> list[Row]:
    """The table of one organism.

    Args:
        part: prompts that are measured on: test, or select while methods are being chosen.
        wanted: which rows it has.
    """
    return table(make.make(plan), part, wanted=wanted)


def table(
    folder: Path,
    part: str,
    samples: int | None = None,
    wanted: Choice | None = None,
    tokens: int = TOKENS,
    how: Measure = measure,
    choose: bool = False,
) -> list[Row]:
    """The same of an organism's folder.

    Args:
        samples: prompts of each set; None for all.
        tokens: length of an answer.
        how: what is measured of each row.
        choose: one setting of each way, chosen on the part `select`.
    """
    prompts = folder / make.PROMPTS
    sets = Sets(
        harmful=str(prompts / "harmful_measure.jsonl"),
        harmless=str(prompts / "harmless_measure.jsonl"),
        truth=str(prompts / f"harmful_{part}.jsonl"),
        ordinary=str(prompts / f"harmless_{part}.jsonl"),
        lookalikes=str(prompts / f"lookalike_{part}.jsonl"),
        concepts=str(prompts / "lookalike_measure.jsonl"),
        select=None if part == "select" else str(prompts / "harmful_select.jsonl"),
        wrapped=str(prompts / "wrapped_test.jsonl") if part == "test" else None,
    )
    host = finish(load(ModelSpec(id=str(folder / make.MODEL))))
    choosing = replace(
        sets,
        truth=str(prompts / "harmful_select.jsonl"),
        ordinary=str(prompts / "harmless_select.jsonl"),
    )
    return compare(
        host, sets, wanted, samples, tokens, how=how, choose=choosing if choose else None
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.organisms", description=__doc__)
    parser.add_argument("names", nargs="*", default=["tuning"], help="or tuning, final, test, all")
    parser.add_argument("--part", choices=("select", "test"), default="test")
    options(parser)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    try:
        wanted = choice(given)
        found = {plan.name: run(plan, given.part, wanted) for plan in chosen(given.names)}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        data = {name: [row.to_json() for row in each] for name, each in found.items()}
        print(json.dumps(data, ensure_ascii=False))
        return 0
    told = [f"### {n}\n\n{markdown(each)}\n\n{footer(each, TOKENS)}" for n, each in found.items()]
    print("\n\n".join(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
