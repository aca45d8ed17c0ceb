"""`measure --rounds`: directions one by one, with what each of them does.

Heavy imports happen inside.
"""

import argparse
from collections.abc import Generator
from typing import Any

from sst_ui.cli import streams, tables
from sst_ui.cli.option_types import add
from sst_ui.cli.progress_bars import with_bar
from sst_ui.options import RoundsOptions
from sst_ui.recipe import SHAPE, Ablation, DirectionSpec, Filter, ModelSpec, WeightTable
from sst_ui.schema import build, setting

WEIGHTS = ("profile", *SHAPE, "strength")
ENDED = {
    "goal": "few enough answers to the selection prompts are refused or evaded",
    "rounds": "no more directions were asked for; the goal is not reached",
    "worse": "a further direction delivers no more; the goal is not reached",
    "none": "no further place was found where refusing is decided; the goal is not reached",
}


def options(parser: argparse.ArgumentParser) -> None:
    """How many rounds, what they go by, and the edit that is made along the directions."""
    group: Any = parser.add_argument_group("directions in rounds")
    unless = RoundsOptions()
    add(group, "rounds.rounds", "--rounds")
    for name in ("goal", "contrast"):
        add(group, f"rounds.{name}", default=getattr(unless, name))
    add(group, "rounds.select")
    add(group, "rounds.max_new_tokens", "--tokens", dest="tokens")
    add(group, "edit.operation", default="filter", help="how the model is edited along them")
    add(group, "filter.mu", default=setting("filter.mu").default)
    for name in WEIGHTS:
        add(group, f"weights.{name}")


def run(given: argparse.Namespace, model: ModelSpec, spec: DirectionSpec) -> None:
    """Find the directions, save them, and print what each did."""
    chosen = {name: getattr(given, name) for name in WEIGHTS}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    weights = build(WeightTable, chosen, "weights")
    edit = Ablation(spec, weights, given.operation, filter=Filter(mu=given.mu))
    wanted = RoundsOptions(given.rounds, given.goal, given.select, given.tokens, given.contrast)

    from sst_ui.jobs.directions.rounds import rounds
    from sst_ui.model.runtime.host import load

    def job() -> Generator[Any, None, Any]:
        host = yield from load(model)
        return (yield from rounds(host, edit, wanted))

    found = with_bar(job())
    found.directions.save(given.out)
    rows = [each.to_json() for each in found.rounds]
    if given.json:
        told = {"layers": found.directions.layers, "meta": dict(found.directions.meta)}
        stats = {name: values.tolist() for name, values in found.directions.stats.items()}
        print(streams.to_json({**told, **stats, "rounds": rows, "ended": found.ended}))
        return
    tables.rounds(rows)
    print(f"{ENDED[found.ended]}.")
    print(f"saved {given.out}: {found.directions.k} per layer")
