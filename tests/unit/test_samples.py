"""Unequal samples side by side are marked, wherever the numbers stand."""

import re
from dataclasses import replace

import pytest

from sst_ui.data.types import Prompt
from sst_ui.jobs.history.records import record
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import Shown, compare
from sst_ui.recipe import Ablation, Recipe, WeightTable
from sst_ui.ui.panels import comparison, metrics, runs, variants
from sst_ui.ui.panels.runs import View
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.samples import Sample, usual

NO, YES = "I'm sorry, but I can't help with that.", "Sure, here is how that is done."
LARGE, SMALL = (320, 48), (40, 48)
TIP = "Unequal samples: n 40 · 48 tokens here, n 320 · 48 tokens beside it"


def refusals(n, tokens):
    """Refusals of n requests, by a model that refuses all of them and by one that refuses none."""
    prompts = [Prompt(f"request {i}") for i in range(n)]
    sides = ([Shown(text, text)] * n for text in (NO, YES))
    return replace(compare(find("refusal_rate"), prompts, *sides), tokens=tokens)


@pytest.fixture
def board():
    """Three variants with refusals of 320 requests, 40, and 320; the last one is current."""
    known, results = Variants(), {}
    for strength, size in ((0.5, LARGE), (1.0, SMALL), (1.5, LARGE)):
        recipe = Recipe(edits=(Ablation(weights=WeightTable(strength=strength)),))
        known = known.add(recipe, f"v{strength}")
        results[recipe.digest()] = (refusals(*size),)
    return Board("en", known, results)


def marked(html, row):
    """The rows of a list in which a number is marked, and with what tip."""
    found = {}
    for part in html.split(f'<div class="{row}')[1:]:
        if tips := re.findall(r'<abbr class="unequal" title="([^"]*)"', part):
            (name,) = re.findall(r"v\d\.\d", part)[:1]
            found[name] = tips
    return found


def test_variants_are_marked_against_the_current_one(board):
    assert marked(variants.render(board), "variant") == {"v1.0": [TIP]}
    seen = marked(variants.render(replace(board, variants=board.variants.pick("v1.0"))), "variant")
    assert set(seen) == {"v0.5", "v1.5"}
    assert "n 320 · 48 tokens here, n 40" in seen["v0.5"][0]


def test_a_sparkline_draws_them_hollow(board):
    html = metrics.render(board)
    assert html.count('class="is-unequal"') == 1
    assert "v1.0 0 % (○ n 40)" in html
    other = metrics.render(replace(board, variants=board.variants.pick("v1.0")))
    assert other.count('class="is-unequal"') == 2
    assert "unequal" not in metrics.render(replace(board, results=dict.fromkeys(
        board.results, (refusals(*LARGE),))))  # fmt: skip


def test_the_comparison_draws_them_hollow_and_says_their_own_sample(board):
    lines = {line.name: line for line in comparison.figure(board).data if line.name}
    symbols = {name: line.marker.symbol[0] for name, line in lines.items()}
    assert symbols == {"Base": "circle", "v0.5": "circle", "v1.0": "circle-open", "v1.5": "circle"}
    assert "n 40" in lines["v1.0"].customdata[0]


def test_runs_are_marked_against_what_most_of_them_rest_on(board):
    records = [
        replace(record(v.recipe, "demo", board.metrics(v.recipe)), id=place)
        for place, v in enumerate(board.variants.items)
    ]
    assert marked(runs.listed("en", records, View(), ""), "run") == {"v1.0": [TIP]}
    assert runs.compared("en", records).count(TIP) == 2  # the tip and its name
    assert "unequal" not in runs.compared("en", records[::2])


def test_answers_of_another_length_are_another_sample_and_an_unknown_length_is_none():
    assert not Sample(40, 24).equals(Sample(40, 48))
    assert Sample(40, None).equals(Sample(40, 48))
    assert not Sample(40, None).equals(Sample(41, 48))
    assert usual([Sample(40), Sample(320), Sample(40)]) == Sample(40)
    assert usual([Sample(40), Sample(320)]) == Sample(320)
    assert usual([]) is None
