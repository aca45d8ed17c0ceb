"""A filter in a real browser: chosen, measured, moved by its budget, applied, and it answers."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser
READOUT = "#filter-readout"


def test_a_filter_is_chosen_predicted_moved_and_applied(window):
    with window() as page:
        page.locator("#operation label").nth(0).click()
        expect(page.locator("#filter_goal")).to_be_hidden()
        page.locator("#operation label").nth(2).click()
        expect(page.locator("#filter_mu-decades")).to_be_visible()
        page.click("#direction-panel > button")
        page.fill("#samples input", "16")
        page.press("#samples input", "Tab")
        expect(page.locator(READOUT)).to_contain_text("Measure")
        page.click("#measure")
        expect(page.locator(READOUT)).to_contain_text("μ 1: predicted to remove")
        expect(page.locator("#curve .names span").last).to_contain_text("harmless moved")

        page.locator("#filter_goal label").nth(1).click()
        expect(page.locator("#filter_mu-decades")).to_be_hidden()
        before = page.locator(READOUT).inner_text()
        slider = page.locator("#filter_budget-decades input[type=range]")
        slider.focus()
        for _ in range(4):
            slider.press("ArrowLeft")
        page.wait_for_function(
            "old => document.querySelector('#filter-readout').innerText !== old", arg=before
        )
        expect(page.locator("#filter_budget input")).not_to_have_value("0.01")

        page.click("#apply")
        expect(page.locator("#apply")).to_contain_text("Applied")
        expect(page.locator("#picker-right input")).to_have_value(re.compile("filter ≤"))
