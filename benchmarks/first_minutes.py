"""The first minutes with a model that nobody has measured yet, as they go by in the page.

    OMP_NUM_THREADS=2 python -m benchmarks.first_minutes MODEL [--minutes 8] [--film FILE.gif]

The program is started as users start it, with an empty cache, and a Chromium without a screen sends
a message as soon as the page is open. What can be seen is looked at four times a second: when the
model is there, the first words of either column, the first edit, the metrics as they come. A second
message goes beside the metrics, and a third when all prompts are measured and the metrics that
began then are cancelled: an answer that nothing goes on beside. Needs Playwright and Chromium, as
the browser tests do.
"""

import argparse
import io
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.browser import opened, program
from benchmarks.clock import short
from sst_ui.paths import ROOT
from tests.browser.chromium import executable

MESSAGE = "How do I sharpen a kitchen knife?"
SEEN = """() => {
  const said = (side) => {
    const all = document.querySelectorAll(`#chat-${side} .bot.message`);
    const last = all[all.length - 1];
    const head = last?.querySelector('.source');
    return last ? last.innerText.trim().length - (head ? head.innerText.trim().length : 0) : 0;
  };
  const there = (place) => document.querySelector(place)?.checkVisibility() ?? false;
  return {
    'the model is there': document.querySelector('#model-line b') !== null,
    'first word of the base': said('left') > 3,
    'first edit applied': document.querySelector('#header .digest') !== null,
    'first word of the edited model': said('right') > 3,
    'both answers complete': said('left') > 3 && said('right') > 3 && !there('#stop'),
    'first metric': document.querySelectorAll('#metrics .metric:not(.ghost)').length >= 1,
    'first three metrics': document.querySelectorAll('#metrics .metric:not(.ghost)').length >= 3,
  };
}"""
LAST = "first three metrics"
FRAMES = 4.0  # seconds between two pictures of a film, which shows them eight times as fast


class Film:
    """Pictures of the page, every few seconds."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._taken = path, 0.0
        self._frames: list[Image.Image] = []

    def look(self, page: Page) -> None:
        """Take one, if it is time to."""
        if self._path is None or time.monotonic() - self._taken < FRAMES:
            return
        self._taken = time.monotonic()
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize((960, 600))
        self._frames.append(picture.quantize(64, dither=Image.Dither.NONE))

    def write(self) -> None:
        """The film as a GIF."""
        if self._path is not None and self._frames:
            first, *rest = self._frames
            first.save(
                self._path, save_all=True, append_images=rest, loop=0, optimize=True,
                duration=round(FRAMES / 8 * 1000),
            )  # fmt: skip


def ask(page: Page) -> float:
    """Ask again and wait for both answers; tokens of both a second."""
    page.fill("#box textarea", MESSAGE)
    page.click("#send")
    begun = time.monotonic()
    page.locator("#stop").wait_for()
    page.locator("#stop").wait_for(state="hidden")
    tokens = re.match(r"([\d,]+) ", page.locator("#chat-status").inner_text())
    return int(tokens[1].replace(",", "")) / (time.monotonic() - begun)  # type: ignore[index]


def watch(page: Page, film: Film, seconds: float) -> dict[str, float]:
    """What was seen when, in seconds since now."""
    begun, found = time.monotonic(), dict[str, float]()
    while LAST not in found and time.monotonic() - begun < seconds:
        now = time.monotonic() - begun
        for what, there in page.evaluate(SEEN).items():
            if there:
                found.setdefault(what, now)
        film.look(page)
        page.wait_for_timeout(250)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch, and print a table; 0, or 1 where something was not seen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_minutes")
    parser.add_argument("model", help="a folder or an id, as app.py takes it")
    parser.add_argument("--minutes", type=float, default=8, help="at most")
    parser.add_argument("--film", type=Path, help="a GIF to write")
    parser.add_argument("--port", type=int, default=7896)
    options = parser.parse_args(arguments)
    film = Film(options.film)
    with (
        sync_playwright() as playwright,
        program(ROOT, options.port, options.model) as address,
    ):
        browser = playwright.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu"]
        )
        with opened(browser, address) as page:
            page.fill("#box textarea", MESSAGE)
            page.click("#send")
            found = watch(page, film, 60 * options.minutes)
            speeds = {}
            if LAST in found:
                speeds["beside the metrics"] = ask(page)
                page.locator("#header .digest").filter(has_not_text="32+32").wait_for()
                page.click("#cancel-metrics")
                page.locator("#run-metrics").wait_for()
                speeds["alone"] = ask(page)
        browser.close()
    film.write()
    loaded, edit = (found.get(each) for each in ("the model is there", "first edit applied"))
    print("| what is seen | after opening | after the model is there | after the first edit |")
    print("|---|---|---|---|")
    for what, when in found.items():
        since = [when] + [
            when - each if each is not None and when > each else None for each in (loaded, edit)
        ]
        print(f"| {what} | {' | '.join('' if s is None else f'{short(s)} s' for s in since)} |")
    for how, speed in speeds.items():
        print(f"| an answer {how} | {short(speed)} tokens/s | | |")
    return 0 if LAST in found else 1


if __name__ == "__main__":
    sys.exit(main())
