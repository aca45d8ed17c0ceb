"""A short load on the page, as `benchmarks.load` drives it for half an hour."""

import threading
import time

from benchmarks.load import Seen, visit, wrong

VISITORS, SECONDS, SAMPLES = 3, 4.0, 4


def test_visitors_at_once_meet_no_error_and_every_answer_is_what_its_recipe_gives(address):
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
