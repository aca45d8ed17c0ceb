"""What a merge costs: time and memory of SST and of PEFT's add_weighted_adapter, at 8B size.

    python -m benchmarks.sst --rank 16 --layers 1

The ways are in mergers.py. Factors and Fisher moments are random: the pass that collects moments is
not timed. One layer of Llama-3.1-8B's shapes is held at a time, and its time counts for 32. Each
reading is a process of its own; rounds alternate between the ways, so that a slow moment of the
machine hits all of them; medians are reported.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.clock import short, timed
from benchmarks.mergers import LLAMA_8B, TINY, WAYS, Shape, disagreement, error, random_layer
from benchmarks.peak import Peak
from sst_ui.errors import UserError
from sst_ui.jobs.merge.merge import combine, prepare
from sst_ui.model.runtime.host import Host, load
from sst_ui.paths import DEMO, ROOT
from sst_ui.progress import finish
from sst_ui.recipe import Merge, ModelSpec

CPU = torch.device("cpu")
MUS = (1.0, 3.0, 30.0, 100.0, 300.0)
BUDGET = 0.01  # nats per token


@dataclass(frozen=True)
class Reading:
    """One way on one rank.

    Attributes:
        seconds: of all layers: the median layer times their number.
        memory: bytes added at the peak of one layer.
        error: relative, against the exact sum; None where the sum is not the aim.
    """

    seconds: float
    memory: float
    error: float | None


@dataclass(frozen=True)
class Demo:
    """Seconds of merging the demo's adapters after the Fisher pass.

    Attributes:
        first: with the spectra that later merges find in memory.
        again: with another μ, the median of several.
        budget: with a KL budget that chooses μ.
    """

    first: float
    again: float
    budget: float


@dataclass(frozen=True)
class Result:
    """Everything measured; way -> reading, and rank -> the exact SST's reading.

    Attributes:
        disagreement: relative difference of the exact task arithmetic, the studio against `cat`.
    """

    shape: Shape
    rank: int
    measured: int
    repeats: int
    threads: int
    ways: dict[str, Reading]
    growth: dict[int, Reading]
    disagreement: float


Read = Callable[[str, int, int, Shape], Reading]


def measure(
    shape: Shape,
    rank: int,
    ranks: Sequence[int],
    layers: int,
    repeats: int,
    ways: Sequence[str] = tuple(WAYS),
    read: Read | None = None,
) -> Result:
    """Run every comparison.

    Args:
        shape: of the model.
        rank: of both adapters, for the comparison of ways.
        ranks: for the growth of the exact SST.
        layers: measured of those that the model has.
        repeats: rounds; ways that take minutes are in the first one only.
        read: takes one reading; in a process of its own by default.
    """
    read = read or in_child
    tasks = [(way, rank) for way in ways] + [("sst", r) for r in ranks if r != rank]
    found: dict[tuple[str, int], list[Reading]] = {task: [] for task in tasks}
    for turn in range(repeats):
        for way, r in tasks:
            if turn and WAYS[way].slow:
                continue
            found[way, r].append(read(way, r, layers, shape))
    middle = {task: _median(readings) for task, readings in found.items()}
    return Result(
        shape=shape,
        rank=rank,
        measured=layers,
        repeats=repeats,
        threads=torch.get_num_threads(),
        ways={way: middle[way, rank] for way in ways},
        growth={r: middle["sst", r] for r in ranks if ("sst", r) in middle},
        disagreement=disagreement(random_layer(shape, rank, seed=0)),
    )


def _median(readings: Sequence[Reading]) -> Reading:
    """Errors do not depend on the round."""
    seconds, memory = ([getattr(r, name) for r in readings] for name in ("seconds", "memory"))
    return Reading(median(seconds), median(memory), readings[0].error)


def in_child(way: str, rank: int, layers: int, shape: Shape = LLAMA_8B) -> Reading:
    """A reading in a process of its own, so that no other way's memory hides this one's."""
    command = [sys.executable, "-m", "benchmarks.sst", "--read", way, "--rank", str(rank)]
    command += ["--layers", str(layers), "--shape", json.dumps(asdict(shape))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"measuring {way} at rank {rank} failed:\n{run.stderr}")
    reading = Reading(**json.loads(run.stdout.splitlines()[-1]))
    print(f"{way}, rank {rank}: {reading}", file=sys.stderr, flush=True)  # minutes lie between them
    return reading


def in_here(way: str, rank: int, layers: int, shape: Shape = LLAMA_8B) -> Reading:
    """The same in this process, one layer after the other."""
    WAYS[way].make(random_layer(TINY, 2, seed=0)).run()  # libraries load what they need
    seconds, memory, errors = [], [], []
    for number in range(layers):
        layer = random_layer(shape, rank, seed=number)
        method = WAYS[way].make(layer)
        peak = Peak(CPU)
        seconds.append(timed(CPU, method.run))
        memory.append(peak.added())
        if WAYS[way].sums:
            errors.append(error(method.result(), layer.exact))
    missed = max(errors) if errors else None
    return Reading(median(seconds) * shape.layers, max(memory), missed)


def demo(host: Host, utility: str, safety: str, samples: int | None = 8) -> Demo:
    """Time `combine` after `prepare`; how many samples the moments come from is all the same."""

    def spec(**options: object) -> Merge:
        return Merge(utility, safety, samples=samples, **options)

    pair = finish(prepare(host, spec()))
    first = timed(CPU, lambda: combine(host, pair, spec()))
    again = [timed(CPU, lambda m=mu: combine(host, pair, spec(parameters={"mu": m}))) for mu in MUS]
    return Demo(first, median(again), timed(CPU, lambda: combine(host, pair, spec(budget=BUDGET))))


def markdown(r: Result) -> str:
    """The tables of docs/benchmarks.md: the ways side by side, and exact SST by rank."""
    lines = [
        f"| rank {r.rank}, {r.shape.layers} layers | rank of the result | time | peak memory added "
        "| error against the sum |",
        "|---|---|---|---|---|",
    ]
    base = r.ways.get("sst")
    for name, reading in r.ways.items():
        way = WAYS[name]
        clock = _time(reading.seconds)
        if base and name != "sst":
            clock += f" ({short(reading.seconds / base.seconds)}×)"
        missed = "–" if reading.error is None else f"{reading.error:.2g}"
        rank = 2 * r.rank if way.full else r.rank
        lines.append(f"| {way.title} | {rank} | {clock} | {_size(reading.memory)} | {missed} |")
    if r.growth:
        ranks = sorted(r.growth)
        lines += ["", f"| SST, exact | {' | '.join(f'rank {n}' for n in ranks)} |"]
        lines.append("|---" * (len(ranks) + 1) + "|")
        lines.append(f"| time | {' | '.join(_time(r.growth[n].seconds) for n in ranks)} |")
        memory = " | ".join(_size(r.growth[n].memory) for n in ranks)
        lines.append(f"| peak memory added | {memory} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{short(seconds / 3600)} h"
    if seconds >= 120:
        return f"{short(seconds / 60)} min"
    return f"{short(seconds)} s" if seconds >= 1 else f"{short(1e3 * seconds)} ms"


def _size(memory: float) -> str:
    return f"{short(memory / 2**20)} MiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sst", description=__doc__)
    parser.add_argument("--rank", type=int, default=16, help="of both adapters")
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 8, 16, 32, 64], help="growth")
    parser.add_argument("--layers", type=int, default=1, help="measured; the time counts for 32")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; slow ways run once")
    parser.add_argument("--skip-svd", action="store_true", help="PEFT's svd takes minutes a layer")
    parser.add_argument("--adapters", type=Path, default=DEMO / "adapters", metavar="DIR",
                        help="with the folders utility and safety, for the demo")  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    shape = Shape(**options.shape) if options.shape else LLAMA_8B
    if min(options.rank, options.layers, options.repeats, *options.ranks) < 1:
        parser.error("ranks, layers and repeats are at least 1")
    if options.read:
        print(json.dumps(asdict(in_here(options.read, options.rank, options.layers, shape))))
        return 0
    try:
        host = finish(load(ModelSpec(id="demo", device="cpu")))
        studio = demo(host, *(str(options.adapters / name) for name in ("utility", "safety")))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    ways = [name for name, way in WAYS.items() if not (options.skip_svd and way.slow)]
    r = measure(shape, options.rank, options.ranks, options.layers, options.repeats, ways)
    if options.json:
        print(json.dumps(asdict(r) | {"demo": asdict(studio)}))
        return 0
    print(markdown(r))
    print(
        f"\nMedians of {r.repeats} (`svd` once), threads: {r.threads}, float32 "
        f"factors, torch {torch.__version__}; measured {r.measured} of {r.shape.layers} layers. "
        f"The exact sums of studio and PEFT differ by {r.disagreement:.1e}. "
        f"Demo adapters, after the Fisher pass: {_time(studio.first)} for the first merge, "
        f"{_time(studio.again)} for another μ, {_time(studio.budget)} for a KL budget."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
