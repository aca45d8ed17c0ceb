"""Whether a search reaches its target on models that nobody prepared, and what it takes.

    python -m benchmarks.target [NAME|GROUP ...] [--trials 100] [--rounds 4] [--seed 0] [--json]

Each search begins with the filter of presets/recipes/wide.yaml (of attention alone where a model
has experts, whose inputs no filter reads), and again with it along the directions that rounds find
(whose time counts). It measures on the organism's measuring prompts, selects on its part `select`,
and is tested on its part `test`, whose harmful words took no part.
Nothing is kept: each study lives in memory.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.directions.filtering import refuse
from sst_ui.jobs.directions.rounds import rounds
from sst_ui.jobs.search.candidates import chosen, nearest, passes
from sst_ui.jobs.search.objectives import SearchSpec, aims
from sst_ui.jobs.search.search import search
from sst_ui.jobs.search.trials import Local
from sst_ui.model.runtime.host import Host, load
from sst_ui.options import RoundsOptions
from sst_ui.paths import PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, Evaluation, ModelSpec, Recipe
from training.organisms import make
from training.organisms.__main__ import chosen as organisms
from training.organisms.prompts import TOKENS

TARGET = 0.05  # of refusals; 80 % delivered belongs to it (presets/search.yaml)


@dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        start: where it began.
        trials: over, until it ended; `first` is the number of the first at the target on the
            selection prompts, counted from 1, None where there is none.
        reached: whether a finalist passed on the test prompts.
        refused, delivered, kl: of the best, or of the nearest where the target was missed, there.
    """

    model: str
    start: str
    trials: int
    first: int | None
    seconds: float
    reached: bool
    refused: float
    delivered: float
    kl: float


def run(name: str, folder: Path, trials: int, most: int, seed: int) -> list[Row]:
    """Both searches of one organism.

    Args:
        folder: the organism's.
        trials: of each search, at most.
        most: directions of the rounds.
    """
    prompts = folder / make.PROMPTS

    def part(name: str) -> tuple[str, str]:
        return str(prompts / f"harmful_{name}.jsonl"), str(prompts / f"harmless_{name}.jsonl")

    host = finish(load(ModelSpec(id=str(folder / make.MODEL))))
    shipped = recipes.load(PRESETS / "recipes" / "wide.yaml")
    harmful, harmless = part("measure")
    (edit,) = shipped.edits
    assert isinstance(edit, Ablation)
    edit = replace(edit, directions=replace(edit.directions, harmful=harmful, harmless=harmless))
    try:
        refuse(host, edit)
    except UserError:  # experts, whose inputs no filter reads: attention alone
        edit = replace(edit, weights=replace(edit.weights, modules={"mlp": 0.0}))
    evaluation = Evaluation(max_new_tokens=TOKENS, preset="full")
    start = replace(shipped, model=host.spec, edits=(edit,), evaluation=evaluation)
    spec = SearchSpec(
        "tpe", trials=trials, seed=seed, target=TARGET, max_new_tokens=TOKENS,
        select=part("select"), test=part("test"),
    )  # fmt: skip
    found = [_row(name, "one direction", host, start, spec, 0.0)]
    with tempfile.TemporaryDirectory() as place:
        clock = time.perf_counter()
        options = RoundsOptions(most, select=spec.select[0], max_new_tokens=TOKENS)
        more = finish(rounds(host, edit, options)).directions
        file = str(more.save(Path(place) / "rounds.safetensors"))
        spent = time.perf_counter() - clock
        along = replace(edit, directions=replace(edit.directions, file=file))
        title = f"{more.k} in rounds" if more.k > 1 else "one, rounds found no more"
        found.append(_row(name, title, host, replace(start, edits=(along,)), spec, spent))
    return found


def _row(name: str, title: str, host: Host, start: Recipe, spec: SearchSpec, spent: float) -> Row:
    clock = time.perf_counter()
    found = finish(search(start, spec, Local(host), storage="memory"))
    seconds = spent + time.perf_counter() - clock
    aim = aims(start, spec)
    best = chosen(found, aim, spec)
    shown = best or nearest(found, aim, spec)
    if shown is None:
        raise UserError(f"the search on {name} has no finalist to show.")
    first = next((n for n, each in enumerate(found, 1) if passes(each, aim, spec)), None)
    values = {key.partition("@")[0]: value.value for key, value in shown.test.items()}
    return Row(
        name, title, len(found), first, seconds, best is not None,
        values["refusal_rate"], values["delivered"], values["kl_16"],
    )  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/organisms.md."""
    heads = ["organism", "directions", "trials", "first at the target", "time", "target",
             "refused", "delivered", "KL, 16 tokens"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row.model, row.start, str(row.trials), str(row.first or "–")]
        cells += [f"{row.seconds:.0f} s", "reached" if row.reached else "missed"]
        cells += [f"{100 * row.refused:.0f}", f"{100 * row.delivered:.0f}", f"{row.kl:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and print; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.target",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", default=["final"], help="or tuning, final, test, all")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4, help="directions at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rows: list[Row] = []
    try:
        for plan in organisms(given.names):
            how = (given.trials, given.rounds, given.seed)
            found = run(plan.name, make.make(plan), *how)
            if not given.json:  # a later one may fail, or be stopped
                print("\n".join(markdown(found).splitlines()[2 if rows else 0 :]), flush=True)
            rows += found
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
