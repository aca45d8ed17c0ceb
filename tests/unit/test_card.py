"""The model card: what a reader and the Hub find in it, for every kind of recipe."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from sst_ui.jobs.export.export import Export
from sst_ui.jobs.export.model_card import card, curves, figure
from sst_ui.jobs.export.verify import Verification
from sst_ui.jobs.purpose import purpose
from sst_ui.maths import kernel
from sst_ui.metrics.results import MetricResult, Value
from sst_ui.recipe import Ablation, Merge, ModelSpec, Recipe, WeightTable, from_yaml

HUB = ModelSpec(id="Qwen/Qwen2.5-0.5B-Instruct", revision="main")
ABLATION, MERGE = Ablation(), Merge(utility="org/helpful", safety="org/safe", method="ties")
CHECK = Verification(8, 7, 1, 2e-4, 1e-3, 3e-6, 1e-3, "w", 14, "transformers 5", True)


def exported(format="model", verification=None, notes=(), **more):
    return Export(Path("out"), format, (), 0, 1.0, verification, tuple(notes), **more)


def result(name, base, edited, unit="rate", verdict="better"):
    values = [Value(*numbers, 40) for numbers in (base, edited)]
    return MetricResult(name, name.title(), unit, "low", *values, (), verdict)


def written(recipe, results=(), export=None, layers=24):
    return card(recipe, results, export or exported(), layers)


@pytest.mark.parametrize(
    ("edits", "tags", "words"),
    [
        ((ABLATION,), {"abliterated"}, "refuses less than its base"),
        ((MERGE,), {"safety-merged"}, "may refuse more or less"),
        ((MERGE, ABLATION), {"abliterated", "safety-merged"}, "changed twice"),
        (
            (Ablation(weights=WeightTable(strength=-1.0)),),
            {"refusal-reinforced"},
            "refuses more than its base",
        ),
        ((), set(), "No edit was made"),
    ],
)
def test_the_hub_reads_the_tags_and_a_person_the_safety_statement(edits, tags, words):
    text = written(Recipe(model=HUB, edits=edits))
    data = ModelCard(text).data
    assert set(data.tags) - {"sst-studio"} == tags
    assert data.base_model == HUB.id
    assert data.library_name == "transformers"
    assert words in text
    assert "> **Safety.**" in text


def test_an_adapter_is_a_peft_model_and_says_how_peft_loads_it():
    text = written(Recipe(model=HUB, edits=(ABLATION,)), export=exported("adapter", rank=8))
    data = ModelCard(text).data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert f"from_pretrained({HUB.id!r}" in text
    assert "PeftModel.from_pretrained" in text
    assert "--format adapter --rank 8 --out" in text


def test_a_base_model_of_this_machine_is_not_named_to_the_hub():
    for model in (ModelSpec(), ModelSpec(id="/models/mine")):
        assert ModelCard(written(Recipe(model=model, edits=(ABLATION,)))).data.base_model is None


def test_every_metric_is_there_with_both_intervals():
    results = [
        result("refusals", (0.9, 0.8, 0.95), (0.1, 0.05, 0.2)),
        result("drift", (0.0, 0.0, 0.0), (0.1234, 0.1, 0.15), "nats", "worse"),
    ]
    text = written(Recipe(model=HUB, edits=(ABLATION,)), results)
    assert (
        "| Refusals (rate) | 90.0% [80.0%, 95.0%] | 10.0% [5.0%, 20.0%] | ✓ changed, better | 40 |"
        in text
    )
    assert "| Drift (nats) | 0 [0, 0] | 0.1234 [0.1, 0.15] | ✗ changed, worse | 40 |" in text
    assert "No metrics were computed" in written(Recipe(model=HUB, edits=(ABLATION,)))


def test_the_recipe_in_the_card_is_the_recipe():
    recipe = Recipe(name="my edit", model=HUB, edits=(MERGE, ABLATION))
    text = written(recipe)
    inside = text.split("```yaml\n")[1].split("```")[0]
    assert from_yaml(inside) == recipe
    assert recipe.digest() in text
    assert yaml.safe_load(text.split("---\n")[1])["pipeline_tag"] == "text-generation"


def test_a_check_that_failed_is_not_hidden():
    recipe = Recipe(model=HUB, edits=(ABLATION,))
    passed = written(recipe, export=exported(verification=CHECK))
    assert "| Result | passed |" in passed
    assert "| 7 of 8, 1 more differ at a near tie |" in passed
    bad = Verification(8, 1, 0, 0.5, 1e-3, 0.9, 1e-3, "w", 14, "transformers 5", False)
    assert "| Result | **FAILED** |" in written(recipe, export=exported(verification=bad))
    assert "not read back" in written(recipe)


def test_the_figure_shows_the_kernel_of_every_layer():
    weights = WeightTable(modules={"attention": 1.0, "mlp": 0.5})
    recipe = Recipe(edits=(Ablation(weights=weights),))
    root = ET.fromstring(figure(recipe, 24))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    points = [tuple(map(float, p.split(","))) for p in lines[0].get("points").split()]
    heights = -np.array([y for _, y in points])
    assert len(points) == 24
    expected = kernel.table(weights, 24)[:, 0]
    assert np.corrcoef(heights, expected)[0, 1] > 0.9999
    assert set(curves(recipe, 24)) == {"ablate, attention", "ablate, mlp"}
    assert figure(Recipe(), 24).startswith("<svg")  # nothing to show is no error


@pytest.mark.parametrize(
    ("attention", "expected"), [(1.0, "abliterated"), (-1.0, "reinforced"), (0.0, "abliterated")]
)
def test_the_purpose_follows_the_sign_of_what_is_edited(attention, expected):
    weights = WeightTable(modules={"attention": attention, "mlp": 0.0 if attention < 0 else 1.0})
    recipe = Recipe(edits=(Ablation(weights=weights),))
    assert purpose(recipe, 24) == purpose(recipe) == expected


def test_a_merge_before_an_ablation_that_reinforces_is_for_safety_alone():
    assert purpose(Recipe(edits=(MERGE,)), 24) == "merged"
    assert purpose(Recipe(edits=(MERGE, ABLATION)), 24) == "both"
    negative = Ablation(weights=WeightTable(strength=-1.0))
    assert purpose(Recipe(edits=(MERGE, negative)), 24) == "merged"


def test_the_purpose_of_single_cells_and_curves_needs_no_model():
    cells = {"attention": {40: 4.0}, "mlp": {40: 4.0}}
    strange = (
        WeightTable(strength=-1.0, peak=0.501, width=0.001),
        WeightTable(strength=0.0, overrides={"mlp": {60: -1.0}}),
        WeightTable(curve=(0.0, -1.0, 0.5)),
        WeightTable(strength=-0.1, width=0.05, overrides=cells),
    )
    found = [purpose(Recipe(edits=(Ablation(weights=weights),))) for weights in strange]
    assert found == ["reinforced", "reinforced", "reinforced", "abliterated"]
