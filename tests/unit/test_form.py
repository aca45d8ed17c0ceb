"""The controls and the recipe say the same: nothing is lost in between, no control is idle."""

import json
from dataclasses import replace

import pytest

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.maths.merge.registry import METHODS
from sst_ui.paths import PRESETS
from sst_ui.recipe import Ablation, Filter, Merge, ModelSpec, Recipe, WeightTable
from sst_ui.ui.panels.model import spec
from sst_ui.ui.state import merge_form
from sst_ui.ui.state.form import Extras, Form, read, show, tabled
from sst_ui.ui.state.form import wrong as problems
from sst_ui.ui.state.window import Conversation, Turn, Variants, title
from sst_ui.ui.widgets import weight_table

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
    "affine_at": "everywhere",
    "filter_goal": "budget",
    "filter_budget": 0.2,
    "filter_kl": 0.02,
    "filter_mu": 30.0,
    "null_space": 0.05,
    "lookalikes": "demo/facts",
    "lookalike_weight": 3.0,
    "filter_answers": 4,
    "filter_ridge": 0.01,
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
    "concepts": "demo/lookalike",
    "file": "directions.safetensors",
    "metrics": ["refusal_rate"],
    "metric_preset": "quick",
    "metric_samples": 5,
    "metric_tokens": 12,
    "judge": "some/judge",
    "labels": "labels.jsonl",
    "metric_goal": "reinforce",
    "ablation_on": False,
    "merge_on": True,
    "utility": "some/utility",
    "safety": "some/safety",
    "method": "ties",
    "goal": "parameters",
    "budget": 0.2,
    "safety_weight": 1.5,
    "shape": "flat",
    "m_peak": 0.3,
    "m_width": 0.3,
    "utility_set": "demo/facts",
    "safety_set": "demo/jailbreak",
    "m_lookalikes": "demo/lookalike",
    "m_lookalike_weight": 3.0,
    "m_rounds": 2,
    "m_samples": 12,
    "target": "additive",
    "fisher": "input",
    "inputs": 64,
    "unaligned": "some/folder",
    "rank": 8,
    **{f"f_{kind}": 0.5 for kind in merge_form.FACTORS},
    **{
        f"p_{name}": 7 if row.kind == "int" else row.low + 0.4 * (row.high - row.low)
        for name, row in merge_form.dials().items()
    },
}


def ready(form: Form, name: str) -> Form:
    """The form with everything switched on that a control needs to be of use."""
    if name == "layer":  # only asked for where one layer's direction serves all
        form = form._replace(scope="single")
    if name == "filter_budget":
        form = form._replace(filter_goal="budget")
    if name == "filter_kl":
        form = form._replace(filter_goal="kl")
    if name == "norm_preserving":  # of a plain ablation
        form = form._replace(operation="ablate")
    if name in merge_form.FIELDS and name != "merge_on":
        form = form._replace(merge_on=True)
    if name in ("m_peak", "m_width"):
        form = form._replace(shape="bell")
    if name.startswith("p_"):
        method = next(m for m in METHODS if name.removeprefix("p_") in merge_form.own(m.name))
        mine = {f"p_{n}": row.default for n, row in merge_form.own(method.name).items()}
        form = form._replace(method=method.name, goal="parameters", **mine)
    return form


@pytest.fixture
def form() -> Form:
    return show(recipes.load(PRESETS / "recipes" / "default.yaml"))[0]


@pytest.mark.parametrize("name", Form._fields)
def test_every_control_reaches_the_recipe(form, name):
    form = ready(form, name)
    before = recipes.to_yaml(read(form, Extras(), MODEL))
    after = recipes.to_yaml(read(form._replace(**{name: TURNED[name]}), Extras(), MODEL))
    assert after != before


@pytest.mark.parametrize("path", sorted((PRESETS / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_recipe_comes_back_from_the_controls_as_it_was(path):
    recipe = recipes.load(path)
    assert read(*show(recipe), recipe.model).digest() == recipe.digest()


@pytest.mark.parametrize("name", Form._fields)
def test_a_turned_control_comes_back_from_its_recipe(form, name):
    turned = ready(form, name)._replace(**{name: TURNED[name]})
    if name == "scope":
        turned = turned._replace(layer=2.0)
    if name == "profile":  # a profile's name goes with its numbers: picking it writes them
        turned = turned._replace(peak=0.6, width=0.08)
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
        ("filter_goal", "nats"),
        ("filter_mu", -1),
        ("filter_kl", 0),
        ("null_space", 2),
        ("lookalike_weight", None),
        ("filter_answers", 2.5),
        ("filter_ridge", 0),
        ("metric_tokens", 5000),
        ("metric_samples", -1),
        ("metric_preset", "quik"),
        ("metric_goal", "both"),
        ("metrics", ["refusal_rte"]),
        ("utility", " "),
        ("method", "tiez"),
        ("budget", 0),
        ("safety_weight", 9),
        ("f_down", None),
        ("m_samples", 1),
        ("rank", -1),
        ("safety_set", ""),
    ],
)
def test_a_bad_value_is_found_at_its_control(form, name, value):
    form = form._replace(merge_on=name in merge_form.FIELDS)
    if name == "filter_kl":
        form = ready(form, name)
    wrong = form._replace(**{name: value})
    with pytest.raises(UserError):
        read(wrong, Extras(), MODEL)
    assert list(problems(wrong, Extras(), MODEL, form)) == [name]


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


SHAPED = WeightTable(
    profile="custom", peak=0.3, width=0.2, strength=1.5, modules={"attention": 0.5, "q": 2.0},
    overrides={"mlp": {2: 0.1}},
)  # fmt: skip
EDITS = {
    "nothing": (),
    "ablation": (Ablation(),),
    "filter": (
        Ablation(
            operation="filter",
            affine=True,
            filter=Filter(3.0, 0.004, None, 0.01, 7, "demo/lookalike", 2.0, 0.02),
        ),
    ),
    "merge": (Merge("a", "b"),),
    "both": (Merge("a", "b", budget=0.02), Ablation()),
    "defaults named": (Merge("a", "b", "sst_topk", {"k": 128, "damping": 1e-3}),),
    "all the rest": (
        Merge("a", "b", "dare", {"drop": 0.3}, None, "additive", "input", 64, SHAPED,
              "demo/facts", "demo/harmful", 8, "c", 16, "demo/lookalike", 3.0, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
def test_merges_and_ablations_come_back_from_the_controls_as_they_were(edits):
    recipe = Recipe(edits=edits)
    form, extras = show(recipe)
    assert read(Form(*json.loads(json.dumps(form))), extras, MODEL) == recipe  # as a browser sends


def test_turning_one_control_leaves_what_no_control_shows():
    form, extras = show(Recipe(edits=(Merge("a", "b", weights=SHAPED),)))
    (merge,) = read(form._replace(f_down=0.25), extras, MODEL).edits
    assert merge.weights == replace(SHAPED, modules={**SHAPED.modules, "down": 0.25})


def test_a_budget_belongs_to_methods_with_a_price():
    form, extras = show(Recipe(edits=(Merge("a", "b", budget=0.02),)))
    assert read(form._replace(method="ties"), extras, MODEL).edits[0].budget is None
    assert read(form._replace(method="fisher"), extras, MODEL).edits[0].budget is None
    assert read(form, extras, MODEL).edits[0].budget == 0.02


def test_an_edit_that_a_recipe_lacks_stays_in_the_controls_switched_off():
    both = (Merge("a", "b", "ties"), Ablation(weights=WeightTable(strength=0.4)))
    form, extras = show(Recipe(edits=both))
    form, extras = show(Recipe(edits=(Ablation(),)), form, extras)
    assert (form.merge_on, form.method, form.strength) == (False, "ties", 1.0)
    assert read(form._replace(merge_on=True), extras, MODEL).edits[0] == both[0]


@pytest.mark.parametrize(
    "edits", [(Ablation(), Merge("a", "b")), (Ablation(), Ablation())], ids=["order", "two"]
)
def test_edits_that_the_screen_cannot_show_are_refused(edits):
    with pytest.raises(UserError, match="a merge and then an ablation"):
        show(Recipe(edits=edits))


def test_a_variant_is_named_by_its_method_and_how_far_it_goes():
    edits = (Merge("a", "b", budget=0.02), Ablation(weights=WeightTable(strength=-1)))
    assert title(Recipe(edits=edits)) == "sst ≤0.02 nats + default ×−1"
    assert title(Recipe(edits=(Merge("a", "b", "sst_topk", {"k": 5}),))) == "sst_topk k 5"


# --- the table ------------------------------------------------------------------------------------


def weights(form, extras=None):
    return read(form, extras or Extras(), MODEL).edits[0].weights


def typed(weights, *cells):
    return weight_table.typed("en", cells, weights, 12)


def test_a_typed_cell_is_pinned(form):
    edited = typed(weights(form), ("attention", 5, "0,25"), ("mlp", 6, "−1"))
    assert edited.extras.overrides == {"attention": {5: 0.25}, "mlp": {6: -1.0}}
    assert edited.complaint == ""


def test_an_emptied_cell_follows_the_curve_again(form):
    pinned = weights(form, Extras(overrides={"mlp": {3: 1.0}}))
    assert typed(pinned, ("mlp", 3, " ")).extras.overrides == {}


@pytest.mark.parametrize(
    ("text", "words"), [("abc", "'abc' is not a number"), ("9", "9 is outside -4 to 4")]
)
def test_a_cell_that_cannot_be_is_complained_about_and_the_old_value_stays(form, text, words):
    pinned = weights(form, Extras(overrides={"mlp": {3: 1.0}}))
    edited = typed(pinned, ("mlp", 3, text), ("mlp", 12, "1"), ("q", 1, "1"))
    assert edited.extras.overrides == {"mlp": {3: 1.0}}
    assert f"{words} (layer 3, MLP)" in edited.complaint


def test_in_the_profile_table_every_cell_is_pinned_and_none_when_it_is_left(form):
    before = Extras(overrides={"mlp": {3: 1.0}})
    chosen = form._replace(profile="table", strength=2.0)
    extras = tabled(chosen, before, "default", 12)
    assert extras.overrides["mlp"][3] == 1.0  # stays
    alpha = kernel.table(weights(chosen, before), 12)
    got = kernel.table(weights(chosen, extras), 12)
    assert got == pytest.approx(alpha, abs=5e-4)  # as it is shown
    assert kernel.table(weights(chosen._replace(peak=0.1), extras), 12).tolist() == got.tolist()
    assert weights(chosen, extras).profile == "table"
    assert tabled(form, extras, "table", 12).overrides == {}
    assert tabled(form, before, "default", 12) == before


def test_a_table_without_cells_is_no_table(form):
    assert weights(form._replace(profile="table")).profile == "custom"


def test_a_pasted_row_becomes_the_curve_or_a_column(form):
    row = "\t".join(["0", "0.5", "1"] * 4)
    curve = weight_table.pasted("en", row, "curve", Extras(), 12)
    assert curve.curve == (0, 0.5, 1) * 4
    column = weight_table.pasted("en", row, "mlp", Extras(), 12)
    assert column.overrides["mlp"][2] == 1


@pytest.mark.parametrize(("row", "words"), [("1 2 3", "3 numbers"), ("1, x", "'x' is not")])
def test_a_row_that_does_not_fit_is_explained(row, words):
    with pytest.raises(UserError, match=words):
        weight_table.pasted("en", row, "curve", Extras(), 12)


# --- a window's memory ----------------------------------------------------------------------------


def test_applying_the_same_recipe_twice_is_one_variant_and_undo_goes_back(form):
    first = read(form, Extras(), MODEL)
    second = read(form._replace(strength=0.5), Extras(), MODEL)
    known = Variants().add(first).add(second).add(second)
    assert len(known.items) == 2
    assert known.now.recipe.digest() == second.digest()
    assert known.back().now.recipe.digest() == first.digest()
    with pytest.raises(UserError, match="nothing to undo"):
        known.back().back()


def test_undo_and_redo_go_back_and_forth_in_time_not_in_the_list(form):
    made = [read(form._replace(strength=s), Extras(), MODEL) for s in (0.1, 0.2, 0.3)]
    known = Variants()
    for recipe in made:
        known = known.add(recipe)
    first, second, third = (v.name for v in known.items)
    known = known.pick(first)
    assert known.back().current == third
    assert known.back().back().current == second
    assert known.back().back().forward().forward().current == first
    again = known.back().pick(second)  # something new was done: what was undone is over
    with pytest.raises(UserError, match="nothing to redo"):
        again.forward()
    assert again.back().current == third
    assert len(again.items) == 3


def test_a_renamed_variant_stays_where_it_was_in_time_and_names_are_unique(form):
    made = [read(form._replace(strength=s), Extras(), MODEL) for s in (0.1, 0.2)]
    known = Variants().add(made[0], "first").add(made[1], "second")
    renamed = known.rename("first", "  the \n mild one ")
    assert [v.name for v in renamed.items] == ["the mild one", "second"]
    assert [v.recipe.name for v in renamed.items] == ["the mild one", "second"]
    assert renamed.items[0].recipe.digest() == known.items[0].recipe.digest()
    assert renamed.current == "second"
    assert renamed.back().current == "the mild one"
    assert renamed.back().rename("the mild one", "first").forward().current == "second"
    with pytest.raises(UserError, match="another variant"):
        known.rename("first", "second")
    assert known.rename("first", "   ") == known


def test_variants_come_back_from_what_the_browser_kept(form):
    first = read(form, Extras(), MODEL)
    second = read(form._replace(strength=0.5), Extras(overrides={"mlp": {2: 0.3}}), MODEL)
    kept = Variants().add(first).add(second).back().saved()
    kept = {"recipes": ["not: a recipe", *kept["recipes"]], "current": kept["current"] + 1}
    known = Variants.restored(kept, MODEL.id)
    assert [v.recipe.digest() for v in known.items] == [first.digest(), second.digest()]
    assert known.now.recipe.digest() == first.digest()
    assert Variants.restored(kept, "another/model") == Variants()
    of_earlier_versions = Variants.restored(kept["recipes"], MODEL.id)
    assert [v.recipe.digest() for v in of_earlier_versions.items] == [
        v.recipe.digest() for v in known.items
    ]


@pytest.mark.parametrize("kept", [None, 5, "text", [None, {}], {"recipes": 7}, {"current": []}])
def test_whatever_else_a_browser_hands_over_holds_no_variants(kept):
    assert Variants.restored(kept, MODEL.id) == Variants()


def test_a_column_remembers_its_own_answers():
    talk = Conversation((Turn("hello", ("hi", "yo")), Turn("more")))
    assert talk.history(1) == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "more"},
    ]
