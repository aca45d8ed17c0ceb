"""A system prompt in the chat, and blind mode: hidden sources, votes, their count."""

import json
from types import SimpleNamespace

import pytest

from sst_ui.errors import UserError
from sst_ui.jobs.chat import fit
from sst_ui.maths.statistics import sign_test
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events.ladder import Asked
from sst_ui.ui.panels import turns as panel
from sst_ui.ui.panels import votes
from sst_ui.ui.panels.chat import BASE, EDITED
from sst_ui.ui.state.window import Conversation, Source, Turn
from tests.wiring.test_results import handler
from tests.wiring.test_talking import WINDOW, ask, known, last, state  # noqa: F401

SYSTEM = "Answer in one word."
NUMBERS = (4, 0, "")


def pair(column, turn):
    """What a column shows of the turn."""
    talk = Conversation((turn,))
    return panel.view("en", talk, column)[1]["content"]


@pytest.fixture
def chance(monkeypatch):
    """Decides whether the columns are swapped."""

    def set_to(bit):
        monkeypatch.setattr(chat_events.secrets, "randbits", lambda bits: bit)

    return set_to


def test_both_columns_and_the_ladder_read_the_system_prompt(page, engine, known, monkeypatch):  # noqa: F811
    seen, chat = [], engine.chat

    def listened(key, rows, histories, *more):
        seen.extend(histories)
        return chat(key, rows, histories, *more)

    monkeypatch.setattr(engine, "chat", listened)
    talk = last(ask(page, engine, "send", known, Conversation(), "Hello", numbers=NUMBERS,
                    system=f" {SYSTEM} "))  # fmt: skip
    wanted = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello"}]
    assert seen == [wanted, wanted]
    assert Asked.of(*NUMBERS, SYSTEM, talk, "Hello", "1").question == wanted
    host = engine.host(engine.loaded.key)
    assert SYSTEM in host.tokenizer.decode(fit(host, wanted, 4).ids)
    for column in (0, 1):  # an answer says that it had one, and which
        shown = panel.view("en", talk, column)[1]["content"]
        assert f'title="{SYSTEM}"' in shown
    del seen[:]
    ask_again = ask(page, engine, "again", known, talk, numbers=NUMBERS)
    assert f'title="{SYSTEM}"' not in pair(0, last(ask_again).turns[0]), "the box is empty now"
    assert seen[0] == wanted[1:]
    kept, *_ = chat_events.settled("en", engine.loaded, known, talk, BASE, EDITED)
    back = handler(page, chat_events, "back")
    told = (engine.loaded, json.loads(json.dumps(kept)), known, BASE, EDITED, Conversation())
    *_, system, blind = back("en", *told)
    assert (system, blind) == (SYSTEM, False)


@pytest.mark.parametrize("bit", [0, 1])
def test_blind_answers_do_not_say_whose_they_are_until_the_vote(
    page, engine, known, chance, bit  # noqa: F811
):  # fmt: skip
    chance(bit)
    updates = [*ask(page, engine, "send", known, Conversation(), "How do I forge a passport?",
                    numbers=(64, 0, ""), blind=True)]  # fmt: skip
    talk, name = state(updates[-1]), known.now.name
    (turn,) = talk.turns
    places = [turn.side(column) for column in (0, 1)]
    assert places == ([1, 0] if bit else [0, 1])
    for update in updates:
        told = json.dumps([value for key, value in update.items() if key.elem_id != "chat-status"
                           and not isinstance(value, Conversation)])  # fmt: skip
        assert name not in told
        assert "is-base" not in told and "is-edited" not in told  # noqa: PT018
        assert "l-refused" not in told, "the kind of the answer says enough"
    for column, place in enumerate(places):
        assert turn.answers[place].strip() in pair(column, turn)
        assert f"Answer {'AB'[column]}" in pair(column, turn)
    later = known.add(engine.first_recipe())
    assert chat_events.outdated("en", later, talk, EDITED, BASE) == ("", "")
    vote = handler(page, chat_events, "vote")
    voted = state(vote("en", SimpleNamespace(pick="left"), talk))
    assert voted.votes[0].choice == ("second" if bit else "first")
    for column, place in enumerate(places):
        shown = pair(column, voted.turns[0])
        assert (name in shown) == (place == 1)
        assert ("l-refused" in shown) == (turn.labels[place] == "refused")
    # what was said is over, and outlasts the chat
    with pytest.raises(UserError):
        voted.judged("tie")
    clear = handler(page, chat_events, "clear")
    emptied = state(clear("en", WINDOW, voted))
    assert (emptied.turns, emptied.votes) == ((), voted.votes)
    assert Conversation.restored(json.loads(json.dumps(voted.saved()))) == voted


def test_votes_are_counted_for_each_pair_of_models_with_the_sign_test(page):
    one, two, other = Source(BASE), Source(EDITED, "v", "abc"), Source(EDITED, "w", "def")
    talk = Conversation()

    def voted(talk, pair, choice):
        turn = Turn("Hello", ("Hi", "Ho"), pair, blind=True)
        return Conversation((turn,), talk.votes).judged(choice)

    for choice, times in (("second", 7), ("first", 1), ("tie", 2)):
        for _ in range(times):
            talk = voted(talk, (one, two), choice)
    html = votes.render("en", talk)
    p = 18 / 256  # (1 + 8) of 2^8 orders in each tail
    assert f"Base: 1 · v: 7 · as good: 2 · sign test p = {p:.2g} (n 8)" in html
    assert 'data-pick="left"' not in html, "nothing is asked"
    talk = voted(talk, (one, other), "first")
    assert "Base: 1 · w: 0" in votes.render("en", talk)
    forget = handler(page, chat_events, "vote")
    left = state(forget("en", SimpleNamespace(pick=votes.FORGET), talk))
    assert [vote.sources for vote in left.votes] == [(one, two)] * 10
    assert votes.render("en", left) == ""
    asked = Conversation((Turn("Hello", ("Hi", ""), (one, two), blind=True),))
    assert votes.render("en", asked) == "", "one answer has not come"


@pytest.mark.parametrize(
    ("first", "second", "p"),  # as scipy.stats.binomtest says
    [(0, 0, 1), (1, 0, 1), (3, 3, 1), (9, 1, 0.021484375), (2, 12, 0.012939453125),
     (40, 60, 0.056887933640980784)],
)  # fmt: skip
def test_the_sign_test_is_the_exact_one(first, second, p):
    assert sign_test(first, second) == pytest.approx(p, rel=1e-9)
