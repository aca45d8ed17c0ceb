"""One message under every method of merging, without a browser."""

from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui.errors import UserError
from sst_ui.jobs.merge.compare_methods import under, utility_only
from sst_ui.maths.merge.registry import METHODS
from sst_ui.recipe import Recipe
from sst_ui.ui import page as studio
from sst_ui.ui.events import each_method
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.events.ladder import Asked, Buttons
from sst_ui.ui.state.form import show, split
from sst_ui.ui.state.window import Conversation, Variants

WINDOW = SimpleNamespace(session_hash="a window")
ASKED = Asked((8, 0, ""), Conversation(), "Hello", "")
# what needs no statistics of the model
SOME = ("task_arithmetic", "safe_lora")


@pytest.fixture(scope="module")
def screen(engine):
    with gr.Blocks():
        return Buttons(studio.panels(engine).work.methods.each)


@pytest.fixture
def draft(engine, monkeypatch):
    monkeypatch.setattr(METHODS, "names", lambda: SOME)
    form, extras = show(engine.first_recipe())
    form = form._replace(method="task_arithmetic")
    return Draft("en", engine.loaded, extras, Variants(), "evidence", form)


def test_every_method_that_can_be_carried_out_answers_as_its_merge_does_alone(
    screen, engine, draft, monkeypatch
):
    resolve = engine.resolve

    def refused(key, recipe):
        if recipe.edits[0].method == "safe_lora":
            raise UserError("there is no checkpoint to tell a safe change by.")
        return resolve(key, recipe)

    monkeypatch.setattr(engine, "resolve", refused)
    last = list(each_method.answer(screen, engine, draft, ASKED, WINDOW))[-1]
    html, said = last[screen.panel.rungs], last[screen.panel.status]
    spec, _ = split(replace(draft, form=draft.form._replace(merge_on=True)).recipe())
    model = engine.loaded.spec
    utility = Recipe(model=model, edits=(utility_only(spec),))
    merged = Recipe(model=model, edits=(under(spec, "task_arithmetic"),))
    history = [{"role": "user", "content": "Hello"}]
    for recipe in (None, utility, merged):
        *_, (alone,) = engine.chat(engine.loaded.key, [recipe], [history], 8, 0.0)
        assert f"<p>{alone.strip()}</p>" in html
    names = ("Base", "Utility adapter only", METHODS["task_arithmetic"].title)
    places = [html.index(f"<b>{name}</b>") for name in names]
    assert places == sorted(places)
    assert html.count('class="rung"') == 3
    assert "Methods left out: 1" in said
    assert f"{METHODS['safe_lora'].title}: there is no checkpoint" in said.replace("There", "there")
    assert last[screen.panel.ask]["visible"] is True


def test_adapters_that_are_not_there_are_said_and_the_button_comes_back(screen, engine, draft):
    lost = replace(draft, form=draft.form._replace(utility="./nothing-there"))
    last = list(each_method.answer(screen, engine, lost, ASKED, WINDOW))[-1]
    assert "nothing-there" in last[screen.panel.status]
    assert last[screen.panel.rungs].count("<p>") == 1  # the base's, which was not asked
    assert last[screen.panel.ask]["visible"] is True


def test_there_must_be_a_message(screen, engine, draft):
    empty = replace(ASKED, text="")
    assert screen.panel.box in each_method.unasked([], screen.panel, draft, empty)
    assert each_method.unasked([], screen.panel, draft, ASKED) == {}
