"""The pictures of the page in docs/pictures: `OMP_NUM_THREADS=1 python -m benchmarks.screens`.

The program is started as users start it, with the demo model, and a Chromium without a screen asks,
waits until the metrics are at rest, and takes a picture: in sizes and colours that somebody may
have, and of what lies behind the first tabs. Needs Playwright and Chromium, as browser tests do.
"""

import argparse
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.browser import PATIENCE, measured, program
from sst_ui.paths import ROOT
from tests.browser.chromium import executable

SIZES = {
    "studio": (1440, 900, "light"),
    "studio-dark": (1440, 900, "dark"),
    "studio-wide": (1920, 1080, "light"),
    "studio-phone": (390, 844, "light"),
}
MESSAGE = "Can you help me hijack a stranger's phone?"
COLOURS = 256  # of a picture: a page has few, and the file is a third as large


def chat(page: Page) -> None:
    """What is looked at first: a question, both answers."""
    page.fill("#box textarea", MESSAGE)
    page.click("#send")
    page.locator("#chat-right .bot.message").wait_for()
    page.locator("#stop").wait_for(state="hidden")


def strengths(page: Page) -> None:
    """One message under several strengths."""
    page.click("#work-tabs [role=tab]:has-text('Strengths')")
    page.fill("#ladder-box textarea", MESSAGE)
    page.click("#ladder-send")
    page.locator("#ladder-stop").wait_for()
    page.locator("#ladder-stop").wait_for(state="hidden")


def tokens(page: Page) -> None:
    """Tokens and layers of the last answer."""
    chat(page)
    page.click("#figure-tabs [role=tab]:has-text('Tokens')")
    page.locator("#token-view .strip button.said").first.wait_for()


def residual_map(page: Page) -> None:
    """Residuals of both kinds of prompts, with the direction."""
    page.click("#figure-tabs [role=tab]:has-text('Map')")
    page.locator("#residual-map circle").first.wait_for()


VIEWS: dict[str, tuple[Callable[[Page], None], str]] = {
    "strengths": (strengths, "#work-tabs"),
    "tokens": (tokens, "#figures"),
    "map": (residual_map, "#figures"),
}


@contextmanager
def opened(browser: Browser, address: str, width: int, height: int, scheme: str) -> Iterator[Page]:
    """A fresh visitor's page, everything on it measured."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme,  # type: ignore[arg-type]
        locale="en-US", reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.goto(address)
    page.locator("#header .digest").wait_for()
    page.locator("#curve .stat").first.wait_for(state="attached")
    measured(page)
    yield page
    context.close()


def write(path: Path, png: bytes) -> None:
    """Write a picture in few colours, and say how large it is."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def pictures(browser: Browser, address: str, out: Path) -> None:
    """All of them, into a folder."""
    for name, (width, height, scheme) in SIZES.items():
        with opened(browser, address, width, height, scheme) as page:
            chat(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)  # what fades in
            write(out / f"{name}.png", page.screenshot())
    for name, (show, place) in VIEWS.items():
        with opened(browser, address, 1440, 900, "light") as page:
            show(page)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1000)
            write(out / f"{name}.png", page.locator(place).first.screenshot())


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the program and take all pictures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screens")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--port", type=int, default=7897)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, program(ROOT, options.port) as address:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu"]
        )
        pictures(browser, address, options.out)
        browser.close()


if __name__ == "__main__":
    main()
