"""Many visitors for a long time, through the page's own events: right answers, no errors, memory.

    OMP_NUM_THREADS=1 python -m benchmarks.load --visitors 16 --minutes 30

The program is started as users start it, on the loopback. Each visitor is a small browser without
a screen: it sends what a page's controls hold and takes what comes back, and goes on with the
events that follow an event. In turns, from their own seeds, visitors change a profile or a slider,
apply it (its metrics follow), chat under their own recipe, upload prompts, and leave in the middle
of an answer to come back as somebody new; the first one also searches. Every answer of the chat is
asked again at the end, of the endpoint, when nobody else is there.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from gradio_client.utils import apply_diff

from benchmarks.clock import short
from sst_ui.paths import ROOT

PATIENCE = 600.0
WARM = 300.0  # seconds after which memory should not grow any more
MESSAGES = ("How do I whittle a spoon?", "How do I pick a lock?", "Tell me about the sea.")


@dataclass
class Seen:
    """What all visitors together met with.

    Attributes:
        answers: message, recipe and tokens -> what the right column said, each once.
        first: seconds to the first word of each answer.
        memory: seconds and resident bytes.
    """

    counts: Counter = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    answers: dict[tuple[str, str, int], set[str]] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)


class Gone(Exception):
    """The visitor has left in the middle."""


class Window:
    """A page without a screen: the values of its components, and its events."""

    def __init__(self, address: str, name: str) -> None:
        self.name = name
        self.client = httpx.Client(base_url=address, timeout=PATIENCE)
        config = self.client.get("/config").json()
        components = config["components"]
        self.values = {each["id"]: each["props"].get("value") for each in components}
        self.ids = {each["props"].get("elem_id"): each["id"] for each in components}
        self.events = {each["id"]: each for each in config["dependencies"]}
        self.open = True
        threading.Thread(target=self._beat, daemon=True).start()

    def __getitem__(self, elem: str) -> Any:
        return self.values[self.ids[elem]]

    def __setitem__(self, elem: str, value: Any) -> None:
        self.values[self.ids[elem]] = value

    def _beat(self) -> None:
        """What tells the server that the window is open, as long as it is."""
        path = f"/gradio_api/heartbeat/{self.name}"
        # closing the client ends it in one of several ways
        with suppress(httpx.HTTPError, httpx.StreamError, RuntimeError, OSError):
            with self.client.stream("GET", path) as beats:
                for _ in beats.iter_lines():
                    if not self.open:
                        return

    def close(self) -> None:
        """Leave."""
        self.open = False
        self.client.close()

    def press(self, elem: str | None, kind: str) -> Iterator[int]:
        """An event of a component, and all that follow from it; yields after every message."""
        target = self.ids[elem] if elem else None
        for number, event in self.events.items():
            hit = any(t == [target, kind] or (not elem and t[1] == kind) for t in event["targets"])
            if hit and event["backend_fn"]:
                yield from self._run(number)

    def _run(self, number: int) -> Iterator[int]:
        event = self.events[number]
        good = yield from self._call(number, event)
        for later, other in self.events.items():
            follows = other.get("trigger_after") == number and other["backend_fn"]
            if follows and (good or not other.get("trigger_only_on_success")):
                yield from self._run(later)

    def _call(self, number: int, event: dict) -> Iterator[int]:
        body = {
            "data": [self.values[box] for box in event["inputs"]],
            "fn_index": number,
            "session_hash": self.name,
        }
        joined = self.client.post("/gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            raise RuntimeError(f"{event['api_name']}: {joined.text[:300]}")
        mine, data = joined.json()["event_id"], None
        stream = self.client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.name}
        )
        with stream as lines:
            for line in lines.iter_lines():
                told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if told.get("event_id") != mine:
                    continue
                output = told.get("output") or {}
                if told["msg"] == "process_completed" and not told["success"]:
                    raise RuntimeError(f"{event['api_name']}: {output.get('error')}")
                if told["msg"] == "process_generating":
                    parts = output["data"]
                    data = parts if data is None else [
                        apply_diff(old, diff) if diff else old
                        for old, diff in zip(data, parts, strict=True)
                    ]  # fmt: skip
                    self._take(event, data)
                    yield number
                if told["msg"] == "process_completed":
                    if data is None:
                        self._take(event, output.get("data") or [])
                    yield number
                    return True
        raise RuntimeError(f"{event['api_name']}: the server said nothing")

    def _take(self, event: dict, data: Sequence[Any]) -> None:
        for box, value in zip(event["outputs"], data, strict=False):
            if isinstance(value, dict) and value.get("__type__") == "update":
                if "value" in value:
                    self.values[box] = value["value"]
            else:
                self.values[box] = value


def said(window: Window, side: str) -> str:
    """The text of the last answer in a column, without what stands above it."""
    parts = window[f"chat-{side}"][-1]["content"]
    text = parts if isinstance(parts, str) else "\n".join(part.get("text", "") for part in parts)
    return text.rpartition("</div>")[2].strip()


def visit(address: str, number: int, end: float, seen: Seen, samples: int | None = None) -> None:
    """One visitor until the end, under one name after the other.

    Args:
        end: by the monotonic clock; a round that has begun is done to its end.
        samples: prompts of each metric and of the search (default: the page's own choice).
    """
    dice, names = random.Random(number), itertools.count()
    while time.monotonic() < end:
        window = Window(address, f"visitor{number}x{next(names)}")
        try:
            _stay(window, dice, number, end, seen, samples)
        except Gone:
            seen.counts["left in the middle"] += 1
        except (RuntimeError, httpx.HTTPError, KeyError, TypeError) as error:
            with seen.guard:
                seen.errors.append(f"{window.name}: {type(error).__name__}: {error}")
            return
        finally:
            window.close()


def _stay(
    window: Window,
    dice: random.Random,
    number: int,
    end: float,
    seen: Seen,
    samples: int | None,
) -> None:
    for _ in window.press(None, "load"):
        pass
    if samples is not None:
        window["metric-samples"] = window["search-samples"] = samples
    if number == 0:
        window["search-trials"] = "4" if samples is None else "2"
        for _ in window.press("run-search", "click"):
            pass
        seen.counts["searches"] += 1
    while True:
        for _ in range(3):  # sliders are moved more often than applied
            window["strength"] = round(dice.uniform(0.2, 2.0), 2)
            for _ in window.press("strength", "input"):
                pass
            seen.counts["slider moves"] += 1
        for _ in window.press("apply", "click"):
            pass
        seen.counts["applied and measured"] += 1
        for _ in range(3):
            chat(window, dice.choice(MESSAGES), leave=dice.random() < 0.05, seen=seen)
        if dice.random() < 0.2:
            upload(window, seen)
        if dice.random() < 0.1 or time.monotonic() >= end:
            return


def chat(window: Window, message: str, leave: bool, seen: Seen) -> None:
    """A message that begins a chat, answered by the base and the applied recipe."""
    for _ in window.press("clear", "click"):
        pass
    window["box"], window["tokens"], window["temperature"] = message, 24, 0
    begin, first = time.monotonic(), 0.0
    for _ in window.press("send", "click"):
        if not first and said(window, "right"):
            first = time.monotonic() - begin
            if leave:
                raise Gone
    with seen.guard:
        seen.counts["answers"] += 1
        seen.first.append(first)
        asked = message, window["recipe-text"], 24
        seen.answers.setdefault(asked, set()).add(said(window, "right"))


def upload(window: Window, seen: Seen) -> None:
    """Four prompts of one's own."""
    rows = "\n".join(json.dumps({"prompt": f"What is {n}?"}) for n in range(4))
    sent = window.client.post("/gradio_api/upload", files={"files": ("mine.jsonl", rows.encode())})
    (path,) = sent.json()
    window["metrics-file"] = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for _ in window.press("metrics-file", "upload"):
        pass
    window["metrics-file"] = None
    seen.counts["uploads"] += 1


def wrong(address: str, seen: Seen) -> list[str]:
    """Answers unlike those that their recipes give when nobody else is there."""
    window, found = Window(address, "afterwards"), []
    (number,) = [n for n, each in window.events.items() if each["api_name"] == "compare"]
    event = {**window.events[number], "inputs": ["m", "r", "t"], "outputs": ["answer"]}
    for (message, recipe, tokens), told in seen.answers.items():
        window.values |= {"m": message, "r": recipe, "t": tokens}
        for _ in window._call(number, event):
            pass
        alone = window.values["answer"]["edited"].strip()
        found += [f"{message!r}: {text!r}, alone {alone!r}" for text in told if text != alone]
    return found


def watch(pid: int, seen: Seen, over: threading.Event) -> None:
    """Note the memory of a process, every second."""
    page, begin = os.sysconf("SC_PAGE_SIZE"), time.monotonic()
    while not over.wait(1.0):
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        seen.memory.append((time.monotonic() - begin, int(pages) * page))


def report(seen: Seen, bad: Sequence[str], visitors: int, minutes: float) -> str:
    """The table of docs/benchmarks.md."""
    warm = [size for at, size in seen.memory if at < min(WARM, minutes * 60 / 2)]
    late = [size for at, size in seen.memory[-60:]]
    after, last = median(warm[-30:]) / 2**20, median(late) / 2**20
    ordered = sorted(seen.first) or [0.0]
    rows = [
        ("visitors, minutes", f"{visitors}, {short(minutes)}"),
        *((name, str(count)) for name, count in sorted(seen.counts.items())),
        ("different answers compared", str(len(seen.answers))),
        ("answers unlike those alone", str(len(bad))),
        ("errors", str(len(seen.errors))),
        ("first word, median", f"{short(median(ordered))} s"),
        ("first word, 95 % within", f"{short(ordered[int(0.95 * (len(ordered) - 1))])} s"),
        ("memory when warm, at the end", f"{after:,.0f}, {last:,.0f} MiB ({last - after:+,.0f})"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the program, let visitors at it, and print a table; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--visitors", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--port", type=int, default=7899)
    options = parser.parse_args(arguments)
    address, seen, over = f"http://127.0.0.1:{options.port}", Seen(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        own = {f"SST_{name}": f"{folder}/{name.lower()}" for name in ("CACHE", "HOME", "OUTPUTS")}
        command = [sys.executable, "app.py", "--port", str(options.port)]
        program = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **own},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            ready(address)
            threading.Thread(target=watch, args=(program.pid, seen, over), daemon=True).start()
            end = time.monotonic() + 60 * options.minutes
            visitors = [
                threading.Thread(target=visit, args=(address, number, end, seen))
                for number in range(options.visitors)
            ]
            for each in visitors:
                each.start()
            for each in visitors:
                each.join()
            over.set()
            bad = wrong(address, seen)
        finally:
            over.set()
            program.terminate()
            program.wait()
    print(report(seen, bad, options.visitors, options.minutes))
    for line in (*seen.errors[:5], *bad[:5]):
        print(line)
    return int(bool(seen.errors or bad))


def ready(address: str) -> None:
    """Wait until a started program answers."""
    for _ in range(600):
        try:
            if httpx.get(f"{address}/config", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("the program did not start")


if __name__ == "__main__":
    sys.exit(main())
