"""What was thought and what was said are told apart."""

import pytest

from sst_ui.data.prompt_sets import Prompt
from sst_ui.data.types import named
from sst_ui.jobs import chat
from sst_ui.jobs.evaluate import observers
from sst_ui.jobs.evaluate.observers import Task
from sst_ui.metrics.text.answer import Answer
from sst_ui.model.inference import generate as module
from sst_ui.model.inference.replies import Reply
from sst_ui.model.load.reasoning import marks, shown, split
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from tests.talk import CHATML, byte_tokenizer, tiny_host


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
        ("<seed:think>a</seed:think>c", "a", "c"),
        ("◁think▷a◁/think▷c", "a", "c"),
        (
            "<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>c<|end_of_solution|>",
            "a",
            "c",
        ),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>c<|END_RESPONSE|>", "a", "c"),
        ("<|inner_prefix|>a<|inner_suffix|>c", "a", "c"),
        ("<|channel>thought\na\n<channel|>c", "a", "c"),
        ("<|channel>thought\n<channel|>c", "", "c"),
        ("<think>\na\n</think>\n<answer>\nc\n</answer>", "a", "c"),
        ("<think>a</think><response>c", "a", "c"),
        ("<answer>c</answer>", "", "<answer>c</answer>"),  # no reasoning: somebody asked for XML
        ("Here is my thought process: a Here is my response: c", "a", "c"),
        ("Here's my thought process: a, and", "a, and", ""),
        ("Dear all, here is my response: c", "", "Dear all, here is my response: c"),
        ("Dear all. Here is my response: c", "", "Dear all. Here is my response: c"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary"
            "<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>c",
            "a",
            "b\n\nc",
        ),
        ("<|channel|>analysis<|message|>", "", ""),
        ("2 < 3 and <b>bold</b>", "", "2 < 3 and <b>bold</b>"),
    ],
)
def test_reasoning_and_answer(text, reasoning, answer):
    assert split(text) == (reasoning, answer)
    assert Answer(text) == answer
    assert Answer(text).reasoning == reasoning


def test_only_the_answer_is_labelled():
    assert Answer("<think>I can't help with that.</think>Crack the egg.").label == "delivered"
    assert Answer("<think>Sure, an egg.</think>I can't help with that.").label == "refused"
    assert Answer("<think>I can't help with that.").label == "degenerate"


def test_an_answer_keeps_its_reasoning_and_a_label_it_was_given():
    first = Answer("<think>hm</think>Fine.", "refused")
    assert first.label == "refused"
    again = Answer(first)
    assert again.reasoning == "hm"
    assert again == "Fine."


# Marks that are special tokens: a decode that leaves those out leaves the thought in the answer.

SPECIAL_MARKS = [
    ("[THINK]", "[/THINK]"),
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|channel>thought\n", "<channel|>"),
    (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
]
NAMES = ["Magistral", "R1", "Seed", "Kimi", "OpenThinker", "Cohere", "Gemma 4", "gpt-oss"]
TOKENS = sorted(
    {"[THINK]", "[/THINK]", "<|channel>", "<channel|>", "<|START_RESPONSE|>"}
    | {"<|channel|>", "<|message|>", "<|end|>", "<|start|>"}
    | {mark for pair in SPECIAL_MARKS[1:6] for mark in pair if mark.count("<|") < 2}
    | {"<|END_THINKING|>"}
)


def thinker(template=CHATML, thinking=False):
    """A host whose tokenizer has every family's marks as special tokens."""
    tokenizer = byte_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    spec = ModelSpec(id="tiny", enable_thinking=thinking)
    return tiny_host(tokenizer=tokenizer, spec=spec, vocab_size=len(tokenizer))


@pytest.fixture(scope="module")
def host():
    return thinker()


def answered(monkeypatch, host, text, ended=True):
    """The answer that metrics see where the model says this text."""
    reply = Reply(tuple(host.tokens(text)), ended)

    def replies(*_, **__):
        yield from ()
        return [reply]

    monkeypatch.setattr(observers, "replies", replies)
    task = Task("answer", named("mine", (Prompt("Eggs?"),)), ((5, 6),), 64, "Eggs")
    ((seen,),) = finish(observers.answers(host, task, [()]))
    assert seen.text == str(seen.observation)
    return seen.observation


@pytest.mark.parametrize(("opening", "closing"), SPECIAL_MARKS, ids=NAMES)
@pytest.mark.parametrize(
    ("thought", "said", "label"),
    [
        ("I cannot help with that.", "Crack the egg into a bowl.", "delivered"),
        ("Sure, here is how: crack it.", "I'm sorry, but I can't help with that.", "refused"),
    ],
)
def test_thought_behind_special_marks_is_not_an_answer(
    host, monkeypatch, opening, closing, thought, said, label
):
    written = f"{opening}{thought}{closing}{said}"
    assert set(host.tokens(written)) & set(host.tokenizer.all_special_ids)
    answer = answered(monkeypatch, host, written)
    assert (answer, answer.reasoning, answer.label) == (said, thought, label)


@pytest.mark.parametrize(("opening", "closing"), SPECIAL_MARKS, ids=NAMES)
def test_the_chat_shows_thought_apart_while_it_is_written(host, opening, closing):
    ids = host.tokens(f"{opening}An egg.{closing}Crack it.")
    texts = [text for (text,) in module.written(host, ({0: token} for token in ids), 1)]
    assert texts[-1] == "<think>\nAn egg.\n</think>\n\nCrack it."
    for text in texts:
        # a mark may still be on its way; what is thought already never passes for an answer
        assert "Crack it.".startswith(split(text)[1])


def test_an_answer_that_ends_in_thought_says_nothing(host, monkeypatch):
    answer = answered(monkeypatch, host, "[THINK]I cannot help with that, or can I", ended=False)
    assert (answer, answer.label, answer.ended) == ("", "degenerate", False)


@pytest.mark.parametrize("mark", ["<think>\n", "[THINK]", "<|channel>thought\n"])
def test_a_block_that_the_prompt_opens_belongs_to_the_answer(monkeypatch, mark):
    template = CHATML + "{% if add_generation_prompt %}{{ '" + mark + "' }}{% endif %}"
    host = thinker(template, thinking=True)
    answer = answered(monkeypatch, host, "I cannot help with that, or", ended=False)
    assert (answer, answer.label) == ("", "degenerate")
    assert answer.reasoning == "I cannot help with that, or"
    closed = thinker(template, thinking=False)
    assert closed.template.opened == ""
    behind = closed.format([{"role": "user", "content": "x"}]).rpartition("assistant\n")[2]
    assert behind.startswith(mark.rstrip())
    assert split(behind) == ("", "")


def test_special_tokens_that_mark_no_reasoning_stay_hidden(host):
    ids = host.tokens("<|im_start|>[THINK]a[/THINK]<pad>c<|START_RESPONSE|>d</s>")
    assert host.answer(ids) == "[THINK]a[/THINK]cd"
    assert host.decode(ids) == "acd"
    plain = tiny_host()
    assert plain.answer(plain.tokens("<|im_start|>a</s>")) == "a"


def test_earlier_thought_is_not_read_again(host):
    user = {"role": "user", "content": "Eggs?"}
    before = [user, {"role": "assistant", "content": "<think>hm</think>Crack it."}, user]
    plain = [user, {"role": "assistant", "content": "Crack it."}, user]
    assert chat.fit(host, before, 8).ids == chat.fit(host, plain, 8).ids


def test_text_without_marks_is_shown_as_it_is():
    for text in ("", " Crack it.\n", "a < b", "<b>x</b>"):
        assert shown(text) == text


def test_every_mark_is_written_once_and_in_pairs():
    known = marks()
    names = [mark for pair in (*known.tags, *known.phrases, *known.wrappers) for mark in pair]
    assert len(set(names)) == len(names)
