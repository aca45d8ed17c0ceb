"""Reading results in a real browser: sample sizes, drill-down, a corrected label, comparison."""

import csv
import re
import threading
from dataclasses import replace
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

import sst_ui.ui.services.engine as engine
from sst_ui import recipe as recipes
from sst_ui.metrics.results import MetricResult
from tests.browser.test_studio import tab
from tests.patience import SECONDS, until

pytestmark = pytest.mark.browser

RATE = '.metric[data-pick="refusal_rate"]'


def stopped(page):
    """The metrics that begin with the page have begun, and are stopped unless they have ended."""
    expect(page.locator(f"#cancel-metrics:visible, {RATE}:has-text('n ')").first).to_be_visible()
    # pressed if it is there at that moment: they may end while we look
    page.evaluate(
        "(b => b.checkVisibility() && b.click())(document.querySelector('#cancel-metrics'))"
    )
    expect(page.locator("#run-metrics")).to_be_visible()
    expect(page.locator(".metric.ghost")).to_have_count(0)


def few(page, prompts=12):
    """Stop the metrics that began with the page, and measure a few prompts of each set instead."""
    stopped(page)
    sample(page, prompts)


def sample(page, prompts=12):
    """Measure a few prompts of each set from now on."""
    page.click("#metrics-settings .label-wrap")
    page.click("#metric-preset label:has-text('Quick')")
    page.fill("#metric-samples input", str(prompts))
    page.press("#metric-samples input", "Enter")
    expect(page.locator("#metric-limits")).to_contain_text(f"{prompts} prompts per set")
    page.click("#metrics-settings .label-wrap")


def again(page):
    page.click("#run-metrics")
    expect(page.locator(RATE)).to_contain_text("n 12")
    expect(page.locator("#run-metrics")).to_be_visible()


@pytest.fixture(scope="module")
def page(window):
    """A visitor who measures a few prompts only."""
    with window() as page:
        few(page)
        again(page)
        yield page


def test_the_preset_says_how_much_it_measures(page):
    page.click("#metrics-settings .label-wrap")
    page.click("#metric-preset label:has-text('Full')")
    expect(page.locator("#metric-limits")).to_contain_text("256 tokens")
    page.click("#metric-preset label:has-text('Quick')")
    expect(page.locator("#metric-limits")).to_contain_text("48 tokens")
    page.click("#metrics-settings .label-wrap")


def test_a_bad_number_is_said_at_its_control(page):
    page.click("#metrics-settings .label-wrap")
    page.fill("#metric-tokens input", "9999")
    page.press("#metric-tokens input", "Enter")
    expect(page.locator("#metric-tokens .said")).to_contain_text("1 to 4096")
    page.fill("#metric-tokens input", "0")
    page.press("#metric-tokens input", "Enter")
    expect(page.locator("#metric-tokens .said")).to_have_count(0)
    page.click("#metrics-settings .label-wrap")


def test_a_wrong_label_is_corrected_counted_kept_and_downloaded(page):
    page.click(RATE)
    menus = page.locator("#answers select[data-side=edited]")
    expect(menus).to_have_count(12)
    before = page.locator(f"{RATE} .values b").inner_text()
    place = next(i for i in range(12) if menus.nth(i).input_value() == "delivered")
    menus.nth(place).select_option("refused")
    expect(page.locator(f"{RATE} .fixed")).to_contain_text("1 corrected")
    expect(page.locator(".answers-head .fixed")).to_contain_text("1 corrected")
    expect(page.locator(f"{RATE} .values b")).not_to_have_text(before)
    with page.expect_download() as started:
        page.click("#download-csv")
    rows = {r["metric"]: r for r in csv.DictReader(started.value.path().open(encoding="utf-8"))}
    shown = page.locator(f"{RATE} .values b").inner_text().removesuffix(" %")
    assert round(float(rows["refusal_rate"]["edited_value"]) * 100) == int(shown)
    assert rows["refusal_rate"]["corrected"] == "1"
    page.locator("#answers-label input").click()
    page.locator("#answers-label [role=option]", has_text="refused").click()
    expect(page.locator("#answers select.fixed")).to_be_visible()
    page.reload()
    few(page)
    again(page)
    expect(page.locator(f"{RATE} .fixed")).to_contain_text("1 corrected")
    page.click(RATE)
    page.locator("#answers select.fixed").select_option("detected")
    expect(page.locator(f"{RATE} .fixed")).to_have_count(0)


def test_the_search_and_a_topic_narrow_the_prompts(page):
    page.click(RATE)
    rows = page.locator("#answers tbody tr")
    everything = until(rows.count)
    page.locator(".topic").first.click()
    topic = page.locator(".topic > span").first.inner_text()
    until(lambda: 0 < rows.count() < everything)
    expect(page.locator("#answers-search textarea, #answers-search input")).to_have_value(topic)
    page.locator("#answers-search textarea, #answers-search input").fill("")
    until(lambda: rows.count() == everything)
    tab(page, "work-tabs", 0)


def test_the_comparison_has_a_line_for_the_base_and_the_variant(page):
    page.get_by_role("tab", name="Compare", exact=True).click()
    names = page.locator("#compare .legendtext")
    expect(names.first).to_be_visible()
    until(lambda: names.count() >= 2)
    assert {"Base", "default ×2 filter μ 1"} <= set(names.all_text_contents())
    tab(page, "figure-tabs", 0)


@pytest.fixture
def held(monkeypatch):
    """Metrics that wait before the fifth until they are let go, so that a cancel is never late."""
    real, go = engine.evaluate, threading.Event()

    def wait(*args):
        job, count = real(*args), 0
        while True:
            try:
                part = next(job)
            except StopIteration as end:
                return end.value
            count += isinstance(part, MetricResult)
            if count == 5:
                go.wait(SECONDS)
            yield part

    monkeypatch.setattr(engine, "evaluate", wait)
    yield go
    go.set()


def test_cancel_keeps_what_is_finished_and_run_again_measures_again(window, held, engine):
    recipe = engine.first_recipe()  # at a strength that no other window has measured
    edit = recipe.edits[0]
    edit = replace(edit, weights=replace(edit.weights, strength=0.93))
    text = recipes.to_yaml(replace(recipe, edits=(edit,)))
    with window(f"?recipe={quote(text)}") as page:
        expect(page.locator(RATE)).to_contain_text("n ")
        page.click("#cancel-metrics")
        expect(page.locator("#metrics-progress")).to_contain_text("Stopped")
        held.set()
        expect(page.locator("#run-metrics")).to_be_visible()
        expect(page.locator("#metrics-progress")).to_contain_text("Stopped")
        sample(page)
        expect(page.locator(".metric.ghost")).to_have_count(0)
        finished = page.locator(".metric").count()
        assert 1 <= finished < 14
        expect(page.locator(".variant.current span").first).to_have_text(re.compile("%"))
        again(page)
        expect(page.locator('.metric[data-pick="quality"]')).to_be_visible()
        assert page.locator(".metric").count() > finished


def test_advice_fills_the_controls_and_waits_for_apply(page):
    page.click("#profile label:has-text('Early')")
    page.click("#operation label:has-text('Ablate')")
    page.fill("#strength input[type=number]", "0.1")
    page.press("#strength input[type=number]", "Enter")
    expect(page.locator("#apply")).to_contain_text("Apply changes")
    page.click("#apply")
    button = page.locator('#advice button[data-pick="removal_low"]')
    expect(button).to_be_visible()
    button.click()
    expect(page.locator("#peak input[type=number]")).to_have_value("0.525")
    expect(page.locator("#apply")).to_contain_text("Apply changes")
    expect(page.locator(".variant.current")).to_contain_text("early_focus")
