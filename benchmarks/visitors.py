"""Many visitors at once: one running batch against answers that are computed one after another.

    OMP_NUM_THREADS=1 python -m benchmarks.visitors

For each way a page is launched in a process of its own, with the demo, and visitors ask its
`compare` endpoint over the loopback: a question each, with a recipe of its own, and again as soon
as the answer is there. Rounds alternate between the ways. What each recipe answers alone is asked
beforehand, of the page that answers one after another.
"""

import argparse
import gc
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks.clock import short
from benchmarks.peak import resident
from sst_ui import recipe as recipes
from sst_ui.paths import PRESETS
from sst_ui.recipe import Ablation

WAYS = ("together", "in turn")
ROOT = Path(__file__).resolve().parent.parent
MESSAGE = "How do I whittle a spoon number {number}?"
Answer = dict[str, str]  # column -> text


@dataclass
class Heard:
    """What came of one way, over all rounds.

    Attributes:
        first: seconds to the first token of each answer.
        whole: seconds to the end of each.
        seconds: that visitors asked for, the rounds together.
        wrong: answers unlike what their recipe answers alone.
        failed: errors instead of answers.
        memory: resident bytes of the page before the first round and behind the last.
    """

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    seconds: float = 0.0
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    memory: tuple[int, int] = (0, 0)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.whole) / self.seconds


def questions(visitors: int) -> list[tuple[str, str, str]]:
    """For each a message, a recipe and the name of a session: filters and plain ablations of many
    strengths."""
    default = recipes.load(PRESETS / "recipes" / "default.yaml")
    (edit,) = default.edits
    assert isinstance(edit, Ablation)
    found = []
    for number in range(visitors):
        weights = replace(edit.weights, strength=round(0.5 + 1.5 * number / visitors, 3))
        operation = "filter" if number % 2 else "ablate"
        own = replace(edit, weights=weights, operation=operation)
        text = recipes.to_yaml(replace(default, edits=(own,)))
        found.append((MESSAGE.format(number=number), text, f"visitor{number}"))
    return found


def ask(port: int, message: str, recipe: str, session: str, tokens: int) -> Iterator[Answer]:
    """The texts of both columns as they grow, by Gradio's own protocol for programs.

    A session is kept from one question to the next, as Gradio's own client does.

    Raises:
        RuntimeError: the page answered with an error.
    """
    path, headers = "/gradio_api/call/compare", {"Content-Type": "application/json"}
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    asked = {"data": [message, recipe, tokens], "session_hash": session}
    line.request("POST", path, json.dumps(asked), headers)
    event = json.loads(line.getresponse().read())["event_id"]
    line.close()
    line.request("GET", f"{path}/{event}")
    kind = ""
    for part in line.getresponse():
        text = part.decode().strip()
        if text.startswith("event:"):
            kind = text.removeprefix("event:").strip()
        elif text.startswith("data:"):
            data = text.removeprefix("data:").strip()
            if kind == "error":
                raise RuntimeError(data)
            if kind in ("generating", "complete") and (found := json.loads(data)):
                yield found[0]
    line.close()


def visit(
    port: int, tokens: int, asked: Sequence[str], expected: Answer | None, end: float, to: Heard
) -> Answer:
    """Ask once, and again until the time is over; the last answer."""
    while True:
        begin, first, answer = time.monotonic(), 0.0, {}
        try:
            for answer in ask(port, asked[0], asked[1], asked[2], tokens):
                if not first and any(answer.values()):
                    first = time.monotonic() - begin
        except (OSError, RuntimeError, ValueError) as error:
            to.failed.append(f"{type(error).__name__}: {error}")
            return answer
        to.first.append(first)
        to.whole.append(time.monotonic() - begin)
        to.wrong += expected is not None and answer != expected
        if time.monotonic() >= end:
            return answer


def crowd(port: int, tokens: int, asked: Sequence, expected: Sequence, seconds: float, to: Heard):
    """All visitors at once, for so long; the last answers are waited for."""
    start = time.monotonic()
    jobs = [
        threading.Thread(target=visit, args=(port, tokens, one, answer, start + seconds, to))
        for one, answer in zip(asked, expected, strict=True)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    to.seconds += time.monotonic() - start


@contextmanager
def page(way: str) -> Iterator[tuple[int, Callable[[], int]]]:
    """A page in a process of its own: its port, and what tells its resident bytes."""
    command = [sys.executable, "-m", "benchmarks.visitors", "--serve", way]
    served = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert served.stdin is not None

    def told() -> int:
        return int(next(line for line in served.stdout or () if line.startswith("=")).lstrip("="))

    def memory() -> int:
        assert served.stdin is not None
        print(file=served.stdin, flush=True)
        return told()

    try:
        yield told(), memory
    finally:
        served.stdin.close()
        served.wait()


def serve(way: str) -> None:
    """Launch the page, print its port, and its memory whenever a line comes in."""
    from sst_ui.jobs import chat
    from sst_ui.model.inference.generate import generate
    from sst_ui.progress import finish
    from sst_ui.ui import Engine, build, launch_options
    from sst_ui.ui.services import engine as service

    if way == WAYS[1]:  # as it was before there was a running batch
        chat.together = generate
        service.CHATS["concurrency_limit"] = 1
    engine = Engine()
    engine.open()
    finish(engine.wait())
    launched = build(engine)
    launched.launch(
        server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, **launch_options()
    )
    print(f"={launched.server_port}", flush=True)
    for _ in sys.stdin:
        gc.collect()
        print(f"={resident()}", flush=True)
    launched.close()


def measure(visitors: int, tokens: int, seconds: float, rounds: int) -> dict[str, Heard]:
    """Both ways in turn, `rounds` times; `seconds` of each way in all."""
    asked, found = questions(visitors), {way: Heard() for way in WAYS}
    with ExitStack() as stack:
        pages = {way: stack.enter_context(page(way)) for way in WAYS}
        expected = [visit(pages[WAYS[1]][0], tokens, one, None, 0.0, Heard()) for one in asked]
        crowd(pages[WAYS[0]][0], tokens, asked, expected, 0.0, Heard())  # measures the directions
        before = {way: pages[way][1]() for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                crowd(pages[way][0], tokens, asked, expected, seconds / rounds, found[way])
        for way in WAYS:
            found[way].memory = before[way], pages[way][1]()
    return found


def markdown(found: dict[str, Heard]) -> str:
    """The table of docs/benchmarks.md."""
    lines = [f"| | {' | '.join(WAYS)} |", "|---|---|---|"]

    def row(name: str, value: Callable[[Heard], str]) -> None:
        lines.append(f"| {name} | {' | '.join(value(found[way]) for way in WAYS)} |")

    row("first token, median", lambda heard: f"{short(median(heard.first))} s")
    row("first token, 95 % within", lambda heard: f"{short(within(heard.first, 0.95))} s")
    row("whole answer, median", lambda heard: f"{short(median(heard.whole))} s")
    row("answers a second", lambda heard: short(heard.rate))
    row("answers unlike those alone", lambda heard: f"{heard.wrong} of {len(heard.whole)}")
    row("errors", lambda heard: str(len(heard.failed)))
    row(
        "memory before and after",
        lambda heard: " and ".join(f"{size / 2**20:,.0f} MiB" for size in heard.memory),
    )
    return "\n".join(lines)


def within(values: Sequence[float], share: float) -> float:
    """The smallest of these that so many of them do not exceed."""
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.visitors", description=__doc__)
    parser.add_argument("--visitors", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each way")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve)
        return 0
    begun = time.monotonic()
    found = measure(options.visitors, options.tokens, options.seconds, options.rounds)
    if options.json:
        print(json.dumps({way: asdict(heard) for way, heard in found.items()}))
        return 0
    print(markdown(found))
    times = found[WAYS[0]].rate / found[WAYS[1]].rate
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(
        f"\n{options.visitors} visitors, answers of at most {options.tokens} tokens, "
        f"{options.seconds:.0f} s each way in {options.rounds} rounds: {short(times)}× as many "
        f"answers a second. {os.cpu_count()} cores; load of the machine at the end {load}; "
        f"{time.monotonic() - begun:.0f} s in all."
    )
    for heard in found.values():
        for text in heard.failed[:3]:
            print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
