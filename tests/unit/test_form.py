"""The controls and the recipe say the same: nothing is lost in between, no control is idle."""

import pytest

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.paths import PRESETS
from sst_ui.recipe import ModelSpec
from sst_ui.ui import table
from sst_ui.ui.form import Extras, Form, culprit, read, show
from sst_ui.ui.model import spec
from sst_ui.ui.state import Conversation, Turn, Variants

MODEL = ModelSpec()
TURNED = {  # another position of every control
    "profile": "narrow",
    "strength": -0.5,
    "peak": 0.3,
    "width": 0.22,
    "threshold": 0.3,
    "attention": 0.5,
    "mlp": 0.0,
    "operation": "add",
    "norm_preserving": True,
    "affine": True,
    "estimator": "whitened",
    "k": 3,
    "scope": "single",
    "layer": 4.5,
    "winsorize": 0.99,
    "position": "instruction",
    "shrinkage": 0.4,
    "seed": 7,
    "samples": 20,
    "harmful": "demo/jailbreak",
    "harmless": "demo/facts",
    "file": "directions.safetensors",
    "metrics": ["refusal_rate"],
    "metric_preset": "quick",
    "metric_samples": 5,
    "metric_tokens": 12,
    "judge": "some/judge",
    "labels": "labels.jsonl",
}


@pytest.fixture
def form() -> Form:
    return show(recipes.load(PRESETS / "recipes" / "default.yaml"))[0]


@pytest.mark.parametrize("name", Form._fields)
def test_every_control_reaches_the_recipe(form, name):
    if name == "layer":  # only asked for where one layer's direction serves all
        form = form._replace(scope="single")
    before = recipes.to_yaml(read(form, Extras(), MODEL))
    after = recipes.to_yaml(read(form._replace(**{name: TURNED[name]}), Extras(), MODEL))
    assert after != before


@pytest.mark.parametrize("path", sorted((PRESETS / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_recipe_comes_back_from_the_controls_as_it_was(path):
    recipe = recipes.load(path)
    assert read(*show(recipe), recipe.model).digest() == recipe.digest()


@pytest.mark.parametrize("name", Form._fields)
def test_a_turned_control_comes_back_from_its_recipe(form, name):
    turned = form._replace(**{name: TURNED[name]})
    if name == "scope":
        turned = turned._replace(layer=2.0)
    if name == "layer":
        turned = turned._replace(scope="single")
    again, _ = show(read(turned, Extras(), MODEL))
    assert getattr(again, name) == TURNED[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0),
        ("profile", "narow"),
        ("k", None),
        ("k", 99),
        ("samples", 1),
        ("harmful", "  "),
        ("metric_tokens", 5000),
        ("metric_samples", -1),
        ("metric_preset", "quik"),
        ("metrics", ["refusal_rte"]),
    ],
)
def test_a_bad_value_is_found_at_its_control(form, name, value):
    wrong = form._replace(**{name: value})
    with pytest.raises(UserError):
        read(wrong, Extras(), MODEL)
    assert culprit(wrong, Extras(), MODEL, form) == name


def test_an_unknown_profile_suggests_the_nearest(form):
    with pytest.raises(UserError, match="did you mean 'narrow'"):
        read(form._replace(profile="narow"), Extras(), MODEL)


@pytest.mark.parametrize(
    ("place", "value", "name"),
    [
        (0, "some/model", "id"),
        (1, "v2", "revision"),
        (2, "float16", "dtype"),
        (3, "cuda:1", "device"),
        (4, "4bit", "quantization"),
        (5, True, "trust_remote_code"),
        (6, True, "enable_thinking"),
        (7, "plain.jinja", "chat_template"),
    ],
)
def test_every_control_of_the_model_reaches_its_specification(place, value, name):
    values = ["", "", "auto", "auto", "none", False, False, ""]
    assert spec(*values) == ModelSpec()
    values[place] = value
    assert spec(*values) == ModelSpec(**{name: value})


# --- the table ------------------------------------------------------------------------------------


def weights(form, extras=None):
    return read(form, extras or Extras(), MODEL).edits[0].weights


def test_a_typed_cell_is_pinned_and_marked(form):
    cells = table.rows(weights(form), 12)
    cells[5][2] = "0,25"
    edited = table.typed("en", cells, weights(form), 12)
    assert edited.extras.overrides == {"attention": {5: 0.25}}
    again = table.rows(weights(form, edited.extras), 12)
    assert again[5][2] == "0.25" + table.PIN
    assert again[5][3] == cells[5][3]


def test_an_emptied_cell_follows_the_curve_again(form):
    extras = Extras(overrides={"mlp": {3: 1.0}})
    cells = table.rows(weights(form, extras), 12)
    cells[3][3] = ""
    assert table.typed("en", cells, weights(form, extras), 12).extras.overrides == {}


def test_a_word_in_a_cell_is_complained_about_and_the_old_value_stays(form):
    cells = table.rows(weights(form), 12)
    cells[4][2] = "abc"
    edited = table.typed("en", cells, weights(form), 12)
    assert edited.extras.overrides == {}
    assert "'abc' is not a number (layer 4, attention)" in edited.complaint


def test_a_pasted_row_becomes_the_curve_or_a_column(form):
    row = "\t".join(["0", "0.5", "1"] * 4)
    curve = table.pasted("en", row, "curve", Extras(), 12)
    assert curve.curve == (0, 0.5, 1) * 4
    column = table.pasted("en", row, "mlp", Extras(), 12)
    assert column.overrides["mlp"][2] == 1


@pytest.mark.parametrize(("row", "words"), [("1 2 3", "3 numbers"), ("1, x", "'x' is not")])
def test_a_row_that_does_not_fit_is_explained(row, words):
    with pytest.raises(UserError, match=words):
        table.pasted("en", row, "curve", Extras(), 12)


# --- a window's memory ----------------------------------------------------------------------------


def test_applying_the_same_recipe_twice_is_one_variant_and_undo_goes_back(form):
    first = read(form, Extras(), MODEL)
    second = read(form._replace(strength=0.5), Extras(), MODEL)
    known = Variants().add(first).add(second).add(second)
    assert len(known.items) == 2
    assert known.now.recipe.digest() == second.digest()
    assert known.back().now.recipe.digest() == first.digest()
    with pytest.raises(UserError, match="nothing earlier"):
        known.back().back()


def test_variants_come_back_from_what_the_browser_kept(form):
    first = read(form, Extras(), MODEL)
    second = read(form._replace(strength=0.5), Extras(overrides={"mlp": {2: 0.3}}), MODEL)
    kept = Variants().add(first).add(second).saved()
    known = Variants.restored(["not: a recipe", *kept], MODEL.id)
    assert [v.recipe.digest() for v in known.items] == [first.digest(), second.digest()]
    assert Variants.restored(kept, "another/model").items == ()


def test_a_column_remembers_its_own_answers():
    talk = Conversation((Turn("hello", ("hi", "yo")), Turn("more")))
    assert talk.history(1) == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "more"},
    ]
