"""What a program that runs for days keeps is bounded."""

from contextlib import closing
from dataclasses import replace
from mmap import mmap

import pytest

from sst_ui.recipe import Ablation, Recipe, WeightTable
from sst_ui.ui.events.evaluate import LATEST, _remembered
from sst_ui.ui.services import memory
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import MOST, Variants
from tests.unit.test_history import result

MB = 10**6


def test_memory_is_given_back_whenever_enough_has_come_together(monkeypatch):
    looks = iter([810, 850, 880, 830, 860, 865, 790])  # MB at each look
    now, trimmed = [800], []

    def sleep(seconds):
        if (size := next(looks, None)) is None:
            raise InterruptedError
        now[0] = size

    def trim():
        trimmed.append(now[0])
        now[0] = 800

    monkeypatch.setattr(memory, "resident", lambda: now[0] * MB)
    monkeypatch.setattr(memory, "trim", trim)
    monkeypatch.setattr(memory.time, "sleep", sleep)
    with pytest.raises(InterruptedError):
        memory._watch()
    assert trimmed == [880, 865]  # each more than 64 above the least before it


def test_what_the_system_says_is_what_this_process_has():
    before = memory.resident()
    if not before:
        pytest.skip("this system does not say")
    # pages of its own: what Python asks of the C library may come from a hole that is in memory
    with closing(mmap(-1, 64 * MB)) as held:
        held.write(bytes(64 * MB))
        assert memory.resident() - before > 50 * MB
    assert memory.trim() in (True, False)
    assert memory.few_heaps() in (True, False)


def test_a_window_keeps_the_answers_of_its_latest_variants_and_the_numbers_of_all():
    known, results = Variants(), {}
    for n in range(LATEST + 3):
        edit = Ablation(weights=WeightTable(strength=0.1 * (n + 1)))
        known = known.add(replace(Recipe(), edits=(edit,)))
        digest = known.items[-1].recipe.digest()
        results[digest] = (replace(result(edited=0.1 * n), items=("an answer",)),)
        results[f"done:{digest}"] = "as asked"
    results["of no variant"] = ()
    now = known.items[-1].recipe.digest()
    kept = _remembered(Board("en", known, results), now)
    digests = [variant.recipe.digest() for variant in known.items[:-1]]
    assert [name for name in kept if not name.startswith("done:")] == digests
    assert [bool(kept[name][0].items) for name in digests] == [False] * 2 + [True] * LATEST
    assert [f"done:{name}" in kept for name in digests] == [False] * 2 + [True] * LATEST
    assert [kept[name][0].edited for name in digests] == [results[n][0].edited for n in digests]


def test_a_window_forgets_its_oldest_variants():
    known = Variants()
    for n in range(MOST + 5):
        edit = Ablation(weights=WeightTable(strength=0.001 * (n + 1)))
        known = known.add(replace(Recipe(), edits=(edit,)))
    assert len(known.items) == MOST
    assert known.items[0].recipe.edits[0].weights.strength == pytest.approx(0.006)
    assert known.now == known.items[-1]
