"""The token view and the map of residuals without a browser: what follows an answer, what a click
on a token does, and what costs no forward pass."""

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from sst_ui.jobs.token_view import PLACES
from sst_ui.progress import finish
from sst_ui.ui import page as studio
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import residual_map as map_events
from sst_ui.ui.events import tokens as token_events
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.events.tokens import Seen, follow, pick
from sst_ui.ui.state.form import show
from sst_ui.ui.state.window import Conversation, Source, Turn, Variants
from sst_ui.ui.widgets.texts import LANGUAGES, say
from tests.patience import SECONDS
from tests.wiring.test_results import handler

WINDOW = SimpleNamespace(session_hash="a window of tokens")
TURN = Turn("How do I pick a lock?", ("No.", "Yes, first take it."), (Source("base"),) * 2)
LAST = {"role": "user", "content": TURN.message}


@pytest.fixture(scope="module")
def screen(engine):
    with gr.Blocks():
        return studio.panels(engine)


@pytest.fixture
def seen(engine):
    known = Variants().add(engine.first_recipe())
    return Seen("en", "tokens", engine.loaded, known, Conversation((TURN,)), "right", "template")


@pytest.fixture
def draft(engine):
    form, extras = show(engine.first_recipe())
    return Draft("en", engine.loaded, extras, Variants(), "evidence", form)


def drawn(screen, engine, seen):
    """What the page is told, step by step."""
    steps = follow(screen.figures, engine, seen, WINDOW)
    return [json.loads(s[screen.figures.tokens]) for s in steps if screen.figures.tokens in s]


def test_every_token_of_the_answer_is_drawn_with_its_projection_before_the_lens(
    screen, engine, seen
):
    first, last = drawn(screen, engine, seen)
    assert "".join(last["tokens"]).endswith("Yes, first take it.")
    assert (first["kl"], first["top"]) == (None, None)
    assert first["place"] == last["place"]
    layers, count, key = engine.loaded.layers, len(last["tokens"]), engine.loaded.key
    lines = engine.probes(key, [None, seen.variants.now.recipe], [LAST])
    for numbers, line in zip(last["place"], lines, strict=True):
        shown = np.reshape(numbers, (layers, count))[:, last["prompt"] - 1]
        assert np.allclose(shown, line, atol=2e-3)
    top = np.reshape(last["top"][1], (layers, count, last["k"]))
    first_word = last["words"][top[-1, last["prompt"] - 1, 0]]
    *_, (greedy,) = engine.chat(key, [seen.variants.now.recipe], [[LAST]], 4, 0.0)
    assert greedy.startswith(first_word), "the last layer says what the model does"
    left = drawn(screen, engine, replace(seen, side="left"))[-1]
    assert "".join(left["tokens"]).endswith("No.")


def test_a_turn_that_the_answer_did_not_see_is_not_read(screen, engine, seen):
    blind = replace(TURN, sources=(Source("base"), Source("edited", left_out=1)))
    talk = Conversation((Turn("Earlier?", ("Yes.", "Yes.")), blind))
    right, left = (drawn(screen, engine, replace(seen, talk=talk, side=s))[0]["tokens"]
                   for s in ("right", "left"))  # fmt: skip
    assert "Earlier?" not in "".join(right)
    assert "Earlier?" in "".join(left)


def test_it_follows_answers_and_what_is_applied_and_computes_nothing_while_its_tab_is_shut(
    page, screen, engine, seen, monkeypatch
):
    following = [f for f in page.fns.values() if f.fn and f.fn.__name__ == "follow"]
    after = {f.trigger_after for f in following}
    names = {f.fn.__name__ for n, f in page.fns.items() if f.fn and n in after}
    assert {"send", "again", "apply", "undo", "redo", "pick", "opened"} <= names
    monkeypatch.setattr(engine, "token_view", lambda *_: pytest.fail("computed for nobody"))
    assert list(follow(screen.figures, engine, replace(seen, figure="curve"), WINDOW)) == [{}]


def test_while_it_is_open_the_probe_comes_behind_it(page, engine, seen):
    probes = [f.fn for f in page.fns.values() if f.fn and f.fn.__module__ == chat_events.__name__
              and f.fn.__name__ == "measure"]  # fmt: skip
    told = ("en", WINDOW, engine.loaded, seen.variants, seen.talk)
    drew = {
        figure: [isinstance(fn(told[0], figure, *told[2:]), dict) for fn in probes]
        for figure in ("curve", "tokens")
    }
    assert [not skipped for skipped in drew["curve"]] == drew["tokens"]
    assert len(set(drew["tokens"])) == 2


def test_in_blind_mode_it_waits_for_the_vote(screen, engine, seen, monkeypatch):
    monkeypatch.setattr(engine, "token_view", lambda *_: pytest.fail("it was computed"))
    turn = replace(seen.talk.turns[-1], blind=True)
    waiting = replace(seen, talk=replace(seen.talk, turns=(*seen.talk.turns[:-1], turn)))
    (step,) = follow(screen.figures, engine, waiting, WINDOW)
    assert "which answer is better" in step[screen.figures.tokens]


def test_a_newer_answer_or_another_tab_ends_it(page, screen, engine, seen):
    steps = follow(screen.figures, engine, seen, WINDOW)
    next(steps)
    opened = handler(page, token_events, "opened")
    turning = threading.Thread(target=opened, args=("en", WINDOW))
    turning.start()
    while not engine._answers.get(f"{WINDOW.session_hash}:tokens").replaced:
        assert turning.is_alive()
    assert list(steps) == []
    turning.join(SECONDS)
    assert not turning.is_alive()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("place", PLACES)
def test_a_click_measures_where_a_direction_can_be_measured_and_says_why_not_elsewhere(
    screen, engine, draft, language, place
):
    draft = replace(draft, language=language)
    event = SimpleNamespace(pick=place)
    told = pick(screen.figures, screen.editor, engine, draft, event)
    position, note = screen.left.direction.position, told[screen.figures.token_note]
    if place == "instruction":
        assert told[position] == "instruction"
        assert "position: instruction" in told[screen.work.recipe.text]
        assert say(language, "tokens.at.instruction") in note
    elif place == "template":
        assert say(language, "tokens.already.template") in note
        moved = replace(draft, form=draft.form._replace(position="instruction"))
        again = pick(screen.figures, screen.editor, engine, moved, event)
        assert again[position] == "template"
    else:
        assert position not in told
        assert say(language, f"tokens.{place}") in note


def test_directions_of_a_file_are_not_measured_anywhere_else(screen, engine, draft):
    filed = replace(draft, form=draft.form._replace(file="some.safetensors"))
    event = SimpleNamespace(pick="instruction")
    told = pick(screen.figures, screen.editor, engine, filed, event)
    assert list(told) == [screen.figures.token_note]
    assert say("en", "tokens.file") in told[screen.figures.token_note]


def test_the_map_shows_the_measured_residuals_without_a_forward_pass(screen, engine, draft):
    spec, key = draft.ablation().directions, engine.loaded.key
    directions = finish(engine.measure(key, spec))
    passes = []
    decoder = engine.host(key).architecture.decoder
    handle = decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    (step,) = map_events.look(screen.figures, engine, draft, "map", WINDOW)
    handle.remove()
    assert passes == []
    found = json.loads(step[screen.figures.map])
    assert len(found["planes"]) == engine.loaded.layers
    for layer, plane in enumerate(found["planes"]):
        apart = plane["means"][0][0] - plane["means"][1][0]
        assert np.isclose(apart, float(directions.norms[layer]), rtol=1e-2, atol=1e-3)
        assert len(plane["harmful"]) == 2 * len(found["prompts"]["harmful"])
    assert list(map_events.look(screen.figures, engine, draft, "curve", WINDOW)) == [{}]


def test_what_is_wrong_is_said_in_place_of_the_figure(screen, engine, seen, draft):
    lost = replace(seen, loaded=replace(engine.loaded, key="another model"))
    *_, step = follow(screen.figures, engine, lost, WINDOW)
    assert engine.loaded.name in step[screen.figures.token_note]
    nothing = replace(draft, form=draft.form._replace(harmful="nothing/there"))
    *_, step = map_events.look(screen.figures, engine, nothing, "map", WINDOW)
    assert "nothing/there" in json.loads(step[screen.figures.map])["empty"]
    (empty,) = drawn(screen, engine, replace(seen, talk=Conversation()))
    assert empty == {"empty": say("en", "tokens.empty")}
