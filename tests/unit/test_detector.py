"""How good the refusal detector is, and that the answers it is measured on can tell."""

import json
from collections import Counter

import pytest

from benchmarks import refusal as benchmark
from sst_ui.metrics.detector_accuracy import UNFINDABLE, labelled, report
from sst_ui.metrics.text.labels import label


def phrases(prompt, answer):
    return label(prompt, answer)


def squeezed(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


def test_refusals_are_found_and_nothing_else_is_on_answers_the_lists_were_not_tuned_on():
    en, ja, all_ = report(phrases)
    assert [row.answers for row in (en, ja, all_)] == ["en", "ja", "all"]
    assert all_.precision.value >= 0.97
    assert all_.recall.value >= 0.97
    for row in (en, ja):
        assert row.precision.value >= 0.95
        assert row.recall.value >= 0.95


def test_most_refusals_of_an_author_who_had_not_seen_the_lists_are_found():
    # measured once: precision .923, recall .649, and .774 without those no phrase list can find
    *_, all_, findable = report(phrases, which="blind")
    assert all_.precision.value >= 0.88
    assert all_.recall.value >= 0.6
    assert findable.recall.value >= 0.72


def test_no_detector_passes_that_does_not_read():
    always = report(lambda prompt, answer: "refused")[-1]
    assert always.recall.value == 1
    assert always.precision.value < 0.6
    never = report(lambda prompt, answer: "delivered")[-1]
    assert never.recall.value == 0
    assert never.precision.n == 0
    sorry = report(lambda prompt, answer: "refused" if "sorry" in answer.lower() else "delivered")
    assert sorry[0].precision.value < 0.9
    assert sorry[0].recall.value < 0.6


@pytest.mark.parametrize("half", ["tune", "heldout"])
def test_both_halves_hold_every_kind_of_answer_in_both_languages(half):
    cases = labelled(half)
    assert len(cases) >= 100
    groups = {(case.language, case.label, case.kind) for case in labelled()}
    assert groups == {(case.language, case.label, case.kind) for case in cases}
    for language in ("en", "ja"):
        counts = Counter(case.label for case in cases if case.language == language)
        assert set(counts) == {"refused", "delivered"}
        assert min(counts.values()) / counts.total() > 0.4


def test_no_answer_is_there_twice_and_nothing_held_out_was_tuned_on():
    assert len(labelled()) >= 320
    texts = [squeezed(case.answer) for case in labelled()]
    assert len(set(texts)) == len(texts)
    tune, heldout = ([squeezed(c.answer) for c in labelled(half)] for half in ("tune", "heldout"))
    # a short refusal may be part of a longer one; a sentence of any length may not
    for text in (*tune, *heldout):
        others = heldout if text in tune else tune
        assert len(text) < 45 or not any(text in other for other in others), text


def test_the_report_counts_like_a_person_would():
    wrong = {labelled("heldout")[0].answer, labelled("heldout")[-1].answer}
    by_answer = {case.answer: case.label for case in labelled()}
    flip = {"refused": "delivered", "delivered": "refused"}

    def nearly(prompt, answer):
        return flip[by_answer[answer]] if answer in wrong else by_answer[answer]

    all_ = report(nearly)[-1]
    assert {error.case.answer for error in all_.errors} == wrong
    cases = labelled("heldout")
    hits = sum(nearly("", c.answer) == "refused" and c.label == "refused" for c in cases)
    called = sum(nearly("", c.answer) == "refused" for c in cases)
    assert all_.precision.value == pytest.approx(hits / called)
    assert all_.precision.low < all_.precision.value < all_.precision.high
    assert all_.recall.n == sum(case.label == "refused" for case in cases)


def test_an_empty_answer_counts_as_no_refusal():
    all_ = report(lambda prompt, answer: "degenerate")[-1]
    assert all_.recall.value == 0
    assert {error.case.label for error in all_.errors} == {"refused"}


def test_the_benchmark_prints_a_table_and_json(capsys):
    assert benchmark.main(["--errors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    own = ["answers", "en", "ja", "all"]
    labels = ["label", "refused", "evaded", "degenerate", "delivered"]
    languages = ["answers", "de", "en", "es", "fr", "ja", "ko", "zh", "all"]
    blind = [*own, "all but safe_advice_only"]
    assert names == [*own, *labels, *blind, *labels, *languages, *labels]
    assert benchmark.main(["--json", "--half", "both"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["labelled"]["refusals"][-1]["n"] == len(labelled())
    assert rows["blind"]["refusals"][-2]["n"] == len(labelled(which="blind"))
    assert rows["four"]["agreement"]["n"] == len(labelled(which="four"))
    assert benchmark.main(["--json", "--set", "blind"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["blind"]
    assert benchmark.main(["--judge", "./no/such/folder"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_blind_set_is_another_authors():
    assert len(labelled(which="blind")) == 300
    for half in ("tune", "heldout"):
        cases = labelled(half, "blind")
        assert len(cases) >= 145
        for language in ("en", "ja"):
            counts = Counter(case.label for case in cases if case.language == language)
            assert set(counts) == {"refused", "delivered"}
            assert min(counts.values()) / counts.total() > 0.35
    both = [case for which in ("labelled", "blind") for case in labelled(which=which)]
    once = {(squeezed(case.prompt), squeezed(case.answer)) for case in both}
    assert len(once) == len(both)
    tuned = {squeezed(c.answer) for c in (*labelled("tune"), *labelled("tune", "blind"))}
    held = {squeezed(c.answer) for c in labelled("heldout", "blind")}
    # the shortest and most usual refusal, two authors may both write
    assert sum(len(text) >= 45 for text in tuned & held) == 0


def test_blind_answers_without_refusal_words_get_a_row_of_their_own():
    all_, findable = report(phrases, which="blind")[-2:]
    left_out = [c for c in labelled("heldout", "blind") if c.kind == UNFINDABLE]
    assert left_out
    assert all(case.label == "refused" for case in left_out)
    assert findable.n == all_.n - len(left_out)
    assert findable.recall.n == all_.recall.n - len(left_out)
