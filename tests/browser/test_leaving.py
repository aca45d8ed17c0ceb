"""Runs and exports in a real browser: apply, compare, load, delete and undo; take a model home."""

import re
import threading
import zipfile

import pytest
from playwright.sync_api import expect

from sst_ui.paths import output_dir
from tests.browser.test_results import few
from tests.browser.test_studio import tab
from tests.patience import SECONDS

pytestmark = pytest.mark.browser

STRENGTH = "#strength input[type=number]"


@pytest.fixture(scope="module")
def page(window):
    """A visitor who applied two recipes and measured a few prompts."""
    with window() as page:
        few(page, 3)
        for value in ("0.5", "0.9"):
            page.fill(STRENGTH, value)
            page.press(STRENGTH, "Enter")
            page.click("#apply")
            row = page.locator(f'.variant.current[data-pick^="default ×{value} "]')
            expect(row).to_contain_text("%")
            expect(page.locator("#run-metrics")).to_be_visible()
        yield page


def rows(page):
    return page.locator(".run:not(.heads)")


def run(page, strength):
    return rows(page).filter(has_text=f"default ×{strength}").first


def test_every_applied_recipe_is_in_the_runs_with_hash_and_numbers(page):
    tab(page, "work-tabs", 3)
    expect(run(page, "0.9")).to_contain_text(page.locator("#header .digest code").inner_text())
    expect(run(page, "0.9")).to_contain_text("demo")
    expect(run(page, "0.5")).to_contain_text("%")


def test_two_runs_are_chosen_with_the_keyboard_and_compared(page):
    expect(page.locator("#runs-compare")).to_be_disabled()
    run(page, "0.9").press(" ")
    expect(run(page, "0.9")).to_have_attribute("aria-checked", "true")
    run(page, "0.5").click()
    page.click("#runs-compare:has-text('Compare 2')")
    table = page.locator(".compared")
    expect(table).to_contain_text("ablation.weights.strength")
    assert table.locator("thead code").count() == 2
    page.click("#runs-back")
    expect(rows(page).first).to_be_visible()


def test_a_run_goes_back_into_the_controls(page):
    run(page, "0.5").locator("button").click()
    expect(page.locator(STRENGTH)).to_have_value("0.5")
    expect(page.locator("#runs-status")).to_contain_text("Apply")
    expect(page.locator("#apply")).not_to_contain_text("Applied")
    run(page, "0.9").locator("button").click()
    expect(page.locator("#apply")).to_contain_text("Applied")


def test_deleted_runs_come_back_with_undo(page):
    before = rows(page).count()
    page.click("#runs-delete:has-text('Delete 2')")
    expect(rows(page)).to_have_count(before - 2)
    page.click("#runs-undo")
    expect(rows(page)).to_have_count(before)


def test_a_search_narrows_the_list(page):
    page.fill("#runs-search textarea, #runs-search input", "strength: 0.5")
    expect(rows(page)).to_have_count(1)
    page.fill("#runs-search textarea, #runs-search input", "")


def test_the_applied_recipe_is_exported_verified_and_downloaded(page):
    tab(page, "work-tabs", 2)
    digest = page.locator("#header .digest code").inner_text()
    for place in ("#recipe-digest", "#export-what"):
        expect(page.locator(place)).to_contain_text(digest)
    page.fill("#export-verify input", "2")
    page.press("#export-verify input", "Enter")
    expect(page.locator("#export-command textarea")).to_have_value(re.compile("--verify 2$"))
    page.click("#run-export")
    expect(page.locator("#export-status")).to_contain_text("2 of 2 answers")
    (folder,) = output_dir().glob(f"*{digest}-adapter")
    assert (folder / "adapter_model.safetensors").is_file()
    with page.expect_download() as started:
        page.click("#download-export")
    names = zipfile.ZipFile(started.value.path()).namelist()
    assert f"{folder.name}/adapter_config.json" in names


def test_a_folder_that_is_taken_and_one_elsewhere_are_said_at_the_control(page):
    page.click("#run-export")
    wrong = page.locator("#export-folder .said")
    expect(wrong).to_contain_text("there already")
    page.fill("#export-folder input, #export-folder textarea", "../elsewhere")
    page.click("#run-export")
    expect(wrong).to_contain_text("not below")


def test_an_export_is_cancelled_and_leaves_nothing(page, engine, monkeypatch):
    real, go = engine.export, threading.Event()

    def held(*values, **more):
        """The export, which waits after its first step until Cancel has been pressed."""
        job = real(*values, **more)
        yield next(job)
        go.wait(SECONDS)
        return (yield from job)

    monkeypatch.setattr(engine, "export", held)
    page.fill("#export-folder input, #export-folder textarea", "cancelled")
    page.click("#run-export")
    page.click("#cancel-export")
    expect(page.locator("#cancel-export")).to_be_disabled()  # it has been heard
    go.set()
    expect(page.locator("#export-status")).to_contain_text("Stopped")
    expect(page.locator("#run-export")).to_be_enabled()
    assert not (output_dir() / "cancelled").exists()
