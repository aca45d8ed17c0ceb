"""A short load on the page, as `benchmarks.load` drives it for half an hour."""

import threading
import time

import pytest

from benchmarks.load import Seen, visit, wrong
from sst_ui.jobs.evaluate import evaluate
from sst_ui.lru import Memory

VISITORS, SECONDS, SAMPLES = 2, 1.0, 2


@pytest.fixture
def quick(engine, monkeypatch):
    """What every window measures by itself is kept short, and forgotten afterwards."""
    monkeypatch.setitem(evaluate._presets()["standard"], "samples", SAMPLES)
    monkeypatch.setattr(engine, "_measured", Memory(8))


def test_visitors_at_once_meet_no_error_and_every_answer_is_what_its_recipe_gives(address, quick):
    seen, end = Seen(), time.monotonic() + SECONDS
    visitors = [
        threading.Thread(target=visit, args=(address, number, end, seen, SAMPLES))
        for number in range(VISITORS)
    ]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join()
    assert not seen.errors
    assert seen.counts["applied and measured"] >= VISITORS - seen.counts["left in the middle"]
    assert seen.counts["searches"] == 1
    assert len(seen.answers) >= VISITORS
    assert not wrong(address, seen)
