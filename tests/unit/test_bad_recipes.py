"""Recipes and links that are wrong in a way somebody tried: one short line, at once, no crash."""

import json
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import quote, unquote

import pytest

from sst_ui.__main__ import main
from sst_ui.errors import UserError, line_of, shown
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.search.objectives import SearchSpec
from sst_ui.paths import DEMO
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec, Recipe, from_data, from_yaml, load
from sst_ui.ui.api import Api
from sst_ui.ui.events.open_page import linked
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.loaded_model import Loaded

LAUGHS = "version: 1\nname: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"k{i}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)
LOADED = Loaded("key", "demo", ModelSpec(), 12, 1_000_000)

BAD = {
    "a key twice": ("version: 1\nname: a\nname: b", r"'name' twice, in lines 2 and 3"),
    "a nested key twice": (
        "version: 1\nedits:\n- weights: {strength: 1,\n   peak: .5,\n   strength: 2}",
        r"'strength' twice, in lines 3 and 5",
    ),
    "a key twice in two spellings": ("version: 1\n? name\n: a\n'name': b", r"lines 2 and 4"),
    "a key twice in JSON": ('{"version": 1, "name": "a", "name": "b"}', r"'name' twice"),
    "a layer twice": (
        "version: 1\nedits: [{weights: {overrides: {mlp: {2: .5, '2': .6}}}}]",
        r"overrides.mlp has 2 twice",
    ),
    "a laugh": (LAUGHS, r"more than 20,000 values by line \d"),
    "a value of values": (
        "version: 1\nname: &a [x,x,x,x,x,x,x,x]\nedits: &b [*a,*a,*a,*a,*a,*a,*a]\n"
        "model: &c [*b,*b,*b,*b,*b,*b,*b]\nevaluation: [*c,*c,*c,*c,*c,*c]",
        r"name is \['x', 'x', 'x', \.\.\.\]; it must be text",
    ),
    "an alias of itself": ("version: 1\nname: &a [*a]", r"stands for something that contains it"),
    "an alias of nothing": ("version: 1\nname: *a", r"undefined alias"),
    "deep lists": ("version: 1\nname: " + "[" * 5000, r"nested more than 32 deep in line 2"),
    "deep mappings": ("version: 1\nname: " + "{a: " * 5000, r"nested more than 32 deep"),
    "deep blocks": ("version: 1\nname:\n" + "- " * 5000 + "x", r"nested more than 32 deep"),
    "an endless text": ("version: 1\nname: " + "x" * 10**6, r"1,000,017 characters long"),
    "null edits": ("version: 1\nedits: [null]", r"edits\[0\] is empty; it must be a mapping"),
    "edits of numbers": ("version: 1\nedits: [1]", r"edits\[0\] is 1; it must be a mapping"),
    "an edit in place of edits": ("version: 1\nedits: {}", r"edits is \{\}; it must be a list"),
    "seed below": ("version: 1\nedits: [{directions: {seed: -1}}]", r"seed is -1; it must be 0"),
    "seed above": ("version: 1\nedits: [{directions: {seed: 4294967296}}]", r"0 to 4294967295"),
    "infinity": (
        "version: 1\nedits: [{directions: {seed: .inf}}]",
        r"seed is inf; it must be 0 to",
    ),
    "no number": ("version: 1\nedits: [{directions: {layer: .nan}}]", r"layer is nan; it must"),
    "400 digits": (
        f"version: 1\nedits: [{{directions: {{k: {'9' * 400}}}}}]",
        r"k is 9+\.\.\.9+; it must be 1 to 16",
    ),
    "400 digits without a limit": (
        f"version: 1\nevaluation: {{samples: {'9' * 400}}}",
        r"samples is 9+\.\.\.9+; so large a number cannot be used",
    ),
    "a range, far inside": (
        "version: 1\nedits: [{}, {weights: {overrides: {mlp: {2: 9}}}}]",
        r"^edits\[1\]\.weights\.overrides\.mlp\.2 is 9; it must be -4 to 4\.$",
    ),
    "a missing key, misspelt": (
        "version: 1\nedits: [{utility: a, safty: b}]",
        r"^key in edits\[0\] 'safty' is unknown; did you mean 'safety'\?",
    ),
    "an empty key, misspelt": ("version: 1\nmodel: {revison: }", r"did you mean 'revision'"),
    "missing keys": ("version: 1\nedits: [{budget: 1}]", r"^edits\[0\] lacks utility, safety\.$"),
    "a yes for a number": (
        "version: 1\nedits: [{weights: {curve: [1, yes]}}]",
        r"^edits\[0\]\.weights\.curve\[1\] is True; it must be a number\.$",
    ),
    "a number for a yes": ("version: 1\nedits: [{affine: 1}]", r"affine is 1; it must be true or"),
    "a set for a list": (
        "version: 1\nevaluation: {metrics: !!set {refusal_rate}}",
        r"metrics is \{'refusal_rate'\}; it must be a list",
    ),
    "no key of layers": (
        "version: 1\nedits: [{weights: {overrides: {mlp: {first: 1}}}}]",
        r"^a key of edits\[0\]\.weights\.overrides\.mlp is 'first'; it must be a whole number",
    ),
    "5000 digits": (f"version: {'9' * 5000}", r"'9+\.\.\.9+' in line 1 cannot be read as int"),
    "a 13th month": ("version: 1\nname: 2024-13-45", r"in line 2 cannot be read as timestamp"),
    "a date": ("version: 1\nname: 2024-12-24", r"name is datetime.date.*must be text"),
    "a wide bell": ("version: 1\nedits: [{weights: {width: 1.0e+300}}]", r"width is 1e\+300"),
    "a thin bell": ("version: 1\nedits: [{weights: {width: 1.0e-300}}]", r"width is 1e-300"),
    "half a character": ('version: 1\nname: "\\ud800"', r"lone surrogate\) in line 2"),
    "a zero character": ('version: 1\nmodel: {id: "a\\0b"}', r"with a zero character"),
    "bytes": ("version: 1\nedits: [{weights: {peak: !!binary MC41}}]", r"must be a number"),
    "a set as a key": ("version: 1\n!!set a: 1", r"has a set as a key in line 2"),
    "a list as a key": ("version: 1\n[a]: 1", r"not valid YAML"),
    "an object": ("!!python/object/apply:os.getcwd []", r"not valid YAML"),
    "an override of the head": (
        "version: 1\nedits: [{utility: a, safety: b, weights: {overrides: {lm_head: {0: 1}}}}]",
        r"the head is in no layer",
    ),
    "two documents": ("version: 1\n---\nversion: 1", r"not valid YAML"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD)
def test_a_recipe_that_cannot_be_meant_is_one_line(text, words, tmp_path, capsys):
    with pytest.raises(UserError, match=words) as refused:
        from_yaml(text)
    assert len(str(refused.value)) < 400
    with pytest.raises(UserError):  # a link is the same text, sent another way
        linked("en", LOADED, unquote(quote(text)))
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    assert main(["run", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["bad.yaml"]


def test_merge_keys_and_anchors_of_a_sane_size_still_work():
    text = "version: 1\nedits:\n- weights: &w {peak: .3}\n- weights: {<<: *w, peak: .4, width: .2}"
    first, second = (edit.weights for edit in from_yaml(text).edits)
    assert (first.peak, second.peak, second.width) == (0.3, 0.4, 0.2)


def test_a_number_may_be_written_as_text():
    text = "version: 1\nedits: [{utility: a, safety: b, budget: 1e-3, samples: '8'}]"  # YAML 1.1
    (merge,) = from_yaml(text).edits
    assert (merge.budget, merge.samples) == (0.001, 8)


def test_an_empty_key_keeps_its_default():
    text = """version: 1
name:
model:
edits:
- {utility: a, safety: b, rank: , weights: {strength: , peak: }}
- {weights: {strength: , peak: }, affine: }
evaluation: {samples: }
"""
    assert from_yaml(text) == from_yaml(
        "version: 1\nedits: [{utility: a, safety: b, weights: {}}, {}]"
    )


def test_json_writes_other_planes_as_two_halves_and_is_read_so():
    assert from_yaml(json.dumps({"version": 1, "name": "😀"})).name == "😀"


def test_values_in_messages_are_short_whatever_they_are():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    shared = ["x" * 50]
    for _ in range(60):
        shared = [shared] * 10
    for value in (deep, shared, "x" * 10**6, 10**10_000, {1: "y" * 10**6}, "\ud800", b"z" * 9999):
        assert len(shown(value)) <= 120
        shown(value).encode("utf-8")
        with pytest.raises(UserError) as refused:
            from_data({"version": 1, "edits": value})
        assert len(str(refused.value)) < 300
    assert len(line_of("a " + "b" * 9999 + " c", 500)) < 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty or not a mapping"),
        (b"\x00\x01\x02\xff", "is not UTF-8 text"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"\x89PNG\r\n", "is not UTF-8 text"),
        (None, "is a folder; give a recipe file"),
        (b"x" * 2_000_000, "bytes large; that is no recipe"),
    ],
    ids=["empty", "binary", "control", "picture", "folder", "large"],
)
def test_a_file_that_is_no_recipe_is_said(content, words, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load(path)


@pytest.mark.parametrize(
    "name", ["x" * 300, "y" * 5000, "a/" + "z" * 300, "a\nb", "~nobody-here/x"]
)
def test_a_name_that_no_file_can_have_is_not_found(host, name):
    pair = str(DEMO / "adapters" / "utility")
    for edit in (
        {"utility": name, "safety": pair, "method": "task_arithmetic"},
        {"utility": pair, "safety": pair, "method": "safe_lora", "unaligned": name},
        {"directions": {"harmful": name}},
        {"directions": {"file": name}},
    ):
        with pytest.raises(UserError) as refused:
            finish(resolve(host, from_data({"version": 1, "edits": [edit]})))
        assert len(line_of(refused.value, 1500)) < 1500
        assert name not in message(refused.value, "en") or len(name) < 200
    with pytest.raises(UserError):
        load(name)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[1]", "is not a JSON object"),
        (b'{"peft_type": "LORA", "r": %s}' % (b"9" * 5000), "cannot be read"),
        (b'{"peft_type": "LORA", "rank_pattern": [1]}', "rank_pattern to .1.; it must be a table"),
    ],
    ids=["empty", "binary", "deep", "list", "digits", "pattern"],
)
def test_an_adapter_whose_settings_cannot_be_read_is_said(host, tmp_path, config, words):
    good = DEMO / "adapters" / "utility"
    (tmp_path / "adapter_model.safetensors").symlink_to(good / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(config)
    edit = {"utility": str(tmp_path), "safety": str(good), "method": "task_arithmetic"}
    with pytest.raises(UserError, match=words):
        finish(resolve(host, from_data({"version": 1, "edits": [edit]})))


def test_a_search_has_the_ranges_of_a_recipe():
    for wrong in ({"seed": -1}, {"seed": 2**32}, {"max_new_tokens": 5000}, {"samples": 0}):
        with pytest.raises(UserError):
            SearchSpec(**wrong)


# --- whose model ----------------------------------------------------------------------------------

MINE = ModelSpec("org/mine", "v1", dtype="float32")


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (ModelSpec("org/mine", "v1"), True),
        (MINE, True),
        (replace(MINE, device="cuda:1"), True),
        (ModelSpec("org/mine"), False),  # another revision
        (ModelSpec("org/other", "v1"), False),
        (ModelSpec(), False),
        (replace(MINE, dtype="float16"), False),
        (replace(MINE, quantization="4bit"), False),
        (replace(MINE, enable_thinking=True), False),
        (replace(MINE, chat_template="chatml"), False),
    ],
)
def test_programs_and_links_get_no_answer_from_another_model(wanted, fits):
    text = json.dumps({"version": 1, "model": vars(wanted), "edits": [{}]})
    loaded = replace(LOADED, spec=MINE)
    calls = Api(SimpleNamespace(loaded=loaded))  # would fail if the engine were asked for more
    asks = [
        lambda: calls.weights(text),
        lambda: next(calls.compare("hi", text)),
        lambda: calls.evaluate(text),
    ]
    if fits:
        assert len(asks[0]()) == loaded.layers
        assert linked("en", loaded, text).model == MINE
        return
    for ask in asks:
        with pytest.raises(Exception, match=r"recipe is for .+, but org/mine.* is loaded") as said:
            ask()
        assert wanted.id in str(said.value)
    with pytest.raises(UserError, match="but org/mine, revision 'v1'"):
        linked("en", loaded, text)


@pytest.mark.parametrize("length", [0, -5, 10**9, 10**400, 1.5, float("nan"), "abc", True, [1]])
def test_an_answer_of_an_impossible_length_is_refused(length):
    calls = Api(SimpleNamespace(loaded=LOADED))
    with pytest.raises(Exception, match="max_new_tokens is"):
        next(calls.compare("hi", "version: 1", length))


def test_a_recipe_without_a_model_is_for_the_demo():
    assert linked("en", LOADED, "version: 1").model == Recipe().model
