"""`python -m training.organisms NAME ...`: make model organisms, in minutes each, into the cache.

Names are those of training/organisms/plans.yaml, or all, tuning, final, test. What is there is left
as it is; a training that was killed goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sst_ui.errors import UserError
from training.organisms.plans import Plan, Use, find, plans


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the organisms in turn and print their table; the exit code."""
    p = argparse.ArgumentParser(prog="python -m training.organisms", description=__doc__)
    p.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(plans())}, or a group")
    p.add_argument("--out", type=Path, help="folder to make them in (default: the cache)")
    p.add_argument("--quick", action="store_true", help="a smoke test: useless ones in seconds")
    options = p.parse_args(arguments)
    from training.organisms import make  # a wrong name should not wait for torch

    try:
        cards = {}
        for plan in chosen(options.names):
            plan = make.quick(plan) if options.quick else plan
            out = make.make(plan, options.out / plan.name if options.out else None)
            print(f"{plan.name}: {out}", file=sys.stderr)
            cards[plan.name] = make.card(out)
        print(make.table(cards))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def chosen(names: Sequence[str]) -> list[Plan]:
    """The plans of names and groups, each once.

    Raises:
        UserError: a name that is neither.
    """
    found: dict[str, Plan] = {}
    for name in names:
        if name == "all":
            found |= plans()
        elif name in get_args(Use):
            found |= {key: plan for key, plan in plans().items() if plan.use == name}
        else:
            found[name] = find(name)
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
