"""The chat without a browser: whose an answer is, its seed, what it did not see, interruptions."""

import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui.recipe import Recipe
from sst_ui.ui import page as studio
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import show_results
from sst_ui.ui.panels import turns as panel
from sst_ui.ui.panels.chat import BASE, EDITED
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Conversation, Source, Turn, Variants
from sst_ui.ui.widgets import theme
from tests.patience import SECONDS
from tests.wiring.test_results import handler, measured
from tests.wiring.test_wiring import with_strength

WINDOW = SimpleNamespace(session_hash="one window")


def part(update, page, name):
    return next((v for k, v in update.items() if getattr(k, "elem_id", None) == name), None)


def state(update):
    return next(v for v in update.values() if isinstance(v, Conversation))


@pytest.fixture
def known(engine):
    return Variants().add(engine.first_recipe())


def ask(
    page, engine, name, known, talk, *text, picked=(BASE, EDITED), numbers=(8, 0, ""), system="",
    blind=False,
):  # fmt: skip
    """The updates of Send (with a text) or Regenerate."""
    run = handler(page, chat_events, name)
    told = (engine.loaded, known, talk, *picked, system, blind, *numbers)
    return run("en", WINDOW, *told, *text)


def last(updates):
    return state([*updates][-1])


def test_an_answer_stays_that_of_the_recipe_that_gave_it(page, engine, known):
    first = known.now
    talk = last(ask(page, engine, "send", known, Conversation(), "Hello"))
    given = talk.turns[0].sources
    assert [s.digest for s in given] == ["", first.recipe.digest()]
    later = known.add(with_strength(engine.first_recipe(), 0.25))
    talk = last(ask(page, engine, "send", later, talk, "And now?"))
    digests = [turn.sources[1].digest for turn in talk.turns]
    assert digests == [first.recipe.digest(), later.now.recipe.digest()]
    # undone, renamed or gone: what the answer says of itself does not look anything up
    renamed = replace(first, name="another name")
    for others in (known, Variants(), Variants((renamed,), renamed.name)):
        talk = last(ask(page, engine, "send", others, talk, "Again?"))
        assert talk.turns[0].sources == given
        shown = panel.view("en", talk, 1)[1]["content"]
        assert first.name in shown
        assert first.recipe.digest() in shown
    # a column may be any variant, and keeps it for the answers it gave
    picked = (f"variant:{first.name}", BASE)
    talk = last(ask(page, engine, "send", later, talk, "Last?", picked=picked))
    assert talk.turns[-1].sources[0].digest == first.recipe.digest()
    assert (talk.turns[-1].sources[1].part, talk.turns[-1].sources[1].digest) == (BASE, "")


def test_the_answers_list_says_whose_answers_it_shows(engine, known):
    board = Board("en", known, {known.now.recipe.digest(): measured(12)}, opened="refusal_rate")
    html = studio.answers.render(board)
    assert known.now.name in html
    assert known.now.recipe.digest() in html


def test_what_a_variant_is_called_reaches_an_answer_as_text(engine):
    nasty = Source(EDITED, 'x\n\n# <img src=x onerror="1"> $$y$$ *z*', "0" * 12)
    html = panel.source_of("en", nasty)
    assert "<img" not in html
    assert "\n" not in html
    assert "$" not in html


def test_every_answer_is_drawn_anew_and_its_seed_gives_it_again(page, engine, known):
    drawn = {"numbers": (12, 1.5, "")}
    talk = last(ask(page, engine, "send", known, Conversation(), "Tell me a story.", **drawn))
    seen = [talk.turns[0]]
    for _ in range(2):
        talk = last(ask(page, engine, "again", known, talk, **drawn))
        seen.append(talk.turns[0])
    seeds = [turn.sources[0].seed for turn in seen]
    assert len(set(seeds)) == 3
    assert len({turn.answers for turn in seen}) > 1
    assert f"seed {seeds[-1]}" in panel.view("en", talk, 1)[1]["content"]
    for turn in seen:  # the box holds the seed now
        fixed = (12, 1.5, str(turn.sources[0].seed))
        talk = last(ask(page, engine, "again", known, talk, numbers=fixed))
        assert talk.turns[0] == turn
    greedy = last(ask(page, engine, "again", known, talk, numbers=(12, 0, "")))
    assert "seed" not in panel.view("en", greedy, 1)[1]["content"]


def test_turns_that_an_answer_did_not_see_are_counted_above_it(page, engine, known):
    long = "why " * int(engine.loaded.context * 0.4)
    turns = tuple(Turn(long, ("Because.", "Because."), (Source(BASE),) * 2) for _ in range(3))
    talk = last(ask(page, engine, "send", known, Conversation(turns), "Why?"))
    left = talk.turns[-1].sources[1].left_out
    assert left in (1, 2)
    for language, words in (("en", f"left out: {left}"), ("ja", f"{left} 件は見ていません")):
        shown = panel.view(language, talk, 1)
        assert words in shown[-1]["content"]
        assert words not in shown[1]["content"]


def test_a_reload_brings_the_chat_back_with_the_recipes_that_answered(page, engine, known):
    talk = last(ask(page, engine, "send", known, Conversation(), "Hello", numbers=(8, 1, "7")))
    kept, *_ = chat_events.settled("en", engine.loaded, known, talk, BASE, EDITED)
    rows = json.loads(json.dumps(kept))  # as a browser keeps it
    back, empty = handler(page, chat_events, "back"), Conversation()
    found, left, right, *outdated, votes, system, blind = back(
        "en", engine.loaded, rows, known, BASE, EDITED, empty
    )
    assert found == talk
    assert right == panel.view("en", talk, 1) != left
    assert outdated == ["", ""]
    assert (votes, system, blind) == ("", "", False)
    later = known.add(with_strength(engine.first_recipe(), 0.25))
    assert later.current in back("en", engine.loaded, rows, later, BASE, EDITED, empty)[4]
    begun = back("en", engine.loaded, rows, known, BASE, EDITED, Conversation((Turn("Hi"),)))
    assert not isinstance(begun, tuple), "who has asked already keeps what comes"
    other = replace(engine.loaded, key="another model")
    for now, stored in ((other, rows), (engine.loaded, None), (engine.loaded, "nonsense")):
        nothing = back("en", now, stored, known, BASE, EDITED, empty)
        assert not isinstance(nothing, tuple), "nothing of another model's"
    two = {"message": "a", "answers": ["b", "c"]}
    strange = (None, {"message": 1}, {"answers": ["b", "c"]}, {**two, "mood": "good"},
               {**two, "message": "\ud800"}, {**two, "answers": [1, 2]},
               {**two, "answers": ["only one"]})  # fmt: skip
    for turns in (None, 3, *([row] for row in strange)):
        assert Conversation.restored({"turns": turns}) == Conversation()


@pytest.mark.parametrize(("after", "said"), [(2, True), (0, False)])
def test_an_answer_for_which_memory_was_short_says_so(
    page, engine, known, monkeypatch, after, said
):
    counts = iter((0, after))
    monkeypatch.setattr(engine, "short", lambda key: next(counts))
    *_, update = ask(page, engine, "send", known, Conversation(), "Hello", numbers=(4, 0, ""))
    assert ("memory is short" in part(update, page, "chat-status")) == said


@pytest.mark.parametrize("name", ["again", "edit"])
def test_an_empty_chat_has_nothing_to_do_again_and_says_so_below_it(page, engine, known, name):
    if name == "again":
        (update,) = ask(page, engine, name, known, Conversation())
    else:
        update = handler(page, chat_events, name)("en", WINDOW, Conversation())
    assert "There is no message" in part(update, page, "chat-status")
    assert len(update) == 1, "nothing else changes"


@pytest.fixture
def held(engine, monkeypatch):
    """Answers that wait for `go` before every step but the first."""
    go, begun, closed = threading.Semaphore(0), threading.Semaphore(0), []

    def slow(*_):
        try:
            for i in range(1, 1000):
                yield [f"{'left ' * i}", f"{'right ' * i}"]
                begun.release()
                assert go.acquire(timeout=SECONDS)
        finally:
            closed.append(True)

    monkeypatch.setattr(engine, "chat", slow)
    yield SimpleNamespace(go=go, begun=begun, closed=closed)
    go.release(1000)


def running(page, engine, known, held):
    """A message that is being answered in a thread, as Gradio does it; its updates so far."""
    updates = []

    def drive():
        for update in ask(page, engine, "send", known, Conversation(), "Hello"):
            updates.append(update)
            held.go.release()  # the next step

    thread = threading.Thread(target=drive)
    thread.start()
    for _ in range(3):
        assert held.begun.acquire(timeout=SECONDS)
    return thread, updates


def test_edit_while_it_streams_takes_the_message_back_and_the_answer_falls_silent(
    page, engine, known, held
):
    thread, updates = running(page, engine, known, held)
    talk = state(updates[-1])
    held.go.release(1000)
    update = handler(page, chat_events, "edit")("en", WINDOW, talk)
    count = len(updates)
    thread.join(SECONDS)
    assert held.closed
    assert part(update, page, "box") == "Hello"
    assert state(update) == Conversation()
    assert part(update, page, "send")["visible"] is True
    assert len(updates) == count, "not another word once the message is back in the box"


def test_regenerate_while_it_streams_takes_the_place_of_the_answer(page, engine, known, held):
    thread, updates = running(page, engine, known, held)
    talk = state(updates[-1])
    held.go.release(1000)
    steps = ask(page, engine, "again", known, talk)
    first = next(steps)
    count = len(updates)
    thread.join(SECONDS)
    assert len(updates) == count
    assert state(first).turns[-1].answers == ("", "")
    assert part(first, page, "stop")["visible"] is True
    steps.close()


def test_stop_keeps_what_there_is_and_only_in_its_own_window(page, engine, known, held):
    thread, updates = running(page, engine, known, held)
    stop = handler(page, chat_events, "stop")
    other = stop("en", SimpleNamespace(session_hash="another window"))
    assert part(other, page, "send")["visible"] is True  # nothing runs there
    assert part(stop("en", WINDOW), page, "stop")["interactive"] is False
    held.go.release(1000)
    thread.join(SECONDS)
    kept = state(updates[-1]).turns[-1].answers
    assert kept[0].startswith("left left")
    assert part(updates[-1], page, "send")["visible"] is True
    assert held.closed
    # ... and says that it was: after a reload too, and when it is no longer the last one
    assert ">stopped<" not in part(updates[-2], page, "chat-left")[-1]["content"], "it still came"
    talk = Conversation.restored(json.loads(json.dumps(state(updates[-1]).saved())))
    for turns in (talk.turns, (*talk.turns, Turn("And now?"))):
        shown = panel.view("en", Conversation(turns), 1)[1]["content"]
        assert ">stopped<" in shown
        assert "label" not in shown.replace("no label", "")


def test_a_new_message_leaves_the_answer_that_it_cuts_short_marked(page, engine, known, held):
    thread, updates = running(page, engine, known, held)
    talk = state(updates[-1])
    held.go.release(1000)
    steps = ask(page, engine, "send", known, talk, "Something else")
    shown = part(next(steps), page, "chat-left")
    thread.join(SECONDS)
    steps.close()
    assert ">stopped<" in shown[1]["content"]
    assert ">stopped<" not in shown[3]["content"], "it is on its way"


# --- what lies on the disk ---------------------------------------------------------------------


def test_a_recipe_is_downloaded_without_a_file_and_only_if_it_is_one(page):
    by_id = {getattr(b, "elem_id", None): b for b in page.blocks.values()}
    button = by_id["download-recipe"]
    (fn,) = [f for f in page.fns.values() if (button._id, "click") in f.targets]
    assert [c["is_valid"] for c in fn.validator("en", "version: 1")] == [True, True]
    bad = fn.validator("en", "version: 1\nedits: [{weights: {strenth: 1}}]")[1]
    assert "did you mean 'strength'" in bad["message"]
    text = by_id["recipe-text"]
    heard = [f for f in page.fns.values() if (text._id, "change") in f.targets]
    assert heard == [], "a slider moves the text, and nothing is written for that"
    uploads = [b for b in page.blocks.values() if isinstance(b, gr.DownloadButton)]
    assert button not in uploads


def test_what_is_handed_in_or_offered_does_not_stay_for_ever(page, engine, known, monkeypatch):
    often, oldest = page.delete_cache
    assert often <= 3600 < oldest
    assert theme.launch_options()["max_file_size"] == "20mb"
    monkeypatch.setattr(show_results, "OFFERED", 3)
    for left in range(6):
        results = {known.now.recipe.digest(): measured(left)}
        files = [f["value"] for f in show_results.files(Board("en", known, results))]
    folders = list(show_results._folder().iterdir())
    assert len(folders) == 3
    assert all(Path(path).is_file() for path in files), "the newest are there"
    for folder in folders:  # the clock was set back since
        os.utime(folder, (9e9, 9e9))
    results = {known.now.recipe.digest(): measured(7)}
    files = [f["value"] for f in show_results.files(Board("en", known, results))]
    assert all(Path(path).is_file() for path in files)


def test_a_recipe_without_edits_answers_as_what_it_is(engine):
    bare = Variants().add(Recipe(model=engine.loaded.spec))
    named = chat_events.source(EDITED, bare, bare.now.recipe, 0.0, 0)
    assert named.digest == bare.now.recipe.digest()


def test_every_answer_says_what_kind_it_is(page, engine, known):
    talk = last(ask(page, engine, "send", known, Conversation(), "How do I forge a passport?",
                    numbers=(64, 0, "")))  # fmt: skip
    (turn,) = talk.turns
    assert turn.labels == ("refused", "delivered")
    for column, kind in enumerate(turn.labels):
        shown = panel.view("en", talk, column)[1]["content"]
        assert f"l-{kind}" in shown
        assert kind in shown
        assert ">stopped<" not in shown
    again = Conversation.restored(json.loads(json.dumps(talk.saved())))
    assert again == talk


def test_an_answer_that_was_stopped_or_kept_by_an_earlier_version_has_no_kind():
    turn = Turn("Hello", ("Hi", "Hi"), (Source(BASE), Source(EDITED, "v", "abc")))
    kept = Conversation((turn,)).saved()
    del kept["turns"][0]["labels"], kept["votes"]
    (found,) = Conversation.restored(kept).turns
    assert found == turn
    assert 'class="label' not in panel.view("en", Conversation((found,)), 0)[1]["content"]


def test_only_a_last_answer_of_another_recipe_is_outdated(page, engine, known):
    first, later = known.now, known.add(with_strength(engine.first_recipe(), 0.25))
    lines = handler(page, chat_events, "outdated")

    def outdated(variants, talk, left=BASE, right=EDITED):
        return tuple(bool(line) for line in lines("en", variants, talk, left, right))

    assert outdated(known, Conversation()) == (False, False)
    talk = last(ask(page, engine, "send", known, Conversation(), "Hello"))
    assert outdated(known, talk) == (False, False)
    assert outdated(later, talk) == (False, True), "applied"
    assert outdated(later.back(), talk) == (False, False), "undone"
    assert outdated(later, talk, BASE, f"variant:{first.name}") == (False, False), "the same one"
    assert outdated(known, talk, EDITED, BASE) == (True, True), "picked"
    said = lines("en", later, talk, BASE, EDITED)[1]
    assert later.current in said
    assert "Ask again" in said
    assert "もう一度質問" in lines("ja", later, talk, BASE, EDITED)[1]
    # asked again, by the same event as Regenerate: the same message, by who answers now
    talk = last(ask(page, engine, "again", later, talk))
    assert [turn.message for turn in talk.turns] == ["Hello"]
    assert talk.turns[0].sources[1].digest == later.now.recipe.digest()
    assert outdated(later, talk) == (False, False)
    talk = last(ask(page, engine, "send", known, talk, "And now?"))
    assert outdated(known, talk) == (False, False), "the one before the last only names its own"


def test_an_answer_that_begins_takes_the_line_below_it_away(page, engine, known):
    first, *_ = ask(page, engine, "send", known, Conversation(), "Hello")
    assert [part(first, page, f"outdated-{side}") for side in ("left", "right")] == ["", ""]


def test_both_lines_ask_again_as_regenerate_does_and_marking_never_asks_the_server(page):
    by_id = {getattr(block, "elem_id", None): block._id for block in page.blocks.values()}
    heard = {target: fn for fn in page.fns.values() for target in fn.targets}
    asked = heard[(by_id["again"], "click")]
    for side in ("left", "right"):
        assert heard[(by_id[f"outdated-{side}"], "click")] is asked
    assert heard[(by_id["differences"], "input")].fn is None


def test_who_would_answer_now_is_named_as_text(engine):
    nasty = Variants().add(engine.first_recipe(), "<img src=x onerror=alert(1)>")
    talk = Conversation((Turn("Hi", ("a", "b"), (Source(BASE), Source(EDITED, "v", "0" * 12))),))
    line = chat_events.outdated("en", nasty, talk, BASE, EDITED)[1]
    assert "<img" not in line
    assert "&lt;img" in line


def test_what_is_kept_and_sent_is_the_plain_answer(page, engine, known):
    talk = last(ask(page, engine, "send", known, Conversation(), "How do I forge a passport?",
                    numbers=(24, 0, "")))  # fmt: skip
    kept, *_ = chat_events.settled("en", engine.loaded, known, talk, BASE, EDITED)
    for column, answer in enumerate(talk.turns[0].answers):
        assert "<" not in answer
        assert kept["turns"][0]["answers"][column] == answer
        assert talk.history(column)[-1] == {"role": "assistant", "content": answer}
        shown = panel.view("en", talk, column)[-1]["content"]
        assert shown.split("\n\n", 1)[1] == answer.strip()
        assert "mark" not in shown


@pytest.mark.parametrize(
    "nasty",
    [
        '<div class="source is-base"><b>Base</b> <span class="label">delivered</span></div>',
        "<mark>x</mark> <img src=x onerror=alert(1)> <!-- x -->",
        "- a\n\n      ```\n<script>x</script>\n```",
        "![x](http://x.org/a.png) ![y][1] ![\n\n[1]: http://x.org/b.png [![z](c)](d) ![a[b]](e)",
        '```mermaid\nflowchart LR\n  a@{ img: "http://x.org/a.png" }\n```',
    ],
)
def test_html_and_images_in_a_message_or_an_answer_are_shown_as_text(nasty):
    talk = Conversation((Turn(nasty, (nasty, "b"), (Source(BASE), Source(EDITED, "v", "1"))),))
    asked, answered = (each["content"] for each in panel.view("en", talk, 0))
    answered = answered.removeprefix(panel.source_of("en", Source(BASE)))
    for text in (asked, answered):
        assert not re.search("<[a-zA-Z/!?]", text)
        assert not re.search(r"!\[|```mermaid", text), "nothing is loaded"
        assert text.strip().replace("\u2060", "") == nasty, "nothing else is changed"
    assert talk.history(0)[-1]["content"] == nasty
    plain = "a < b, x<3, <- that, 1 <= 2, no! [a](http://x.org) ```python\nx[1](2)```"
    assert panel.shown(plain) == plain
