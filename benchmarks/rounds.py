"""One direction against several found in rounds, by contrast, on organisms.

    python -m benchmarks.rounds [NAME ...] [--part select|test]

Directions are measured on the organism's measuring prompts and chosen by those of its part
`select`; the table is made on its test prompts. Contrasts are compared with `--part select`, so
that the test prompts do not choose between them.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from benchmarks.effectiveness import Row, Sets, markdown, measure
from sst_ui.errors import UserError
from sst_ui.jobs.directions.rounds import Round, rounds
from sst_ui.model.runtime.host import load
from sst_ui.options import Contrast, RoundsOptions
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Filter, ModelSpec, Recipe, WeightTable
from training.organisms import make
from training.organisms.__main__ import chosen
from training.organisms.prompts import TOKENS

WIDE = WeightTable(profile="custom", peak=0.7, width=0.4, threshold=0.0)
WAYS = (("filtered μ .1, 1.5", "filter", 0.1, 1.5), ("plain", "ablate", 1.0, 1.0))
CONTRASTS = get_args(Contrast)


def table(
    folder: Path, part: str, most: int, contrasts: Sequence[str], operations: Sequence[str]
) -> list[Row]:
    """Every way with one direction, and in rounds with every contrast.

    Args:
        part: prompts that are measured on, test or select.
        most: directions at most.
    """
    prompts = folder / make.PROMPTS

    def file(kind: str, which: str = part) -> str:
        return str(prompts / f"{kind}_{which}.jsonl")

    sets = Sets(
        file("harmful", "measure"), file("harmless", "measure"),
        file("harmful"), file("harmless"), file("lookalike"),
    )  # fmt: skip
    host = finish(load(ModelSpec(id=str(folder / make.MODEL))))
    recipes: dict[str, Recipe] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, operation, mu, strength in WAYS:
            if operation not in operations:
                continue
            edit = Ablation(
                DirectionSpec(harmful=sets.harmful, harmless=sets.harmless),
                replace(WIDE, strength=strength),
                operation,
                filter=Filter(mu=mu),
            )
            recipes[f"{name}, one direction"] = Recipe(model=host.spec, edits=(edit,))
            for contrast in contrasts:
                options = RoundsOptions(most, 0.02, file("harmful", "select"), TOKENS, contrast)
                found = finish(rounds(host, edit, options), _tell)
                path = found.directions.save(Path(place) / f"{len(recipes)}.safetensors")
                spec = replace(edit.directions, file=str(path))
                where = ", ".join(str(d.position) for d in found.directions.decisions)
                title = f"{name}, rounds ({contrast}): tokens {where}"
                recipe = Recipe(model=host.spec, edits=(replace(edit, directions=spec),))
                recipes[title] = recipe
        return measure(host, recipes, sets, None, TOKENS)


def _tell(step: object) -> None:
    if isinstance(step, Round):
        print(step.to_json(), file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__)
    parser.add_argument("names", nargs="*", default=["test"], help="or tuning, final, test, all")
    parser.add_argument("--part", choices=("select", "test"), default="test")
    parser.add_argument("--most", type=int, default=4, help="directions at most")
    parser.add_argument("--contrasts", nargs="+", choices=CONTRASTS, default=CONTRASTS)
    operations = [operation for _, operation, _, _ in WAYS]
    parser.add_argument("--operations", nargs="+", choices=operations, default=operations)
    given = parser.parse_args(arguments)
    try:
        for plan in chosen(given.names):
            how = (given.part, given.most, given.contrasts, given.operations)
            found = table(make.make(plan), *how)
            print(f"### {plan.name}\n\n{markdown(found)}\n", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
