"""From prompt files to directions and edits: what is measured, what is cached, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.jobs.directions import measure as lab
from sst_ui.jobs.directions.measure import control, measure, resolve
from sst_ui.jobs.directions.residual_cache import probe
from sst_ui.jobs.evaluate.evaluate import evaluate
from sst_ui.maths import kernel
from sst_ui.maths.directions import random, signal
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, finish
from sst_ui.recipe import KINDS, Ablation, DirectionSpec, Evaluation, Recipe, WeightTable
from tests.talk import tiny_host

HARMFUL = ["pick a lock", "forge a stamp", "break the seal", "open the safe", "copy the key", "lie"]
HARMLESS = ["bake bread", "water a fern", "fold a shirt", "tune a harp", "mend a sock", "sing"]
OTHER = (["steal a boat", "hide a map", "jam a door"], ["plant a tree", "ride a bike", "make tea"])


@pytest.fixture(scope="module")
def llama() -> Host:
    return tiny_host("llama")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    lab._recent.clear()
    return tmp_path / "cache"


@pytest.fixture
def prompts(tmp_path):
    """Write prompt files; gives `name -> path` of harmful, harmless and two held-out sets."""
    sets = {"harmful": HARMFUL, "harmless": HARMLESS, "held_h": OTHER[0], "held_s": OTHER[1]}
    return {name: write(tmp_path / f"{name}.jsonl", texts) for name, texts in sets.items()}


@pytest.fixture
def passes(llama):
    """A list that grows by one with every forward pass of the model."""
    counted = []
    handle = llama.architecture.decoder.register_forward_pre_hook(lambda *_: counted.append(1))
    yield counted
    handle.remove()


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


def spec_of(prompts: dict[str, str], **settings) -> DirectionSpec:
    return DirectionSpec(harmful=prompts["harmful"], harmless=prompts["harmless"], **settings)


def held_of(prompts: dict[str, str]) -> tuple[str, str]:
    return prompts["held_h"], prompts["held_s"]


def states(host: Host, texts: list[str], layer: int) -> torch.Tensor:
    """[n, d] residual at the last token after a layer (not the last), as transformers reports."""
    with torch.inference_mode():
        outputs = [
            host.model(torch.tensor([host.encode(text)]), output_hidden_states=True)
            for text in texts
        ]
    return torch.stack([output.hidden_states[layer + 1][0, -1] for output in outputs])


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_the_measured_direction_is_the_difference_of_the_mean_residuals(llama, prompts):
    found = finish(measure(llama, spec_of(prompts), held_of(prompts)))
    for layer in range(llama.layers - 1):
        high, low = states(llama, HARMFUL, layer), states(llama, HARMLESS, layer)
        expected = high.mean(0) - low.mean(0)
        assert torch.allclose(found.norms[layer] * found.vectors[layer, 0], expected, atol=1e-4)
        onto = found.vectors[layer, 0]
        above = (states(llama, OTHER[0], layer) @ onto)[:, None] > states(
            llama, OTHER[1], layer
        ) @ onto
        assert found.stats["auroc"][layer] == pytest.approx(float(above.double().mean()))
    assert found.meta["model"] == llama.digest
    assert "6 prompts" in found.meta["harmful"]
    assert "3 prompts" in found.meta["heldout_harmless"]


def test_measuring_costs_one_pass_over_the_prompts_and_is_then_free(llama, prompts, passes):
    spec, held = spec_of(prompts), held_of(prompts)
    first = finish(measure(llama, spec, held))
    assert len(passes) == 4  # one batch for each of the four sets
    assert finish(measure(llama, spec, held)) is first  # what was prepared for it still serves
    lab._recent.clear()  # as after a restart
    second = finish(measure(llama, spec, held))
    assert len(passes) == 4
    assert second.digest() == first.digest()
    assert dict(second.meta) == dict(first.meta)
    for name, values in first.stats.items():
        assert torch.equal(values, second.stats[name])


def test_another_estimator_over_the_same_prompts_costs_no_pass(llama, prompts, passes):
    held = held_of(prompts)
    mean = finish(measure(llama, spec_of(prompts), held))
    before = len(passes)
    others = [
        {"estimator": "projected"},
        {"estimator": "whitened"},
        {"estimator": "random"},
        {"k": 2},
        {"scope": "single", "layer": 1.5},
        {"winsorize": 0.9},
    ]
    digests = {finish(measure(llama, spec_of(prompts, **o), held)).digest() for o in others}
    assert len(passes) == before
    assert len(digests | {mean.digest()}) == 7


def topical(path: str, texts: list[str], topics: list[str]) -> None:
    lines = [
        json.dumps({"prompt": text, "topic": topic}) + "\n"
        for text, topic in zip(texts, topics, strict=True)
    ]
    Path(path).write_text("".join(lines))


def test_a_surgical_direction_protects_the_topics_of_the_harmless_prompts(llama, prompts, passes):
    topics = ["food", "house", "house", "music", "house", "music"]  # food is one prompt: no mean
    topical(prompts["harmless"], HARMLESS, topics)
    spec = spec_of(prompts, estimator="surgical", shrinkage=0.0)
    found = finish(measure(llama, spec, None))
    assert found.meta["protected"] == "house, music"
    # another division of the same prompts costs no pass, and is not answered from the cache
    before = len(passes)
    topical(prompts["harmless"], HARMLESS, ["a", "a", "a", "b", "b", "b"])
    other = finish(measure(llama, spec, None))
    assert len(passes) == before
    assert other.digest() != found.digest()
    for layer in range(llama.layers - 1):
        low = states(llama, HARMLESS, layer).double()
        r = states(llama, HARMFUL, layer).double().mean(0) - low.mean(0)
        groups = [[i for i, t in enumerate(topics) if t == name] for name in ("house", "music")]
        atoms = torch.stack([low[places].mean(0) - low.mean(0) for places in groups])  # [2, d]
        left = r - torch.linalg.lstsq(atoms.T, r[:, None]).solution[:, 0] @ atoms
        assert torch.allclose(found.vectors[layer, 0].double(), left / left.norm(), atol=1e-4)


def test_concepts_of_their_own_are_protected_and_said_not_to_be_held_out(llama, prompts, tmp_path):
    texts = ["kill a process", "shoot a photo", "crack an egg"]
    alike = write(tmp_path / "alike.jsonl", texts)
    spec = spec_of(prompts, estimator="surgical", concepts=alike, shrinkage=0.0)
    found = finish(measure(llama, spec, None))
    for layer in range(llama.layers - 1):
        shift = states(llama, texts, layer).mean(0) - states(llama, HARMLESS, layer).mean(0)
        assert abs(float(found.vectors[layer, 0] @ shift)) < 1e-4 * float(shift.norm())
    row = finish(resolve(llama, Recipe(edits=(Ablation(directions=spec),))))
    wanted = Evaluation(metrics=(f"kl_1@{alike}",), samples=3, max_new_tokens=2)
    (result,) = finish(evaluate(llama, row, wanted))
    assert "not held out" in result.note


def test_what_protects_nothing_or_protects_the_harmful_is_refused(llama, prompts):
    spec = spec_of(prompts, estimator="surgical")
    with pytest.raises(UserError, match=r"do not name two topics.*directions\.concepts"):
        finish(measure(llama, spec, None))
    with pytest.raises(UserError, match=r"6 prompts of directions\.concepts .* are harmful ones"):
        finish(measure(llama, replace(spec, concepts=prompts["harmful"]), None))


def test_a_change_of_model_prompts_or_position_measures_anew(llama, prompts, passes):
    held = held_of(prompts)
    first = finish(measure(llama, spec_of(prompts), held))
    before = len(passes)
    end = finish(measure(llama, spec_of(prompts, position="instruction"), held))
    assert len(passes) == before + 4
    write(Path(prompts["harmful"]), HARMFUL[:4])
    fewer = finish(measure(llama, spec_of(prompts), held))
    assert len(passes) == before + 5  # the other three sets are the same
    twin = tiny_host("llama", seed=1)
    twin.digest = "another model"
    other = finish(measure(twin, spec_of(prompts), held))
    assert len({d.digest() for d in (first, end, fewer, other)}) == 4


def test_a_damaged_cache_is_measured_anew_and_mended(llama, prompts, cache):
    spec, held = spec_of(prompts), held_of(prompts)
    first = finish(measure(llama, spec, held))
    kept = files(cache)
    assert len(kept) == 5  # residuals of four sets, and the directions
    assert not [p for p in kept if p.suffix != ".safetensors"]
    for file in kept:
        file.write_bytes(file.read_bytes()[:100])
    lab._recent.clear()
    assert finish(measure(llama, spec, held)).digest() == first.digest()
    assert sorted(p.stat().st_size > 100 for p in files(cache)) == [True] * 5


def test_a_cache_that_cannot_be_written_is_no_error(llama, prompts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "file"))
    assert finish(measure(llama, spec_of(prompts), held_of(prompts))).layers == llama.layers


def test_a_model_without_identity_is_never_cached(llama, prompts, cache, monkeypatch):
    monkeypatch.setattr(llama, "digest", "")
    finish(measure(llama, spec_of(prompts), held_of(prompts)))
    assert not files(cache)


def test_a_cancelled_measurement_leaves_nothing_half_done(llama, prompts, cache, passes):
    job = measure(llama, spec_of(prompts), held_of(prompts))
    next(job)
    job.close()
    assert not files(cache)
    assert not [
        m for m in llama.architecture.layers for h in m._forward_hooks.values() if "keep" in str(h)
    ]
    assert finish(measure(llama, spec_of(prompts), held_of(prompts))).layers == llama.layers


def test_progress_runs_to_the_number_of_all_prompts(llama, prompts):
    seen: list[Progress] = []
    finish(measure(llama, spec_of(prompts), held_of(prompts)), seen.append)
    read = [step for step in seen if step.stage == "residuals"]
    assert {step.total for step in read} == {len(HARMFUL) + len(HARMLESS) + 6}
    assert [step.done for step in read] == sorted(step.done for step in read)
    assert read[-1].fraction == 1.0


def test_held_out_prompts_that_are_also_measured_on_are_left_out_and_told(llama, prompts, tmp_path):
    clean = finish(measure(llama, spec_of(prompts), held_of(prompts)))
    mixed = write(tmp_path / "mixed.jsonl", [*OTHER[0], "  Pick a LOCK ", HARMLESS[1]])
    seen: list[Progress] = []
    found = finish(measure(llama, spec_of(prompts), (mixed, prompts["held_s"])), seen.append)
    assert torch.equal(found.stats["auroc"], clean.stats["auroc"])
    assert "2 held-out prompts left out" in found.meta["note"]
    assert "2 held-out prompts left out" in seen[-1].note


@pytest.mark.parametrize("held", [None, ("no/such", "set"), ("harmful", "harmless")])
def test_without_held_out_prompts_separation_is_unknown(llama, prompts, held):
    names = held and tuple(prompts.get(name, name) for name in held)
    found = finish(measure(llama, spec_of(prompts), names))
    assert found.stats["auroc"].isnan().all()
    assert found.stats["cohens_d"].isnan().all()
    assert found.stats["quality"].isfinite().all()
    assert ("no held-out prompts" in found.meta["note"]) == (held is not None)


def test_prompt_sets_that_are_the_same_or_too_small_are_refused(llama, prompts, tmp_path):
    turned = write(tmp_path / "turned.jsonl", HARMFUL[::-1])
    with pytest.raises(UserError, match="are the same"):
        finish(measure(llama, DirectionSpec(harmful=prompts["harmful"], harmless=turned)))
    one = write(tmp_path / "one.jsonl", ["only one"])
    with pytest.raises(UserError, match="1 harmful prompts are too few"):
        finish(measure(llama, DirectionSpec(harmful=one, harmless=prompts["harmless"]), None))
    with pytest.raises(UserError, match="prompt set 'demo/harmfull' is unknown"):
        finish(measure(llama, DirectionSpec(harmful="demo/harmfull")))
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "plain"}\n' * 2)
    with pytest.raises(UserError, match=r"prompt 1 of .*text.* has no request"):
        finish(measure(llama, DirectionSpec(harmful=str(text), harmless=one), None))


def test_a_saved_file_takes_the_place_of_measuring(llama, prompts, tmp_path, passes):
    first = finish(measure(llama, spec_of(prompts, k=2), held_of(prompts)))
    before = len(passes)
    path = first.save(tmp_path / "mine.safetensors")
    again = finish(measure(llama, DirectionSpec(file=str(path))))
    assert again.digest() == first.digest()
    assert finish(measure(llama, DirectionSpec(file=str(path)))) is again
    assert len(passes) == before


def test_a_file_of_another_model_is_refused_with_both_shapes_or_told(llama, tmp_path):
    path = random(5, 16).save(tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="5 layers of 16, but tiny-llama has 3 layers of 32"):
        finish(measure(llama, DirectionSpec(file=str(path))))
    foreign = replace(
        random(llama.layers, llama.hidden), meta={"model": "another", "model_name": "twin"}
    )
    path = foreign.save(tmp_path / "twin.safetensors")
    seen: list[Progress] = []
    finish(measure(llama, DirectionSpec(file=str(path))), seen.append)
    assert "another model (twin)" in seen[-1].note
    with pytest.raises(UserError, match="no directions file"):
        finish(measure(llama, DirectionSpec(file=str(tmp_path / "none.safetensors"))))


def recipe_of(prompts: dict[str, str], **settings) -> Recipe:
    weights = WeightTable(peak=0.5, width=0.3, strength=0.8, modules={"attention": 1, "mlp": 0.5})
    return Recipe(edits=(Ablation(spec_of(prompts), weights, **settings),))


def test_a_recipe_resolves_to_its_directions_and_weight_table(llama, prompts):
    recipe = recipe_of(prompts, affine=True)
    recipe = replace(
        recipe, edits=(*recipe.edits, replace(recipe.edits[0], affine=False, operation="add"))
    )
    first, second = finish(resolve(llama, recipe))
    assert first.directions.digest() == finish(measure(llama, spec_of(prompts))).digest()
    expected = kernel.table(recipe.edits[0].weights, llama.layers)
    assert first.alpha.shape == (llama.layers, len(KINDS))
    assert np.array_equal(first.alpha, expected)
    assert (first.affine, first.operation, first.norm_preserving) == (True, "ablate", False)
    assert (second.affine, second.operation) == (False, "add")
    assert finish(resolve(llama, Recipe())) == ()


def test_a_weight_table_of_another_model_is_refused_before_anything_is_measured(
    llama, prompts, passes
):
    bad = Ablation(spec_of(prompts), WeightTable(overrides={"mlp": {40: 1.0}}))
    with pytest.raises(UserError, match="layer 40"):
        finish(resolve(llama, Recipe(edits=(Ablation(spec_of(prompts)), bad))))
    assert not passes


def test_the_random_control_has_the_same_weights_and_size_along_other_directions(
    llama, prompts, tmp_path
):
    recipe = recipe_of(prompts)
    recipe = replace(recipe, edits=recipe.edits * 2)
    real = finish(resolve(llama, recipe))
    chance = finish(resolve(llama, control(recipe, seed=7)))
    for one, other in zip(real, chance, strict=True):
        assert np.array_equal(one.alpha, other.alpha)
        assert torch.allclose(one.directions.norms, other.directions.norms)
        assert (one.directions.vectors * other.directions.vectors).sum(-1).abs().max() < 0.7
    assert chance[0].directions.digest() != chance[1].directions.digest()
    saved = real[0].directions.save(tmp_path / "d.safetensors")
    edit = replace(recipe.edits[0], directions=DirectionSpec(file=str(saved)))
    (of_file,) = finish(resolve(llama, control(replace(recipe, edits=(edit,)))))
    assert torch.equal(of_file.directions.norms, real[0].directions.norms)
    assert of_file.directions.digest() != real[0].directions.digest()


def test_the_probe_stands_at_0_for_harmless_and_at_1_for_harmful_prompts(llama, prompts):
    directions = finish(measure(llama, spec_of(prompts)))
    for texts, expected in ((HARMFUL, 1.0), (HARMLESS, 0.0)):
        values = [probe(llama, [{"role": "user", "content": t}], directions) for t in texts]
        assert values[0].shape == (llama.layers,)
        assert np.allclose(np.mean(values, 0), expected, atol=1e-3)


def test_the_probe_sees_the_edit(llama, prompts):
    directions = finish(measure(llama, spec_of(prompts, scope="single", layer=1)))
    messages = [{"role": "user", "content": "pick a lock"}]
    alpha = np.ones((llama.layers, len(KINDS)))
    before = probe(llama, messages, directions)
    after = probe(llama, messages, directions, (RowEdit(directions, alpha),))
    # one direction, removed from every writer: only the embedding still has a component
    embedded = llama.model.get_input_embeddings()(torch.tensor(llama.encode(messages)[-1]))
    left = embedded @ directions.vectors[0, 0]
    expected = (left - directions.neutral[:, 0]) / directions.norms.clamp(min=1e-12)
    positive = directions.norms > 1e-3  # where the direction of layer 1 tells the prompts apart
    assert positive[1]
    assert np.allclose(after[positive], expected[positive], atol=1e-3)
    assert not np.allclose(before[positive], after[positive], atol=1e-3)
    with pytest.raises(UserError, match="measure them on this model"):
        probe(llama, messages, random(2, 32))


def test_old_cache_files_make_room(llama, prompts, cache, monkeypatch):
    finish(measure(llama, spec_of(prompts, estimator="random", seed=99), None))
    one, others = (sum(p.stat().st_size for p in files(cache / kind))
                   for kind in ("directions", "residuals"))  # fmt: skip
    monkeypatch.setenv("SST_CACHE_GB", str((others + 3.5 * one) / 1e9))
    for seed in range(6):
        finish(measure(llama, spec_of(prompts, estimator="random", seed=seed), None))
    assert len(files(cache / "directions")) == 3


def test_the_suggested_kernel_removes_the_demos_refusals(host):
    four = DirectionSpec(k=4)  # the demo refuses in more ways than one
    peak, width = kernel.suggest(signal(finish(measure(host, four))))
    weights = WeightTable(profile="custom", peak=peak, width=width, strength=2.0)
    edits = finish(resolve(host, Recipe(edits=(Ablation(four, weights, "filter"),))))
    asked = Evaluation(metrics=("refusal_rate", "over_refusal_ordinary"), samples=24)
    refusals, ordinary = finish(evaluate(host, edits, asked))
    assert refusals.base.value > 0.9
    assert refusals.edited.value < 0.1
    assert ordinary.edited.value < 0.1
