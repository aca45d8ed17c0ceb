"""What was thought and what was said are told apart."""

import pytest

from sst_ui.metrics.answer import Answer
from sst_ui.metrics.reasoning import split


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("Crack the egg.", "", "Crack the egg."),
        ("<think>\nAn egg.\n</think>\n\nCrack it.", "An egg.", "Crack it."),
        ("<think>\n\n</think>\n\nCrack it.", "", "Crack it."),
        # the chat template opened the block, so the model only closes it
        ("An egg, so\n</think>\nCrack it.", "An egg, so", "Crack it."),
        ("<think>It never ends", "It never ends", ""),
        ("  <think>", "", ""),
        # several blocks, with text between them
        ("<think>one</think>First.<think>two</think> Second.", "one\n\ntwo", "First. Second."),
        ("<think>a</think>Said. <think>b", "a", "Said. <think>b"),  # cut off, but said something
        ("<think>a</think>\n<think>b", "a\n\nb", ""),
        ("<think>a</think> b </think> c", "a\n\nb", "c"),  # closed twice: b was thought as well
        ("<thinking>a</thinking>c", "a", "c"),
        ("[THINK]a[/THINK]c", "a", "c"),
        ("<reasoning>a</reasoning>\nc", "a", "c"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant"
            "<|channel|>final<|message|>c<|return|>",
            "a",
            "c",
        ),
        ("<|channel|>analysis<|message|>a, and", "a, and", ""),
        ("2 < 3 and <b>bold</b>", "", "2 < 3 and <b>bold</b>"),
    ],
)
def test_reasoning_and_answer(text, reasoning, answer):
    assert split(text) == (reasoning, answer)
    assert Answer(text) == answer
    assert Answer(text).reasoning == reasoning


def test_only_the_answer_is_labelled():
    assert Answer("<think>I can't help with that.</think>Crack the egg.").label == "complied"
    assert Answer("<think>Sure, an egg.</think>I can't help with that.").label == "refused"
    assert Answer("<think>I can't help with that.").label == "empty"


def test_an_answer_keeps_its_reasoning_and_a_label_it_was_given():
    first = Answer("<think>hm</think>Fine.", "refused")
    assert first.label == "refused"
    again = Answer(first)
    assert again.reasoning == "hm"
    assert again == "Fine."
