"""A window on a slow model: what it can do before all prompts are measured, without a browser."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from sst_ui.errors import UserError
from sst_ui.jobs.directions import residual_cache
from sst_ui.jobs.directions.measure import measure
from sst_ui.maths.directions import signal
from sst_ui.progress import Progress, finish
from sst_ui.ui import Engine
from sst_ui.ui import page as studio
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import open_page
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.panels.chat import BASE, EDITED, WAITING
from sst_ui.ui.services import first_look
from sst_ui.ui.state.form import show
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Conversation, Turn, Variants
from tests.patience import SECONDS, until

FEW, ALL = 8, 24
WINDOW = SimpleNamespace(session_hash="early")


class Slow(Engine):
    """A model that takes long: each recipe is measured when `go` lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Semaphore(0)

    def first_recipe(self):
        recipe = super().first_recipe()
        (edit,) = recipe.edits
        few = replace(edit, directions=replace(edit.directions, samples=ALL))
        return replace(recipe, edits=(few,))

    def quietly(self, key, recipe):
        yield Progress("residuals", 0, 100)
        if self.first.plan(key):  # after it was seen to be slow
            assert self.go.acquire(timeout=SECONDS)
        yield from super().quietly(key, recipe)


@pytest.fixture
def slow(monkeypatch, tmp_path):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    for name, value in (("FEW", FEW), ("TRIED", 0.0), ("SLOW", 0.0)):
        monkeypatch.setattr(first_look, name, value)
    engine = Slow()
    yield engine
    engine.go.release(2)
    engine.first.join()


@pytest.fixture
def opened(slow):
    """Its model is there, and not measured."""
    slow.open()
    finish(slow.arrived())
    until(lambda: slow.first.plan(slow.loaded.key))
    return slow


@pytest.fixture
def screen(opened):
    with gr.Blocks():
        panels = studio.panels(opened)
    chat = panels.work.chat
    session, bar = panels.session, panels.left.apply
    return open_page.Screen(
        session, panels.editor, panels.applied, chat, bar.status, panels.figures.probe
    )


def draft(engine, variants=None):
    form, extras = show(engine.first_recipe())
    return Draft("en", engine.loaded, extras, variants or Variants(), "evidence", form)


def asked(engine, variants=None, loaded=None, picked=(BASE, EDITED), blind=False):
    talk = Conversation((Turn("Hello"),))
    loaded = engine.loaded if loaded is None else loaded
    return chat_events.Asked("en", loaded, variants or Variants(), talk, picked, (), "", blind)


def parts(engine, question):
    """What `_parts` yields, with the sources of that moment."""
    growing = chat_events._Growing(question)
    for part in chat_events._parts(engine, question, growing, 8, 0.0, 0):
        yield part, growing.last


def alone(engine, recipe):
    """What a recipe answers when nothing else is asked."""
    job = engine.chat(engine.loaded.key, [recipe], [[{"role": "user", "content": "Hello"}]], 8, 0.0)
    return [*job][-1][0]


def test_few_prompts_come_first_and_give_what_they_give_alone(opened):
    key = opened.loaded.key
    few, whole = opened.first.plan(key)
    spec, rest = (each.edits[0].directions for each in (few, whole))
    assert (spec.samples, rest.samples) == (FEW, ALL)
    assert replace(spec, samples=ALL) == rest
    assert opened.signals(key, rest) == {}
    opened.go.release()
    until(lambda: opened.knows(key, few))
    until(lambda: opened.first.latest(key) == few)
    assert not opened.knows(key, whole)
    mine = finish(measure(opened.host(key), spec))
    # ... and stand in for the directions of all
    assert np.array_equal(opened.signals(key, rest)["evidence"], signal(mine))
    other = replace(rest, samples=ALL - 1)  # of others they do not
    assert opened.signals(key, other) == {}
    opened.go.release()
    finish(opened.wait())
    assert opened.knows(key, whole)
    assert opened.first.latest(key) == whole
    assert opened.signals(key, other) == {}
    mine = finish(measure(opened.host(key), rest))
    assert np.array_equal(opened.signals(key, rest)["evidence"], signal(mine))


def test_the_window_shows_the_few_then_all_and_leaves_an_edit_of_ones_own(opened, screen):
    key = opened.loaded.key
    few, whole = opened.first.plan(key)
    board = Board("en", Variants(), {})

    def look(variants):
        updates = [*open_page.await_look(screen, opened, "en", opened.loaded, variants)]
        return [each[screen.status] for each in updates if screen.status in each]

    opened.go.release()
    (bar,) = look(Variants())
    assert "8 + 8" in bar
    updates = open_page.adopt(screen, opened, draft(opened), board)
    now = updates[screen.applied.variants]
    assert now.now.recipe.digest() == few.digest()
    assert "8+8" in now.now.name
    assert "8 + 8" in updates[screen.status]
    opened.go.release()
    look(now)
    updates = open_page.adopt(screen, opened, draft(opened, now), board)
    now = updates[screen.applied.variants]
    assert now.now.recipe.digest() == whole.digest()
    assert look(now) == []  # nothing more comes, and no metrics begin again
    assert open_page.adopt(screen, opened, draft(opened, now), board) == {}
    own = now.add(replace(whole, edits=(replace(whole.edits[0], operation="ablate"),)))
    assert look(own) == []
    assert open_page.adopt(screen, opened, draft(opened, own), board) == {}


def test_the_base_answers_at_once_and_the_edited_column_when_it_is_measured(opened):
    seen = []
    for part, last in parts(opened, asked(opened)):
        if isinstance(part, Progress):
            if not seen or not isinstance(seen[-1], Progress):
                assert last.sources[1].part == WAITING
                opened.go.release()
            seen.append(part)
        else:
            seen.append(tuple(part))
    texts = [each for each in seen if not isinstance(each, Progress)]
    few = opened.first.latest(opened.loaded.key)
    assert [len(t) > 0 for t in texts[0]] == [True, False]
    assert texts[-1] == (alone(opened, None), alone(opened, few))
    assert last.sources[1].digest == few.digest()
    assert last.sources[0].part == BASE


def test_blind_answers_wait_together(opened):
    opened.go.release(2)
    shown = [p for p, _ in parts(opened, asked(opened, blind=True)) if isinstance(p, list)]
    assert all(shown[-1])
    assert all(bool(a) == bool(b) for a, b in shown)


def test_a_message_before_the_model_is_there_waits_for_it(slow):
    job = parts(slow, asked(slow, loaded=Loaded()))
    first, _ = next(job)
    assert isinstance(first, Progress)
    slow.go.release(2)
    slow.open()
    *_, (texts, last) = job
    slow.first.join()
    plan = {each.digest(): each for each in slow.first._look.plan}
    assert texts == [alone(slow, None), alone(slow, plan[last.sources[1].digest])]


def test_directions_that_are_on_their_way_are_not_measured_twice(opened, monkeypatch):
    key, captured = opened.loaded.key, []
    original = residual_cache.residuals

    def counted(host, prompts, *more, **options):
        captured.append(len(prompts))
        return original(host, prompts, *more, **options)

    monkeypatch.setattr(residual_cache, "residuals", counted)
    whole = opened.first_recipe().edits[0]
    job = opened.measure(key, whole.directions)
    assert isinstance(next(job), Progress)
    opened.go.release(2)
    found = finish(job)
    opened.first.join()
    assert found.digest() == opened.directions(key, whole.directions).digest()
    assert len([n for n in captured if n == ALL]) == 4  # harmful, harmless, both held-out sets


def test_what_cannot_be_measured_is_said_to_who_waits(slow, monkeypatch):
    def fails(key, recipe):
        raise UserError("these prompts are too long.")
        yield

    monkeypatch.setattr(slow, "quietly", fails)
    slow.open()
    finish(slow.wait())
    with pytest.raises(UserError, match="too long"):
        finish(slow.first.next(slow.loaded.key))
    answered = [p for p, _ in parts(slow, asked(slow)) if isinstance(p, list)]
    assert answered[-1] == [alone(slow, None)] * 2


def test_another_model_ends_the_look_at_the_first(opened, monkeypatch):
    key = opened.loaded.key
    monkeypatch.setattr(opened, "_loaded", replace(opened.loaded, key="another"))
    opened.go.release(2)
    opened.first.join()
    assert opened.first.latest(key) is None
    assert not opened.first.running(key)
