"""Bars of running jobs, which the page asks for by itself."""

import asyncio
import re

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from sst_ui.progress import Progress
from sst_ui.ui.services import leaving, progress_bars
from sst_ui.ui.services.job_runner import watched
from sst_ui.ui.services.progress_bars import Bar, ProgressBars, Stopped
from sst_ui.ui.widgets.html import Clock


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(progress_bars, "PACE", 0.0)


def ask(path):
    """What a page of the studio is answered by the application behind the middleware."""
    routes = [Route("/", lambda request: PlainTextResponse("the page"))]
    app = Starlette(routes=routes, middleware=[Middleware(ProgressBars)])

    async def sent():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://studio") as client:
            return await client.get(path)

    return asyncio.run(sent())


def named(place):
    return re.search('data-progress="([0-9a-f]{32})"', place)[1]


def test_a_job_yields_a_place_for_its_bar_once_and_the_page_asks_how_it_goes():
    bar = Bar("en")
    place = bar.place(Progress("write", 1, 10))
    assert "1/10" in place
    assert bar.place(Progress("write", 7, 10)) is None
    answer = ask(f"/progress-bars?of={named(place)}")
    assert "7/10" in answer.json()[named(place)]
    assert answer.headers["cache-control"] == "no-store"


def test_several_bars_are_asked_for_at_once_and_none_by_a_name_that_is_not_its_own():
    places = [Bar("en").place(Progress("write", n, 10)) for n in (3, 4)]
    names = [named(place) for place in places]
    found = ask(f"/progress-bars?of={','.join(names)},unknown").json()
    assert list(found) == names
    assert ask("/progress-bars").json() == {}
    assert ask("/").text == "the page"


def test_what_a_job_notes_stays_text():
    place = Bar("en").place(Progress("write", 3, 10, note="<script>alert(1)</script>"))
    assert "<script>" not in ask(f"/progress-bars?of={named(place)}").json()[named(place)]


def test_a_handler_yields_a_bar_once_however_many_steps_its_job_has():
    def job():
        for step in range(50):
            yield Progress("write", step, 50)
        return "done"

    def handler():
        result = yield from watched("en", job(), lambda bar: bar)
        yield result

    place, result = handler()
    assert result == "done"
    assert "49/50" in ask(f"/progress-bars?of={named(place)}").json()[named(place)]


def test_the_job_of_a_visitor_who_left_ends_though_its_handler_yields_nothing(monkeypatch):
    closed, gone = [], []
    monkeypatch.setattr(leaving, "watch", lambda: lambda: bool(gone))

    def job():
        try:
            for step in range(50):
                gone.extend([1] * (step == 5))
                yield Progress("write", step, 50)
        finally:
            closed.append(step)

    with pytest.raises(Stopped):
        list(watched("en", job(), lambda bar: bar))
    assert closed == [5]


def test_an_evaluation_says_its_metric_in_the_visitors_language_and_what_is_left_of_all(
    monkeypatch,
):
    now = iter([0.0, 0.0, 10.0, 10.0])
    monkeypatch.setattr("sst_ui.ui.widgets.html.time.monotonic", lambda: next(now))
    clock = Clock()
    first = Progress("Refusal rate", 0, 10, step=1, steps=2, overall=0.0)
    assert "拒否率" in clock.bar("ja", first)
    second = Progress("Refusal rate (mine.jsonl)", 9, 10, step=1, steps=2, overall=0.25)
    bar = clock.bar("en", second)
    assert "Refusal rate (mine.jsonl)" in bar
    assert "step 1 of 2" in bar
    assert "about 30 s left" in bar  # a quarter of all took 10 s, whatever is left of this metric
    assert 'aria-valuenow="25"' in bar
