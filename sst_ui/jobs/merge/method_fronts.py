"""Every merge method over its strength: what it gains in safety against what it costs."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sst_ui.jobs.merge.compare_methods import Contender, Row, compare, contenders
from sst_ui.jobs.merge.merge import merge
from sst_ui.maths.merge.registry import METHODS
from sst_ui.maths.pareto import hypervolume
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import Value, measured
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Evaluation, Merge, flat, late

DIRECTIONS = (5, 256, 1024, 4096)  # kept in each module
QUARTERS = (0.25, 0.5, 0.75, 1.0)
# What a method is swept over: four settings each, under every table of weights; `weight` is a
# factor of the table's own safety weight.
Grid = Mapping[str, tuple[Mapping[str, float], ...]]
GRID: Grid = {
    "sst": tuple({"mu": x} for x in (3.0, 10.0, 30.0, 100.0)),
    "sst_topk": tuple({"k": x} for x in DIRECTIONS),
    "sst_residual": tuple({"k": 256, "ratio": x} for x in (0.1, 0.2, 0.4, 0.8)),
    "sst_layerwise": tuple({"k": x} for x in DIRECTIONS),
    "sst_ranks": tuple({"mu": x} for x in (3.0, 10.0, 30.0, 100.0)),
    "sst_staged": tuple(
        {"mu": mu, "stages": stages} for mu, stages in ((100, 2), (100, 4), (300, 4), (300, 8))
    ),
    "sst_adaptive": tuple({"base_mu": x} for x in (10.0, 30.0, 100.0, 300.0)),
    "sst_combined": tuple(
        {"base_mu": 100.0, "ratio": ratio, "mlp": mlp, "lm_head": head}
        for ratio, mlp, head in ((0, 0.3, 3), (0.1, 0.3, 20), (0.1, 1, 10), (0.2, 1, 20))
    ),
    "fisher": tuple({"price": x} for x in (0.1, 1.0, 10.0, 100.0)),
    "task_arithmetic": tuple({"weight": x} for x in QUARTERS),
    "linear": tuple({"weight": x} for x in QUARTERS),
    "ties": tuple({"density": 0.5, "weight": x} for x in QUARTERS),
    "dare": tuple({"drop": 0.5, "weight": x} for x in QUARTERS),
    "safe_lora": tuple({"selected": x} for x in QUARTERS),
    "safe_merge": tuple({"selected": 0.5, "share": x} for x in QUARTERS),
}
# The factor of the output layer alone, for adapters that change it.
HEADS: Grid = {
    "sst_layerwise": tuple({"k": 256, "mlp": 1, "lm_head": x} for x in (0, 1, 3, 10, 20)),
}
TABLES = {"": flat(), ", late bell": late()}
OURS = "sst"
# Goal -> the metrics whose mean it is; over-refusal counts as what is *not* refused.
GOALS = {
    "safety": ("jailbreak_resistance", "refusal_rate"),
    "utility": ("reading@demo/repliqa", "multiple_choice"),
    "patience": ("over_refusal",),
}
DRAWS = 1000  # resamplings of the prompts


@dataclass(frozen=True)
class Front:
    """How much of the space of goals a method reaches, with its 95 % interval.

    Attributes:
        ahead: the same for the difference to the method that is compared; None for that itself.
    """

    method: str
    volume: tuple[float, float, float]
    ahead: tuple[float, float, float] | None = None


def settings(
    spec: Merge, methods: Sequence[str] | None = None, grid: Grid = GRID
) -> list[tuple[str, Merge]]:
    """(name, merge) of every point of the sweep: each method's grid under each table of weights."""
    rows = []
    for method in methods or grid:
        for table, weights in TABLES.items():
            for point in grid[method]:
                given = {name: value for name, value in point.items() if name != "weight"}
                name = ", ".join(f"{name} {value:g}" for name, value in point.items())
                scaled = replace(weights, strength=weights.strength * point.get("weight", 1.0))
                rounds = spec.rounds if "moments" in METHODS[method].needs else 0
                chosen = replace(
                    spec,
                    method=method,
                    parameters=given,
                    budget=None,
                    weights=scaled,
                    rounds=rounds,
                )
                rows.append((f"{METHODS[method].title}: {name}{table}", chosen))
    return rows


@dataclass(frozen=True)
class Measured:
    """One point of the sweep, as plain data.

    Attributes:
        method: or `base`, `utility`, `safety`.
        title: with the setting.
        scores: metric -> what each prompt scored.
        cost: predicted KL on utility data, nats per token; None where nothing is predicted.
    """

    method: str
    title: str
    scores: Mapping[str, tuple[float, ...]]
    cost: float | None = None

    @classmethod
    def of(cls, row: Row) -> "Measured":
        scores = {name: tuple(row.scores(name).tolist()) for name in row.results}
        return cls(row.contender.name, row.contender.title, scores, row.predicted_kl)

    def value(self, name: str) -> Value:
        """A metric with its 95 % interval."""
        return measured(self.scores[name], rate=find(name).unit == "rate")


def sweep(
    host: Host,
    spec: Merge,
    evaluation: Evaluation,
    methods: Sequence[str] | None = None,
    grid: Grid = GRID,
) -> Generator[Progress | Measured, None, list[Measured]]:
    """Measure the base, both adapters alone, and every method at each of its settings."""
    alone = yield from contenders(host, spec, (spec.method,))
    rows: list[Contender] = alone[:3]
    todo = settings(spec, methods, grid)
    for number, (name, chosen) in enumerate(todo):
        yield Progress("merging", number, len(todo), name)
        outcome = yield from merge(host, chosen)
        rows.append(Contender(chosen.method, name, (outcome.live,), chosen, outcome))
    job, found = compare(host, rows, evaluation), []
    for step in job:
        found += [Measured.of(step)] if isinstance(step, Row) else []
        yield found[-1] if isinstance(step, Row) else step
    order = {row.title: place for place, row in enumerate(rows)}
    return sorted(found, key=lambda point: order[point.title])


def goals(
    row: Measured, picks: Mapping[str, np.ndarray] | None = None
) -> tuple[float, float, float]:
    """(safety, utility, patience) of a row, each 0 to 1.

    Args:
        picks: metric -> indices of prompts, for a resampling; None for all.
    """
    safety, utility, patience = (
        float(np.mean([_mean(row, name, picks) for name in names])) for names in GOALS.values()
    )
    return safety, utility, patience


def fronts(rows: Sequence[Measured], draws: int = DRAWS, seed: int = 0) -> list[Front]:
    """The hypervolume of every method's settings over (0, 0, 0), and how far ours is ahead.

    The utility adapter alone belongs to each, as its setting of weight 0.
    Prompts are resampled (bootstrap), the same ones for all methods, as each saw the same prompts.
    """
    nothing = [row for row in rows if row.method == "utility"]  # every method at weight 0
    groups: dict[str, list[Measured]] = {}
    for row in rows:
        if row.method in GRID:
            groups.setdefault(row.method, [*nothing]).append(row)
    chance = np.random.default_rng(seed)
    counts = {name: len(rows[0].scores[name]) for part in GOALS.values() for name in part}
    volumes = {method: [_volume(members, None)] for method, members in groups.items()}
    for _ in range(draws):
        picks = {name: chance.integers(n, size=n) for name, n in counts.items()}
        for method, members in groups.items():
            volumes[method].append(_volume(members, picks))
    found = []
    for method, values in volumes.items():
        ahead = None
        if method != OURS and OURS in volumes:
            ahead = _interval(np.subtract(volumes[OURS], values))
        found.append(Front(method, _interval(np.array(values)), ahead))
    return found


def _volume(members: Sequence[Measured], picks: Mapping[str, np.ndarray] | None) -> float:
    return hypervolume([goals(row, picks) for row in members], (0.0, 0.0, 0.0))


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """(of all prompts, 2.5 % and 97.5 % of the resamplings)."""
    low, high = np.quantile(values[1:], (0.025, 0.975)) if len(values) > 1 else (np.nan, np.nan)
    return float(values[0]), float(low), float(high)


def _mean(row: Measured, name: str, picks: Mapping[str, np.ndarray] | None) -> float:
    scores = np.asarray(row.scores[name])
    value = float(scores.mean() if picks is None else scores[picks[name]].mean())
    return 1.0 - value if name == "over_refusal" else value
