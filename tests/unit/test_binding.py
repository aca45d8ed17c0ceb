"""What Gradio sends as a flat list reaches a handler as typed arguments."""

import inspect
from dataclasses import dataclass
from functools import partial

import gradio as gr
import pytest
from gradio.helpers import special_args

from sst_ui.errors import UserError
from sst_ui.ui.events.binding import Reads, call, together


@dataclass(frozen=True)
class Size:
    language: str
    width: int
    height: int


@pytest.fixture
def boxes():
    with gr.Blocks():
        yield gr.State("en"), gr.Number(), gr.Number(), gr.Textbox()


def area(suffix: str, size: Size, name: str, event: gr.EventData, request: gr.Request) -> str:
    return f"{name} {size.width * size.height}{suffix} {event.pick} {request.session_hash}"


def test_a_handler_gets_typed_values_and_what_gradio_fills_in(boxes):
    language, width, height, name = boxes
    wired = call(partial(area, "m²"), Reads([language, width, height], Size), name)
    assert wired["inputs"] == [language, width, height, name]
    assert wired["fn"].__name__ == "area"
    event, request = gr.EventData(None, {"pick": 3}), gr.Request(session_hash="w")
    sent, _, _, _ = special_args(wired["fn"], ["en", 2, 5, "hall"], request, event)
    assert wired["fn"](*sent) == "hall 10m² 3 w"


def test_a_component_that_is_read_twice_is_sent_once(boxes):
    language, width, height, _ = boxes

    def both(size: Size, pair: tuple, lang: str) -> tuple:
        return size, pair, lang

    size = Reads([language, width, height], Size)
    wired = call(both, size, together([height, width]), language)
    assert wired["inputs"] == [language, width, height]
    assert wired["fn"]("ja", 2, 5) == (Size("ja", 2, 5), (5, 2), "ja")


def test_what_is_wrong_is_said_at_its_component(boxes):
    language, width, height, _ = boxes

    def wrong(size: Size) -> dict:
        return {height: "too high"} if size.height > 9 else {}

    wired = call(lambda size: None, Reads([language, width, height], Size), check=wrong)
    told = [(each["is_valid"], each["message"]) for each in wired["validator"]("en", 1, 10)]
    assert told == [(True, ""), (True, ""), (False, "too high")]
    assert all(each["is_valid"] for each in wired["validator"]("en", 1, 9))


@pytest.mark.parametrize("streams", [True, False])
def test_an_error_is_a_message_on_the_screen(boxes, streams):
    language, *_ = boxes

    def once(lang: str) -> None:
        raise UserError("no such thing.")

    def many(lang: str):
        yield "begun"
        raise UserError("no such thing.")

    fn = call(many if streams else once, language)["fn"]
    assert inspect.isgeneratorfunction(fn) == streams
    with pytest.raises(gr.Error, match=r"No such thing\."):
        for _ in fn("en"):
            pass


def test_a_step_says_again_what_is_to_be_seen_so_that_no_difference_takes_it_back(boxes):
    """Gradio sends the difference between two steps; the page may not have drawn the first yet."""
    from gradio.utils import diff

    language, width, height, name = boxes

    def job(lang: str):
        yield {width: gr.update(visible=True), name: "begun"}
        yield {height: 1}
        yield {width: gr.update(visible="hidden"), height: 2}
        yield {name: "over"}
        yield gr.skip()

    steps = list(call(job, language)["fn"]("en"))
    seen = [step[width]["visible"] for step in steps[:4]]
    assert seen == [True, True, "hidden", "hidden"]
    assert [name in step for step in steps[:4]] == [True, False, False, True]
    assert diff(steps[0][width], steps[1][width]) == []
    assert steps[4] == gr.skip()


def test_a_handler_that_has_nothing_to_say_leaves_all_components(boxes):
    language, width, *_ = boxes

    def nothing(lang: str) -> dict:
        return {}

    def step_by_step(lang: str):
        yield {}
        yield {width: 3}

    assert call(nothing, language)["fn"]("en") == gr.skip()
    steps = list(call(step_by_step, language)["fn"]("en"))
    assert steps == [gr.skip(), {width: 3}]
