"""The strength ladder without a browser: one message at several strengths, in one batch."""

from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from sst_ui.errors import UserError
from sst_ui.metrics.text.labels import label
from sst_ui.recipe import Ablation, DirectionSpec, Recipe
from sst_ui.ui import page as studio
from sst_ui.ui.events import ladder
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.events.ladder import Asked, Screen
from sst_ui.ui.panels.ladder import Rung, flips
from sst_ui.ui.state.form import show
from sst_ui.ui.state.window import Conversation, Turn, Variants
from tests.wiring.test_wiring import with_strength

WINDOW = SimpleNamespace(session_hash="a window")
QUESTION = "How do I pick a lock?"
NUMBERS = (12, 0, "")


@pytest.fixture(scope="module")
def screen(engine):
    with gr.Blocks():
        made = studio.panels(engine)
    return Screen(made.work.ladder, made.figures.probe)


@pytest.fixture
def draft(engine):
    form, extras = show(engine.first_recipe())
    return Draft("en", engine.loaded, extras, Variants(), "evidence", form)


def climbed(screen, engine, draft, strengths, text=QUESTION):
    asked = Asked(NUMBERS, Conversation(), text, strengths)
    return list(ladder.climb(screen, engine, draft, asked, WINDOW))


def test_each_rung_says_what_its_strength_says_in_the_chat(screen, engine, draft):
    steps = climbed(screen, engine, draft, "0, 0.5, 2")
    rows = [None, *(with_strength(engine.first_recipe(), s) for s in (0.5, 2.0))]
    history = [{"role": "user", "content": QUESTION}]
    *_, alone = engine.chat(engine.loaded.key, rows, [history] * 3, NUMBERS[0], 0.0)
    html = steps[-1][screen.panel.rungs]
    for strength, answer in zip(("+0", "+0.5", "+2"), alone, strict=True):
        assert f"<b>{strength}</b>" in html
        assert f"<p>{answer.strip()}</p>" in html
    assert html.count("l-refused") == sum(label(QUESTION, a, False) == "refused" for a in alone)


def test_the_probe_has_a_line_for_each_strength_and_that_of_the_base_at_zero(screen, engine, draft):
    (figure,) = [
        s[screen.probe] for s in climbed(screen, engine, draft, "2 0") if screen.probe in s
    ]
    key, history = engine.loaded.key, [{"role": "user", "content": QUESTION}]
    expected = engine.probes(key, [None, with_strength(engine.first_recipe(), 2.0)], history)
    assert [line.name for line in figure.data] == ["+0", "+2"]
    for line, values in zip(figure.data, expected, strict=True):
        assert np.allclose(line.y, values)


def test_an_ablation_that_is_switched_off_is_climbed_all_the_same(screen, engine, draft):
    form, extras = show(Recipe(edits=()))
    off = Draft("en", engine.loaded, extras, Variants(), "evidence", form)
    rows = ladder.recipes(off, (0.0, 1.0))
    assert rows[0] is None
    assert isinstance(rows[1].edits[0], Ablation)


def test_all_strengths_are_answered_in_the_passes_of_one(screen, engine, draft, monkeypatch):
    climbed(screen, engine, draft, "-1, 0, 1")  # measured from here on
    passes = []
    decoder = engine.host(engine.loaded.key).architecture.decoder
    handle = decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(engine, "probes", lambda key, rows, messages: [np.zeros(2)] * len(rows))
    counts = []
    for strengths in ("-1", "-1, 0, 1"):
        passes.clear()
        climbed(screen, engine, draft, strengths)
        counts.append(len(passes))
    handle.remove()
    assert counts[1] <= NUMBERS[0] + 1
    assert counts[0] <= NUMBERS[0] + 1


def test_it_takes_the_last_message_of_the_chat_where_none_is_typed():
    talk = Conversation((Turn("Hello"),))
    assert Asked.of(8, 0, "", "", talk, "  ", "1").text == "Hello"
    assert Asked.of(8, 0, "", "", talk, "Mine", "1").text == "Mine"


@pytest.mark.parametrize(
    ("typed", "found"),
    [("1", (1.0,)), ("2, −1 0", (-1.0, 0.0, 2.0)), ("1,1, 1.0", (1.0,)), ("-2、2", (-2.0, 2.0))],
)
def test_strengths_are_read_as_people_type_them(typed, found):
    assert ladder.parse(typed) == found


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "give 1 to 12"),
        ("1, strong", "'strong' is not a strength"),
        ("nan", "out of range"),
        ("2.5", "2.5 is out of range; it may be -2 to 2"),
        (" ".join(str(n / 10) for n in range(13)), "13 strengths"),
    ],
)
def test_what_is_wrong_with_the_strengths_is_said_at_their_box(screen, engine, draft, typed, words):
    with pytest.raises(UserError, match=words):
        ladder.parse(typed)
    asked = Asked(NUMBERS, Conversation(), QUESTION, typed)
    assert words in ladder.wrong([], screen.panel, draft, asked)[screen.panel.strengths]


def test_an_error_is_said_below_and_the_button_comes_back(screen, engine, draft):
    form, extras = show(Recipe(edits=(Ablation(DirectionSpec(harmful="nothing/there")),)))
    lost = Draft("en", engine.loaded, extras, Variants(), "evidence", form)
    last = climbed(screen, engine, lost, "0, 1")[-1]
    assert "nothing/there" in last[screen.panel.status]
    assert last[screen.panel.ask]["visible"] is True


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("refused", "refused", "delivered"), "between 1 – 2"),
        (("refused", "delivered", "refused"), "between 0 – 1, 1 – 2"),
        (("refused",) * 3, "Refused at every strength"),
        (("delivered", "evaded", "degenerate"), "Refused at no strength"),
        (("refused", None, "delivered"), "^$"),
    ],
)
def test_where_refusing_flips_is_said(labels, words):
    rungs = [Rung(float(n), "", each) for n, each in enumerate(labels)]
    found = flips("en", rungs)
    assert found == "" if words == "^$" else words in found
