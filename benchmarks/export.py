"""What streaming saves: speed and memory of an export against `cp`, PEFT and plain transformers.

    python -m benchmarks.export [--large]

The ways are in export_ways.py. Every measurement is a process of its own that imports first and
starts the clock then. Rounds alternate between the ways, so that a slow moment of the machine hits
all of them, and ratios are taken within a round. Before each, the source's pages are dropped from
the page cache where the system allows it, so that each way reads from the disk; each waits until
what it wrote is on the disk.
"""

import argparse
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import psutil
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.clock import short
from benchmarks.export_ways import WAYS, adapter_of, make_adapter, random_model
from benchmarks.peak import Peak

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"0.5b": 1.0e9, "3b": 6.2e9}  # bytes of the weights, about
CODE = ("peft", "transformers.models.qwen2.modeling_qwen2", "sst_ui.model.weights.streaming_writer")
LABELS = {
    "cp": "`cp`, nothing changed (the limit)",
    "stream": "**export, streamed**",
    "peft": "PEFT `merge_and_unload`, `save_pretrained`",
    "transformers": "load, edit, save (transformers)",
}


@dataclass(frozen=True)
class Result:
    """One model's measurements.

    Attributes:
        bytes: of the weights.
        largest: bytes of the largest tensor that the edit changes, and of the largest of all.
        seconds: way -> one number a round.
        memory: way -> bytes at the peak, above the process with everything imported; the most of
            the rounds.
        cold: whether the source was read from the disk.
    """

    model: str
    bytes: int
    largest: tuple[int, int]
    seconds: dict[str, list[float]]
    memory: dict[str, int]
    cold: bool
    threads: int

    def ratios(self, way: str, other: str) -> list[float]:
        """Time of `way` as a multiple of `other`'s, round by round."""
        pairs = zip(self.seconds[way], self.seconds[other], strict=True)
        return [mine / theirs for mine, theirs in pairs]


def measure(shape: str, folder: Path, rounds: int, ways: Sequence[str] = tuple(WAYS)) -> Result:
    """Run every way on a random model of this shape."""
    source = folder / f"qwen2-{shape}"
    source.mkdir()
    size = random_model(source, shape)
    make_adapter(source)
    os.sync()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory = dict.fromkeys(ways, 0)
    for turn in range(rounds):
        for way in ways if turn % 2 == 0 else [*ways][::-1]:
            cold = _forget(source)
            took, peak = in_child(way, source, folder / "out")
            seconds[way].append(took)
            memory[way] = max(memory[way], peak)
            shutil.rmtree(folder / "out")
            os.sync()
            print(f"{shape} {way}: {took:.2f} s, {peak / 2**20:,.0f} MiB", file=sys.stderr)
    largest = _largest(source)
    shutil.rmtree(source)
    shutil.rmtree(adapter_of(source))
    threads = torch.get_num_threads()
    return Result(f"Qwen2 {shape}", size, largest, seconds, memory, cold, threads)


def _largest(source: Path) -> tuple[int, int]:
    config = json.loads((source / "config.json").read_text())
    hidden = config["hidden_size"] * 2
    return hidden * config["intermediate_size"], hidden * config["vocab_size"]


def _forget(source: Path) -> bool:
    """Drop the files' pages from the page cache; whether the system has a call for that."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in source.iterdir():
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def in_child(way: str, source: Path, out: Path) -> tuple[float, int]:
    """Seconds, and bytes added at the peak, of one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.export", "--way", way]
    command += ["--folder", str(source), "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{way} failed:\n{run.stderr}")
    took, peak = json.loads(run.stdout.splitlines()[-1])
    return took, peak


def in_here(way: str, source: Path, out: Path) -> tuple[float, int]:
    """The same in this process."""
    disable_progress_bar()
    for name in CODE:  # imports are on nobody's clock
        importlib.import_module(name)

    peak = Peak(torch.device("cpu"))
    start = time.perf_counter()
    WAYS[way](source, out)
    return time.perf_counter() - start, peak.added()


def markdown(result: Result) -> str:
    """A table: time and speed, times as multiples of `cp` and of the export, memory."""
    lines = [
        f"| {result.model}, {result.bytes / 1e9:.2f} GB | seconds | MB/s | speed, `cp` = 1 | "
        "the export is faster by | memory at the peak |",
        "|---|---|---|---|---|---|",
    ]
    for way, values in result.seconds.items():
        took = median(values)
        against = 1 / median(result.ratios(way, "cp"))
        faster = median(result.ratios(way, "stream"))
        lines.append(
            f"| {LABELS[way]} | {short(took)} | {result.bytes / 1e6 / took:,.0f} | {against:.2f} | "
            f"{short(faster)}× | {result.memory[way] / 2**20:,.0f} MiB |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("--large", action="store_true", help="3 billion parameters, and not half")
    parser.add_argument("--both", action="store_true", help="one after the other")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--where", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=[*WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(in_here(options.way, options.folder, options.out)))
        return 0
    results = []
    for shape in ("0.5b", "3b") if options.both else (("3b",) if options.large else ("0.5b",)):
        with tempfile.TemporaryDirectory(prefix="sst-export-", dir=options.where) as folder:
            if not _enough(Path(folder), shape, options.ways):
                return 2
            results.append(measure(shape, Path(folder), options.rounds, options.ways))
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
        return 0
    for result in results:
        print(markdown(result))
        changed, largest = result.largest
        print(
            f"\nMedians of {len(result.seconds['cp'])} rounds, ratios within each; "
            f"{result.threads} threads, torch {torch.__version__}; largest tensor "
            f"{largest / 2**20:.0f} MiB, largest that changes {changed / 2**20:.0f} MiB; source "
            f"{'dropped from' if result.cold else 'perhaps in'} the page cache before each; every "
            "way waits for the disk. Process with everything imported: "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB.\n"
        )
    return 0


def _enough(folder: Path, shape: str, ways: Sequence[str]) -> bool:
    """Whether disk and memory will do; says so if not."""
    disk, memory = 2.2 * SIZES[shape], 1.6 * SIZES[shape] + 1e9
    free, available = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    loads = {"peft", "transformers"} & set(ways)
    if disk > free:
        print(f"{disk / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} are free", file=sys.stderr)
    elif loads and memory > available:
        print(
            f"{memory / 1e9:.1f} GB of memory are needed for {', '.join(sorted(loads))}; "
            f"{available / 1e9:.1f} are free; try --ways cp stream",
            file=sys.stderr,
        )
    else:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
