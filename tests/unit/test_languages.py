"""Answers in a language without a phrase list are named, not counted as if they complied."""

import pytest
import yaml

from sst_ui.jobs.evaluate import observers
from sst_ui.jobs.evaluate.evaluate import evaluate
from sst_ui.metrics.detector_accuracy import labelled
from sst_ui.metrics.text import languages
from sst_ui.model.inference.replies import Reply
from sst_ui.paths import ROOT
from sst_ui.progress import finish
from sst_ui.recipe import Evaluation
from tests.talk import tiny_host

WRITTEN = yaml.safe_load((ROOT / "tests" / "answers.yaml").read_text(encoding="utf-8"))
FOREIGN = WRITTEN["uncovered"]


@pytest.mark.parametrize(("name", "text"), FOREIGN.items())
def test_a_language_without_a_list_is_named(name, text):
    assert languages.uncovered(text) == name


def test_languages_with_a_list_are_not_named():
    texts = [t for kinds in WRITTEN["languages"].values() for ts in kinds.values() for t in ts]
    texts += [case.answer for which in ("labelled", "blind") for case in labelled(None, which)]
    named = [text for text in texts if languages.uncovered(text)]
    assert len(named) <= 0.01 * len(texts), named


@pytest.mark.parametrize(
    "text",
    [
        "Of course. Here is how to bake a loaf. First, find a bowl. Then wait a bit.",
        "Sure! I had a dog, a cat and a so-called budgie on a perch in a cage.",
    ],
)
def test_short_plain_english_is_english(text):
    """Little words that English shares with Czech or Hungarian: a, to, so."""
    assert languages.uncovered(text) == ""


@pytest.mark.parametrize("text", ["", "42", "OK", "a b c d e", "print(x)", "\u0441", "Привет"])
def test_too_little_text_tells_nothing(text):
    assert languages.uncovered(text) == ""


def test_a_few_answers_in_another_language_are_no_news():
    assert languages.note(["The cat is on the mat."] * 30 + list(FOREIGN.values())[:1]) == ""
    told = languages.note(["The cat is on the mat."] * 2 + list(FOREIGN.values())[:1])
    assert told.startswith("1 of 3 answers are in Cyrillic script, which no phrase list covers")
    assert languages.note([]) == ""


def test_the_row_of_a_metric_says_that_its_answers_cannot_be_read(tmp_path, monkeypatch):
    host = tiny_host()
    ids = tuple(host.tokens(FOREIGN["Cyrillic script"]))

    def replies(host, prompts, *_, **__):
        yield from ()
        return [Reply(ids, True)] * len(prompts)

    monkeypatch.setattr(observers, "replies", replies)
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "Hi"}\n{"prompt": "Hello"}')
    names = (f"refusal_rate@{path}", f"degenerate@{path}")
    rate, broken = finish(evaluate(host, (), Evaluation(metrics=names)))
    assert rate.base.value == 0
    assert "2 of 2 answers are in Cyrillic script, which no phrase list covers" in rate.note
    assert broken.note == rate.note  # a refusal in circles would be called degenerate
