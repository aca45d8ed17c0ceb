"""Where a search keeps its trials: kills, pauses, several processes at once."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.search.candidates import Candidate
from sst_ui.jobs.search.objectives import SearchSpec
from sst_ui.jobs.search.search import search
from sst_ui.jobs.search.space import Span
from sst_ui.jobs.search.study import Study
from sst_ui.jobs.search.trials import Local, Numbers
from sst_ui.maths import kernel
from sst_ui.metrics.results import Value
from sst_ui.paths import PRESETS, ROOT
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation

# what finalists are tested on is kept short: it is not what these tests are about
DEFAULT = replace(
    recipes.load(PRESETS / "recipes" / "default.yaml"),
    evaluation=Evaluation(samples=8, max_new_tokens=24),
)
GRID = SearchSpec("grid", trials=10, samples=4, max_new_tokens=8)
FREE = SearchSpec("tpe", trials=16, samples=4, max_new_tokens=8, seed=5)
ROWS = {"peak": Span(0.0, 1.0)}

PROCESS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.unit.test_study import GRID, Formula, DEFAULT
from sst_ui.jobs.search.search import search
print("begun", flush=True)
sys.stdin.readline()
for step in search(DEFAULT, GRID, Formula(float(sys.argv[3]), *sys.argv[4:]), sys.argv[1]):
    pass
"""


class Formula:
    """A measurer whose numbers are a formula of the recipe; it counts what it is asked.

    With a folder to `meet` in, it measures nothing before another process has come there too.
    """

    layers, preserving, fused, name, workers = 12, True, (), "formula", 1

    def __init__(self, seconds=0.0, meet=None):
        self.seconds, self.meet, self.asked = seconds, meet, []

    def numbers(self, asked, evaluation):
        if self.meet:
            (Path(self.meet) / str(os.getpid())).touch()
            while len(os.listdir(self.meet)) < 2:
                time.sleep(0.05)
        for place, recipe in enumerate(asked):
            yield Progress("measure", place, len(asked))
            time.sleep(self.seconds)
            self.asked.append(recipe)
            weights = recipe.edits[0].weights
            got = (weights.peak - 0.6) ** 2 + weights.width / 10 + weights.strength / 100
            value = Value(got, got, got, os.getpid())  # whoever measured it
            values = dict.fromkeys(evaluation.metrics, value)
            yield place, Numbers(values, values)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path / 'searches.sqlite'}"


def rows(storage):
    """Every row of the storage's one study, as Optuna reads it."""
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def complete(storage):
    return {t.number: t for t in rows(storage) if t.state == TrialState.COMPLETE}


def start(storage, seconds, *meet):
    """A process that searches the grid once it is told to begin."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, storage, str(ROOT), str(seconds), *map(str, meet)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    return process


def begin(process):
    process.stdin.write("\n")
    process.stdin.flush()


def grid_points(trials):
    return sorted((trial.params["peak"], trial.params["width"]) for trial in trials)


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(storage):
    process = start(storage, seconds=0.3)
    begin(process)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(Exception):  # the file is just being made
            if len(complete(storage)) >= 2:
                break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = complete(storage)
    assert 2 <= len(before) < 10
    assert any(trial.state == TrialState.RUNNING for trial in rows(storage))

    measurer = Formula()
    found = finish(search(DEFAULT, GRID, measurer, storage))
    assert grid_points(found) == sorted(kernel.grid()[:10])
    assert len(measurer.asked) == 10 - len(before)
    after = complete(storage)
    for number, trial in before.items():
        assert after[number] == trial  # values, settings, times, attributes
    assert {each.base["kl_16@demo/harmless?part=2/2"].n for each in found} == {
        process.pid,
        os.getpid(),
    }


@pytest.mark.slow
def test_a_trial_whose_process_died_right_after_asking_is_not_lost(storage):
    """Between Optuna's ask and the owner's name there is time enough for a kill."""
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import optuna
from tests.unit.test_study import ROWS
from sst_ui.jobs.search.study import Study
study = Study("a", [True], ROWS, sys.argv[1])
study.enqueue([{"peak": 0.25}])
ask = study._study.ask
def fatal(*given, **named):
    ask(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)
study._study.ask = fatal
study.ask(1, draw=DRAW)
"""
    for draw in ("False", "True"):
        died = subprocess.run(
            [sys.executable, "-c", code.replace("DRAW", draw), storage, str(ROOT)], cwd=ROOT
        )
        assert died.returncode == -signal.SIGKILL
        study = Study("a", [True], ROWS, storage)
        assert study.reclaim() == 1
        (asked,) = study.ask(1, draw=False)
        assert draw == "True" or asked.params == {"peak": 0.25}
        study.tell(asked.number, [0.0], {})


@pytest.mark.slow
def test_two_processes_share_a_grid_and_measure_every_point_once(storage, tmp_path):
    (tmp_path / "meet").mkdir()
    both = [start(storage, 0.0, tmp_path / "meet") for _ in range(2)]
    for process in both:
        begin(process)
    for process in both:
        assert process.wait(timeout=300) == 0
    done = list(complete(storage).values())
    assert grid_points(done) == sorted(kernel.grid()[:10])
    shares = {trial.user_attrs["values"]["kl_16@demo/harmless?part=2/2"][3] for trial in done}
    assert shares == {process.pid for process in both}


def test_a_process_that_begins_while_another_fills_the_queue_finds_work(storage, monkeypatch):
    put, second = optuna.Study.enqueue_trial, []

    def between(*args, **more):
        if not second:
            second.append(None)
            second[0] = finish(search(DEFAULT, GRID, Formula(), storage))
        return put(*args, **more)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", between)
    finish(search(DEFAULT, GRID, Formula(), storage))
    assert grid_points(second[0]) == sorted(kernel.grid()[:10])
    assert grid_points(complete(storage).values()) == sorted(kernel.grid()[:10])


def test_a_process_that_begins_while_another_makes_the_search_joins_it(storage, monkeypatch):
    say, second = optuna.Study.set_user_attr, []

    def after_the_first(*args, **more):
        say(*args, **more)
        if not second:
            second.append(None)
            second[0] = finish(search(DEFAULT, GRID, Formula(), storage))

    monkeypatch.setattr(optuna.Study, "set_user_attr", after_the_first)
    assert grid_points(finish(search(DEFAULT, GRID, Formula(), storage))) == grid_points(second[0])
    assert grid_points(complete(storage).values()) == sorted(kernel.grid()[:10])


def test_no_setting_of_a_trial_waits_for_the_disk(storage):
    """SQLite's default journal waits twice for each of the 35 transactions of a trial."""
    finish(search(DEFAULT, GRID, Formula(), storage))
    file = storage.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not os.path.exists(f"{file}-journal")


def test_a_pause_gives_back_what_was_not_measured(storage):
    first = Formula()
    with closing(search(DEFAULT, GRID, first, storage)) as steps:
        for step in steps:
            if isinstance(step, Candidate) and step.number == 2:
                break
    assert not any(trial.state == TrialState.RUNNING for trial in rows(storage))
    assert len(complete(storage)) == 3
    second = Formula()
    found = finish(search(DEFAULT, GRID, second, storage))
    assert grid_points(found) == sorted(kernel.grid()[:10])
    assert len(second.asked) == 7
    third = Formula()
    assert len(finish(search(DEFAULT, GRID, third, storage))) == 10
    assert third.asked == []


def test_the_same_seed_searches_the_same_and_another_one_does_not(storage):
    def params(spec, storage="memory", seconds=0.0):
        found = finish(search(DEFAULT, spec, Formula(), storage))
        return [(each.params, each.state) for each in found]

    first = params(FREE)
    assert len(first) == 16
    assert params(FREE) == first
    assert params(FREE, storage) == first  # on disk as in memory
    other = SearchSpec("tpe", trials=16, samples=4, max_new_tokens=8, seed=6)
    assert params(other) != first


def test_a_free_search_goes_on_after_a_pause_with_the_settings_it_had_drawn(storage):
    drawn = []
    with closing(search(DEFAULT, FREE, Formula(), storage)) as steps:
        for step in steps:
            if isinstance(step, Candidate):
                drawn.append(step)
            if len(drawn) == 4:
                break
    waiting = [t for t in rows(storage) if t.state == TrialState.WAITING]
    given = [t.system_attrs["fixed_params"] for t in waiting]
    assert len(given) == 6  # a round is ten
    found = finish(search(DEFAULT, FREE, Formula(), storage))
    assert len(found) == 16
    assert [each.params for each in found[:4]] == [each.params for each in drawn]
    assert [each.params for each in found[4:10]] == given
    whole = finish(search(DEFAULT, FREE, Formula(), "memory"))
    assert [each.params for each in found[:10]] == [each.params for each in whole[:10]]


def test_a_paused_search_of_the_demo_comes_to_the_numbers_of_one_that_was_not(host, storage):
    spec = SearchSpec("grid", trials=6, samples=4, max_new_tokens=8)
    with closing(search(DEFAULT, spec, Local(host), storage)) as steps:
        next(step for step in steps if isinstance(step, Candidate))
    paused = finish(search(DEFAULT, spec, Local(host), storage))
    whole = finish(search(DEFAULT, spec, Local(host), "memory"))

    def numbers(found):
        return {
            tuple(e.params.values()): e.values["refusal_rate@demo/harmful?part=2/2"] for e in found
        }

    assert numbers(paused) == numbers(whole)
    assert len(whole) == 6


def test_a_new_storage_is_made_once_by_processes_that_come_at_the_same_time(storage):
    together = threading.Barrier(6)

    def begin(_):
        together.wait()
        return Study("mine", [True], ROWS, storage)

    with ThreadPoolExecutor(6) as pool:
        assert len(list(pool.map(begin, range(6)))) == 6
    assert optuna.get_all_study_names(storage) == ["mine"]


def test_a_trial_that_another_process_gave_up_when_the_clock_jumped_ends_no_search(
    storage, tmp_path
):
    mine, other = (Study("mine", [True], ROWS, storage) for _ in range(2))
    (asked,) = mine.ask(1, draw=True)
    with closing(sqlite3.connect(tmp_path / "searches.sqlite")) as db, db:
        # what an hour forward makes of the last beat
        db.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 hour')")
    other.reclaim()
    mine.tell(asked.number, [0.0], {"a": 1}, [0.5], gate=[0.25])
    (again,) = mine.ask(1, draw=False)
    assert again.params == asked.params
    mine.tell(again.number, [0.0], {})
    assert [t.state for t in rows(storage)] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_disk_that_fills_while_it_searches_is_one_line_and_the_search_goes_on_later(
    storage, tmp_path
):
    job = search(DEFAULT, GRID, Formula(), storage)
    while not isinstance(next(job), Candidate):
        pass
    path = tmp_path / "searches.sqlite"

    def full(connection, _record):
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    job.close()
    event.listen(Engine, "connect", full)
    try:
        with pytest.raises(UserError, match=r"cannot be used: .*full") as told:
            finish(search(DEFAULT, GRID, Formula(), storage))
    finally:
        event.remove(Engine, "connect", full)
    assert "\n" not in str(told.value)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
    found = finish(search(DEFAULT, GRID, Formula(), storage))
    assert grid_points(found) == sorted(kernel.grid()[:10])


def test_a_trial_that_a_full_disk_did_not_let_a_search_give_back_is_not_waited_for(
    storage, monkeypatch
):
    mine, other = (Study("mine", [True], ROWS, storage) for _ in range(2))
    (asked,) = mine.ask(1, draw=True)
    assert other.reclaim() == 0, "it is being measured"

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(mine, "_give_back", full)
    mine.give_back()
    assert other.reclaim() == 1
    assert other.ask(1, draw=False)[0].params == asked.params


def test_another_search_of_the_same_name_is_refused(storage):
    Study("mine", [True, True], ROWS, storage)
    for lower in ([True, False], [True]):
        with pytest.raises(UserError, match=r"'mine'.*give another name"):
            Study("mine", lower, ROWS, storage)
    assert optuna.get_all_study_names(storage) == ["mine"]


@pytest.mark.parametrize(
    "url",
    ["/tmp/file.sqlite", "sqlite:////no/such/folder/x.sqlite", "nonsense://x", "memory2",
     "postgresql://nobody@127.0.0.1:1/x"],
)  # fmt: skip
def test_a_storage_that_cannot_be_used_is_said(url):
    with pytest.raises(UserError, match="cannot be used") as told:
        Study("a", [True], ROWS, url)
    assert url in str(told.value)


def test_a_database_of_another_program_is_left_as_it_is(tmp_path):
    for number, table in enumerate(("patients", "trials")):  # Optuna has a table `trials` too
        file = tmp_path / f"{number}.sqlite"
        with closing(sqlite3.connect(file)) as theirs, theirs:
            theirs.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, name TEXT)")
            theirs.execute(f"INSERT INTO {table} (name) VALUES ('ada')")
        before = file.read_bytes()
        with pytest.raises(
            UserError, match=rf"another program's database; give one of its own.*'{table}'"
        ) as told:
            Study("a", [True], ROWS, f"sqlite:///{file}")
        assert str(file) in str(told.value)
        assert file.read_bytes() == before


def test_a_database_that_is_optunas_too_is_used(storage, tmp_path):
    optuna.create_study(study_name="theirs", storage=storage)
    with closing(sqlite3.connect(tmp_path / "searches.sqlite")) as database, database:
        database.execute("CREATE TABLE notes (text TEXT)")
    Study("mine", [True], ROWS, storage)
    assert sorted(optuna.get_all_study_names(storage)) == ["mine", "theirs"]


def test_trials_of_another_machine_are_left_to_it(storage, monkeypatch):
    gone = SimpleNamespace(gethostname=lambda: "elsewhere")
    monkeypatch.setattr("sst_ui.jobs.search.study.socket", gone)
    theirs = Study("a", [True], ROWS, storage)
    theirs.enqueue([{"peak": 0.5}])
    assert len(theirs.ask(1, draw=False)) == 1
    monkeypatch.undo()
    mine = Study("a", [True], ROWS, storage)
    assert mine.reclaim() == 0
    assert mine.ask(1, draw=False) == []
    # until they have been silent for long: a beat is given with the first ask
    backend = getattr(mine._study._storage, "_backend", mine._storage)  # Optuna wraps it in a cache
    monkeypatch.setattr(backend, "grace_period", -10)
    mine.reclaim()
    (asked,) = mine.ask(1, draw=False)
    assert asked.params == {"peak": 0.5}
