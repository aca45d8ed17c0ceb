"""What a visitor does on a shared studio, in a real browser, each step with what it found.

The steps are generators of lines, so that a rehearsal prints them as they come, and a step that
fails is an AssertionError of Playwright's. Knows the page, and not how it was started.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Browser, Page, expect

from sst_ui import recipe as recipes
from sst_ui.paths import PRESETS
from tests.patience import MILLISECONDS
from tests.standin import Hub

WIDTH = 0.31  # of the kernel in the link


@dataclass(frozen=True)
class Visit:
    """A browser, and where it goes."""

    browser: Browser
    address: str

    def opened(self, path: str = "") -> Page:
        """A new visitor's page, with a recipe applied."""
        context = self.browser.new_context(
            viewport={"width": 1440, "height": 900}, locale="en-US", reduced_motion="reduce"
        )
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.goto(self.address + path)
        ready(page)
        return page


@contextmanager
def pictured(browser: Browser, folder: Path) -> Iterator[None]:
    """Leave a picture of every page in a folder when something goes wrong."""
    try:
        yield
    except BaseException:
        pages = [page for context in browser.contexts for page in context.pages]
        for number, page in enumerate(pages):
            page.screenshot(path=folder / f"page-{number}.png")
        raise


def ready(page: Page) -> None:
    """Wait until the page is open with a recipe applied."""
    page.wait_for_selector("#header .digest")
    expect(page.locator("#apply")).to_contain_text("Applied")


def tab(page: Page, place: int) -> None:
    """To one of the tabs below the figures."""
    page.locator("#work-tabs .tab-wrapper [role=tab]").nth(place).click()


def works(page: Page) -> Iterator[str]:
    """Chat, metrics, apply, export."""
    expect(page.locator("#model-line")).to_contain_text("demo")
    yield f"the page opens: {page.locator('#header .digest').inner_text()}"
    page.click(".example.is-harmful")
    expect(page.locator("#chat-status")).to_contain_text("/s")
    left, right = (page.locator(f"#chat-{side} .bot.message p").last for side in ("left", "right"))
    assert left.inner_text() != right.inner_text()
    yield f"both columns answer: {page.locator('#chat-status').inner_text()}"
    expect(page.locator("#run-metrics")).to_be_visible()
    expect(page.locator(".metric.ghost")).to_have_count(0)
    row = page.locator('.metric[data-pick="refusal_rate"]')
    expect(row).to_contain_text("n ")
    yield f"the metrics are measured: {' '.join(row.inner_text().split())}"
    page.click("#profile label:has-text('Narrow')")
    page.click("#apply")
    expect(page.locator(".variant.current")).to_contain_text("narrow")
    expect(page.locator("#apply-status")).to_contain_text("modules")
    yield f"another recipe is applied: {page.locator('#apply-status').inner_text().splitlines()[0]}"
    yield f"it is exported and downloaded: {exported(page)}"


def exported(page: Page) -> str:
    """Export the applied recipe, verified, and take it home."""
    tab(page, 2)
    page.click("#run-export")
    expect(page.locator("#export-status .notice.good")).to_contain_text("MB in")
    with page.expect_download() as taken:
        page.click("#download-export")
    content = taken.value.path().read_bytes()
    names = {name.split("/", 1)[1] for name in zipfile.ZipFile(io.BytesIO(content)).namelist()}
    assert {"adapter_model.safetensors", "recipe.yaml", "README.md"} <= names, names
    said = page.locator("#export-status .notice").inner_text().splitlines()[0]
    return f"{len(names)} files, {len(content) / 1e6:.1f} MB. {said}"


def link() -> str:
    """The end of an address that opens a recipe which is not the default one."""
    recipe = recipes.load(PRESETS / "recipes" / "default.yaml")
    edit = recipe.edits[0]
    weights = replace(edit.weights, profile="custom", width=WIDTH, strength=1.5)
    text = recipes.to_yaml(replace(recipe, edits=(replace(edit, weights=weights),)))
    return f"/?recipe={quote(text)}"


def opens_links(visit: Visit) -> Iterator[str]:
    """A link with a recipe, and that visitors have nothing of each other's."""
    page = visit.opened(link())
    expect(page.locator("#width input[type=number]")).to_have_value(str(WIDTH))
    current = page.locator(".variant.current")
    expect(current).to_contain_text("custom ×1.5")
    expect(page.locator(".variant[data-pick]")).to_have_count(1)  # none of an earlier visitor's
    yield f"a ?recipe= link opens with its recipe: {current.inner_text().splitlines()[0]}"
    page.context.close()


def is_guarded(page: Page) -> Iterator[str]:
    """What visitors may not do."""
    page.click("#model-panel button.label-wrap")
    expect(page.locator("#load-model")).to_be_disabled()
    said = page.locator("#model-status").inner_text()
    page.fill("#model-id input, #model-id textarea", "/etc")
    page.press("#model-id input, #model-id textarea", "Enter")
    expect(page.locator("#model-status")).to_contain_text("owner's choice")
    expect(page.locator("#model-line")).to_contain_text("demo")
    yield f"the model cannot be replaced: {said}"


def signs_in(page: Page, hub: Hub, visitor: str) -> Iterator[str]:
    """Push: not before signing in, and then with the visitor's own token."""
    tab(page, 2)
    hub.callers.clear()
    push(page, f"{visitor}/edited")
    expect(page.locator("#export-status")).to_contain_text("Sign in")
    assert (hub.repos, hub.callers) == ({}, [])
    yield f"nobody pushes before signing in: {page.locator('#hub-login').inner_text()}"
    with page.expect_event("load"):  # of the page that signing in leads back to
        page.click("#hub-login")
    ready(page)
    tab(page, 2)
    expect(page.locator("#hub-login")).to_contain_text(visitor)
    exported(page)
    push(page, f"{visitor}/edited")
    expect(page.locator("#export-status .good")).to_contain_text(f"{visitor}/edited")
    assert hub.repos[f"{visitor}/edited"]["private"] is True
    assert set(hub.callers) == {visitor}, hub.callers
    yield f"signed in, the export is pushed, private, by {visitor} alone: {visitor}/edited"


def push(page: Page, name: str) -> None:
    """Press Push."""
    page.fill("#hub-repo input, #hub-repo textarea", name)
    page.click("#push")


def is_calm(log: str) -> Iterator[str]:
    """That the program wrote of no defect."""
    told = re.sub(
        r"(?m)^Exception ignored in.*\nTraceback.*$", "", log
    )  # Python's, at a loop's end
    found = re.findall(r"(?m)^(?:Traceback.*|ERROR .*)$", told)
    assert found == [], found
    yield "its log has no error"
