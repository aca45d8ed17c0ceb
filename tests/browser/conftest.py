"""The studio on this machine and a Chromium that looks at it."""

import contextlib

import pytest
from playwright.sync_api import expect, sync_playwright

from sst_ui.jobs.evaluate import evaluate
from sst_ui.progress import finish
from sst_ui.ui import Engine, build
from tests.browser.chromium import executable
from tests.patience import MILLISECONDS, launched

ARGUMENTS = (
    "--no-sandbox",
    "--headless=new",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
HURRIED = 15_000  # milliseconds


@pytest.fixture(scope="package")
def engine(folders):
    """The engine behind the page. What every visitor's page measures by itself is kept short: the
    numbers are other tests' business, and a minute of them for each window would be all there is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(evaluate._presets()["standard"], "samples", 4)
        yield Engine()


@pytest.fixture(scope="package")
def address(engine):
    """Address of the launched page, with the demo open and measured."""
    page = build(engine)
    url = launched(page)
    engine.open()  # after the launch, as in app.py
    finish(engine.wait())
    assert engine.failure is None
    yield url
    page.close()


@pytest.fixture(scope="package")
def chromium():
    """A Chromium; fails, saying how to get one, where there is none."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=list(ARGUMENTS), timeout=MILLISECONDS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def window(chromium, address):
    """`window(**options)`: a context manager for a fresh visitor's page, open and measured."""

    @contextlib.contextmanager
    def open_window(path="", **options):
        options = {"viewport": {"width": 1440, "height": 900}, "locale": "en-US", **options}
        options["reduced_motion"] = "reduce"  # what moves is drawn by a processor of the tests'
        context = chromium.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address + path)
        page.wait_for_selector("#curve .stat", state="attached")  # the measured signal
        page.wait_for_selector("#header .digest")
        yield page
        context.close()
        assert errors == []

    return open_window


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """After a test that failed, those that follow on the same page wait no longer for states that
    may never come: each would take all of its patience."""
    report = yield
    page = item.funcargs.get("page") if hasattr(item, "funcargs") else None
    if report.failed and page is not None:
        expect.set_options(timeout=HURRIED)
        page.set_default_timeout(HURRIED)
    return report


@pytest.fixture(scope="module", autouse=True)
def patient():
    """Every module begins with all the patience there is."""
    expect.set_options(timeout=MILLISECONDS)


@pytest.fixture(scope="module")
def page(window):
    """One visitor's page for a module of tests, each of which leaves it in order."""
    with window() as page:
        yield page
