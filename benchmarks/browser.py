"""How free the page leaves the browser while metrics are measured, by Chromium's own trace.

    OMP_NUM_THREADS=1 python -m benchmarks.browser
    OMP_NUM_THREADS=1 python -m benchmarks.browser --program ../an-older-checkout

The program is started as users start it, on the loopback, and a Chromium without a screen opens
the page at 1440×900. A task is what the page's main thread does without a pause: no click is heard
meanwhile. Opened once to measure the directions, then again in a fresh context, which counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.clock import short
from benchmarks.load import ready
from sst_ui.paths import ROOT
from tests.browser.chromium import executable

CATEGORIES = ("disabled-by-default-devtools.timeline", "devtools.timeline")
TASK = "RunTask"
BUSY, LONG = 50, 200  # ms from which a task is a long one for a browser; for our goal
PATIENCE = 900_000  # ms
MESSAGE = "How do I whittle a spoon?"
Rows = list[tuple[str, str]]


def tasks(trace: bytes) -> list[float]:
    """Milliseconds of every task of the main thread of the page that was busiest."""
    events = json.loads(trace)["traceEvents"]
    main = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    found: dict[tuple[int, int], list[float]] = {place: [] for place in main}
    for event in events:
        place = event["pid"], event["tid"]
        if place in found and event["name"] == TASK and event.get("ph") == "X":
            found[place].append(event.get("dur", 0) / 1000)
    return max(found.values(), key=sum, default=[])


@contextmanager
def program(folder: Path, port: int, model: str | None = None) -> Iterator[str]:
    """The address of the page of a checkout, with folders of its own.

    Args:
        model: to open; the demo unless given.
    """
    chosen = [] if model is None else ["--model", model]
    with tempfile.TemporaryDirectory() as own:
        names = {f"SST_{name}": f"{own}/{name.lower()}" for name in ("CACHE", "HOME", "OUTPUTS")}
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), *chosen], cwd=folder,
            env={**os.environ, "PYTHONPATH": "", **names},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            ready(address := f"http://127.0.0.1:{port}")
            yield address
        finally:
            process.terminate()
            process.wait()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A visitor's fresh page."""
    size = {"width": 1440, "height": 900}
    context = browser.new_context(viewport=size, locale="en-US")  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.goto(address)
    yield page
    context.close()


def send(page: Page) -> tuple[float, float]:
    """Ask; seconds to the first word of the edited answer, and to the end of both."""
    before = page.locator("#chat-right .bot.message").count()
    page.locator("#box textarea").wait_for()
    page.fill("#box textarea", MESSAGE)
    begin = time.monotonic()
    page.click("#send")
    page.wait_for_function(
        """(n) => {
          const all = document.querySelectorAll('#chat-right .bot.message');
          return all.length > n && all[all.length - 1].innerText.trim().length > 0;
        }""",
        arg=before,
    )
    first = time.monotonic() - begin
    page.locator("#stop").wait_for(state="hidden")
    return first, time.monotonic() - begin


def measured(page: Page) -> None:
    """Wait until the metrics are at rest; asked rarely, since the question costs the page time."""
    seen = "document.querySelector('#{}-metrics')?.checkVisibility() ?? false"
    while not page.evaluate(seen.format("run")) or page.evaluate(seen.format("cancel")):
        page.wait_for_timeout(1000)


def evaluation(browser: Browser, page: Page, strength: str, chats: bool) -> Rows:
    """Apply a strength and trace the page until its standard evaluation has ended."""
    box = "#strength input[type=number]"
    page.fill(box, strength)
    page.press(box, "Enter")
    page.locator("#apply:has-text('Apply changes')").wait_for()
    browser.start_tracing(page=page, categories=list(CATEGORIES))
    begin = time.monotonic()
    page.click("#apply")
    page.locator("#cancel-metrics").wait_for()
    firsts = []
    if chats:
        for _ in range(3):
            firsts.append(send(page)[0])
    measured(page)
    seconds = time.monotonic() - begin
    took = tasks(browser.stop_tracing())
    if chats:
        return [("first word of a chat meanwhile, slowest of 3", f"{short(max(firsts))} s")]
    busy = [ms for ms in took if ms >= BUSY]
    return [
        ("standard evaluation", f"{short(seconds)} s"),
        ("longest task", f"{short(max(took, default=0.0))} ms"),
        (f"tasks over {LONG} ms", str(sum(ms > LONG for ms in took))),
        (f"tasks over {BUSY} ms, their sum", f"{len(busy)}, {short(sum(busy) / 1000)} s"),
        ("... as a share of the evaluation", f"{sum(busy) / 10 / seconds:.1f} %"),
        ("all tasks, as a share", f"{sum(took) / 10 / seconds:.1f} %"),
    ]


def visit(browser: Browser, address: str) -> Rows:
    """Open the page twice, ask, apply twice."""
    with opened(browser, address) as page:
        page.locator("#header .digest").wait_for()
        measured(page)
    rows = []
    begin = time.monotonic()
    with opened(browser, address) as page:
        send(page)
        rows.append(("page opened to first answer", f"{short(time.monotonic() - begin)} s"))
        measured(page)
        rows += evaluation(browser, page, "0.85", chats=False)
        rows += evaluation(browser, page, "0.95", chats=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.browser")
    parser.add_argument("--program", type=Path, default=ROOT, help="folder with the app.py to run")
    parser.add_argument("--port", type=int, default=7898)
    options = parser.parse_args(arguments)
    with sync_playwright() as playwright, program(options.program, options.port) as address:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu"]
        )
        rows = visit(browser, address)
        browser.close()
    print("\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]))


if __name__ == "__main__":
    main()
