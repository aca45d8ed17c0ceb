"""What a batch of candidates saves: a grid of 25 kernels against one after the other.

    python -m benchmarks.search --model both

The ways are in search_ways.py. Every measurement is a process of its own that loads the model first
and starts the clock then. Rounds alternate between the ways, so that a slow moment of the machine
hits all of them; medians are reported.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from benchmarks import two_models
from benchmarks.clock import short, timed
from benchmarks.peak import Peak
from benchmarks.search_ways import GRID, HARMFUL, HARMLESS, WAYS, Found, Job, host_of
from sst_ui.data import prompt_sets
from sst_ui.jobs.directions.measure import measure as measured
from sst_ui.maths import directions as direction_files
from sst_ui.metrics.text.answer import Answer
from sst_ui.progress import finish
from sst_ui.recipe import DirectionSpec

ROOT = Path(__file__).resolve().parent.parent
TITLES = {
    "together": "studio, {} in a batch",
    "in_turn": "studio, one after the other",
    "rewrite": "weights rewritten in place",
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured: prompts of each of the two sets, tokens an answer, kernels in a batch,
    rounds."""

    prompts: int
    tokens: int
    together: int
    repeats: int


DEFAULTS = {"demo": Sizes(32, 32, 5, 3), "qwen2-0.5b": Sizes(4, 8, 5, 1)}


@dataclass(frozen=True)
class Reading:
    """One way, once: seconds, bytes added at the peak, and what it found, answers as text."""

    seconds: float
    memory: float
    found: Found


@dataclass(frozen=True)
class Result:
    """One model's measurements.

    Attributes:
        seconds: until the whole grid is measured, way -> every round.
        memory: bytes added at the peak, way -> the largest.
        answers, labels: way -> answers, and their labels (refused or not), unlike those of the
            rewritten weights, of `len(GRID) * sizes.prompts`.
        nats: way -> largest difference of a prompt's divergence from that of rewritten weights.
        largest: the largest divergence, nats.
        refused: way -> share of all answers that refuse.
    """

    model: str
    parameters: int
    device: str
    dtype: str
    threads: int
    sizes: Sizes
    seconds: dict[str, list[float]]
    memory: dict[str, float]
    answers: dict[str, int]
    labels: dict[str, int]
    nats: dict[str, float]
    largest: float
    refused: dict[str, float]


def measure(
    name: str,
    folder: Path,
    device: str,
    dtype: str,
    sizes: Sizes,
    untrained: bool = False,
    read: Callable[[str, Path], Reading] | None = None,
) -> Result:
    """Run every way for one model folder.

    Args:
        untrained: the weights are random, and so the directions are too.
        read: runs a way on a job file; in a process of its own by default.
    """
    with tempfile.TemporaryDirectory(prefix="sst-search-") as place:
        path = Path(place) / "job.json"
        job, decode, parameters = _job(folder, device, dtype, sizes, untrained, path)
        gc.collect()  # the model that encoded the prompts
        readings: dict[str, list[Reading]] = {way: [] for way in WAYS}
        for _ in range(sizes.repeats):
            for way, taken in readings.items():
                taken.append((read or in_child)(way, path))
    last = {way: taken[-1].found for way, taken in readings.items()}
    said = {way: _flat(found.answers) for way, found in last.items()}
    said["rewrite"] = [decode(ids) for ids in said["rewrite"]]
    said = {way: [text.strip() for text in texts] for way, texts in said.items()}
    labels = {way: [Answer(text).label for text in texts] for way, texts in said.items()}
    nats = {way: torch.tensor(_flat(found.nats)).double() for way, found in last.items()}
    return Result(
        model=name,
        parameters=parameters,
        device=job.device,
        dtype=job.dtype,
        threads=torch.get_num_threads(),
        sizes=sizes,
        seconds={way: [one.seconds for one in taken] for way, taken in readings.items()},
        memory={way: max(one.memory for one in taken) for way, taken in readings.items()},
        answers={way: _differ(texts, said["rewrite"]) for way, texts in said.items()},
        labels={way: _differ(found, labels["rewrite"]) for way, found in labels.items()},
        nats={way: float((x - nats["rewrite"]).abs().max()) for way, x in nats.items()},
        largest=float(nats["rewrite"].max()),
        refused={way: found.count("refused") / len(found) for way, found in labels.items()},
    )


def _job(
    folder: Path, device: str, dtype: str, sizes: Sizes, untrained: bool, path: Path
) -> tuple[Job, Callable[[Sequence[int]], str], int]:
    """The job, also written to `path`; how its tokens become text; parameters of the model."""
    file = path.with_name("directions.safetensors")
    job = Job(
        str(folder), device, dtype, str(file), untrained, sizes.prompts, sizes.tokens,
        sizes.together, [], [], [], 0,
    )  # fmt: skip
    host = host_of(job)
    if untrained:
        directions = direction_files.random(host.layers, host.hidden)
    else:
        directions = finish(measured(host, DirectionSpec(), heldout=None))
    directions.save(file)
    sets = [
        [host.encode(prompt.messages()) for prompt in prompt_sets.load(name, sizes.prompts).prompts]
        for name in (HARMFUL, HARMLESS)
    ]
    job = replace(
        job,
        device=str(host.device),
        dtype=str(host.model.dtype).removeprefix("torch."),
        harmful=sets[0],
        harmless=sets[1],
        stop=sorted(host.stop),
        pad=host.pad,
    )
    job.write(path)
    template = host.template

    def text(ids: Sequence[int]) -> str:  # holds no model
        return " ".join(map(str, ids)) if untrained else template.decode(ids).rstrip("\ufffd")

    return job, text, host.parameters


def in_child(way: str, path: Path) -> Reading:
    """One way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.search", "--way", way, "--job", str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{way} failed:\n{run.stderr}")
    seconds, memory, answers, nats = json.loads(run.stdout.splitlines()[-1])
    return Reading(seconds, memory, Found(answers, nats))


def in_here(way: str, path: Path) -> Reading:
    """The same in this process."""
    method = WAYS[way](Job.read(path))
    method.warm()
    peak, found = Peak(method.device), []
    seconds = timed(method.device, lambda: found.append(method.search()))
    return Reading(seconds, peak.added(), found[0])


def _flat(rows: list[list]) -> list:
    return [one for row in rows for one in row]


def _differ(one: list, other: list) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def markdown(results: Sequence[Result]) -> str:
    """The table of docs/benchmarks.md: times, and in brackets as multiples of the batch's."""
    lines = [
        "| | time | | memory added (peak) | refusal labels | answers | KL, largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        size = f"{r.parameters / 1e6:.1f} M parameters"
        lines.append(f"| **{r.model}** ({size}, {r.dtype}, {r.device}) | | | | | | |")
        total, first = len(GRID) * r.sizes.prompts, median(r.seconds["together"])
        for way, title in TITLES.items():
            taken = median(r.seconds[way])
            same = [f"{unlike[way]} of {total} differ" for unlike in (r.labels, r.answers)]
            nats = f"{r.nats[way]:.0e} of {short(r.largest)} nats"
            own = ["(reference)"] * 3
            lines.append(
                f"| {title.format(r.sizes.together)} | {short(taken)} s | "
                f"{short(taken / first)}× | {r.memory[way] / 2**20:,.0f} MiB | "
                f"{' | '.join(own if way == 'rewrite' else [*same, nats])} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    numbers = {
        "prompts": "of each of the two sets",
        "tokens": "length of an answer",
        "together": "kernels in a batch",
        "repeats": "rounds",
    }
    two_models.options(parser, numbers, DEFAULTS)
    parser.add_argument("--way", choices=[*WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        taken = in_here(options.way, options.job)
        print(json.dumps([taken.seconds, taken.memory, taken.found.answers, taken.found.nats]))
        return 0
    asked = {name: getattr(options, name) for name in Sizes.__dataclass_fields__}
    asked = {name: number for name, number in asked.items() if number}
    sizes = {name: replace(usual, **asked) for name, usual in DEFAULTS.items()}
    shared = (options.device, options.dtype)
    results = []
    for name, folder in two_models.chosen(options):
        title, untrained = two_models.TITLES[name], name != "demo"
        results.append(measure(title, folder, *shared, sizes[name], untrained=untrained))
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
        return 0
    print(markdown(results))
    for r in results:
        s = r.sizes
        print(
            f"\n{r.model}: {len(GRID)} kernels on {s.prompts} harmful and {s.prompts} harmless "
            f"prompts, answers of at most {s.tokens} tokens; medians of {s.repeats}, {r.threads} "
            f"threads, torch {torch.__version__}. Of all answers {r.refused['rewrite']:.0%} refuse."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
