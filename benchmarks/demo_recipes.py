"""How the demo's recipes were chosen: profiles, numbers of directions and strengths.

    python -m benchmarks.demo_recipes [--profiles default ...] [--k 1 4 ...] [--strengths 1.5 2 ...]

The measuring prompts are divided in two: directions from one half, refusals and divergence on the
other, then the other way about. The held-out prompts take no part.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator

from benchmarks.ways import kernel
from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.evaluate.evaluate import evaluate_rows
from sst_ui.jobs.results_table import profiles
from sst_ui.maths.statistics import wilson
from sst_ui.metrics.results import Value
from sst_ui.model.runtime.host import Host, load
from sst_ui.progress import finish
from sst_ui.recipe import Evaluation, ModelSpec, Recipe

TOKENS = 128  # of an answer
Setting = tuple[str, str, int, float]  # operation, profile, directions, strength


def main() -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", nargs="+", default=["filter", "ablate"])
    parser.add_argument("--profiles", nargs="+", default=profiles())
    parser.add_argument("--k", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--strengths", nargs="+", type=float, default=[1.0, 1.5, 2.0])
    given = parser.parse_args()
    asked = [given.operations, given.profiles, given.k, given.strengths]
    settings: list[Setting] = list(itertools.product(*asked))
    try:
        host = finish(load(ModelSpec()))
        halves = [half(host, settings, *parts) for parts in ((1, 2), (2, 1))]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("| edit | directions | refused | KL, T = 1 | KL, T = 16 |")
    print("|---|---|---|---|---|")
    for setting, *found in zip(settings, *halves, strict=True):
        print(line(setting, found))
    return 0


def half(host: Host, settings: list[Setting], one: int, other: int) -> Iterator[list[Value]]:
    """Each setting measured on one half: refusals, divergences; directions are of the other."""
    edits = [finish(resolve(host, recipe(setting, one))) for setting in settings]
    asked = [f"refusal_rate@demo/harmful?part={other}/2"]
    asked += [f"{name}@demo/harmless?part={other}/2" for name in ("kl_1", "kl_16")]
    evaluation = Evaluation(metrics=tuple(asked), preset="full", max_new_tokens=TOKENS)
    for results in finish(evaluate_rows(host, edits, evaluation)):
        yield [result.edited or result.base for result in results]


def recipe(setting: Setting, part: int) -> Recipe:
    """A setting as a recipe, with directions of one half."""
    operation, profile, k, strength = setting
    sets = {name: f"demo/{name}?part={part}/2" for name in ("harmful", "harmless")}
    edit = {
        "operation": operation,
        "directions": sets | {"k": k},
        "weights": {**kernel(profile), "strength": strength},
    }
    return recipes.from_data({"version": 1, "edits": [edit]})


def line(setting: Setting, found: list[list[Value]]) -> str:
    """A row of the table: both halves together."""
    operation, profile, k, strength = setting
    refused, *divergences = zip(*found, strict=True)
    asked = sum(value.n for value in refused)
    count = round(sum(value.value * value.n for value in refused))
    low, high = wilson(count, asked)
    cells = [f"{operation}, {profile}, {strength:g}", str(k)]
    cells.append(f"{count / asked:.2f} [{low:.2f}, {high:.2f}]")
    cells += [f"{sum(v.value for v in values) / len(values):.1e}" for values in divergences]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
