"""Whatever a recipe or a link holds: a recipe that can be used, or one line on what is wrong.

Knows only the public ways in: text, plain data, a link. Costs a few seconds; the examples are the
same in every run.
"""

import json
from dataclasses import fields, is_dataclass
from urllib.parse import parse_qs, quote

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sst_ui.errors import UserError
from sst_ui.jobs.export import model_card
from sst_ui.jobs.merge import merge
from sst_ui.maths import kernel
from sst_ui.paths import PRESETS
from sst_ui.recipe import (
    Ablation,
    Evaluation,
    Merge,
    ModelSpec,
    Recipe,
    from_data,
    from_yaml,
    to_dict,
    to_yaml,
)
from sst_ui.ui.events.open_page import linked
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.form import read, show
from sst_ui.ui.state.loaded_model import Loaded

LAYERS = 12
LINE = 1600  # characters of the longest message: one line, each value in it cut
LOADED = Loaded("key", "demo", ModelSpec(), LAYERS, 1_000_000)
fuzz = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

WHOLE = {  # a recipe that says everything, to be spoilt
    **to_dict(Recipe(edits=(Merge("a", "b", parameters={"mu": 3.0}, budget=0.1), Ablation()))),
    "evaluation": to_dict(Evaluation(("refusal_rate",), samples=4)),
}
WORDS = sorted(
    {f.name for kind in (Recipe, ModelSpec, Merge, Ablation, Evaluation) for f in fields(kind)}
    | {"profile", "peak", "width", "curve", "overrides", "modules", "mlp", "q", "qkv", "2", "<<"}
)
SHIPPED = [path.read_text(encoding="utf-8") for path in (PRESETS / "recipes").glob("*.yaml")]

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**63, 2**31, 1e308, -1e308, 5e-324, 0, -1, True]),
)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(WORDS),
    st.sampled_from(["", "nan", "1e999", "9" * 5000, "x" * 9000, "\ud800", "a\0b", "../..", "~"]),
)
keys = st.one_of(st.sampled_from(WORDS), texts, numbers, st.none())
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, st.binary(max_size=4), st.dates())
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)


@st.composite
def spoilt(draw):
    """The whole recipe with one to three of its values replaced, dropped or doubled."""
    tree = json.loads(json.dumps(WHOLE))
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        for _ in range(draw(st.integers(0, 4))):
            inner = [k for k in _places(node) if isinstance(node[k], dict | list) and node[k]]
            if not inner:
                break
            node = node[draw(st.sampled_from(inner))]
        place = draw(st.sampled_from(_places(node)))
        what = draw(st.sampled_from(["value", "value", "value", "drop", "key"]))
        if what == "drop" and isinstance(node, dict):
            del node[place]
        elif what == "key" and isinstance(node, dict):
            node[draw(keys)] = node[place]
        else:
            node[place] = draw(trees)
        if not node:
            break
    return tree


def _places(node) -> list:
    return list(node) if isinstance(node, dict) else list(range(len(node)))


def holds(error: UserError) -> None:
    """A message that a screen and a terminal can show."""
    shown = message(error, "en")
    assert "\n" not in shown
    assert len(shown) < LINE
    shown.encode("utf-8")
    assert len(str(error)) < 20_000


def usable(recipe: Recipe) -> None:
    """What was read can be written, hashed, drawn and shown, or refused with a message."""
    assert from_yaml(to_yaml(recipe)) == recipe
    assert from_yaml(to_yaml(recipe)).digest() == recipe.digest()
    assert all(np.isfinite(value) for value in _numbers(recipe))
    try:
        for edit in recipe.edits:
            if isinstance(edit, Merge):
                merge.settings(edit)
            with np.errstate(all="raise", under="ignore"):
                table = kernel.table(edit.weights, LAYERS)
            assert np.isfinite(table).all()
        assert all(np.isfinite(line).all() for line in model_card.curves(recipe, LAYERS).values())
        form, extras = show(recipe)
        read(form, extras, recipe.model)
    except UserError as error:
        holds(error)


def _numbers(value):
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    elif hasattr(value, "values"):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def tried(way, what) -> None:
    try:
        recipe = way(what)
    except UserError as error:
        holds(error)
    else:
        usable(recipe)


@fuzz
@given(trees)
def test_any_data_is_a_recipe_or_a_message(tree):
    tried(from_data, tree)


@fuzz
@given(spoilt())
def test_a_recipe_with_anything_in_place_of_a_value_is_read_or_refused(tree):
    tried(from_data, tree)


@fuzz
@given(spoilt())
def test_the_same_as_text(tree):
    try:
        text = yaml.safe_dump(tree, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError, ValueError):
        return
    tried(from_yaml, text)


PIECES = [
    "version: 1\n", "edits:\n", "- ", "  ", "\n", ": ", "weights: ", "{", "}", "[", "]", ", ",
    "&a ", "!!omap ", "!!seq ",
    "*a", "*a, *a", "<<: ", "? ", "| ", "> ", "'", '"', "\\ud800", "\\x00", "!!int ", "!!float ",
    "!!binary ", "!!timestamp ", "!!set ", "!!bool ", "!!python/object:os.system ", "--- ", "...\n",
    "%YAML 1.1\n", "#", "peak", "profile: narrow", ".inf", ".nan", "1:30", "0x1f", "2024-13-45",
    "~", "=", "\t", "\ufeff", "\x07", "\u2028", "é", "9" * 5000,
]  # fmt: skip


@fuzz
@example("!!set version: 1")
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_yaml_is_a_recipe_or_a_message(text):
    tried(from_yaml, text)
    tried(from_yaml, f"version: 1\n{text}")


@fuzz
@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_message(text):
    tried(from_yaml, text)


@fuzz
@given(st.sampled_from(SHIPPED), st.data())
def test_a_recipe_that_was_cut_or_scrambled_is_read_or_refused(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=2)))
    what = data.draw(st.sampled_from(["cut", "doubled", "dropped", "piece"]))
    parts = text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]
    piece = data.draw(st.sampled_from(PIECES))
    spoilt = {
        "cut": parts[0],
        "doubled": parts[0] + parts[1] * 2 + parts[2],
        "dropped": parts[0] + parts[2],
        "piece": parts[0] + piece + parts[2],
    }
    tried(from_yaml, spoilt[what])


@fuzz
@given(spoilt(), st.data())
def test_any_link_opens_with_a_recipe_or_a_message(tree, data):
    """The query as a browser sends it, whole, cut off, or with signs changed on the way."""
    payload = data.draw(st.one_of(st.just(json.dumps(tree, default=str)), st.text(max_size=40)))
    query = "recipe=" + quote(payload, errors="surrogatepass")
    what = data.draw(st.sampled_from(["whole", "cut", "sign", "twice"]))
    place = data.draw(st.integers(0, len(query)))
    if what == "cut":
        query = query[:place]
    elif what == "sign":
        query = query[:place] + data.draw(st.sampled_from(["%", "%f", "%ff", "%00", "+", "&"]))
    elif what == "twice":
        query = "recipe=" + quote(query)
    for text in parse_qs(query, errors="replace").get("recipe", []):
        tried(lambda text: linked("en", LOADED, text), text)


NUMBERS = [
    ".inf", "-.inf", ".nan", "9" * 400, "9" * 5000, "1.0e+308", "-1.0e+308", "1.0e-320",
    "9223372036854775808", "-1", "0", "true", "abc", "'1e999'", "[]", "{}", "null",
]  # fmt: skip


def _paths(kind: dict, path: tuple = ()):
    """Every place of `WHOLE` that holds a number, or may hold one."""
    items = kind.items() if isinstance(kind, dict) else enumerate(kind)
    for key, value in items:
        if isinstance(value, dict | list) and value:
            yield from _paths(value, (*path, key))
        elif not isinstance(value, str | dict | list):
            yield (*path, key)


@pytest.mark.parametrize("path", list(_paths(WHOLE)), ids=lambda p: ".".join(map(str, p)))
def test_every_number_of_a_recipe_refuses_what_is_none(path):
    for value in NUMBERS:
        tree = json.loads(json.dumps(WHOLE))
        node = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = "HERE"
        tried(from_yaml, yaml.safe_dump(tree).replace("HERE", value))
