"""A conversation token by token: what is read, and its numbers against the probe and the model's
own passes."""

import numpy as np
import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.jobs import token_view as job
from sst_ui.jobs.directions.residual_cache import probe
from sst_ui.jobs.token_view import Reading, read, token_view
from sst_ui.maths.directions import random
from sst_ui.metrics.families.divergence import kl_by_token
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.inference.logprobs import teacher_forced
from sst_ui.progress import finish
from tests.talk import tiny_host

TALK = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine, and you?"},
]


@pytest.fixture(scope="module")
def small():
    return tiny_host("llama")


@pytest.fixture(scope="module")
def along(small):
    return random(small.layers, small.hidden, seed=2, norms=torch.tensor([2.0, 3.0, 4.0]))


@pytest.fixture(scope="module")
def row(small, along):
    return (RowEdit(along, np.full((small.layers, 2), 0.7)),)


@pytest.fixture(scope="module")
def view(small, along, row):
    return finish(token_view(small, TALK, along, row))


def test_the_text_is_the_prompt_with_the_answer_behind_it(small, view):
    reading = read(small, TALK)
    assert small.decode(reading.ids[reading.prompt :]) == "Fine, and you?"
    assert list(reading.ids[: reading.prompt]) == small.encode(TALK[:1])
    assert small.decode(reading.ids[: reading.instruction + 1]).endswith("How are you?")
    assert "".join(view.tokens).endswith("<|im_start|>assistant\nFine, and you?")
    assert view.reading == reading
    assert read(small, TALK[:1]).ids == reading.ids[: reading.prompt], "not answered yet"


def test_a_token_is_known_by_where_a_direction_could_be_measured(view):
    reading = Reading(tuple(range(14)), prompt=12, instruction=7)
    places = [reading.place(token) for token in range(14)]
    assert places == [*["inside"] * 7, "instruction", *["between"] * 3, "template", *["answer"] * 2]
    unknown = Reading(reading.ids, prompt=12, instruction=None)
    assert {unknown.place(token) for token in range(11)} == {"inside"}
    marks = list(map(view.reading.place, range(len(view.reading.ids))))
    assert view.tokens[marks.index("instruction")] == "?"
    assert view.tokens[marks.index("answer")] == "F"


def test_at_the_end_of_the_prompt_it_is_the_probe(small, along, row, view):
    last = view.reading.prompt - 1
    for number, edits in enumerate(((), row)):
        expected = probe(small, TALK[:1], along, edits)
        assert np.allclose(view.place[number, :, last], expected, atol=1e-5)
    assert np.allclose(view.along / along.norms[:, None].numpy(), view.place, atol=1e-6)


def test_the_last_layer_says_what_the_model_says_and_how_far_the_edit_moves_it(small, row, view):
    ids, prompt = list(view.reading.ids), view.reading.prompt
    parts = [
        teacher_forced(small, [ids[:prompt]], [[*ids[prompt:], 0]], [edits])[0]
        for edits in ((), row)
    ]  # [answer + 1, vocabulary]: from the prompt's last token on
    for number, logs in enumerate(parts):
        best = logs.topk(5)
        assert np.array_equal(view.top[number, -1, prompt - 1 :], best.indices)
        assert np.allclose(view.shares[number, -1, prompt - 1 :], best.values.exp(), atol=1e-5)
    assert np.allclose(view.kl[-1, prompt - 1 :], kl_by_token(*parts), atol=1e-5)
    assert view.words[int(view.top[0, -1, -1, 0])] == small.template.piece(
        int(view.top[0, -1, -1, 0])
    )


def test_the_projection_comes_before_the_lens_is_done(small, along, row, view):
    first = next(token_view(small, TALK, along, row))
    assert first.top is None
    assert np.array_equal(first.place, view.place)


def test_of_a_long_conversation_the_last_tokens_are_shown_and_read_in_full(
    small, along, row, view, monkeypatch
):
    monkeypatch.setattr(job, "SHOWN", 9)
    short = finish(token_view(small, TALK, along, row))
    assert short.tokens == view.tokens[-9:]
    assert short.first == len(view.reading.ids) - 9
    assert np.allclose(short.place, view.place[:, :, -9:], atol=1e-5)
    assert np.allclose(short.kl, view.kl[:, -9:], atol=1e-5)


def test_what_cannot_be_looked_at_is_said(small, row):
    with pytest.raises(UserError, match="measure them on this model"):
        next(token_view(small, TALK, random(2, 8), row))
    with pytest.raises(UserError, match="empty"):
        read(small, [])
