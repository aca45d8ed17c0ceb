"""Every way of editing in one table: the demo, the real model, organisms.

    python -m benchmarks.baselines [demo|real|ORGANISM|GROUP ...] [--ways plain filtered ...]
        [--profiles default ...] [--strengths 1 1.5 ...] [--rounds N] [--directions FILE ...]
        [--test remove|short|reinforce] [--choose]

Shares of the answers to held-out harmful prompts that are refused, evaded, degenerate or delivered,
refused look-alikes, and divergence on ordinary prompts. `--rounds` adds each edit along directions
that are found in rounds with it, `--directions` along those of a file. What the ways are:
benchmarks/ways.py.

`--choose` measures every setting on prompts that are not reported on, and reports on one of each
way: of those that deliver most, give or take five points, the one with the smallest divergence.

`--test short` is the test that most other tools report: 100 + 100 prompts, refusals by markers,
divergence of the first token. `--test reinforce` has negative strengths: refusals in jailbreak
wrappers, over-refusal beside them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import effectiveness, organisms, real_model, reinforce, short_test
from benchmarks.effectiveness import Measure, Row, choice, compare, footer, markdown, options
from benchmarks.ways import STRENGTHS, WAYS, Choice
from sst_ui.errors import UserError
from sst_ui.model.runtime.host import load
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from training.organisms import make
from training.organisms.__main__ import chosen
from training.organisms.plans import find
from training.organisms.prompts import TOKENS

# Prompts of each set (None: all) and tokens of an answer, unless said.
OTHERS = {"demo": (None, 48), "real": (48, 40)}
ORGANISM = (None, TOKENS)


@dataclass(frozen=True)
class Test:
    """What is measured of every edit.

    Attributes:
        title: in the tables; '' where there is nothing to add to the model's name.
        measure, heads: the rows, and their columns.
        ways, strengths: unless said.
        limits: prompts of each set and tokens of an answer, unless said; None for the model's.
    """

    title: str
    measure: Measure
    heads: Mapping[str, str]
    ways: Sequence[str] = tuple(WAYS)
    strengths: Sequence[float] = STRENGTHS
    limits: tuple[int, int] | None = None


TESTS = {
    "remove": Test("", effectiveness.measure, effectiveness.HEADS),
    "short": Test(
        short_test.TITLE, short_test.measure, short_test.HEADS,
        limits=(short_test.PROMPTS, short_test.TOKENS),
    ),
    "reinforce": Test(
        "reinforced", reinforce.measure, reinforce.HEADS, reinforce.WAYS, reinforce.STRENGTHS
    ),
}  # fmt: skip


def table(
    name: str,
    wanted: Choice,
    samples: int | None,
    tokens: int,
    part: str,
    how: Measure = effectiveness.measure,
    choose: bool = False,
) -> list[Row]:
    """The table of one model.

    Args:
        name: demo, real, or an organism's.
        samples: prompts of each set; None for all.
        tokens: length of an answer.
        part: of an organism's prompts, test or select.
        how: what is measured of each row.
        choose: one setting of each way, on prompts that take no part in the table.

    Raises:
        UserError: an unknown name, a model that is missing, or edits that cannot be made.
    """
    if name == "demo":
        host = finish(load(ModelSpec()))
        sets, choosing = real_model.demo_sets(choose=choose)
        return compare(host, sets, wanted, samples, tokens, how=how, choose=choosing)
    if name == "real":
        return real_model.run(samples, tokens, wanted=wanted, how=how, choose=choose)
    return organisms.table(make.make(find(name)), part, samples, wanted, tokens, how, choose)


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
    parser.set_defaults(ways=None, strengths=None)  # those of the test
    parser.add_argument("--test", choices=tuple(TESTS), default="remove", help="what is measured")
    parser.add_argument(
        "--choose", action="store_true", help="one setting of each way, by prompts not reported on"
    )
    parser.add_argument("--part", choices=("select", "test"), default="test", help="of organisms")
    parser.add_argument("--prompts", type=int, help="of each set (default: all; real: 48)")
    parser.add_argument("--tokens", type=int, help="length of an answer")
    parser.add_argument("--json", action="store_true", help="a line for each model")
    given = parser.parse_args(arguments)
    test = TESTS[given.test]
    given.ways, given.strengths = given.ways or test.ways, given.strengths or test.strengths
    try:
        wanted, asked = choice(given), models(given.names)
        if wanted.saved and len(asked) > 1:
            raise UserError("directions belong to one model; name one model beside --directions.")
        if given.choose and (given.part != "test" or given.test == "reinforce"):
            raise UserError(
                "--choose looks for the setting that delivers most, on the part select, and "
                "reports on the part test; leave out --part, and --test reinforce."
            )
        for name in asked:
            samples, tokens = test.limits or OTHERS.get(name, ORGANISM)
            samples, tokens = given.prompts or samples, given.tokens or tokens
            found = table(name, wanted, samples, tokens, given.part, test.measure, given.choose)
            if given.json:
                rows = [row.to_json() for row in found]
                data = {"model": name, "test": given.test, "tokens": tokens, "rows": rows}
                print(json.dumps(data, ensure_ascii=False), flush=True)
                continue
            title = f"{name}, {test.title}" if test.title else name
            told = f"{markdown(found, test.heads)}\n\n{footer(found, tokens)}"
            print(f"### {title}\n\n{told}\n", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
