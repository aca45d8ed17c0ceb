"""Two checkpoints side by side: what was done is found again, and named as what it is."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks.peak import Peak
from sst_ui.__main__ import main
from sst_ui.errors import UserError
from sst_ui.jobs.audit.behaviour import behave
from sst_ui.jobs.audit.compare import compare
from sst_ui.jobs.audit.report import text
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.export.export import export
from sst_ui.maths.audit import change as changes
from sst_ui.maths.audit.kernel_fit import fits
from sst_ui.maths.audit.pair import Pair
from sst_ui.maths.rounding import to_dtype
from sst_ui.model.weights import tensor_pairs
from sst_ui.model.weights.stored_tensors import read_shard
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Filter, ModelSpec, Recipe, WeightTable

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
DEPTH = 8
KERNEL = np.exp(-((np.arange(DEPTH) / (DEPTH - 1) - 0.6) ** 2) / (2 * 0.15**2))
DEFAULT = np.where(KERNEL >= 0.1, KERNEL, 0.0)


def audited(host, other, **more):
    return finish(compare(host.spec, ModelSpec(id=str(other)), **more))


def exported(host, edit, folder):
    recipe = Recipe(model=host.spec, edits=(edit,))
    finish(export(host, recipe, folder, "model"))
    return finish(resolve(host, recipe))[0]


def numbers(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def rewritten(host, folder, change):
    """A copy of the model's folder, its tensors changed by a function of all of them."""
    shutil.copytree(host.spec.id, folder)
    tensors = change(numbers(folder))
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("name", "dtype", "keep", "k", "strength"),
    [
        ("llama", torch.float32, False, 1, 0.9),
        ("llama", torch.float32, True, 2, 1.0),
        ("gpt2", torch.float32, True, 1, -0.6),
        ("gemma2", torch.float32, True, 1, 0.9),
        ("olmo2", torch.float32, False, 2, 1.5),
        ("gpt2", torch.bfloat16, False, 1, 0.9),
        ("gemma2", torch.bfloat16, False, 1, 1.0),
        ("qwen2_moe", torch.bfloat16, True, 1, 0.9),
    ],
)
def test_an_exported_ablation_is_found_with_its_weights_kernel_and_directions(
    name, dtype, keep, k, strength, stored_host, tmp_path
):
    host = stored_host(name, dtype, num_hidden_layers=DEPTH)
    spec = DirectionSpec(estimator="random", k=k)
    edit = Ablation(spec, WeightTable(profile="default", strength=strength), norm_preserving=keep)
    row = exported(host, edit, tmp_path / "out")
    row.directions.save(tmp_path / "d.safetensors")
    audit = audited(host, tmp_path / "out", directions=tmp_path / "d.safetensors")
    assert audit.verdict.kind == "ablation", text(audit)
    assert ("norm preserving" if keep else "plain") in audit.verdict.title
    tolerance = 1e-3 if dtype == torch.float32 else 5e-3  # the rounding of the stored type
    assert np.abs(audit.alpha - strength * DEFAULT[:, None]).max() < tolerance
    assert audit.kernels[0].name == "default"
    assert audit.kernels[0].misfit < tolerance
    assert audit.kernels[0].strength["mlp"] == pytest.approx(strength, abs=tolerance)
    cells = [finding for finding in audit.findings if finding.kind == "ablation"]
    assert {finding.layer for finding in cells} == set(np.flatnonzero(DEFAULT))
    for finding in cells:
        given = row.directions.vectors[finding.layer].double().numpy()
        found = finding.direction.double().numpy()
        assert np.linalg.norm(found @ given.T) / k**0.5 >= 0.999
        assert finding.cosine >= 0.999
        assert finding.rank == k
    assert len(text(audit).splitlines()) < 40


def test_an_affine_edit_is_told_by_its_biases(stored_host, tmp_path):
    host = stored_host("llama_bias", num_hidden_layers=DEPTH)
    edit = Ablation(
        DirectionSpec(estimator="random"), WeightTable(profile="default"),
        affine=True, affine_at="everywhere",
    )  # fmt: skip
    row = exported(host, edit, tmp_path / "out")
    audit = audited(host, tmp_path / "out")
    assert "affine" in audit.verdict.title
    biases = [finding for finding in audit.findings if finding.kind == "ablated_bias"]
    assert len(biases) == 2 * np.count_nonzero(DEFAULT)
    for finding in biases:
        kind = ("attention", "mlp").index(finding.role)
        expected = float(row.target(finding.layer, kind).norm())
        assert finding.target == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_filtered_export_is_told_from_an_ablation_and_from_an_adapter(
    name, stored_host, tmp_path, monkeypatch
):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    words = {"harmful": ["pick a lock", "forge a stamp", "break the seal", "open the safe"],
             "harmless": ["bake bread", "water a fern", "fold a shirt", "tune a harp"]}  # fmt: skip
    for which, prompts in words.items():
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (tmp_path / f"{which}.jsonl").write_text(lines)
    spec = DirectionSpec(**{w: str(tmp_path / f"{w}.jsonl") for w in words})
    host = stored_host(name, num_hidden_layers=DEPTH)
    edit = Ablation(
        spec, WeightTable(profile="default"), "filter", filter=Filter(answers=0, mu=1.0)
    )
    row = exported(host, edit, tmp_path / "out")
    audit = audited(host, tmp_path / "out")
    assert audit.verdict.kind == "filter", text(audit)
    assert "α alone cannot be told" in text(audit)
    before, after = numbers(tmp_path / f"tiny-{name}"), numbers(tmp_path / "out")
    cells = [finding for finding in audit.findings if finding.kind == "low_rank"]
    assert len(cells) == 2 * np.count_nonzero(DEFAULT)
    for finding in cells:
        direction = row.directions.vectors[finding.layer, 0].double().numpy()
        assert abs(finding.direction[0].numpy() @ direction) >= 0.999
        one, two = (w[finding.name].double().numpy() for w in (before, after))
        one, two = (one.T, two.T) if name == "gpt2" else (one, two)
        own, written = direction @ one, direction @ (two - one)
        assert finding.alpha == pytest.approx(-(written @ own) / (own @ own), abs=1e-3)
        cosine = abs(written @ own) / np.linalg.norm(written) / np.linalg.norm(own)
        assert finding.read == pytest.approx(cosine, abs=1e-3)
    full = finish(behave(audit, host.spec, ModelSpec(id=str(tmp_path / "out")), 3))
    assert np.abs(full.alpha - DEFAULT[:, None]).max() < 1e-3  # α itself, by the recipe beside it
    assert full.kernels[0].name == "default"
    assert "α by layer" in text(full)
    assert full.behaviour.samples == 3
    assert len(full.behaviour.gap) == len(full.behaviour.other_gap) == DEPTH


def trained(host, rank, folder, modules=("q_proj", "v_proj", "up_proj")):
    """A random LoRA adapter, saved, and the model with it merged in by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(host.spec.id)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(modules))
    model = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_merged_adapter_is_a_low_rank_change_of_its_modules(dtype, stored_host, tmp_path):
    host = stored_host("llama", dtype)
    trained(host, 4, tmp_path)
    for folder in ("merged", "adapter"):
        audit = audited(host, tmp_path / folder)
        assert audit.verdict.kind == "adapter", text(audit)
        assert "rank 4" in audit.verdict.title
        changed = [finding for finding in audit.findings if finding.kind != "same"]
        assert len(changed) == 9
        assert {finding.rank for finding in changed} == {4}
        assert {finding.name.split(".")[-2] for finding in changed} == {
            "q_proj", "v_proj", "up_proj",
        }  # fmt: skip
        assert audit.verdict.title.startswith("an adapter:") == (folder == "adapter")
    before, after = numbers(tmp_path / "tiny-llama"), numbers(tmp_path / "merged")
    audit = audited(host, tmp_path / "merged")
    for finding in (f for f in audit.findings if f.kind == "low_rank"):
        one, two = (w[finding.name].double().numpy() for w in (before, after))
        assert finding.size == pytest.approx(
            np.linalg.norm(two - one) / np.linalg.norm(one), rel=1e-4
        )


def test_an_adapter_of_conv1d_modules_is_read_the_right_way_round(stored_host, tmp_path):
    host = stored_host("gpt2")
    trained(host, 3, tmp_path, ("c_attn", "c_fc"))
    sizes = []
    for folder in ("merged", "adapter"):
        audit = audited(host, tmp_path / folder)
        changed = [finding for finding in audit.findings if finding.kind == "low_rank"]
        assert len(changed) == 6
        assert {finding.rank for finding in changed} == {3}
        sizes.append([finding.size for finding in changed])
    assert np.allclose(*sizes, rtol=1e-4)


def test_both_are_run_where_that_is_asked(stored_host, tmp_path):
    host = stored_host("llama")
    trained(host, 4, tmp_path)
    rates = []
    for folder in ("merged", "adapter"):
        other = ModelSpec(id=str(tmp_path / folder))
        if folder == "merged":
            host.tokenizer.save_pretrained(tmp_path / folder)
        found = finish(behave(finish(compare(host.spec, other)), host.spec, other, 2)).behaviour
        rates.append(found)
    one, two = rates
    assert np.allclose(one.gap, two.gap, rtol=1e-3)
    assert np.allclose(one.other_gap, two.other_gap, rtol=1e-2, atol=1e-4)  # merged or live
    assert not np.allclose(one.gap, one.other_gap, rtol=1e-2)
    assert (one.rate, one.other_rate) == (two.rate, two.other_rate)


def test_a_fine_tune_of_all_weights_is_named_and_not_more_than_that(stored_host, tmp_path):
    host = stored_host("qwen3")
    draw = torch.Generator().manual_seed(0)

    def tune(tensors):
        return {n: t + 0.01 * torch.randn(t.shape, generator=draw) for n, t in tensors.items()}

    audit = audited(host, rewritten(host, tmp_path / "tuned", tune))
    assert audit.verdict.kind == "full"
    assert "fine-tune" in audit.verdict.title
    assert "merge of full models" in audit.verdict.title
    assert "cannot be told" in " ".join(audit.verdict.evidence)
    assert not audit.kernels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("back", [False, True], ids=["stored so", "and back"])
def test_another_type_is_no_edit(dtype, back, stored_host, tmp_path):
    host = stored_host("llama")

    def cast(tensors):
        short = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return {name: tensor.float() for name, tensor in short.items()} if back else short

    audit = audited(host, rewritten(host, tmp_path / "cast", cast))
    assert audit.verdict.kind == "retyped", text(audit)
    assert all(finding.kind in ("retyped", "same") for finding in audit.findings)


def test_an_edit_of_a_retyped_copy_is_found_through_the_rounding(stored_host, tmp_path):
    host = stored_host("llama", num_hidden_layers=DEPTH)
    edit = Ablation(DirectionSpec(estimator="random"), WeightTable(profile="default"))
    exported(host, edit, tmp_path / "out")
    short = {name: tensor.bfloat16() for name, tensor in numbers(tmp_path / "out").items()}
    save_file(short, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    audit = audited(host, tmp_path / "out")
    assert audit.verdict.kind == "ablation", text(audit)
    assert np.abs(audit.alpha - DEFAULT[:, None]).max() < 5e-3
    assert "retyped" in text(audit)


def test_a_quantisation_is_named_with_its_bits(stored_host, tmp_path):
    host = stored_host("llama")

    def four_bits(tensors):
        found = dict(tensors)
        for name, tensor in tensors.items():
            if "_proj" in name:
                step = tensor.abs().amax(dim=1, keepdim=True) / 7
                found[name] = (tensor / step).round() * step
        return found

    audit = audited(host, rewritten(host, tmp_path / "q", four_bits))
    assert audit.verdict.kind == "quantised", text(audit)
    assert "4 bits" in audit.verdict.title


def test_tensors_that_are_gone_renamed_or_new_are_listed(stored_host, tmp_path):
    host = stored_host("llama")

    def moved(tensors):
        found = dict(tensors)
        found["model.final.weight"] = found.pop("model.norm.weight")
        del found["model.layers.1.mlp.up_proj.weight"]
        found["model.extra.weight"] = torch.ones(3)
        found["lm_head.weight"] = found["lm_head.weight"][:200]
        return found

    audit = audited(host, rewritten(host, tmp_path / "moved", moved))
    assert audit.renamed == (("model.norm.weight", "model.final.weight"),)
    assert audit.missing == ("model.layers.1.mlp.up_proj.weight",)
    assert audit.added == ("model.extra.weight",)
    assert [row[0] for row in audit.reshaped] == ["lm_head.weight"]
    assert audit.verdict.kind == "unchanged"
    for word in ("model.final.weight", "up_proj", "model.extra", "[200, 32]"):
        assert word in text(audit)


def test_another_model_and_a_packed_copy_are_no_edits(stored_host, tmp_path):
    host, other = stored_host("llama"), stored_host("gpt2")
    assert audited(host, other.spec.id).verdict.kind == "other"

    def packed(tensors):
        return {n: (t * 40).to(torch.int8) if "_proj" in n else t for n, t in tensors.items()}

    audit = audited(host, rewritten(host, tmp_path / "packed", packed))
    assert audit.verdict.kind == "quantised"
    assert "were not read" in " ".join(audit.verdict.evidence)
    assert "cannot be told" in audit.verdict.title


def test_an_adapter_and_an_ablation_together_are_not_called_either(stored_host, tmp_path):
    host = stored_host("llama", num_hidden_layers=DEPTH)
    edit = Ablation(DirectionSpec(estimator="random"), WeightTable(profile="default"))
    exported(host, edit, tmp_path / "out")
    tensors = numbers(tmp_path / "out")
    draw = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if "gate_proj" in name:
            tensor += 0.01 * torch.randn(tensor.shape, generator=draw)
        if "norm" in name:
            tensor += 0.1
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    audit = audited(host, tmp_path / "out")
    assert audit.verdict.kind == "unclear", text(audit)
    told = " ".join(audit.verdict.evidence)
    assert "10 tensors ablation" in told
    assert "8 tensors dense" in told
    json.dumps(audit.to_json(), allow_nan=False)


def test_settings_that_differ_are_named_field_by_field(stored_host, tmp_path):
    host = stored_host("llama")
    other = rewritten(host, tmp_path / "other", dict)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    (other / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    (other / "chat_template.jinja").write_text("{{ messages }} and more")
    audit = audited(host, other)
    assert audit.verdict.kind == "unchanged"
    found = {(row.file, row.field): row for row in audit.settings}
    assert found["config.json", "rope_theta"].other == "5.0"
    assert found["generation_config.json", "temperature"].other == "0.6"
    assert any(file == "chat template" for file, _ in found)
    assert "rope_theta" in text(audit)
    assert not audited(host, rewritten(host, tmp_path / "same", dict)).settings


@pytest.mark.parametrize("profile", ["default", "narrow", "broad", "flat", "custom"])
def test_kernels_are_told_apart_also_with_factors_per_module(profile):
    shape = {"default": (0.6, 0.15, 0.1), "narrow": (0.6, 0.08, 0.1), "broad": (0.5, 0.25, 0.1),
             "flat": (0.5, 1e6, 0.0), "custom": (0.33, 0.21, 0.05)}[profile]  # fmt: skip
    place = np.arange(24) / 23
    curve = np.exp(-((place - shape[0]) ** 2) / (2 * shape[1] ** 2))
    curve = np.where(curve >= shape[2], curve, 0.0)
    found = fits(np.stack([1.3 * curve, 0.5 * curve], axis=1), ("attention", "mlp"))[0]
    assert found.name == profile
    assert found.misfit < 1e-3
    assert found.strength == pytest.approx({"attention": 1.3, "mlp": 0.5}, abs=1e-3)
    assert found.peak == pytest.approx(shape[0], abs=1e-3)


def test_large_tensors_are_read_in_pieces_with_the_same_result(stored_host, tmp_path, monkeypatch):
    host = stored_host("gpt2", num_hidden_layers=DEPTH)
    edit = Ablation(DirectionSpec(estimator="random"), WeightTable(profile="default"))
    exported(host, edit, tmp_path / "out")
    whole = audited(host, tmp_path / "out")
    monkeypatch.setattr(tensor_pairs, "HELD", 0)
    monkeypatch.setattr("sst_ui.maths.audit.pair.BLOCK", 500)
    pieces = audited(host, tmp_path / "out")
    assert pieces.verdict.kind == "ablation"
    assert np.allclose(pieces.alpha, whole.alpha, atol=1e-5)


def in_memory(base, other):
    shape, kinds = tuple(base.shape), (base.dtype, other.dtype)
    return Pair(shape, lambda start, stop: (base[start:stop], other[start:stop]), kinds)


@pytest.mark.parametrize("keep", [False, True])
def test_the_rounding_of_a_wide_matrix_is_not_taken_for_directions(keep):
    # the base lies on bfloat16's grid: what changes less than half a step stays as it was
    draw = np.random.default_rng(0)
    base = torch.tensor(0.2 * draw.standard_normal((512, 1024))).bfloat16()
    weight, direction = base.double().numpy(), draw.standard_normal(512)
    direction /= np.linalg.norm(direction)
    edited = weight - 0.15 * np.outer(direction, direction @ weight)
    if keep:
        edited *= np.linalg.norm(weight, axis=0) / np.linalg.norm(edited, axis=0)
    found = changes.analyse(in_memory(base, torch.tensor(edited).bfloat16()))
    assert (found.kind, found.rank, found.preserving) == ("ablation", 1, keep)
    assert found.fit.alpha == pytest.approx(0.15, abs=1e-3)
    assert abs(found.fit.rows[0].numpy() @ direction) > 0.999


def test_a_change_below_the_rounding_is_not_called_an_ablation():
    draw = torch.Generator().manual_seed(0)
    base = (0.2 * torch.randn(64, 96, generator=draw)).bfloat16()
    for size in (1e-4, 5e-4, 2e-3):
        tuned = (base.float() + size * torch.randn(64, 96, generator=draw)).bfloat16()
        found = changes.analyse(in_memory(base, tuned))
        assert found.kind in ("rounding", "dense"), size


@pytest.mark.parametrize("keep", [False, True])
def test_an_edit_that_was_rounded_by_chance_is_found_too(keep):
    draw = torch.Generator().manual_seed(3)
    base = (0.2 * torch.randn(512, 1024, generator=draw)).bfloat16()
    direction = torch.nn.functional.normalize(torch.randn(512, generator=draw), dim=0)
    edited = base.float() - torch.outer(direction, direction @ base.float())
    if keep:
        edited *= base.float().norm(dim=0) / edited.norm(dim=0)
    stored = to_dtype(edited, torch.bfloat16, torch.Generator().manual_seed(1))
    found = changes.analyse(in_memory(base, stored))
    assert (found.kind, found.rank, found.preserving) == ("ablation", 1, keep)
    assert found.fit.alpha == pytest.approx(1.0, abs=5e-3)


def test_a_rank_one_change_that_reads_something_else_is_no_ablation():
    draw = torch.Generator().manual_seed(0)
    base = 0.2 * torch.randn(64, 96, generator=draw)
    change = torch.outer(*(0.1 * torch.randn(n, generator=draw) for n in (64, 96)))
    found = changes.analyse(in_memory(base, base + change))
    assert (found.kind, found.rank) == ("low_rank", 1)


def test_memory_stays_small_beside_a_tensor_that_is_not_held(tmp_path):
    size = (32768, 1024)
    for name in ("base", "other"):
        draw = torch.Generator().manual_seed(len(name))
        save_file({"w": torch.randn(size, generator=draw)}, tmp_path / name)
    shards = [read_shard(tmp_path / name) for name in ("base", "other")]
    places = [(shard, shard.tensors[0]) for shard in shards]
    pair = tensor_pairs.TensorPair("w", "w", size, ("F32", "F32"), tensor_pairs.Place(), *places)
    (matrix,) = pair.matrices()
    peak = Peak(torch.device("cpu"))
    found = changes.analyse(matrix, writes=False, widest=16)
    assert found.kind == "dense"
    assert found.size == pytest.approx(2**0.5, rel=0.01)
    assert peak.added() < 200e6  # and the two tensors are 268 MB


def test_the_command_prints_a_page_or_json_and_one_line_for_what_is_wrong(
    stored_host, tmp_path, capsys
):
    host = stored_host("llama", num_hidden_layers=DEPTH)
    edit = Ablation(DirectionSpec(estimator="random"), WeightTable(profile="default"))
    exported(host, edit, tmp_path / "out")
    assert main(["compare", host.spec.id, str(tmp_path / "out")]) == 0
    page = capsys.readouterr().out
    assert "Verdict: ablation, plain, one direction." in page
    assert "Kernel: default" in page
    assert main(["compare", host.spec.id, str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["kind"] == "ablation"
    assert told["kernels"][0]["name"] == "default"
    assert len(told["tensors"]) == 2 * np.count_nonzero(DEFAULT)
    drawn = tmp_path / "a.svg"
    assert main(["compare", host.spec.id, str(tmp_path / "out"), "--figure", str(drawn)]) == 0
    lines = ElementTree.parse(drawn).findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 3  # attention, MLP and the kernel that fits
    capsys.readouterr()
    (tmp_path / "mine.svg").write_text("notes")
    wrong = ["compare", "demo", "demo", "--figure", str(tmp_path / "mine.svg")]
    assert main(wrong) == 2
    assert "not an SVG figure" in capsys.readouterr().err
    assert main(["compare", host.spec.id, str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_directions_of_another_model_are_refused(stored_host, tmp_path):
    host, other = stored_host("llama"), stored_host("gpt2", num_hidden_layers=5)
    edit = Ablation(DirectionSpec(estimator="random"))
    row = finish(resolve(other, Recipe(model=other.spec, edits=(edit,))))[0]
    row.directions.save(tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="measured on another model"):
        audited(host, host.spec.id, directions=tmp_path / "d.safetensors")
