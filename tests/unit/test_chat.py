"""The side-by-side chat: a conversation a column, and what happens when one grows."""

import numpy as np
import pytest

from sst_ui.errors import UserError
from sst_ui.jobs.chat import chat, fit
from sst_ui.maths.directions import random
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.progress import finish
from tests.talk import answers, every_pass, tiny_host


@pytest.fixture(scope="module")
def small():
    host = tiny_host()
    host.stop = frozenset()
    return host


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_each_column_answers_its_own_conversation_under_its_own_edit(small):
    directions = random(small.layers, small.hidden, 1, 0)
    row = (RowEdit(directions, np.full((small.layers, 2), 1.0)),)
    histories = [
        [user("Hi")],
        [user("Hi"), assistant("Hello."), user("And now?")],
        [user("Hi"), assistant("No."), user("And now?")],
    ]
    rows = [(), row, ()]
    shown = list(chat(small, rows, histories, 16))
    expected = finish(answers(small, [small.encode(h) for h in histories], rows, 16))
    assert [e.startswith(s) for e, s in zip(expected, shown[-1], strict=True)] == [True] * 3
    assert [len(s) >= len(e) - 1 for e, s in zip(expected, shown[-1], strict=True)] == [True] * 3


def test_the_last_text_is_always_shown_and_is_the_result(small):
    steps = chat(small, [()], [[user("Hi")]], 16)
    shown = []
    result = finish(steps, shown.append)
    assert shown[-1] == result


def test_a_short_conversation_is_left_as_it_is(small):
    messages = [user("Hi"), assistant("Hello."), user("And now?")]
    assert fit(small, messages, 16).ids == small.encode(messages)
    assert fit(small, messages, 16).dropped == 0


def test_a_long_conversation_loses_its_oldest_turns_but_not_the_system_message(small):
    messages = [{"role": "system", "content": "Be brief."}]
    for i in range(6):
        messages += [user(f"question {i} " + "x" * 20), assistant(f"answer {i}")]
    messages.append(user("the last"))
    found = fit(small, messages, 60)
    text = small.tokenizer.decode(found.ids)
    assert len(found.ids) <= small.context - 60
    assert found.dropped >= 1
    assert "Be brief." in text
    assert "the last" in text
    kept = [i for i in range(6) if f"question {i}" in text]
    assert kept == list(range(found.dropped, 6))
    # a question and its answer go together
    assert [i for i in range(6) if f"answer {i}" in text] == kept


def test_leaving_out_turns_is_said_once_before_the_first_token(small):
    history = [user("x" * 100), assistant("y" * 100), user("Now?")]
    said = []
    steps = chat(small, [(), ()], [history, [user("Hi")]], 32, notify=said.append)
    next(steps)
    assert said == [[1, 0]]  # turns of each column
    list(chat(small, [()], [[user("Hi")]], 4, notify=said.append))
    assert len(said) == 1


def test_a_single_message_too_long_is_refused_with_its_length(small):
    with pytest.raises(UserError, match=r"the message has 2\d\d tokens; tiny-llama reads 256"):
        next(chat(small, [()], [[user("x" * 230)]], 32))


@pytest.mark.parametrize("messages", [[], [user("Hi"), assistant("Hello.")]])
def test_a_conversation_without_a_question_is_refused(small, messages):
    with pytest.raises(UserError, match="no message to answer"):
        next(chat(small, [()], [messages], 8))


def test_too_little_memory_is_a_message_not_a_crash(small, monkeypatch):
    def tight(*args, **settings):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    every_pass(monkeypatch, tight)
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens does not fit the memory"):
        list(chat(small, [()], [[user("Hi")]], 8))
    with pytest.raises(UserError, match="does not fit the memory"):
        finish(answers(small, [small.encode("Hi")] * 4, None, 8))


def test_answers_longer_than_the_context_leave_half_of_it_to_the_question(small):
    found = fit(small, [user("x" * 90)], max_new_tokens=10_000)
    assert len(found.ids) <= small.context // 2
