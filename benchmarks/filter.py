"""What a filtered ablation costs and does: on the demo, and in the shapes of an 8B model.

    python -m benchmarks.filter

Demo: the pass over the prompts, the decompositions, any other price; then refusals and divergence
on held-out prompts beside the plain ablation's. 8B: one writer of each kind of Llama-3.1-8B on
random inputs of falling energies (no model is loaded; the forward passes themselves are not timed),
whose time and memory count for 32 layers. The subspace is also held against the whole space of the
narrower writer, by the objective that both minimise.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.clock import short, timed
from benchmarks.peak import Peak
from sst_ui.jobs.directions.filtering import PRICES, filters
from sst_ui.jobs.directions.measure import measure, resolve
from sst_ui.jobs.evaluate.evaluate import evaluate_rows
from sst_ui.maths.filtered import Moments, packed, path, random_columns, subspace
from sst_ui.maths.filtered import Path as Filter
from sst_ui.model.runtime.host import Host, load
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, Evaluation, ModelSpec, Recipe, WeightTable

CPU = torch.device("cpu")
METRICS = ("refusal_rate", "over_refusal", "kl_1", "kl_16")
LAYERS, WIDTHS, OUT = 32, (4096, 14336), 4096
HARMFUL, HARMLESS, BATCH = 512, 8192, 1024  # tokens
RANK = 2048  # directions that random inputs have
RIDGE = 1e-3


@dataclass(frozen=True)
class Row:
    """An edit of the demo: its metrics by name, and what was predicted of a filter."""

    name: str
    values: dict[str, float]
    removed: float | None = None
    moved: float | None = None


@dataclass(frozen=True)
class Demo:
    """Seconds on the demo.

    Attributes:
        capture: the pass over both prompt sets and the answers to the harmless ones.
        solve: all decompositions, and the first edit.
        price, budget: another edit at another μ or budget; medians.
    """

    capture: float
    solve: float
    price: float
    budget: float


@dataclass(frozen=True)
class Wide:
    """One writer at 8B size.

    Attributes:
        width: its inputs.
        collect: seconds to add up the sketches and the moments of all tokens, two passes.
        solve: seconds of its decomposition.
        price: seconds to its rows at another μ.
        state: bytes of the basis and of both sets' moments.
        kept: bytes of the decomposition.
        peak: bytes added at the peak.
        whole: bytes of both second moments in the whole space.
        excess: objective at the subspace's solution minus that at the whole space's, as a share of
            the harmful component, by price; None where the whole is not solved.
    """

    width: int
    collect: float
    solve: float
    price: float
    state: int
    kept: int
    peak: int
    whole: int
    excess: dict[str, float] | None


def costs(host: Host, repeats: int) -> Demo:
    """Time the demo's filter, from prompts to edits, with nothing in the cache."""
    edit = Ablation(operation="filter")
    directions = finish(measure(host, edit.directions))
    made: list[Any] = []
    with tempfile.TemporaryDirectory() as cache, patch.dict("os.environ", {"SST_CACHE": cache}):
        capture = timed(CPU, lambda: made.append(finish(filters(host, edit, directions))))
    found = made[0]
    first = timed(CPU, lambda: found.edit_row(edit))
    prices = [replace(edit, filter=replace(edit.filter, mu=0.5 + i)) for i in range(repeats)]
    budgets = [
        replace(edit, filter=replace(edit.filter, budget=0.01 / (1 + i))) for i in range(repeats)
    ]
    seconds = [
        median(timed(CPU, lambda each=each: found.edit_row(each)) for each in edits)
        for edits in (prices, budgets)
    ]
    return Demo(capture, first, *seconds)


def effects(host: Host, samples: int) -> list[Row]:
    """Plain and filtered ablations of two profiles on the demo's held-out prompts."""
    edits = {}
    for profile in ("default", "late_focus"):
        weights = WeightTable(profile=profile)
        edits[f"plain, {profile}"] = Ablation(weights=weights)
        for mu in (0.1, 1.0, 10.0):
            edit = Ablation(weights=weights, operation="filter")
            name = f"filter μ {mu:g}, {profile}"
            edits[name] = replace(edit, filter=replace(edit.filter, mu=mu))
    rows = [finish(resolve(host, Recipe(edits=(edit,)))) for edit in edits.values()]
    found = finish(evaluate_rows(host, rows, Evaluation(metrics=METRICS, samples=samples)))
    done = []
    for name, row, results in zip(edits, rows, found, strict=True):
        values = {r.name: float((r.edited or r.base).value) for r in results}
        told = (getattr(row[0], "removed", None), getattr(row[0], "moved", None))
        done.append(Row(name, values, *told))
    return done


def stream(width: int, tokens: int, seed: int, shift: float = 0.0) -> Callable[[], Any]:
    """Batches of inputs [BATCH, width] whose energies fall as 1 / i over RANK directions or half
    the width; streams of one width share their directions, and one may be shifted."""
    draw, rank = torch.Generator().manual_seed(width), min(width // 2, RANK)
    mix = torch.randn(rank, width, generator=draw) / width**0.5
    sizes = torch.arange(1, rank + 1).float().rsqrt()
    apart = shift * torch.randn(width, generator=draw) / width**0.5

    def batches():  # the same ones whenever asked
        fresh = torch.Generator().manual_seed(seed)
        for start in range(0, tokens, BATCH):
            count = min(BATCH, tokens - start)
            yield torch.randn(count, rank, generator=fresh) * sizes @ mix + apart

    return batches


def sketched(batches: Callable[[], Any], width: int) -> tuple[Tensor, float]:
    """XᵀXΩ of a stream, and the seconds that took without the drawing of the inputs."""
    omega, total, seconds = random_columns(width), torch.zeros(width, 1).double(), 0.0
    for x in batches():
        start = time.perf_counter()
        total = total + (x.mT @ (x @ omega)).double()
        seconds += time.perf_counter() - start
    return total.float(), seconds


def collected(
    batches: Callable[[], Any], reader: Tensor, basis: Tensor | None
) -> tuple[Moments, float]:
    """The moments of a stream as the hooks add them up, and the seconds of that."""
    sums: dict[str, Any] = {}
    n, seconds = 0, 0.0
    for x in batches():
        start = time.perf_counter()
        x = x.double()
        y = x @ reader.mT.double()
        x = x if basis is None else x @ basis.double()
        parts = {
            "inputs": x.mT @ x, "mean": x.sum(0), "cross": x.mT @ y, "along": y.sum(0),
            "squares": y.square().sum(0),
        }  # fmt: skip
        for name, value in parts.items():
            sums[name] = sums[name] + value if name in sums else value
        n += len(x)
        seconds += time.perf_counter() - start
    names = ("mean", "cross", "along", "squares")
    return Moments(packed(sums["inputs"] / n), *(sums[name] / n for name in names), n), seconds


def wide(width: int, exact: bool, harmful: int = HARMFUL, harmless: int = HARMLESS) -> Wide:
    """One writer: its subspace and moments, its decomposition, and how far off it is."""
    draw = torch.Generator().manual_seed(1)
    reader = torch.randn(1, width, generator=draw) / width**0.5  # r̂ᵀW
    streams = (stream(width, harmful, 2, shift=2.0), stream(width, harmless, 3))
    peak = Peak(CPU)
    sketches, seconds = zip(*(sketched(each, width) for each in streams), strict=True)
    bases: list[Tensor] = []
    finding = timed(CPU, lambda: bases.append(subspace(sketches)))
    found = [collected(each, reader, bases[0]) for each in streams]
    (h, first), (s, second) = found
    solved: list[Filter] = []
    solving = timed(CPU, lambda: solved.append(path(h, [(s, 1.0)], RIDGE, basis=bases[0])))
    pricing = median(timed(CPU, lambda mu=mu: solved[0].rows(mu)) for mu in PRICES)
    added = peak.added()
    excess = None
    if exact:
        whole = [collected(each, reader, None)[0] for each in streams]
        excess = compared(solved[0], whole[0], whole[1])
    return Wide(
        width,
        sum(seconds) + first + second,
        finding + solving,
        pricing,
        bases[0].nbytes + h.inputs.nbytes + s.inputs.nbytes,
        solved[0].modes.nbytes,
        added,
        2 * 4 * width**2,
        excess,
    )


def compared(found: Filter, harmful: Moments, harmless: Moments) -> dict[str, float]:
    """How much larger the objective is at the subspace's rows than at the whole space's own, as a
    share of the harmful component."""
    sigma, other = harmful.second(), harmless.second()
    ridge = RIDGE * float(sigma.diagonal().mean())
    cross, total = harmful.cross.double(), float(harmful.squares.sum())
    excess = {}
    for mu in (0.1, 1.0, 10.0):
        matrix = sigma + mu * other + ridge * torch.eye(len(sigma)).double()
        best = torch.cholesky_solve(cross, torch.linalg.cholesky(matrix))
        mine = found.rows(mu).mT
        losses = [float(v.mT @ matrix @ v - 2 * v.mT @ cross) for v in (mine, best)]
        excess[f"{mu:g}"] = (losses[0] - losses[1]) / total
    return excess


def markdown(demo: Demo, rows: list[Row], sizes: list[Wide]) -> str:
    """The tables of docs/benchmarks.md."""
    lines = ["| step on the demo | seconds |", "|---|---|"]
    for name, value in asdict(demo).items():
        lines.append(f"| {name} | {short(value)} |")
    head = " | ".join(METRICS)
    lines += ["", f"| edit | {head} | predicted removed | predicted moved |", "|---" * 7 + "|"]
    for row in rows:
        cells = [f"{row.values[name]:.4f}" for name in METRICS]
        cells += ["–" if v is None else f"{v:.3f}" for v in (row.removed, row.moved)]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    lines += ["", "| inputs | collect, s | solve, s | another μ, ms | moments, MB "
              "(whole) | decomposition, MB | peak, MB | objective above the whole space's |",
              "|---" * 8 + "|"]  # fmt: skip
    for each in sizes:
        apart = "–"
        if each.excess is not None:
            apart = ", ".join(f"μ {mu}: {value:.1%}" for mu, value in each.excess.items())
        cells = [short(each.collect), short(each.solve), short(1e3 * each.price)]
        cells += [f"{short(each.state / 1e6)} ({short(each.whole / 1e6)})"]
        cells += [short(each.kept / 1e6), short(each.peak / 1e6), apart]
        lines.append(f"| {each.width:,} | {' | '.join(cells)} |")
    collect, solve = (LAYERS * sum(getattr(e, n) for e in sizes) for n in ("collect", "solve"))
    state, kept = (LAYERS * sum(getattr(e, n) for e in sizes) / 1e9 for n in ("state", "kept"))
    lines.append("")
    if sizes:
        lines.append(
            f"{LAYERS} layers: {short(collect)} s to add the moments up beside the forward pass, "
            f"{short(solve)} s to solve, {state:.2f} GB of moments, {kept:.2f} GB solved."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100, help="held-out prompts of each set")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--skip-wide", action="store_true", help="the demo alone")
    parser.add_argument(
        "--skip-whole", action="store_true", help="no comparison with whole moments"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    host = finish(load(ModelSpec()))
    demo, rows = costs(host, options.repeats), effects(host, options.samples)
    sizes = []
    if not options.skip_wide:
        sizes = [wide(w, exact=w == WIDTHS[0] and not options.skip_whole) for w in WIDTHS]
    print(markdown(demo, rows, sizes))
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.json:
        found = {"demo": asdict(demo), "effects": [asdict(r) for r in rows]}
        found |= {"wide": [asdict(each) for each in sizes]}
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
