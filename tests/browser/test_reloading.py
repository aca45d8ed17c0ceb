"""A browser that reloads again and again in the middle of everything: nothing stays behind."""

import logging
import traceback

import pytest
from playwright.sync_api import expect
from starlette.exceptions import HTTPException

from tests.browser.test_studio import said
from tests.patience import until

pytestmark = pytest.mark.browser

TIMES, PATIENT = 20, 5
FRANCE = "What is the capital of France?"
STRENGTH = "#strength input[type=number]"


def at_rest(engine) -> bool:
    """Whether no answer and no job is on its way."""
    return engine._chats == 0 and engine.queue.sizes == (0, 0)


def ended_by_gradio(record) -> bool:
    """Whether it says that the stream of a page that has gone was ended, which Gradio does by a 404
    in the middle of it, or by forgetting twice what was pending."""
    error = record.exc_info and record.exc_info[1]
    cause = getattr(error, "__cause__", None)
    if isinstance(cause, HTTPException):
        return cause.status_code == 404
    return isinstance(error, KeyError) and traceback.extract_tb(error.__traceback__)[-1].name == (
        "sse_stream"
    )


def test_twenty_reloads_while_an_answer_comes_and_metrics_are_measured(
    window, engine, caplog, capfd
):
    caplog.set_level(logging.WARNING)
    with window() as page:
        page.fill(STRENGTH, "0.55")  # of the default recipe the numbers are known to the program
        page.press(STRENGTH, "Enter")
        page.click("#apply:has-text('Apply changes')")
        for number in range(TIMES):
            if number % PATIENT == 0:
                page.wait_for_selector("#header .digest")
                page.fill("#box textarea", f"Tell me a long story about spoon {number}")
                page.click("#send")
                # its answer begins; it may be over in a second, so Stop is nothing to wait for
                asked = page.locator("#chat-right .user.message").last
                expect(asked).to_contain_text(f"spoon {number}")
            if number == 0:
                expect(page.locator("#cancel-metrics")).to_be_visible()
            # Before it is there again, but for every fifth time. The page itself does it: told by
            # the driver, Chromium refuses while it puts the next document in the last one's place.
            with page.expect_navigation(wait_until="commit"):
                page.evaluate("location.reload()")
        page.wait_for_selector("#header .digest")
        expect(page.locator("#stop")).to_be_hidden()
        expect(page.locator("#run-metrics")).to_be_visible()
        until(lambda: at_rest(engine))
        # what was kept of the chat is there again, before the message or never
        page.fill("#box textarea", FRANCE)
        page.click("#send")
        expect(page.locator("#chat-right .user.message").last).to_have_text(FRANCE)
        expect(page.locator("#chat-right .message").last).to_contain_text("Paris")
        expect(page.locator("#stop")).to_be_hidden()
        assert said(page, "right")
        expect(page.locator(".toast-body")).to_have_count(0)
    until(lambda: at_rest(engine))
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    gone = [record for record in errors if ended_by_gradio(record)]
    assert errors == gone
    theirs = "".join("".join(traceback.format_exception(*record.exc_info)) for record in gone)
    assert capfd.readouterr().err.count("Traceback") <= theirs.count("Traceback")
