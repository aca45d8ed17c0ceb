"""What each strategy of a search finds on the demo, what it takes, and how good that is.

    python -m benchmarks.strategies [--samples 128] [--trials 100] [--seed 0] [--json]

Every search selects on one half of the demo's prompts and measures directions on the other; its
choice (where the target was missed, the nearest), and the default profile beside it, are then
measured on held-out prompts, all of them in the same batches. Nothing is kept: each study lives in
memory.
"""

import argparse
import json
import time
from dataclasses import dataclass

from sst_ui import recipe as recipes
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.evaluate.evaluate import evaluate_rows
from sst_ui.jobs.search.candidates import Candidate, chosen, fitted, nearest
from sst_ui.jobs.search.objectives import SearchSpec, aims
from sst_ui.jobs.search.prompts import divided
from sst_ui.jobs.search.search import search
from sst_ui.jobs.search.trials import Local
from sst_ui.metrics.results import Value
from sst_ui.model.runtime.host import Host, load
from sst_ui.paths import PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import Evaluation, ModelSpec, Recipe

STRATEGIES = {
    "staged": "staged strength",
    "grid": "grid, 25 points",
    "sensitivity": "each layer alone, bell fitted",
    "tpe": "many settings at once (TPE)",
}
HELD_OUT = {
    "refusal_rate": "refusals", "delivered": "delivered", "kl_16": "KL, 16 tokens",
    "quality": "quality kept",
}  # fmt: skip
TOKENS = 128  # of an answer on the held-out prompts


@dataclass(frozen=True)
class Row:
    """One strategy: what it tried, how long it took, and what it chose.

    Attributes:
        trials: measured whole, and ruled out by the scores that need no answers.
        values: metric -> value on the held-out prompts.
    """

    name: str
    trials: tuple[int, int]
    seconds: float
    recipe: Recipe
    values: dict[str, Value]


def run(host: Host, start: Recipe, samples: int, trials: int, seed: int) -> list[Row]:
    """Every strategy from the same start, then the held-out prompts."""
    rows: list[tuple[str, tuple[int, int], float, Recipe]] = [("default profile", (0, 0), 0, start)]
    for name, title in STRATEGIES.items():
        many = trials if name == "tpe" else None
        spec = SearchSpec(name, samples=samples, trials=many, seed=seed)
        clock = time.perf_counter()
        found = finish(search(start, spec, Local(host), storage="memory"))
        seconds = time.perf_counter() - clock
        rows.append((title, _counts(found), seconds, _choice(host, start, spec, found)))
    edits = [finish(resolve(host, recipe)) for *_, recipe in rows]
    evaluation = Evaluation(metrics=tuple(HELD_OUT), preset="full", max_new_tokens=TOKENS)
    results = finish(evaluate_rows(host, edits, evaluation))
    return [
        Row(*row, {result.name: result.edited for result in found})
        for row, found in zip(rows, results, strict=True)
    ]


def markdown(rows: list[Row]) -> str:
    """The table of docs/results.md."""
    heads = ["strategy", "trials", "time", *HELD_OUT.values(), "what it chose"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        whole, pruned = row.trials
        trials = f"{whole + pruned}" + (f", {pruned} ruled out early" if pruned else "")
        cells = [row.name, trials if whole else "–", f"{row.seconds:.0f} s" if whole else "–"]
        for name in HELD_OUT:
            value = row.values[name]
            numbers = (value.value, value.low, value.high)
            form = "{:.1e}" if name.startswith("kl") else "{:.3f}"
            middle, low, high = (form.format(number) for number in numbers)
            cells.append(f"{middle} [{low}, {high}]")
        lines.append(f"| {' | '.join([*cells, row.recipe.name])} |")
    counts = ", ".join(f"{head} {rows[0].values[name].n}" for name, head in HELD_OUT.items())
    return "\n".join(
        [*lines, "", f"Held-out prompts: {counts}; answers of at most {TOKENS} tokens."]
    )


def _choice(host: Host, start: Recipe, spec: SearchSpec, found: list[Candidate]) -> Recipe:
    aim = aims(start, spec)
    if spec.strategy == "sensitivity":
        return fitted(found, divided(start, start.edits[0], spec), aim, host.layers)[0]
    kept = chosen(found, aim, spec) or nearest(found, aim, spec)
    return start if kept is None else kept.recipe


def _counts(found: list[Candidate]) -> tuple[int, int]:
    pruned = sum(each.state == "pruned" for each in found)
    return len(found) - pruned, pruned


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=128, help="prompts of each set")
    parser.add_argument("--trials", type=int, default=100, help="of the last strategy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    host = finish(load(ModelSpec()))
    start = recipes.load(PRESETS / "recipes" / "default.yaml")
    finish(resolve(host, start))  # the directions are measured before any clock runs
    rows = run(host, start, given.samples, given.trials, given.seed)
    if given.json:
        rows = [
            {"name": row.name, "trials": row.trials, "seconds": row.seconds,
             "recipe": recipes.to_dict(row.recipe),
             "values": {name: value.to_json() for name, value in row.values.items()}}
            for row in rows
        ]  # fmt: skip
        print(json.dumps(rows))
        return
    print(markdown(rows))


if __name__ == "__main__":
    main()
