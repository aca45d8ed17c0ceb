"""A search in a real browser: a bad constraint, a grid that is watched, paused, resumed, used."""

import re
import threading

import pytest
from playwright.sync_api import expect

from sst_ui.jobs.search.trials import Local
from sst_ui.progress import Progress
from tests.browser.test_studio import tab

pytestmark = pytest.mark.browser
CURVE = "#curve .attention .line"


@pytest.fixture
def held(monkeypatch):
    """Searches wait after their first five candidates, telling so, until the event is set."""
    gate, batch, begun = threading.Event(), Local.batch, []

    def waiting(self, recipes, evaluation):
        begun.append(len(recipes))
        while len(begun) > 1 and not gate.wait(0.2):
            yield Progress("refusal_rate", 0, 1, "held by the test")
        return (yield from batch(self, recipes, evaluation))

    monkeypatch.setattr(Local, "batch", waiting)
    yield gate
    gate.set()


def test_a_grid_is_watched_paused_resumed_and_its_candidates_used(window, held):
    with window() as page:
        expect(page.locator('.metric[data-pick="refusal_rate"]')).to_contain_text(
            "n "
        )  # it is open
        tab(page, "work-tabs", 5)
        expect(page.locator("#search-plot")).to_contain_text("press Search")
        expect(page.locator("#search-hint")).to_contain_text("target ≤ 0.02")
        page.fill("#search-constraints textarea", "qualty >= 0.7")
        page.fill("#search-trials input, #search-trials textarea", "10")
        page.click("#search-more > button")
        for name, value in (("samples", "4"), ("tokens", "8")):
            page.fill(f"#search-{name} input", value)
            page.press(f"#search-{name} input", "Tab")
        page.click("#run-search")
        wrong = page.locator("#search-constraints .said")
        expect(wrong).to_contain_text("did you mean 'quality'")
        page.fill("#search-constraints textarea", "")

        page.click("#run-search")
        rows = page.locator("#search-table tbody tr")
        expect(rows).to_have_count(5)
        expect(page.locator("#search-progress")).to_contain_text("5/10")
        expect(page.locator("#search-plot .heatmap-label")).to_have_count(5)
        before = page.locator(CURVE).first.get_attribute("d")  # the page answers meanwhile
        page.fill("#peak input[type=number]", "0.3")
        page.press("#peak input[type=number]", "Enter")
        expect(page.locator(CURVE).first).not_to_have_attribute("d", before)
        page.locator("#search-view label").nth(1).click()
        expect(page.locator("#search-plot .scatterlayer .points path").first).to_be_visible()

        page.click("#pause-search")
        expect(page.locator("#search-status")).to_contain_text("5 of 10")
        expect(page.locator("#resume-search")).to_be_visible()
        held.set()
        page.click("#resume-search")
        expect(page.locator("#search-status")).to_contain_text("Tried 10 of 10")
        expect(page.locator("#run-search")).to_be_visible()
        expect(rows).to_have_count(10)
        page.locator("#search-view label").nth(0).click()
        expect(page.locator("#search-plot .heatmap-label")).to_have_count(10)

        row = rows.nth(3)
        row.press("Enter")
        expect(row).to_have_class(re.compile("current"))
        peak, width = re.findall(r"[\d.]+", row.locator("td").first.inner_text())
        page.click("#use-candidate")
        expect(page.locator("#search-told")).to_contain_text("in the controls")
        expect(page.locator("#peak input[type=number]")).to_have_value(peak)
        expect(page.locator("#width input[type=number]")).to_have_value(width)
        expect(page.locator("#apply")).to_contain_text("Apply changes")

        page.click("#keep-candidates")
        expect(page.locator("#search-told")).to_contain_text("3 variants")
        expect(page.locator("#variants .variant:not(.heads)")).to_have_count(4)
        tab(page, "work-tabs", 0)
        expect(page.locator("#picker-right input")).to_have_value(re.compile("^peak"))
