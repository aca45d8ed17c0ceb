"""The mergekit export, read by the rules of mergekit's own schema and arithmetic."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.export.export import export
from sst_ui.model.runtime.host import load
from sst_ui.paths import DEMO
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Merge, ModelSpec, Recipe, WeightTable

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
ADAPTERS = DEMO / "adapters"
RANDOM = DirectionSpec(estimator="random", k=2)
FLAT = WeightTable(peak=0.5, width=10.0)


def merge(method="task_arithmetic", **more):
    names = {"utility": str(ADAPTERS / "utility"), "safety": str(ADAPTERS / "safety")}
    return Merge(**names, method=method, **more)


def mergekit_value(setting, name, t):
    """A parameter as mergekit reads it: conditions in order, lists interpolated over the layers."""
    if isinstance(setting, int | float):
        return setting
    if all(isinstance(value, int | float) for value in setting):
        place = t * (len(setting) - 1)
        low = int(place)
        high = min(len(setting) - 1, low + 1)
        return (1 - (place - low)) * setting[low] + (place - low) * setting[high]
    for condition in setting:
        if condition.get("filter") is None or condition["filter"] in name:
            return mergekit_value(condition["value"], name, t)
    raise AssertionError(f"no condition for {name}")


SCHEMA = {  # of mergekit 0.1.5: what a method takes for the whole, and for each model
    "task_arithmetic": ({"normalize", "rescale", "lambda", "int8_mask"}, {"weight", "density"}),
    "ties": ({"normalize", "rescale", "lambda", "int8_mask"}, {"weight", "density"}),
    "dare_linear": ({"normalize", "rescale", "lambda", "int8_mask"}, {"weight", "density"}),
}


def said_in(folder: Path):
    return yaml.safe_load((folder / "mergekit.yaml").read_text())


def reference(said):
    """A model as mergekit reads it: ((path, revision), place of the adapter)."""
    if isinstance(said, dict):
        assert set(said) <= {"model", "lora"}
        lora = said.get("lora", {}).get("path")
        return (said["model"]["path"], said["model"].get("revision")), lora
    assert said.count("+") <= 1
    base, _, lora = said.partition("+")
    assert base.count("@") <= 1
    path, _, revision = base.partition("@")
    return (path, revision or None), lora or None


def assert_understood(said, stored: str):
    """By what mergekit's own schema demands; the sum is worked out in float32, written as stored.

    With a base, mergekit takes all other files from it; `linear` would want a weight for it.
    """
    whole, each = SCHEMA[said["merge_method"]]
    assert set(said["parameters"]) <= whole
    assert (said["dtype"], said["out_dtype"]) == ("float32", stored)
    base, lora = reference(said["base_model"])
    assert lora is None
    for model in said["models"]:
        assert set(model) == {"model", "parameters"}
        assert "weight" in model["parameters"]
        assert set(model["parameters"]) <= each
        there, lora = reference(model["model"])
        assert there == base
        assert lora


def assert_runs(notes):
    """mergekit puts adapters into models in a folder that it must be given, and in their own type,
    which rounds every change, unless it is told another."""
    (run,) = [note for note in notes if "mergekit-yaml" in note]
    words = run.split()
    assert words[words.index("--lora-merge-cache") + 1] == "./cache"
    assert words[words.index("--lora-merge-dtype") + 1] == "float32"


def task_arithmetic(folder: Path, host, name):
    """What mergekit would add to one tensor of a model of 12 layers."""
    said = yaml.safe_load((folder / "mergekit.yaml").read_text())
    assert said["merge_method"] == "task_arithmetic"
    assert said["parameters"]["normalize"] is False
    parts = name.split(".")
    t = int(parts[2]) / (host.layers - 1) if parts[1] == "layers" else 1.0
    total = 0
    for model in said["models"]:
        (base, _), place = reference(model["model"])
        assert (base, None) == reference(said["base_model"])[0] == (str(DEMO), None)
        factors = load_file(folder / place / "adapter_model.safetensors")
        factors = {key: value.float() for key, value in factors.items()}
        settings = json.loads((folder / place / "adapter_config.json").read_text())
        start = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{start}A.weight" not in factors:
            continue
        scale = settings["lora_alpha"] / settings["r"]
        delta = scale * factors[f"{start}B.weight"] @ factors[f"{start}A.weight"]
        total = total + mergekit_value(model["parameters"]["weight"], name, t) * delta
    return total


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_a_merge_in_mergekits_words_gives_the_studios_weights(host, tmp_path, method):
    weights = WeightTable(
        peak=0.7, width=0.2, threshold=0.3, strength=1.5, modules={"mlp": 0.5, "q": 2.0}
    )
    recipe = Recipe(edits=(merge(method, weights=weights),))
    done = finish(export(host, recipe, tmp_path / "k", "mergekit", verify=2))
    (edit,) = finish(resolve(host, recipe))
    seen = 0
    for path, (delta, scale) in edit.active().items():
        found = task_arithmetic(tmp_path / "k", host, f"{path}.weight")
        wanted = scale * delta.dense()
        assert (found - wanted).norm() < 1e-4 * wanted.norm()
        seen += 1
    assert seen > 20
    assert done.verification is None
    assert_runs(done.notes)
    assert_understood(said_in(tmp_path / "k"), "bfloat16")


def test_ties_and_dare_are_said_with_what_differs(host, tmp_path):
    weights = WeightTable(peak=0.7, width=0.1, threshold=0.3)
    recipe = Recipe(edits=(merge("ties", parameters={"density": 0.4}, weights=weights),))
    done = finish(export(host, recipe, tmp_path / "t", "mergekit"))
    said = yaml.safe_load((tmp_path / "t" / "mergekit.yaml").read_text())
    assert (said["merge_method"], said["parameters"]["normalize"]) == ("ties", True)
    (safety,) = [m for m in said["models"] if m["model"].endswith("./safety")]
    name = "model.layers.8.self_attn.q_proj.weight"
    assert mergekit_value(safety["parameters"]["density"], name, 8 / 11) == pytest.approx(0.4)
    early = "model.layers.0.self_attn.q_proj.weight"
    assert mergekit_value(safety["parameters"]["weight"], early, 0) == 0
    assert mergekit_value(safety["parameters"]["density"], early, 0) == 1  # utility stays whole
    assert any("keeps it whole" in note for note in done.notes)
    assert_understood(said, "bfloat16")
    recipe = Recipe(edits=(merge("dare", parameters={"drop": 0.3}),))
    done = finish(export(host, recipe, tmp_path / "d", "mergekit"))
    said = yaml.safe_load((tmp_path / "d" / "mergekit.yaml").read_text())
    assert said["merge_method"] == "dare_linear"
    density = said["models"][0]["parameters"]["density"]
    assert mergekit_value(density, name, 8 / 11) == pytest.approx(0.7)
    assert any("at random" in note for note in done.notes)
    assert_understood(said, "bfloat16")


def test_what_mergekit_has_no_words_for_goes_through_an_adapter(host, tmp_path):
    recipe = Recipe(edits=(merge(), Ablation()))
    done = finish(export(host, recipe, tmp_path / "k", "mergekit"))
    said = yaml.safe_load((tmp_path / "k" / "mergekit.yaml").read_text())
    assert said["models"] == [{"model": f"{DEMO}+./adapter", "parameters": {"weight": 1.0}}]
    assert_understood(said, "bfloat16")
    assert_runs(done.notes)
    assert (tmp_path / "k" / "adapter" / "adapter_model.safetensors").is_file()
    assert "cannot express several edits" in done.notes[0]
    with pytest.raises(UserError, match="affine"):
        finish(export(host, Recipe(edits=(Ablation(affine=True),)), tmp_path / "n", "mergekit"))
    bias = Recipe(edits=(Ablation(affine=True, affine_at="everywhere"),))
    with pytest.raises(UserError, match=r"mergekit gives .* none.*format model or adapter"):
        finish(export(host, bias, tmp_path / "n", "mergekit"))


def test_what_mergekit_cannot_put_into_the_weights_is_refused_here(host, stored_host, tmp_path):
    added = Recipe(edits=(Ablation(RANDOM, FLAT, operation="add"),))
    with pytest.raises(UserError, match="no bias"):  # mergekit: the base layer has no bias
        finish(export(host, added, tmp_path / "a", "mergekit"))
    for name, words in (("llama_bias", "biases"), ("gpt_neox", "tensors")):
        other = stored_host(name)
        recipe = Recipe(model=other.spec, edits=(Ablation(RANDOM, FLAT),))
        with pytest.raises(UserError, match=f"mergekit does not read the {words}.*format model"):
            finish(export(other, recipe, tmp_path / name, "mergekit"))


def test_folders_whose_names_mergekit_would_split_are_named_in_parts(tmp_path):
    folder = tmp_path / "a@b+c"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("adapters", "unaligned"))
    host = finish(load(ModelSpec(id=str(folder))))
    recipe = Recipe(model=host.spec, edits=(merge(),))
    finish(export(host, recipe, tmp_path / "k", "mergekit"))
    said = said_in(tmp_path / "k")
    assert_understood(said, "bfloat16")
    assert reference(said["base_model"])[0] == (str(folder), None)
    assert [reference(m["model"])[1] for m in said["models"]] == ["./utility", "./safety"]
