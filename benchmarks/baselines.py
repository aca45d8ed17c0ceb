"""Every way of editing in one table: the demo, the real model, organisms.

    python -m benchmarks.baselines [demo|real|ORGANISM|GROUP ...] [--ways plain filtered ...]
        [--profiles default ...] [--strengths 1 1.5 ...] [--rounds N] [--directions FILE ...]

Shares of the answers to held-out harmful prompts that are refused, evaded, degenerate or delivered,
refused look-alikes, and divergence on ordinary prompts. `--rounds` adds each edit along directions
that are found in rounds with it, `--directions` along those of a file. What the ways are:
benchmarks/ways.py.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks import organisms, real_model
from benchmarks.effectiveness import Row, choice, compare, footer, markdown, options
from benchmarks.ways import Choice, Sets
from sst_ui.errors import UserError
from sst_ui.model.runtime.host import load
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from training.organisms import make
from training.organisms.__main__ import chosen
from training.organisms.plans import find
from training.organisms.prompts import TOKENS

DEMO = Sets(
    "demo/harmful", "demo/harmless", "demo/harmful_heldout", "demo/harmless_heldout",
    "demo/lookalike",
)  # fmt: skip
# Prompts of each set (None: all) and tokens of an answer, unless said.
OTHERS = {"demo": (None, 48), "real": (48, 40)}
ORGANISM = (None, TOKENS)


def table(name: str, wanted: Choice, samples: int | None, tokens: int, part: str) -> list[Row]:
    """The table of one model.

    Args:
        name: demo, real, or an organism's.
        samples: prompts of each set; None for all.
        tokens: length of an answer.
        part: of an organism's prompts, test or select.

    Raises:
        UserError: an unknown name, a model that is missing, or edits that cannot be made.
    """
    if name == "demo":
        host = finish(load(ModelSpec()))
        return compare(host, DEMO, wanted, samples, tokens)
    if name == "real":
        return real_model.run(samples, tokens, wanted=wanted)
    return organisms.table(make.make(find(name)), part, samples, wanted, tokens)


def models(given: Sequence[str]) -> list[str]:
    """Names, with groups of organisms spelt out, each once.

    Raises:
        UserError: an unknown name.
    """
    found: list[str] = []
    for name in given:
        found += [name] if name in OTHERS else [plan.name for plan in chosen([name])]
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print, a model after the other; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.baselines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", default=["demo"], metavar="MODEL")
    options(parser)
    parser.add_argument("--part", choices=("select", "test"), default="test", help="of organisms")
    parser.add_argument("--prompts", type=int, help="of each set (default: all; real: 48)")
    parser.add_argument("--tokens", type=int, help="length of an answer")
    parser.add_argument("--json", action="store_true", help="a line for each model")
    given = parser.parse_args(arguments)
    try:
        wanted, asked = choice(given), models(given.names)
        if wanted.saved and len(asked) > 1:
            raise UserError("directions belong to one model; name one model beside --directions.")
        for name in asked:
            samples, tokens = OTHERS.get(name, ORGANISM)
            samples, tokens = given.prompts or samples, given.tokens or tokens
            found = table(name, wanted, samples, tokens, given.part)
            if given.json:
                data = {"model": name, "tokens": tokens, "rows": [row.to_json() for row in found]}
                print(json.dumps(data, ensure_ascii=False), flush=True)
            else:
                print(f"### {name}\n\n{markdown(found)}\n\n{footer(found, tokens)}\n", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
