"""A GPU that is lent call by call: the page over a stand-in of `spaces`, which forks for each call.

Nothing that a fork does to its memory is seen here, so what a visitor keeps came back by itself.
"""

import inspect
import multiprocessing
import os
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui.errors import UserError
from sst_ui.jobs.export.verify import _room
from sst_ui.jobs.merge.forecast import basis
from sst_ui.jobs.search.candidates import Candidate
from sst_ui.jobs.search.objectives import SearchSpec
from sst_ui.jobs.search.search import Opened
from sst_ui.lru import Memory
from sst_ui.metrics.results import MetricResult
from sst_ui.options import ExportOptions
from sst_ui.paths import DEMO
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation, Merge
from sst_ui.ui.page import WAITING, build
from sst_ui.ui.services import zero_gpu
from sst_ui.ui.state.loaded_model import Replaced
from sst_ui.ui.state.window import Conversation, Turn, Variants
from tests.patience import until
from tests.space.standin import spaces
from tests.wiring.test_talking import ask, last
from tests.wiring.test_wiring import with_strength

FEW = Evaluation(metrics=("refusal_rate",), samples=4, max_new_tokens=4)
HELLO = [[{"role": "user", "content": "Hello"}]] * 2


@pytest.fixture
def lent(engine):
    """The durations that were asked for while every call of the engine's is a fork's."""
    zero_gpu.serve(engine)
    zero_gpu.serve(engine.merges)
    zero_gpu.lend(spaces.GPU)
    spaces.CALLS.clear()
    ran = []  # passes of the model in this process
    hook = engine.host(engine.loaded.key).model.register_forward_pre_hook(lambda *_: ran.append(1))
    yield spaces.CALLS
    hook.remove()
    zero_gpu.lend(None)
    assert ran == []
    assert multiprocessing.active_children() == []


@pytest.fixture
def key(engine):
    return engine.loaded.key


def test_without_the_package_the_mark_changes_nothing(engine, key):
    assert not zero_gpu.lent()
    job = engine.chat(key, [None, None], HELLO, 2, 0.0)
    assert inspect.isgenerator(job)
    assert len(list(job)[-1]) == 2
    assert spaces.CALLS == []


def test_a_visitors_variants_and_answers_live_on_after_each_fork(page, engine, lent, monkeypatch):
    recipe = with_strength(engine.first_recipe(), 1.3)
    assert not engine.knows(engine.loaded.key, recipe)
    assert finish(engine.checked(engine.loaded.key, recipe)).matched == 14
    assert engine.knows(engine.loaded.key, recipe)
    known = Variants().add(engine.first_recipe()).add(recipe)
    talk = last(ask(page, engine, "send", known, Conversation(), "Hello"))
    talk = last(ask(page, engine, "send", known, talk, "And now?"))
    assert [len(turn.answers) for turn in talk.turns] == [2, 2]
    assert (
        talk.turns[0].answers
        == last(ask(page, engine, "again", known, Conversation((Turn("Hello"),)))).turns[0].answers
    )
    assert len(lent) == 4


def test_answers_are_those_that_are_given_without_a_fork(engine, key, lent):
    rows = [None, engine.first_recipe()]
    there = list(engine.chat(key, rows, HELLO, 6, 0.0))[-1]
    probed = engine.probes(key, [None, engine.first_recipe()], HELLO[0])
    assert [seconds for _, seconds in lent] == [60, 20]
    zero_gpu.lend(None)
    host = engine.host(key)
    host.model._forward_pre_hooks.clear()  # from here on it may run
    assert there == list(engine.chat(key, rows, HELLO, 6, 0.0))[-1]
    again = engine.probes(key, [None, engine.first_recipe()], HELLO[0])
    for one, other in zip(probed, again, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_what_was_measured_is_here_afterwards_and_not_measured_again(engine, key, lent):
    edit = engine.first_recipe().edits[0]
    edit = replace(edit, directions=replace(edit.directions, samples=20))
    assert engine.directions(key, edit.directions) is None
    finish(engine.measure_edit(key, (), edit))
    assert engine.signals(key, edit.directions)
    assert engine.forecast(key, (), edit).total_removed > 0.5
    results = list(engine.evaluate(key, engine.first_recipe(), FEW))
    assert [type(r) for r in results if isinstance(r, MetricResult)] == [MetricResult]
    assert any(isinstance(r, Progress) for r in results)
    count = len(lent)
    again = finish(engine.evaluate(key, engine.first_recipe(), FEW))
    assert again == [r for r in results if isinstance(r, MetricResult)]
    assert len(lent) == count  # the next visitor's page costs no quota


def test_a_merge_is_prepared_there_and_forecast_here(engine, key, lent):
    folder = DEMO / "adapters"
    spec = Merge(str(folder / "utility"), str(folder / "safety"), samples=9)  # no other test's
    assert engine.merges.pair(key, spec) is None
    finish(engine.merges.prepare(key, spec))
    assert engine.merges.pair(key, basis(spec)) is not None
    assert engine.merges.forecast(key, spec) is not None


def test_a_search_sends_its_candidates(engine, key, lent):
    spec = SearchSpec(strategy="grid", trials=2, samples=4, max_new_tokens=4)
    job = engine.search(key, engine.first_recipe(), spec, None)
    assert isinstance(next(part for part in job if not isinstance(part, Progress)), Opened)
    assert next(part for part in job if isinstance(part, Candidate)).values
    job.close()  # before it tests the best on held-out prompts
    assert len(lent) == 1


def test_an_export_is_written_there_and_found_here(engine, key, lent, tmp_path):
    job = engine.export(key, engine.first_recipe(), tmp_path / "out", ExportOptions().format)
    done = finish(job)
    assert (done.folder / "adapter_model.safetensors").is_file()


def test_closing_a_job_ends_it_there(engine, key, lent):
    job = engine.chat(key, [None, None], HELLO, 4096, 0.0)
    next(job)
    job.close()
    assert until(lambda: not multiprocessing.active_children())


def test_the_model_waits_on_the_cpu_and_its_recipes_do_not_say_so(engine, lent, monkeypatch):
    asked = []
    monkeypatch.setattr("sst_ui.ui.services.engine.inspect", asked.append)
    engine.inspect(engine.loaded.spec)
    assert [spec.device for spec in asked] == ["cpu"]
    assert engine.first_recipe().model.device == "auto"
    zero_gpu.lend(None)
    engine.inspect(engine.loaded.spec)
    assert [spec.device for spec in asked] == ["cpu", "auto"]


def test_callbacks_hear_what_was_said_there(engine, key, lent):
    long = [{"role": r, "content": "word " * 150} for r in ("user", "assistant") * 6]
    heard = []
    talk = [*long, {"role": "user", "content": "Hello"}]
    list(engine.chat(key, [None, None], [talk, talk], 2, 0.0, 0, heard.append))
    assert heard
    assert min(heard[0]) > 0


def test_errors_come_back_as_what_they_are(engine, key, lent, monkeypatch):
    with pytest.raises(Replaced) as gone:
        list(engine.chat("another", [None, None], HELLO, 2, 0.0))
    assert gone.value.name == engine.loaded.name
    with pytest.raises(UserError, match="no message to answer"):
        list(engine.chat(key, [None, None], [[], []], 2, 0.0))
    monkeypatch.setattr("sst_ui.ui.services.engine.chat", None)
    with pytest.raises(TypeError) as defect:
        list(engine.chat(key, [None, None], HELLO, 2, 0.0))
    assert "Traceback" in defect.value.__notes__[0]
    monkeypatch.setattr("sst_ui.ui.services.engine.chat", lambda *_, **__: os._exit(1))
    with pytest.raises(UserError, match="aborted"):
        list(engine.chat(key, [None, None], HELLO, 2, 0.0))


def test_all_events_of_a_page_may_wait_where_gradio_would_let_one(engine, lent, monkeypatch):
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert gr.Blocks().queue()._queue.max_size == 1
    assert build(engine)._queue.max_size == WAITING


def test_a_visitor_reads_why_no_gpu_is_lent(page, engine, known_variants, monkeypatch):
    def refused(packed, seconds):
        raise gr.Error(f"You have exceeded your quota ({seconds}s requested)")
        yield

    monkeypatch.setattr(zero_gpu, "_lent", refused)
    updates = list(ask(page, engine, "send", known_variants, Conversation(), "Hello"))
    said = next(v for k, v in updates[-1].items() if k.elem_id == "chat-status")
    assert "exceeded your quota (60s requested)" in said


@pytest.fixture
def known_variants(engine):
    return Variants().add(engine.first_recipe())


def test_a_lock_that_another_thread_held_is_open_in_a_fork():
    memory = Memory(2)
    memory.put("a", 1)
    with memory._lock:
        child = os.fork()
        if child == 0:
            os._exit(int(memory.get("a") != 1))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_takes_the_model_to_its_gpu_and_other_processes_stay_off_it(tiny_host, monkeypatch):
    host, moved = tiny_host("llama"), []
    monkeypatch.setattr(type(host.model), "to", lambda _, device: moved.append(device))
    host.forked()
    assert (moved, host.lent) == ([], False)  # there is none
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    host.forked()
    assert (moved, host.lent) == (["cuda"], True)
    host.device = SimpleNamespace(type="cuda")
    assert _room(host) == "cpu"
