"""A link opens the page, whatever it holds: its message is shown, the default recipe applied."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sst_ui import recipe as recipes
from sst_ui.maths import kernel
from sst_ui.paths import DEMO
from sst_ui.recipe import Ablation, WeightTable
from sst_ui.ui.events import open_page
from sst_ui.ui.state.loaded_model import Loaded
from tests.unit.test_bad_recipes import BAD
from tests.wiring.test_leaving import text
from tests.wiring.test_results import handler
from tests.wiring.test_wiring import with_strength


def opened(page, link: str, saved=()):
    """What the page shows at the end of its opening."""
    request = SimpleNamespace(query_params={"recipe": link}, headers={})
    *_, last = handler(page, open_page, "opened")("en", request, Loaded(), list(saved), [])
    return last


ADAPTER = f"safety: {DEMO / 'adapters' / 'safety'}"
LATE = {  # readable, and found wrong only when the engine resolves it
    "no such adapter": (f"edits: [{{utility: nowhere/at-all-here, {ADAPTER}}}]", "nowhere/at-all"),
    "no such prompts": ("edits: [{directions: {harmful: no-such-set}}]", "no-such-set"),
    "another model": ("model: {id: org/other}", "org/other, but demo is loaded"),
    "two merges": ("edits: [{}, {}]", "a merge and then an ablation"),
    "too many layers": ("edits: [{weights: {curve: [1, 1]}}]", "2 values"),
    "a layer beyond": ("edits: [{directions: {scope: single, layer: 99}}]", "99"),
}
SOME = ("a key twice", "a laugh", "deep lists", "null edits", "400 digits", "half a character")
CASES = {name: BAD[name][0] for name in SOME} | {
    name: f"version: 1\n{text}" for name, (text, _) in LATE.items()
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_opens_with_the_message_of_a_bad_link(page, engine, name):
    last = opened(page, CASES[name])
    said = text(last, page, "apply-status")
    assert "notice bad" in said
    assert len(said) < 2000
    assert LATE.get(name, ("", ""))[1] in said
    assert recipes.from_yaml(text(last, page, "recipe-text")) == replace(
        engine.first_recipe(), name=""
    )


def test_a_defect_of_ours_does_not_keep_the_page_from_opening(page, engine, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")
        yield

    first = engine.first_recipe()
    link = recipes.to_yaml(with_strength(first, 0.25))
    monkeypatch.setattr(engine, "resolve", broken)
    last = opened(page, link)
    assert "RuntimeError" in text(last, page, "apply-status")
    assert text(last, page, "strength").value == first.edits[0].weights.strength


def test_what_a_browser_kept_may_be_anything(page):
    last = opened(page, "", saved=[None, 5, BAD["a laugh"][0], "version: 1", {"a": 1}, "\ud800"])
    assert text(last, page, "apply-status") == ""


@pytest.mark.parametrize("name", kernel.profiles())
def test_a_link_that_names_a_profile_opens_with_it_picked_and_its_numbers(page, name):
    weights = kernel.profile(name)
    last = opened(page, f"version: 1\nedits: [{{weights: {{profile: {name}}}}}]")
    assert text(last, page, "apply-status") == ""
    assert text(last, page, "profile") == name
    shown = [text(last, page, control).value for control in ("peak", "width", "threshold")]
    assert shown == [weights.peak, weights.width, weights.threshold]
    (edit,) = recipes.from_yaml(text(last, page, "recipe-text")).edits
    assert edit == Ablation(weights=WeightTable(name))
