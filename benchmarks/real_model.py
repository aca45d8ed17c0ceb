"""Edits of a real model that was tuned to refuse, SmolLM2-135M-Instruct.

    python -m benchmarks.real_model [--ways WAY ...] [--prompts 48] [--tokens 40] [--json]

`make real` brings and tunes it. The first row is the model before it learned to refuse, whose
answers are the truth of the column "like before" (ROUGE-L); all others start from the tuned one.
"""

import argparse
import json
import sys
import tempfile
import time
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
from training.real import earlier, source, tune

REFUSING = "refusing"


def run(
    prompts: int,
    tokens: int,
    only: str = "",
    wanted: Choice | None = None,
    how: Measure = measure,
    choose: bool = False,
) -> list[Row]:
    """The whole table.

    Args:
        only: leave out the edits whose names do not hold this.
        wanted: which rows there are.
        how: what is measured of each.
        choose: one setting of each way, chosen on half of the measuring prompts.

    Raises:
        UserError: the model or the tuned one is missing; names the command that brings it.
    """
    needs(REFUSING)
    with tempfile.TemporaryDirectory() as folder:
        truth = earlier.write(
            earlier.SETS[0], tokens, Path(folder) / "harmful_heldout.jsonl", prompts
        )
        sets, choosing = demo_sets(str(truth), choose)
        host = finish(load(ModelSpec(id=str(source.base()))))
        before = how(host, {}, sets, prompts, tokens)[0]
        host = finish(load(ModelSpec(id=str(tune.folder(REFUSING)))))
        after = compare(host, sets, wanted, prompts, tokens, only, how, choosing)
    return [replace(before, name="(before it learned to refuse)"), *after]


def demo_sets(
    truth: str = "demo/harmful_heldout", choose: bool = False
) -> tuple[Sets, Sets | None]:
    """The project's own prompts; beside them those to choose settings by, if that is wanted: then
    directions are measured on one half, and settings chosen by the other."""
    one, other = ("?part=1/2", "?part=2/2") if choose else ("", "")
    sets = Sets(
        f"demo/harmful{one}", f"demo/harmless{one}", truth, "demo/harmless_heldout",
        "demo/lookalike", wrapped="demo/jailbreak",
    )  # fmt: skip
    choosing = replace(sets, truth=f"demo/harmful{other}", ordinary=f"demo/harmless{other}")
    return sets, choosing if choose else None


def needs(name: str) -> None:
    """Raise a UserError that names the command if what was trained is missing."""
    if not (source.fetched() and tune.done(name)):
        raise UserError(f"{name} of the real model is missing; make it once with: {source.COMMAND}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_model", description=__doc__)
    parser.add_argument("--prompts", type=int, default=48, help="of each set")
    parser.add_argument("--tokens", type=int, default=40, help="length of an answer")
    parser.add_argument("--only", default="", help="only edits whose name holds this")
    options(parser)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    clock = time.perf_counter()
    try:
        table = run(given.prompts, given.tokens, given.only, choice(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps([row.to_json() for row in table], ensure_ascii=False))
        return 0
    print(markdown(table))
    print(f"\n{footer(table, given.tokens)} {time.perf_counter() - clock:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
