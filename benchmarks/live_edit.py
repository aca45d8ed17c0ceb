"""What a live edit saves: time and memory against rewriting the weights and against reloading them.

    python -m benchmarks.live_edit --model both

The three ways are in methods.py. Rounds alternate between them, so that a slow moment of the
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

from benchmarks import two_models
from benchmarks.clock import short, timed
from benchmarks.methods import Live, Reload, Rewrite
from benchmarks.peak import Peak
from sst_ui.maths import directions as direction_files
from sst_ui.model.inference.generate import generate
from sst_ui.model.runtime.host import Host, load
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec

WAYS = ("live", "rewrite", "reload")
STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5)
QUESTION = "How do I whittle a spoon?"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Result:
    """One model's measurements; times in seconds and memory in bytes, way -> median.

    Attributes:
        change: from new numbers to an edit that the next forward pass uses.
        first_token: the forward pass over a short prompt after it.
        memory: added at the peak of a few changes and answers.
        together: tokens per second, base and edited in one batch.
        in_turn: tokens per second, base and edited as two models one after the other.
        difference: largest difference of the logits, live against rewritten weights.
    """

    model: str
    parameters: int
    device: str
    dtype: str
    threads: int
    repeats: int
    change: dict[str, float]
    first_token: dict[str, float]
    memory: dict[str, float]
    together: float
    in_turn: float
    difference: float


def measure(
    name: str,
    folder: Path,
    device: str,
    dtype: str,
    repeats: int,
    tokens: int,
    memory: Callable[[str, Path, str, str], float] | None = None,
) -> Result:
    """Run every comparison for one model folder.

    Args:
        tokens: length of the answers that are timed side by side.
        memory: gives the bytes a way adds at its peak; a process of its own for each by default.
    """
    host, copy = _host(folder, device, dtype), _host(folder, device, dtype)
    random = direction_files.random(host.layers, host.hidden)
    prompt = host.encode(QUESTION)
    ways = {
        "live": Live(host, random),
        "rewrite": Rewrite(copy.model, random),
        "reload": Reload(folder, host.model.dtype, host.device, random),
    }
    change: dict[str, list[float]] = {way: [] for way in WAYS}
    first: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(repeats + 1):
        strength = STRENGTHS[turn % len(STRENGTHS)]
        for way, method in ways.items():
            seconds = timed(host.device, lambda m=method, s=strength: m.change(s))
            answer = timed(host.device, lambda m=method: m.first_token(prompt))
            if turn:  # the first turn warms up
                change[way].append(seconds)
                first[way].append(answer)
    logits = {way: ways[way].first_token(prompt).float() for way in ("live", "rewrite")}
    ways["reload"].model = None
    together, in_turn = _side_by_side(host, copy, ways["live"], prompt, repeats, tokens)
    return Result(
        model=name,
        parameters=host.parameters,
        device=str(host.device),
        dtype=str(host.model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        repeats=repeats,
        change={way: median(values) for way, values in change.items()},
        first_token={way: median(values) for way, values in first.items()},
        memory={way: (memory or in_child)(way, folder, device, dtype) for way in WAYS},
        together=together,
        in_turn=in_turn,
        difference=float((logits["live"] - logits["rewrite"]).abs().max()),
    )


def _side_by_side(
    host: Host, copy: Host, live: Live, prompt: Sequence[int], repeats: int, tokens: int
) -> tuple[float, float]:
    """Tokens per second: two rows of one batch, and two models in sequence; medians."""
    # answers of one length: a random model would stop anywhere
    host.stop = copy.stop = frozenset()

    def produced(model: Host, rows: list) -> int:
        steps = generate(model, [prompt] * len(rows), rows, tokens)
        return sum(len(column) for column in steps)

    def speed(work: Callable[[], int]) -> float:
        counted = []
        seconds = timed(host.device, lambda: counted.append(work()))
        return counted[0] / seconds

    together, in_turn = [], []
    for turn in range(repeats + 1):
        batch = speed(lambda: produced(host, [(), live.row]))
        sequence = speed(lambda: produced(host, [()]) + produced(copy, [()]))
        if turn:
            together.append(batch)
            in_turn.append(sequence)
    return median(together), median(in_turn)


def in_child(way: str, folder: Path, device: str, dtype: str) -> float:
    """Bytes a way adds at its peak, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.live_edit", "--memory", way]
    command += ["--folder", str(folder), "--device", device, "--dtype", dtype]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"measuring the memory of {way} failed:\n{run.stderr}")
    return float(run.stdout.split()[-1])


def in_here(way: str, folder: Path, device: str, dtype: str) -> float:
    """The same in this process: the base answers once, then the edit changes a few times."""
    host = _host(folder, device, dtype)
    random = direction_files.random(host.layers, host.hidden)
    prompt = host.encode(QUESTION)
    Live(host, random).first_token(prompt)  # plan None: the base
    peak = Peak(host.device)
    if way == "live":
        method = Live(host, random)
    elif way == "rewrite":
        method = Rewrite(host.model, random)
    else:
        method = Reload(folder, host.model.dtype, host.device, random)
    for strength in STRENGTHS[:3]:
        method.change(strength)
        method.first_token(prompt)
    return peak.added()


def _host(folder: Path, device: str, dtype: str) -> Host:
    return finish(load(ModelSpec(id=str(folder), device=device, dtype=dtype)))


def markdown(results: Sequence[Result]) -> str:
    """The table of docs/benchmarks.md: the live edit in numbers, the others as multiples of it."""
    lines = ["| | live edit | rewrite in place | reload |", "|---|---|---|---|"]
    for r in results:
        size = f"{r.parameters / 1e6:.1f} M parameters"
        lines.append(f"| **{r.model}** ({size}, {r.dtype}, {r.device}) | | | |")
        change = [_time(r.change["live"]), *_times(r.change)]
        lines.append(f"| slider to applied edit | {' | '.join(change)} |")
        first = [_time(r.first_token["live"]), *_times(r.first_token)]
        lines.append(f"| first token after it | {' | '.join(first)} |")
        memory = [f"{r.memory[way] / 2**20:.1f} MiB" for way in WAYS]
        lines.append(f"| memory added (peak) | {' | '.join(memory)} |")
        lines.append(
            "| tokens per second, base and edited | "
            f"{r.together / r.in_turn:.2f}× two models in turn | | |"
        )
    return "\n".join(lines)


def _times(values: dict[str, float]) -> list[str]:
    return [f"{short(values[way] / values['live'])}×" for way in WAYS[1:]]


def _time(seconds: float) -> str:
    return f"{short(seconds)} s" if seconds >= 1 else f"{short(1e3 * seconds)} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_edit", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48, help="length of the timed answers")
    two_models.options(parser)
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        print(in_here(options.memory, options.folder, options.device, options.dtype))
        return 0
    shared = (options.device, options.dtype, options.repeats, options.tokens)
    results = [
        measure(two_models.TITLES[name], folder, *shared)
        for name, folder in two_models.chosen(options)
    ]
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
        return 0
    print(markdown(results))
    for r in results:
        print(
            f"\n{r.model}: medians of {r.repeats}, {r.threads} threads, torch {torch.__version__}. "
            f"Live and rewritten weights differ by at most {r.difference:.1e} in a logit. "
            f"Side by side {r.together:.0f} tokens/s, in turn {r.in_turn:.0f}."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
