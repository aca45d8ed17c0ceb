"""The merge in a real browser: switched on, predicted, the point follows, applied, answered."""

import re

import pytest
from playwright.sync_api import expect

from sst_ui.paths import DEMO

pytestmark = pytest.mark.browser
CHOSEN = "#merge .scatterlayer .trace:nth-child(2) .points path"


def test_a_merge_is_predicted_moved_applied_and_answers(window):
    with window() as page:
        page.locator("#edit-tabs .tab-wrapper [role=tab]").nth(1).click()
        for name in ("utility", "safety"):
            page.fill(f"#{name} input", str(DEMO / "adapters" / name))
            page.press(f"#{name} input", "Enter")
        page.click("#merge-data > button")
        page.fill("#m_samples input", "4")
        page.press("#m_samples input", "Tab")
        page.click("#predict")
        expect(page.locator("#merge-readout")).to_contain_text("keeps")
        expect(page.locator("#merge_on input")).to_be_checked()
        expect(page.locator("#apply")).to_contain_text("Apply changes")

        before = page.locator(CHOSEN).get_attribute("transform")
        slider = page.locator("#budget-decades input[type=range]")
        slider.focus()
        for _ in range(4):
            slider.press("ArrowLeft")
        page.wait_for_function(
            "([path, old]) => document.querySelector(path)?.getAttribute('transform') !== old",
            arg=[CHOSEN, before],
        )
        expect(page.locator("#budget input")).not_to_have_value("0.0005")

        page.click("#apply")
        expect(page.locator("#apply")).to_contain_text("Applied")
        expect(page.locator("#picker-right input")).to_have_value(re.compile("^Merged and ablated"))
        expect(page.locator("#merge .scatterlayer .trace")).to_have_count(3)  # and a diamond
        page.click("#picker-left input")
        page.get_by_role("option", name="Utility adapter only").click()
        page.click(".example.is-jailbreak")
        expect(page.locator("#chat-status")).to_contain_text("/s")
        for side in ("left", "right"):
            assert page.locator(f"#chat-{side} .bot.message p").last.inner_text().strip()

        page.locator("#ablation_on input").evaluate("box => box.click()")  # the merge alone
        expect(page.locator("#apply")).to_contain_text("Apply changes")
        page.click("#apply")
        expect(page.locator("#apply")).to_contain_text("Applied")
        expect(page.locator("#picker-right input")).to_have_value(re.compile("^Edited · sst ≤"))
        for place in (1, 2):
            page.locator("#merge-view label").nth(place).click()
            expect(page.locator("#merge .main-svg").first).to_be_visible()
