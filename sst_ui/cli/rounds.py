"""`measure --rounds`: directions one by one, with what each of them does.

Heavy imports happen inside.
"""

import argparse
from collections.abc import Generator, Iterable
from typing import Any

from sst_ui.cli import streams, tables
from sst_ui.cli.option_types import add
from sst_ui.cli.progress_bars import with_bar
from sst_ui.errors import UserError
from sst_ui.options import RoundsOptions
from sst_ui.recipe import (
    SHAPE,
    Ablation,
    DirectionSpec,
    Filter,
    ModelSpec,
    Operation,
    WeightTable,
)
from sst_ui.schema import build, setting

OWN = ("goal", "contrast", "select")
WEIGHTS = ("profile", *SHAPE, "strength")
# With a bell that reaches fewer layers, rounds found nothing on some of the organisms for tuning.
STARTS: dict[str, dict[str, Any]] = {
    "filter": {"profile": "wide", "strength": 1.5},
    "ablate": {"profile": "wide"},
    "add": {},
}
ENDED = {
    "goal": "few enough answers to the selection prompts are refused or evaded",
    "rounds": "no more directions were asked for; the goal is not reached",
    "worse": "a further direction delivers no more; the goal is not reached. More strength or a "
    "wider bell may reach further",
    "none": "no further place was found where refusing is decided; the goal is not reached",
}


def options(parser: argparse.ArgumentParser) -> None:
    """How many rounds, what they go by, and the edit that is made along the directions."""
    group: Any = parser.add_argument_group(
        "directions in rounds", "with --rounds, on what the edited model still refuses or evades"
    )
    add(group, "rounds.rounds", "--rounds")
    for name in OWN:
        add(group, f"rounds.{name}")
    add(group, "rounds.max_new_tokens", "--tokens", dest="tokens")
    add(group, "edit.operation", help="how the model is edited along them; default filter")
    add(group, "filter.mu")
    for name in WEIGHTS:
        begins = {way: start[name] for way, start in STARTS.items() if name in start}
        told = "".join(f"; {way} begins with {value}" for way, value in begins.items())
        add(group, f"weights.{name}", help=setting(f"weights.{name}").help() + told)


def check(given: argparse.Namespace) -> None:
    """Refuse options that would go unheard.

    Raises:
        UserError: one of rounds without them, or --filter with them.
    """
    if given.rounds is not None and given.filter:
        raise UserError("--filter prints the trade-off of one direction; leave out --rounds.")
    for name in (*OWN, "tokens", "operation", "mu", *WEIGHTS):
        if given.rounds is None and getattr(given, name) is not None:
            raise UserError(f"--{name} goes with --rounds; say how many, for example --rounds 4.")


def run(given: argparse.Namespace, model: ModelSpec, spec: DirectionSpec) -> None:
    """Find the directions, save them, and print what each did."""

    def told(names: Iterable[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(given, name)) is not None}

    operation: Operation = given.operation or "filter"
    edit = Ablation(
        spec,
        build(WeightTable, STARTS[operation] | told(WEIGHTS), "weights"),
        operation,
        filter=Filter(**told(["mu"])),
    )
    length = {} if given.tokens is None else {"max_new_tokens": given.tokens}
    wanted = RoundsOptions(given.rounds, **told(OWN), **length)

    from sst_ui.jobs.directions.rounds import rounds
    from sst_ui.model.runtime.host import load

    def job() -> Generator[Any, None, Any]:
        host = yield from load(model)
        return (yield from rounds(host, edit, wanted))

    found = with_bar(job())
    found.directions.save(given.out)
    rows = [each.to_json() for each in found.rounds]
    if given.json:
        head = {"layers": found.directions.layers, "meta": dict(found.directions.meta)}
        stats = {name: values.tolist() for name, values in found.directions.stats.items()}
        stats |= found.directions.told()
        print(streams.to_json({**head, **stats, "rounds": rows, "ended": found.ended}))
        return
    tables.rounds(rows)
    print(f"{ENDED[found.ended]}.")
    print(f"saved {given.out}: {found.directions.k} per layer")
