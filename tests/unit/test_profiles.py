"""A profile's name is its numbers, wherever a recipe is read or used."""

import json
from types import SimpleNamespace
from urllib.parse import quote, unquote

import numpy as np
import pytest
import yaml

from sst_ui.__main__ import main
from sst_ui.errors import UserError
from sst_ui.jobs.export import model_card
from sst_ui.jobs.export.mergekit import by_filter
from sst_ui.jobs.history.records import record
from sst_ui.jobs.merge import merge
from sst_ui.jobs.search import space
from sst_ui.maths import kernel
from sst_ui.recipe import (
    Ablation,
    Merge,
    ModelSpec,
    Recipe,
    WeightTable,
    from_data,
    from_yaml,
    to_dict,
    to_yaml,
)
from sst_ui.ui.api import Api
from sst_ui.ui.events import edit as edit_events
from sst_ui.ui.events.draw_draft import Draft, with_profile
from sst_ui.ui.events.open_page import linked
from sst_ui.ui.state.form import read, show
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.window import Variants

LAYERS = 32
OWN = "org/Llama-3.1-8B-Instruct"  # has a profile of its own
PROFILES = {  # peak, width, threshold
    "default": (0.60, 0.15, 0.1),
    "early_focus": (0.40, 0.15, 0.1),
    "late_focus": (0.75, 0.15, 0.1),
    "broad": (0.50, 0.25, 0.1),
    "narrow": (0.60, 0.08, 0.1),
    "wide": (0.70, 0.40, 0.1),
    "flat": (0.5, 1e6, 0.0),
    "model": (0.55, 0.15, 0.1),
}


def bell(peak: float, width: float, threshold: float) -> np.ndarray:
    """[LAYERS] by the formula, written out once more."""
    found = [np.exp(-((i / (LAYERS - 1) - peak) ** 2) / (2 * width**2)) for i in range(LAYERS)]
    return np.array([value if value >= threshold else 0.0 for value in found])


def said(name: str, **more) -> dict:
    """A recipe that names a profile and says nothing else of its shape."""
    weights = {"profile": name, **more}
    return {"version": 1, "model": {"id": OWN}, "edits": [{"weights": weights}]}


def loaded(model: str = OWN) -> Loaded:
    return Loaded("key", model, ModelSpec(id=model), LAYERS, 8_000_000_000)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_the_same_wherever_it_is_named(name, capsys):
    numbers, expected = PROFILES[name], bell(*PROFILES[name])
    recipe = from_yaml(yaml.safe_dump(said(name)))
    weights = recipe.edits[0].weights
    assert (weights.profile, weights.peak, weights.width, weights.threshold) == (name, *numbers)
    # the same recipe as JSON, as data, from a link, and written out
    link = unquote(quote(json.dumps(said(name))))
    for other in (from_yaml(link), from_data(said(name)), from_yaml(to_yaml(recipe))):
        assert other == recipe
        assert other.digest() == recipe.digest()
    # the terminal
    assert main(["kernel", "--profile", name, "--model", OWN, "--layers", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == pytest.approx(expected)
    # the engine, the interface for programs, the card, the search, the history
    assert kernel.table(weights, LAYERS)[:, 0] == pytest.approx(expected)
    engine = SimpleNamespace(loaded=loaded())
    assert np.array(Api(engine).weights(link))[:, 1] == pytest.approx(expected)
    assert model_card.curves(recipe, LAYERS)["ablate"] == pytest.approx(expected)
    rows = {n: space.Span(0.0, 1e6) for n in ("peak", "width", "threshold")}
    assert tuple(space.values(recipe, rows, LAYERS).values()) == numbers
    weaker = space.candidate(recipe, {"strength": 0.5}, LAYERS).edits[0].weights
    assert kernel.table(weaker, LAYERS)[:, 0] == pytest.approx(expected / 2)
    assert record(recipe, OWN).recipe == recipe
    # the page: what it shows, and what it makes of that
    form, extras = show(linked("en", loaded(), link))
    assert form.profile == ("custom" if name == "flat" else name)  # a merge's, not offered there
    assert (form.peak, form.width, form.threshold) == numbers
    back = read(form, extras, recipe.model).edits[0].weights
    assert kernel.table(back, LAYERS)[:, 0] == pytest.approx(expected)


@pytest.mark.parametrize("name", [n for n in PROFILES if n != "flat"])
def test_a_profile_picked_on_the_page_is_the_one_a_recipe_names(name):
    form, extras = show(Recipe(model=ModelSpec(id=OWN), edits=(Ablation(),)))
    draft = Draft("en", loaded(), extras, Variants(), "evidence", form._replace(profile=name))
    picked, extras = with_profile(None, draft)
    assert read(picked, extras, ModelSpec(id=OWN)).edits == from_data(said(name)).edits


@pytest.mark.parametrize("name", PROFILES)
def test_a_merge_and_mergekit_weigh_layers_by_the_profile_that_is_named(name):
    edit = {"utility": "a", "safety": "b", "weights": {"profile": name, "modules": {}}}
    spec = from_data({"version": 1, "model": {"id": OWN}, "edits": [edit]}).edits[0]
    layers = tuple(f"model.layers.{i}" for i in range(LAYERS))
    linears = {"q": tuple(f"{layer}.q_proj" for layer in layers)}
    host = SimpleNamespace(
        layers=LAYERS, architecture=SimpleNamespace(linears=linears, layer_names=layers)
    )
    found = merge.table(host, spec)
    assert [found[path] for path in linears["q"]] == pytest.approx(bell(*PROFILES[name]))
    said = next(row for row in by_filter(host, found) if row.get("filter"))
    values = np.broadcast_to(said["value"], LAYERS)
    assert values == pytest.approx(bell(*PROFILES[name]))


@pytest.mark.parametrize(
    ("beside", "profile", "shape"),
    [
        ({"peak": 0.6, "width": 0.08}, "narrow", (0.6, 0.08, 0.1)),  # as older recipes write it
        ({"peak": 0.6, "width": 0.08, "threshold": 0.1}, "narrow", (0.6, 0.08, 0.1)),
        ({"strength": 1.5, "overrides": {"mlp": {3: 0.5}}}, "narrow", (0.6, 0.08, 0.1)),
        ({"peak": 0.3}, "custom", (0.3, 0.08, 0.1)),
        ({"width": 0.15}, "custom", (0.6, 0.15, 0.1)),
        ({"threshold": 0.0}, "custom", (0.6, 0.08, 0.0)),
        ({"curve": [1.0] * LAYERS}, "custom", (0.6, 0.08, 0.1)),
        ({"peak": None}, "narrow", (0.6, 0.08, 0.1)),
    ],
)
def test_numbers_beside_a_profile_count_and_other_ones_make_it_custom(beside, profile, shape):
    weights = from_data(said("narrow", **beside)).edits[0].weights
    assert (weights.profile, weights.peak, weights.width, weights.threshold) == (profile, *shape)
    assert (
        from_data(to_dict(Recipe(edits=(Ablation(weights=weights),)))).edits[0].weights == weights
    )


def test_a_custom_table_keeps_its_numbers_even_those_of_a_profile():
    weights = from_data(said("custom", peak=0.6, width=0.08)).edits[0].weights
    assert (weights.profile, weights.peak, weights.width) == ("custom", 0.6, 0.08)


def test_a_recipe_that_says_nothing_of_its_weights_has_the_default_profile():
    assert from_yaml("version: 1\nedits: [{}]").edits[0].weights == kernel.profile("default")
    assert Merge("a", "b").weights.profile == "flat"


def test_an_unknown_profile_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'narrow'"):
        from_data(said("narow"))


@pytest.mark.parametrize("name", ["measured", "model"])
def test_a_profile_without_numbers_anywhere_asks_for_them(name):
    data = said(name) | {"model": {"id": "org/never-heard-of"}}
    with pytest.raises(UserError, match=f"'{name}' without numbers of its own"):
        from_data(data)
    data["edits"][0]["weights"] |= {"peak": 0.3, "width": 0.2}
    weights = from_data(data).edits[0].weights
    assert (weights.profile, weights.peak, weights.width) == (name, 0.3, 0.2)


def test_numbers_that_are_not_the_models_own_are_custom():
    assert from_data(said("model", peak=0.2)).edits[0].weights.profile == "custom"
    other = Recipe(edits=(Ablation(weights=WeightTable("model", 0.3, 0.2)),))  # size not known yet
    assert other.edits[0].weights.profile == "model"
    assert edit_events.usable("en", loaded("demo"), other).edits[0].weights.profile == "custom"
    fits = WeightTable("model", *kernel.recommended("demo", 8_000_000_000)[1:])
    fits = Recipe(edits=(Ablation(weights=fits),))
    assert edit_events.usable("en", loaded("demo"), fits) == fits
