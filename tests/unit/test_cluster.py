"""A search on a Ray cluster of two nodes with a worker each, on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
import torch

from sst_ui import recipe as recipes
from sst_ui.__main__ import main
from sst_ui.errors import UserError
from sst_ui.jobs.search import ray_cluster
from sst_ui.jobs.search.objectives import SearchSpec
from sst_ui.jobs.search.ray_cluster import Shares, shares
from sst_ui.jobs.search.ray_workers import Cluster
from sst_ui.jobs.search.search import search
from sst_ui.jobs.search.space import candidate
from sst_ui.jobs.search.trials import Local
from sst_ui.maths import kernel
from sst_ui.paths import PRESETS
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation, ModelSpec
from tests.patience import SECONDS

# what finalists are tested on is kept short: it is not what these tests are about
FEW = Evaluation(samples=4, max_new_tokens=8)
DEFAULT = replace(recipes.load(PRESETS / "recipes" / "default.yaml"), evaluation=FEW)
GRID = [candidate(DEFAULT, {"peak": p, "width": w}, 12) for p, w in kernel.grid()[:10]]
EVALUATION = Evaluation(
    metrics=("refusal_rate@demo/harmful", "kl_16@demo/harmless"), samples=8, max_new_tokens=12
)


@pytest.fixture(scope="module")
def nodes():
    """Two nodes of one processor each."""
    ray_cluster.library()
    from ray.cluster_utils import Cluster as Nodes

    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def cluster(nodes):
    with Cluster(ModelSpec(), nodes.address, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def local(host):
    """The numbers of the grid in this process, with one thread, as the workers have."""
    with one_thread():
        return by_place(Local(host).numbers(GRID, EVALUATION))


@contextmanager
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_place(steps):
    return dict(step for step in steps if not isinstance(step, Progress))


def pids(cluster):
    ray = ray_cluster.library()
    return {ray.get(worker.actor.here.remote()) for worker in cluster._team}


def all_ready(cluster):
    """Wait until every worker has its model."""
    while any(worker.answer is not None for worker in cluster._team):
        list(cluster._answers())


# In this order: what kills workers comes last, as each new one costs the loading of a model.


@pytest.mark.slow
def test_two_workers_come_to_the_numbers_of_one_process(cluster, local, monkeypatch):
    all_ready(cluster)
    give, at_work, told = cluster._give, [], []

    def counted(*work):
        give(*work)
        at_work.append(sum(worker.place is not None for worker in cluster._team))

    monkeypatch.setattr(cluster, "_give", counted)
    found = {}
    for step in cluster.numbers(GRID, EVALUATION):
        if isinstance(step, Progress):
            told.append(step.note)
        else:
            found[step[0]] = step[1]
    assert len(found) == 10
    assert found == local
    assert len({numbers.values[EVALUATION.metrics[0]].value for numbers in found.values()}) > 1
    assert at_work == [1, 2]  # both at once
    assert all(any(f"worker {number}" in note for note in told) for number in (1, 2))
    assert (cluster.layers, cluster.preserving, cluster.name) == (12, True, "demo")


@pytest.mark.slow
def test_closing_leaves_no_batch_running(cluster, local):
    all_ready(cluster)
    before = pids(cluster)
    with closing(cluster.numbers(GRID, EVALUATION)) as steps:
        assert any("together" in step.note for step in steps)
    ray = ray_cluster.library()
    assert all(worker.answer is None for worker in cluster._team)
    first = ray.get([worker.actor.now.remote() for worker in cluster._team])
    time.sleep(1.0)
    assert ray.get([worker.actor.now.remote() for worker in cluster._team]) == first
    assert pids(cluster) == before  # they keep their models
    assert by_place(cluster.numbers(GRID[:5], EVALUATION)) == {n: local[n] for n in range(5)}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_as_in_this_process(cluster, local, host):
    spec = SearchSpec("tpe", samples=4, max_new_tokens=8, trials=14, seed=3)
    found = {}
    for name, measurer in (("cluster", cluster), ("here", Local(host))):
        made = finish(search(DEFAULT, spec, measurer, "memory"))
        found[name] = [(each.params, each.state, each.values) for each in made]
    assert len(found["here"]) == 14
    assert found["cluster"] == found["here"]


@pytest.mark.slow
def test_the_measured_signal_is_the_same(cluster, host):
    select = ("demo/harmful?part=2/2", "demo/harmless?part=2/2")
    assert finish(cluster.bell(DEFAULT, select)) == finish(Local(host).bell(DEFAULT, select))


@pytest.mark.slow
def test_a_cluster_without_room_is_said(nodes, cluster, monkeypatch):
    all_ready(cluster)
    monkeypatch.setattr("sst_ui.jobs.search.ray_workers.PATIENCE", 2.0)
    with pytest.raises(UserError, match=r"no worker started.*1 processors"):
        Cluster(ModelSpec(), nodes.address, workers=2).__enter__()


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_time_and_nothing_else(cluster, local, monkeypatch):
    all_ready(cluster)
    ray, give = ray_cluster.library(), cluster._give
    before, killed = pids(cluster), set()

    def fatal(worker, place, calls):
        give(worker, place, calls)
        if not killed:
            killed.add(ray.get(worker.actor.here.remote()))
            while "together" not in ray.get(worker.actor.now.remote()).note:
                assert not ray.wait([worker.answer], timeout=0.01)[0], "done before the kill"
            os.kill(*killed, signal.SIGKILL)

    monkeypatch.setattr(cluster, "_give", fatal)
    assert by_place(cluster.numbers(GRID, EVALUATION)) == local
    after = pids(cluster)
    assert len(after) == 2
    assert before - after == killed


@pytest.mark.slow
def test_a_batch_that_kills_every_worker_is_given_up_and_the_other_goes_on(
    cluster, local, monkeypatch
):
    all_ready(cluster)
    monkeypatch.setattr(
        "sst_ui.jobs.search.ray_workers.LOSSES", 2
    )  # each costs the loading of a model
    give = cluster._give

    def fatal(worker, place, calls):
        give(worker, place, calls)
        if place == 1:
            os.kill(ray_cluster.library().get(worker.actor.here.remote()), signal.SIGKILL)

    monkeypatch.setattr(cluster, "_give", fatal)
    found = by_place(cluster.numbers(GRID, EVALUATION))
    assert {place: found[place] for place in range(5)} == {n: local[n] for n in range(5)}
    assert all("2 workers were lost" in found[place].error for place in range(5, 10))


@pytest.mark.slow
def test_a_model_that_a_worker_cannot_load_is_said_in_its_words(nodes, cluster):
    while cluster._team:  # make room: nobody needs these workers any more
        cluster._kill(cluster._team.pop())
    with pytest.raises(UserError) as told:
        Cluster(ModelSpec(id="./no-such-model"), nodes.address, workers=1).__enter__()
    assert "no-such-model" in str(told.value)
    assert "Traceback" not in str(told.value)
    assert not isinstance(told.value, ray_cluster.library().exceptions.RayError)


class Nodes:
    """As much of Ray as `shares` looks at."""

    def __init__(self, *rows):
        self.rows = rows

    def nodes(self):
        return [{"Alive": True, "Resources": row} for row in self.rows]


@pytest.mark.parametrize(
    ("rows", "workers", "expected"),
    [
        ([{"CPU": 2}], None, Shares(1, 2, 2, 0)),
        ([{"CPU": 2}], 2, Shares(2, 1, 1, 0)),
        ([{"CPU": 1}], 2, Shares(2, 0.5, 1, 0)),
        ([{"CPU": 64}], None, Shares(8, 8, 8, 0)),
        ([{"CPU": 5}, {"CPU": 3}], 2, Shares(2, 3, 3, 0)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}], None, Shares(4, 0, 8, 1)),
        ([{"CPU": 16, "GPU": 2}], 5, Shares(2, 0, 8, 1)),
    ],
)
def test_a_cluster_is_divided_by_gpus_else_by_processors(rows, workers, expected):
    assert shares(Nodes(*rows), ModelSpec(), workers) == expected


def test_a_model_that_is_to_stay_on_processors_leaves_the_gpus_alone():
    rows = Nodes({"CPU": 8, "GPU": 2})
    assert shares(rows, ModelSpec(device="cpu"), None) == Shares(4, 2, 2, 0)


def test_ray_that_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-ray\.txt"):
        Cluster(ModelSpec(), "auto").__enter__()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("somewhere", "not the address"),
        ("host:port", "not the address"),
        ("http://a:1", "not the address"),
    ],
)
def test_an_address_that_is_none_is_said(monkeypatch, address, words):
    monkeypatch.setattr(ray_cluster.library(), "is_initialized", lambda: False)
    with pytest.raises(UserError, match=words):
        Cluster(ModelSpec(), address).__enter__()


def test_nobody_there_is_said_at_once(monkeypatch):
    monkeypatch.setattr(ray_cluster.library(), "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        Cluster(ModelSpec(), f"127.0.0.1:{port}").__enter__()
    assert time.monotonic() - begun < 10


def test_workers_need_a_cluster(capsys):
    recipe = str(PRESETS / "recipes" / "default.yaml")
    assert main(["search", recipe, "--workers", "2"]) == 2
    assert "--ray" in capsys.readouterr().err
    assert main(["search", recipe, "--ray", "local", "--workers", "0"]) == 2
    assert "1 or more" in capsys.readouterr().err


# In processes of their own: this one is connected to a cluster.


@pytest.mark.slow
def test_the_terminal_starts_a_cluster_and_prints_nothing_but_json(host, tmp_path):
    file = tmp_path / "few.yaml"
    file.write_text(recipes.to_yaml(DEFAULT))
    options = ["--ray", "local", "--workers", "1", "--trials", "3", "--samples", "4",
               "--tokens", "8", "--storage", "memory", "--json"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "sst_ui", "search", str(file), *options],
        capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["reached"] else 3), done.stderr
    assert done.stderr == ""
    spec = SearchSpec("grid", trials=3, samples=4, max_new_tokens=8)
    with one_thread():
        here = finish(search(recipes.load(file), spec, Local(host), "memory"))
    assert len(told["candidates"]) == len(here) == 3
    for row, each in zip(told["candidates"], here, strict=True):
        assert row["values"].keys() == each.values.keys()
        for name, value in each.values.items():
            if not name.startswith("kl"):
                assert row["values"][name] == value.to_json()
            else:  # moments of a filter that two processes collect differ in the last digits, and
                # a KL is a difference of logarithms in float32: 1e-7 is the last digit of one
                assert row["values"][name] == pytest.approx(value.to_json(), rel=1e-4, abs=1e-7)
