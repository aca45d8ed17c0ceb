"""Who leaves leaves nothing running; who waits is told where, over a real socket."""

import json
import threading
from datetime import timedelta

import httpx
import pytest
import yaml

from sst_ui.progress import Progress
from sst_ui.ui.services import job_queue, leaving
from tests.patience import SECONDS, until

RECIPE = yaml.safe_dump({"version": 1, "model": {"id": "demo"}})


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=SECONDS) as client:
        yield client


@pytest.fixture
def endless(engine, monkeypatch):
    """Evaluations and answers that never end by themselves; what was begun and what was closed."""
    begun, closed = [], []

    def job(kind, step):
        begun.append(kind)
        try:
            while True:
                yield step
        finally:
            closed.append(kind)

    def evaluate(*values):
        return engine.queue.turn(job("evaluate", Progress("metrics", 0, 1)))

    monkeypatch.setattr(engine, "evaluate", evaluate)
    monkeypatch.setattr(engine, "chat", lambda *values: job("compare", ["a", "b"]))
    return begun, closed


def join(client, page, name, data, window):
    number = next(n for n, fn in page.fns.items() if fn.api_name == name)
    body = {"data": data, "fn_index": number, "session_hash": window}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200


@pytest.mark.parametrize(
    ("name", "data"), [("evaluate", [RECIPE]), ("compare", ["Hello", RECIPE, 8])]
)
def test_what_was_asked_for_ends_when_its_caller_leaves(client, page, engine, endless, name, data):
    begun, closed = endless
    join(client, page, name, data, f"leaving {name}")
    with client.stream(
        "GET", "/gradio_api/queue/data", params={"session_hash": f"leaving {name}"}
    ) as told:
        lines = told.iter_lines()
        until(lambda: next(lines) is not None and begun == [name])
    until(lambda: closed == [name])
    until(lambda: engine.queue.sizes == (0, 0))


def test_a_window_that_is_reloaded_twenty_times_leaves_nothing_behind(client, page, endless):
    begun, closed = endless
    for n in range(20):
        window = f"reload {n}"
        join(client, page, "compare", ["Hello", RECIPE, 8], window)
        params = {"session_hash": window}
        with client.stream("GET", "/gradio_api/queue/data", params=params) as told:
            for _ in told.iter_lines():
                if len(begun) == n + 1:
                    break
    until(lambda: len(closed) == 20)


def test_what_is_kept_of_a_window_goes_some_time_after_it_was_closed(client, page, monkeypatch):
    monkeypatch.setattr(leaving, "LATER", 0.1)
    holder = page.app.state_holder
    join(client, page, "weights", [RECIPE], "gone")
    until(lambda: "gone" in holder.session_data)
    with client.stream("GET", "/gradio_api/heartbeat/gone") as beat:
        next(beat.iter_lines())
    until(lambda: "gone" not in holder.session_data)
    assert "gone" not in holder.time_last_used


def test_a_window_that_was_used_again_is_kept(client, page):
    holder = page.app.state_holder
    join(client, page, "weights", [RECIPE], "back")
    until(lambda: "back" in holder.session_data)
    closed = leaving.last_used(page, "back")
    for hours in (1, -1):  # the clock may have been set meanwhile
        holder.time_last_used["back"] = closed + timedelta(hours=hours)
        leaving.forget(page, "back", closed)
        assert "back" in holder.session_data
    leaving.forget(page, "back", leaving.last_used(page, "back"))
    assert "back" not in holder.session_data


def test_those_who_wait_are_served_when_those_before_them_are_through(
    client, page, engine, monkeypatch
):
    monkeypatch.setattr(job_queue, "LOOK", 0.01)
    monkeypatch.setattr(engine.queue, "_at_once", 1)
    go = threading.Event()

    def evaluate(*values):
        def job():
            while not go.wait(0.01):
                yield Progress("metrics", 0, 1)
            return []

        return engine.queue.turn(job())

    monkeypatch.setattr(engine, "evaluate", evaluate)
    windows = [f"waiting {n}" for n in range(6)]
    for window in windows:
        join(client, page, "evaluate", [RECIPE], window)
    until(lambda: engine.queue.sizes == (1, 5))  # all are in our line, none in Gradio's
    go.set()
    for window in windows:
        with client.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": window}
        ) as told:
            done = next(line for line in told.iter_lines() if '"process_completed"' in line)
        assert json.loads(done.removeprefix("data: "))["output"]["data"] == [[]]
    assert engine.queue.sizes == (0, 0)
