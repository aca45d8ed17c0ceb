"""A signal that does not hold up, on the page: how it is drawn, and what it no longer suggests."""

from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from sst_ui.errors import UserError
from sst_ui.maths.directions import signal
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Recipe
from sst_ui.ui import page as studio
from sst_ui.ui.events import apply, draw_draft
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.state.form import show
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.texts import LANGUAGES, say

FEW, ALL = DirectionSpec(samples=8), DirectionSpec(k=4)


@pytest.fixture(scope="module")
def screen(engine):
    with gr.Blocks():
        return studio.panels(engine)


@pytest.fixture(scope="module", autouse=True)
def measured(engine):
    for spec in (FEW, ALL):
        finish(engine.measure(engine.loaded.key, spec))


def draft(engine, spec, language="en", shown="evidence", profile="default") -> Draft:
    form, extras = show(Recipe(edits=(Ablation(spec),)))
    form = form._replace(profile=profile)
    return Draft(language, engine.loaded, extras, Variants(), shown, form)


def drawn(screen, engine, now):
    updates = draw_draft.draw(screen.editor.drawing, engine, now)
    return updates[screen.figures.curve], updates[screen.editor.drawing.notes]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_signal_that_is_not_reliable_is_drawn_and_named_so(screen, engine, language):
    curve, notes = drawn(screen, engine, draft(engine, FEW, language))
    name = say(language, "signal.evidence")
    assert curve["doubtful"] is True
    assert curve["texts"]["signal"] == say(language, "signal.doubtful", name=name)
    assert {"en": "not reliable", "ja": "信頼できません"}[language] in notes
    curve, notes = drawn(screen, engine, draft(engine, ALL, language))
    assert (curve["doubtful"], curve["texts"]["signal"]) == (False, name)
    assert {"en": "not reliable", "ja": "信頼できません"}[language] not in notes


def test_another_signal_of_the_same_prompts_may_be_reliable(screen, engine):
    curve, notes = drawn(screen, engine, draft(engine, FEW, shown="cohens_d"))
    assert curve["doubtful"] is False
    assert "not reliable" not in notes


def test_the_interval_of_each_layer_is_drawn_around_its_value(screen, engine):
    curve, _ = drawn(screen, engine, draft(engine, ALL, shown="cohens_d"))
    low, high = np.array(curve["interval"], dtype=float).T
    assert (low < np.array(curve["signal"])).all()
    assert (high > np.array(curve["signal"])).all()
    curve, _ = drawn(screen, engine, draft(engine, DirectionSpec(samples=31)))
    assert (curve["interval"], curve["doubtful"]) == (None, False)  # not measured


def test_it_suggests_no_kernel_and_the_page_says_why(engine):
    key = engine.loaded.key
    assert engine.suggestion(key, FEW) is None
    with pytest.raises(UserError, match="evidence: not reliable"):
        draw_draft.with_profile(engine, draft(engine, FEW, profile="measured"))
    found = engine.suggestion(key, ALL)
    assert np.array_equal(found, signal(engine.directions(key, ALL)))
    draw_draft.with_profile(engine, draft(engine, ALL, profile="measured"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_after_measuring_no_best_layer_is_named(screen, engine, language):
    bar = screen.left.apply
    job = apply.Screen(bar, screen.editor, screen.applied, screen.figures.tabs)
    request = SimpleNamespace(session_hash="reliability")
    said = [
        list(apply.measure(job, engine, draft(engine, spec, language), request))[-1][bar.status]
        for spec in (FEW, ALL)
    ]
    words = {"en": ("not reliable", "strongest in layer"), "ja": ("信頼できません", "で最大")}
    doubtful, best = words[language]
    assert doubtful in said[0]
    assert best not in said[0]
    assert best in said[1]
