"""A recipe says everything about an edit, survives YAML, and refuses what it does not know."""

from dataclasses import replace

import pytest

from sst_ui.errors import UserError
from sst_ui.paths import PRESETS
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Evaluation,
    ModelSpec,
    Recipe,
    WeightTable,
    from_yaml,
    load,
    to_yaml,
)

FULL = Recipe(
    name="all settings",
    model=ModelSpec(id="org/name", revision="main", enable_thinking=True),
    edits=(
        Ablation(
            directions=DirectionSpec(estimator="projected", k=2, winsorize=0.995),
            weights=WeightTable(
                profile="custom", strength=-1.0, overrides={"mlp": {3: 0.5}}, curve=(0.0, 1.0)
            ),
            affine=True,
        ),
    ),
    evaluation=Evaluation(metrics=("refusal_rate",), samples=10),
)


def test_a_recipe_comes_back_from_yaml_as_it_went_in():
    assert from_yaml(to_yaml(FULL)) == FULL
    assert from_yaml(to_yaml(FULL)).digest() == FULL.digest()


def test_the_digest_follows_the_edit_and_not_the_name():
    assert replace(FULL, name="other").digest() == FULL.digest()
    assert replace(FULL, edits=()).digest() != FULL.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nedit: []", "did you mean 'edits'"),
        ("version: 1\nedits:\n- weights: {peek: .5}", "did you mean 'peak'"),
        ("version: 1\nedits:\n- weights: {width: 0}", "width is 0"),
        ("version: 1\nedits:\n- weights: {strength: abc}", "'abc'; it must be a number"),
        ("version: 1\nedits:\n- weights: {strength: .nan}", "strength"),
        ("version: 1\nedits:\n- weights: {overrides: {mlp: {2: abc}}}", "overrides.mlp.2"),
        ("version: 1\nedits:\n- weights: {modules: {mpl: 1}}", "did you mean 'mlp'"),
        ("version: 1\nedits:\n- directions: {estimator: mean}", "mean_difference"),
        ("version: 1\nedits:\n- directions: {k: 1.5}", "whole number"),
        ("version: 1\nedits:\n- {norm_preserving: true, affine: true}", "norm_preserving"),
        ("version: 2", "version 2"),
        ("edits: []", "version"),
        ("[1, 2]", "mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_faulty_recipe_is_refused_with_what_was_wrong(text, message):
    with pytest.raises(UserError, match=message):
        from_yaml(text)


def test_a_recipe_file_that_is_missing_or_not_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load(tmp_path / "bad.yaml")


def test_the_goal_is_part_of_the_file_and_not_of_the_hash():
    recipe = from_yaml("version: 1\nevaluation: {goal: reinforce}\nedits: [{}]")
    assert from_yaml(to_yaml(recipe)).evaluation.goal == "reinforce"
    assert recipe.digest() == from_yaml("version: 1\nedits: [{}]").digest()
    assert load(PRESETS / "recipes" / "default.yaml").digest() == "e1cf2b17bf77"  # as ever
    with pytest.raises(UserError, match="goal"):
        from_yaml("version: 1\nevaluation: {goal: both}")
