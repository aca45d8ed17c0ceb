"""The run history keeps what was applied, finds it again, and survives other processes."""

import math
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from sst_ui.errors import UserError
from sst_ui.jobs.history import records
from sst_ui.jobs.history.records import Record, compare, record
from sst_ui.jobs.history.store import History, known_results, remember
from sst_ui.metrics.results import MetricResult, Value
from sst_ui.paths import ROOT, data_dir
from sst_ui.recipe import Ablation, Evaluation, Merge, ModelSpec, Recipe, WeightTable
from sst_ui.ui.state.run_store import Shelf


def recipe(strength=1.0, name="", **more):
    return Recipe(name=name, edits=(Ablation(weights=WeightTable(strength=strength), **more),))


def result(name="refusal_rate", base=0.9, edited=0.1, n=20):
    sides = [Value(v, v - 0.05, v + 0.05, n) for v in (base, edited)]
    return MetricResult(
        name, name.title(), "rate", "low", *sides, (), "better", "demo/harmful_heldout", "a note"
    )


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "made" / "history.sqlite")


def test_runs_come_back_newest_first_with_recipe_model_time_and_numbers(history):
    first = history.add(recipe(0.5, "half"), "demo", [result()])
    second = history.add(recipe(1.0, "whole"), "other")
    assert [r.id for r in history.list()] == [second, first]
    found = history.get(first)
    assert found.recipe == recipe(0.5, "half")
    assert (found.model, found.digest) == ("demo", recipe(0.5).digest())
    assert abs(found.time - time.time()) < 60
    assert found.results() == (result(),)
    assert [r.id for r in history.list(model="other")] == [second]
    assert [r.id for r in history.list(limit=1)] == [second]


def test_a_recipe_applied_again_is_one_run_and_keeps_its_numbers(history):
    first = history.add(recipe(0.5), "demo", [result()])
    history.add(recipe(1.0), "demo")
    assert history.add(recipe(0.5), "demo") == first
    newest = history.list()[0]
    assert (newest.id, len(history.list())) == (first, 2)
    assert newest.metrics[0]["edited"]["value"] == 0.1


def test_runs_made_after_the_clock_was_set_back_are_the_newest(history, monkeypatch, tmp_path):
    clock = [1e9]
    monkeypatch.setattr(records.time, "time", lambda: clock[0])
    shelf, ids = Shelf(None), []
    for strength in (0.25, 0.5, 1.0):
        ids.append(history.add(recipe(strength), "demo", [result(edited=strength)]))
        shelf = shelf.add(recipe(strength), "demo")
        clock[0] -= 3600
    assert [r.id for r in history.list()] == ids[::-1]
    assert [r.id for r in history.list(limit=1)] == ids[-1:]
    assert history.add(recipe(0.25), "demo") == ids[0]
    again = [ids[0], *ids[:0:-1]]
    assert [r.id for r in history.list()] == again, "applied again: its time becomes now"
    shelf = shelf.add(recipe(0.25), "demo")
    for runs in (again[:1], again[1:2], again):
        gone = history.delete(runs)
        history.restore(gone)
        assert [r.id for r in history.list()] == again
        fewer, gone = shelf.delete(runs)
        assert [r.id for r in fewer.restore(gone).list()] == again
    quick = replace(recipe(0.5), evaluation=Evaluation(preset="quick"))
    newest = history.add(quick, "demo", [result(edited=0.75)])
    assert history.get(recipe(0.5).digest()).id == newest


OLDER = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, model TEXT NOT NULL,
    name TEXT NOT NULL, digest TEXT NOT NULL, measured TEXT NOT NULL, recipe TEXT NOT NULL,
    metrics TEXT NOT NULL, words TEXT NOT NULL, UNIQUE (model, digest, measured)
);
CREATE INDEX runs_time ON runs (time);
PRAGMA user_version = 1;
"""


def older(path):
    """A history of the first layout, whose second run was applied again."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(OLDER)
        for number, when in ((1, 10.0), (2, 30.0), (3, 20.0)):
            row = record(recipe(number / 4), "demo")
            values = (number, when, "demo", "", row.digest, row.measured, row.text, "[]", "words")
            db.execute(f"INSERT INTO runs VALUES ({', '.join('?' * 9)})", values)


def test_a_history_of_the_first_layout_keeps_its_order_and_goes_on(tmp_path):
    older(tmp_path / "history.sqlite")
    history = History(tmp_path / "history.sqlite")
    assert [r.id for r in history.list()] == [2, 3, 1]
    assert history.add(recipe(1.0), "demo") == 4
    assert [r.id for r in History(history.path).list()] == [4, 2, 3, 1]


def test_one_of_the_first_layout_that_cannot_be_written_to_can_be_read(tmp_path, monkeypatch):
    older(tmp_path / "history.sqlite")
    history = History(tmp_path / "history.sqlite")
    writable = history._prepare

    def refuse(db, fixed=False):
        if not fixed:
            raise sqlite3.OperationalError("attempt to write a readonly database")
        writable(db, fixed)

    monkeypatch.setattr(history, "_prepare", refuse)
    assert [r.id for r in history.list()] == [2, 3, 1]
    assert history.get(recipe(0.25).digest()).id == 1


def test_another_model_or_another_evaluation_is_another_run(history):
    quick = replace(recipe(), evaluation=Evaluation(preset="quick"))
    ids = {history.add(recipe(), "a"), history.add(recipe(), "b"), history.add(quick, "a")}
    assert len(ids) == 3


def test_a_number_that_does_not_exist_survives(history):
    empty = replace(result(), base=Value(math.nan, math.nan, math.nan, 0), edited=None)
    (back,) = history.get(history.add(recipe(), "demo", [empty])).results()
    assert math.isnan(back.base.value)
    assert (back.base.n, back.edited) == (0, None)


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", {"half", "拒否"}),
        ("HALF", {"half"}),
        ("half demo", {"half"}),
        ("half nothing", set()),
        ("拒否", {"拒否"}),
        ("refusal_rate", {"half"}),
        ("norm_preserving: true", {"拒否"}),
        ("100%", set()),
        ("90% 10 %", {"half"}),  # its values, as they are shown
    ],
)
def test_a_search_looks_for_every_word_in_name_model_recipe_and_metrics(history, search, found):
    history.add(recipe(0.5, "half"), "demo", [result()])
    history.add(recipe(1.0, "拒否", norm_preserving=True), "other")
    assert {r.name for r in history.list(search)} == found
    assert {r.name for r in history.list() if r.matches(search)} == found


def test_a_run_is_found_by_number_and_by_the_beginning_of_its_hash(history):
    run = history.add(recipe(), "demo")
    digest = recipe().digest()
    for name in (run, str(run), f"#{run}", digest, digest[:5].upper()):
        assert history.get(name).id == run
    for name in (99, "0", digest[:3], "*", "", "' OR 1=1", "[a-z]*"):
        with pytest.raises(UserError, match="no run"):
            history.get(name)


def test_a_comparison_says_what_differs_and_nothing_else(history):
    runs = [
        history.add(recipe(0.5), "demo", [result(edited=0.3), result("facts")]),
        history.add(recipe(1.0, affine=True), "demo", [result(edited=0.1)]),
    ]
    found = history.compare(runs)
    assert dict(found.differences) == {
        "ablation.weights.strength": ("0.5", "1"), "ablation.affine": ("no", "yes"),
    }  # fmt: skip
    (rate, both), (facts, one) = found.metrics
    assert (rate["name"], [row["edited"]["value"] for row in both]) == ("refusal_rate", [0.3, 0.1])
    assert (facts["name"], one[1]) == ("facts", None)
    with pytest.raises(UserError, match="two runs"):
        history.compare(runs[:1])


def test_an_edit_that_one_recipe_lacks_is_one_line():
    merge = Merge(utility="my/utility", safety="my/safety")
    both = replace(recipe(), edits=(merge, *recipe().edits), model=ModelSpec(id="org/model"))
    found = compare([record(recipe(), "demo"), record(both, "org/model")])
    assert dict(found.differences) == {
        "merge": ("", "✓"), "model.id": ("demo", "org/model"),
    }  # fmt: skip
    twice = replace(both, edits=(*both.edits, *recipe(0.25).edits))
    found = compare([record(both, "m"), record(twice, "m")])
    assert dict(found.differences) == {"ablation_2": ("", "✓")}


def test_deleted_runs_are_gone_and_come_back_with_undo(history):
    runs = [history.add(recipe(s), "demo", [result()]) for s in (0.25, 0.5, 1.0)]
    before = history.list()
    gone = history.delete([runs[0], runs[2], runs[0]])
    assert [r.id for r in history.list()] == [runs[1]]
    history.restore(gone)
    assert history.list() == before
    with pytest.raises(UserError, match="no run '77'"):
        history.delete([runs[0], 77])
    assert history.list() == before, "none is deleted where one is unknown"


def test_a_number_is_never_given_twice(history):
    run = history.add(recipe(), "demo")
    history.delete([run])
    assert history.add(recipe(0.5), "demo") == run + 1


def test_undo_leaves_a_run_that_was_made_again_meanwhile(history):
    gone = history.delete([history.add(recipe(), "demo")])
    again = history.add(recipe(), "demo", [result()])
    history.restore(gone)
    assert [r.id for r in history.list()] == [again]


def test_reading_makes_no_file(history):
    assert history.list() == []
    with pytest.raises(UserError, match="no run"):
        history.get(1)
    assert not history.path.parent.exists()


WRITER = """
import sys
from sst_ui.jobs.history.store import History
from sst_ui.recipe import Ablation, Recipe, WeightTable
for i in range(20):
    weights = WeightTable(strength=i / 20, peak=int(sys.argv[2]) / 10)
    History(sys.argv[1]).add(Recipe(edits=(Ablation(weights=weights),)), "demo")
"""


@pytest.mark.slow
def test_threads_and_processes_write_at_once_and_lose_nothing(history):
    history.path.parent.mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(history.path), str(i)], cwd=ROOT)
        for i in range(2)
    ]
    threads = [
        threading.Thread(
            target=lambda i=i: [history.add(recipe(j / 20), f"t{i}") for j in range(20)]
        )
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len(history.list(limit=None)) == 2 * 20 + 3 * 20
    with sqlite3.connect(history.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("content", [b"no database at all, only text" * 40, b"\x00" * 5000])
def test_a_broken_file_is_kept_aside_and_named_and_the_run_begins_a_new_one(
    history, content, caplog
):
    history.path.parent.mkdir()
    history.path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged.*it is kept as .*history\.damaged-"):
        history.list()
    (first,) = history.path.parent.iterdir()
    assert first.read_bytes() == content
    assert history.list() == []
    history.path.write_bytes(content)
    run = history.add(recipe(), "demo")
    assert [r.id for r in history.list()] == [run]
    (second,) = set(history.path.parent.glob("*damaged*")) - {first}
    assert second.read_bytes() == content
    assert str(second) in caplog.text


def test_another_programs_and_a_newer_studios_file_are_refused(history, tmp_path):
    other = History(tmp_path / "other.sqlite")
    with sqlite3.connect(other.path) as db:
        db.execute("CREATE TABLE notes (text)")
    with pytest.raises(UserError, match="another program"):
        other.add(recipe(), "demo")
    history.add(recipe(), "demo")
    with sqlite3.connect(history.path) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(UserError, match="newer studio"):
        history.list()


def test_a_run_of_an_older_studio_is_listed_though_its_recipe_cannot_be_read(history):
    run = history.add(recipe(), "demo")
    with sqlite3.connect(history.path) as db:
        db.execute("UPDATE runs SET recipe = 'version: 0'")
    assert [r.id for r in history.list()] == [run]
    with pytest.raises(UserError, match="version"):
        history.get(run).recipe  # noqa: B018
    assert [r.id for r in history.delete([run])] == [run]


def test_a_history_that_cannot_be_written_costs_a_sentence_not_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SST_HOME", str(tmp_path / "file" / "below"))
    assert "SST_HOME" in remember(recipe(), "demo")
    assert known_results(recipe()) == ()


def test_the_newest_numbers_of_a_recipe_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_HOME", str(tmp_path))
    assert remember(recipe(0.5), "demo", [result()]) == ""
    assert remember(replace(recipe(0.5), evaluation=Evaluation(samples=3)), "demo") == ""
    assert known_results(recipe(0.5)) == (result(),)
    assert known_results(recipe(0.75)) == ()


def test_a_record_survives_the_browser_and_is_not_trusted():
    row = record(recipe(0.5, "half"), "demo", [result()])
    assert Record.from_json(row.to_json()) == row
    whole = row.to_json()
    forged = replace(row, digest="0" * 12).to_json()
    assert Record.from_json(forged).digest == recipe(0.5).digest()
    bad = [None, 3, {}, whole | {"id": "x"}, whole | {"metrics": [{}]}, whole | {"metrics": 3}]
    bad += [whole | {"recipe": text} for text in ("version: 1\n" + "#" * 3_000_000, "name: x")]
    for other in bad:
        with pytest.raises(UserError):
            Record.from_json(other)


def test_the_data_folder_is_the_users_own(monkeypatch, tmp_path):
    assert str(data_dir()).endswith("home"), "tests have one of their own"
    monkeypatch.delenv("SST_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_dir() == tmp_path / "sst-studio"
