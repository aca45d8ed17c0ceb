"""Whole exports: what lies in the folder, read again by plain libraries, against the live model."""

import json
import shutil
from dataclasses import replace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.export import gguf_file
from sst_ui.jobs.export import verify as verify_module
from sst_ui.jobs.export.export import FORMATS, export
from sst_ui.jobs.export.read_back import reread
from sst_ui.jobs.export.verify import Verification, questions, verify
from sst_ui.model.runtime.host import load
from sst_ui.model.weights.staged_folder import MANIFEST
from sst_ui.paths import DEMO, PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Filter,
    Merge,
    ModelSpec,
    Recipe,
    WeightTable,
)
from tests import vocabularies

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
ADAPTERS = DEMO / "adapters"
RANDOM = DirectionSpec(estimator="random", k=2)
FLAT = WeightTable(peak=0.5, width=10.0)


def merge(method="task_arithmetic", **more):
    names = {"utility": str(ADAPTERS / "utility"), "safety": str(ADAPTERS / "safety")}
    return Merge(**names, method=method, **more)


@pytest.fixture
def in_process(monkeypatch):
    """Read folders again in this process: the same reader, without a start of ten seconds."""

    def fresh(folder, reference):
        yield from ()
        return json.loads(json.dumps(reread(folder, reference)))

    monkeypatch.setattr("sst_ui.jobs.export.verify._fresh", fresh)


def test_a_verification_that_is_cancelled_while_its_process_loads_ends_that(tmp_path, monkeypatch):
    silent = tmp_path / "python"  # like one that imports and loads: it says nothing for long
    silent.write_text("#!/bin/sh\nexec sleep 3600\n")
    silent.chmod(0o755)
    children, popen = [], verify_module.subprocess.Popen
    monkeypatch.setattr(verify_module.sys, "executable", str(silent))
    monkeypatch.setattr(
        verify_module.subprocess, "Popen",
        lambda *a, **more: children.append(popen(*a, **more)) or children[-1],
    )  # fmt: skip
    job = verify_module._fresh(tmp_path, tmp_path / "reference.safetensors")
    assert next(job).stage == "reread"  # a step in which Cancel is heard
    (child,) = children
    assert child.poll() is None
    job.close()
    assert child.returncode is not None


@pytest.mark.parametrize("format", ["adapter", "gguf"])  # a model is read as an adapter's is
def test_a_fresh_process_finds_the_demo_as_it_was_in_the_studio(host, tmp_path, format):
    recipe = Recipe(name="less refusal", edits=(Ablation(),))
    done = finish(export(host, recipe, tmp_path / "out", format, verify=4))
    checked = done.verification
    assert checked.ok
    assert checked.prompts == 4
    assert checked.same_answers + checked.near_ties == 4
    assert checked.parameters == 14  # attention and MLP of seven layers
    assert checked.max_logit_error < (1e-5 if format == "adapter" else 0.02)
    names = {path.name for path in done.folder.iterdir()}
    assert {"README.md", "recipe.yaml", "tokenizer.json", "chat_template.jinja"} <= names
    assert ("config.json" in names) == (format != "adapter")
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (done.folder / name).read_bytes() == (DEMO / name).read_bytes()
    assert set(done.files) == {
        path.relative_to(done.folder).as_posix()
        for path in done.folder.rglob("*")
        if path.name != MANIFEST
    }
    assert "| Result | passed |" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["llama_bias", "gpt2", "gpt_neox", "gemma2", "phi3", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_adapters_and_models_of_every_kind_pass_their_check(
    name, dtype, stored_host, in_process, tmp_path
):
    host = stored_host(name, dtype)
    recipe = Recipe(model=host.spec, edits=(Ablation(RANDOM, FLAT),))
    for format in ("adapter", "model"):
        checked = finish(export(host, recipe, tmp_path / format, format, verify=2)).verification
        assert checked.ok, (format, checked)
        assert checked.parameters == 6
        if dtype == torch.float32:
            assert checked.residue < 1e-5
            assert checked.same_answers == 2


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_mixtures_pass_as_whole_models_also_where_only_the_files_can_be_edited(
    name, dtype, stored_host, in_process, tmp_path
):
    host = stored_host(name, dtype)
    recipe = Recipe(model=host.spec, edits=(Ablation(RANDOM, FLAT),))
    checked = finish(export(host, recipe, tmp_path / "m", "model", verify=2)).verification
    assert checked.ok, checked
    assert checked.prompts == 2
    with pytest.raises(UserError, match="mixtures of experts"):
        finish(export(host, recipe, tmp_path / "a"))
    kept = Recipe(model=host.spec, edits=(Ablation(RANDOM, FLAT, norm_preserving=True),))
    checked = finish(export(host, kept, tmp_path / "n", "model", verify=2)).verification
    assert checked.ok, checked
    assert checked.prompts == 0
    assert checked.residue < (1e-5 if dtype == torch.float32 else 0.03)
    assert "no answers were compared" in checked.summary()
    assert "not compared" in (tmp_path / "n" / "README.md").read_text()


@pytest.mark.parametrize("format", ["adapter", "model", "gguf"])
def test_a_filtered_demo_is_found_as_it_was_in_the_studio(host, in_process, tmp_path, format):
    edit = Ablation(DirectionSpec(samples=24), operation="filter", filter=Filter(answers=0))
    recipe = Recipe(name="filtered", edits=(edit,))
    done = finish(export(host, recipe, tmp_path / "out", format, verify=3))
    checked = done.verification
    assert checked.ok
    assert checked.same_answers + checked.near_ties == 3
    assert checked.parameters == 14
    assert checked.max_logit_error < (1e-5 if format == "adapter" else 0.02)


def test_mergekit_gets_a_filter_as_an_exact_adapter(host, tmp_path):
    edit = Ablation(DirectionSpec(samples=24), operation="filter", filter=Filter(answers=0))
    done = finish(export(host, Recipe(edits=(edit,)), tmp_path / "out", "mergekit"))
    assert (done.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert any("Exact" in note for note in done.notes)


def test_a_norm_preserving_adapter_says_how_much_it_lacks(stored_host, in_process, tmp_path):
    host = stored_host("llama")
    recipe = Recipe(model=host.spec, edits=(Ablation(RANDOM, FLAT, norm_preserving=True),))
    with pytest.raises(UserError, match="--rank"):
        finish(export(host, recipe, tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    done = finish(export(host, recipe, tmp_path / "a", rank=4, verify=2))
    assert any("approximation" in note and "%" in note for note in done.notes)
    assert done.verification.residue > 0.01  # told, as it is
    card = (tmp_path / "a" / "README.md").read_text()
    assert "An approximation: the adapter lacks" in card
    assert "--rank 4" in card
    exact = finish(export(host, recipe, tmp_path / "m", "model", verify=2))
    assert exact.verification.residue < 1e-5


def check_again(host, recipe, folder) -> Verification:
    edits = finish(resolve(host, recipe))
    return finish(verify(host, edits, folder, questions(2), 2))


def test_a_changed_tensor_or_another_edit_does_not_pass(stored_host, in_process, tmp_path):
    host = stored_host("llama")
    recipe = Recipe(model=host.spec, edits=(Ablation(RANDOM, FLAT),))
    finish(export(host, recipe, tmp_path / "m", "model"))
    assert check_again(host, recipe, tmp_path / "m").ok
    weaker = Recipe(model=host.spec, edits=(Ablation(RANDOM, WeightTable(width=10, strength=0.9)),))
    found = check_again(host, weaker, tmp_path / "m")
    assert not found.ok
    assert found.residue > 0.05
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.down_proj.weight"][:, 0] += 0.3
    save_file(tensors, weights, metadata={"format": "pt"})
    found = check_again(host, recipe, tmp_path / "m")
    assert not found.ok
    assert found.worst == "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("format", ["adapter", "model", "gguf"])
def test_a_merge_and_an_ablation_after_it_leave_together(host, in_process, tmp_path, format):
    recipe = Recipe(edits=(Ablation(), merge()))  # in the file as in the studio: deltas first
    checked = finish(export(host, recipe, tmp_path / "x", format, verify=3)).verification
    assert checked.ok, checked
    assert checked.parameters > 24
    alone = Recipe(edits=(merge(),))
    assert not check_again(host, alone, tmp_path / "x").ok


def test_closing_the_job_ends_the_reader_and_leaves_no_folder(host, tmp_path):
    before = set(psutil.Process().children(recursive=True))
    job = export(host, Recipe(edits=(Ablation(),)), tmp_path / "x", verify=2)
    stages = []
    for progress in job:
        stages.append(progress.stage)
        if progress.stage == "reread" and progress.done:
            break
    assert "reread" in stages
    job.close()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_read_is_not_verified_and_not_lost(host, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    found = finish(verify(host, (), tmp_path, ["Hello"], 1))
    assert not found.ok
    assert "a fresh process cannot read what was written" in found.problem
    assert found.summary().startswith("NOT verified: ")
    assert "are kept in their folder" in found.summary()


def test_an_export_whose_check_cannot_run_is_kept_and_says_so(stored_host, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("verifying loads a second copy of the model, 9 GB, and 1 GB is free.")

    monkeypatch.setattr("sst_ui.jobs.export.verify._room", full)
    host = stored_host("llama")
    recipe = Recipe(model=host.spec)
    done = finish(export(host, recipe, tmp_path / "m", "model", verify=2))
    assert not done.verification.ok
    assert "a second copy" in done.verification.summary()
    assert (tmp_path / "m" / "model.safetensors").is_file()
    assert "**NOT verified:** verifying loads" in (tmp_path / "m" / "README.md").read_text()
    json.dumps(done.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "modle"}, "did you mean 'model'"),
        ({"rounding": "up"}, "rounding 'up' is unknown"),
        ({"verify": -1}, "verify is -1"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(host, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        finish(export(host, Recipe(edits=(Ablation(),)), tmp_path / "x", **options))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["adapter", "model", "gguf"])
def test_an_affine_edit_at_every_token_leaves_as_it_was_in_the_studio(
    host, tmp_path, format, in_process
):
    recipe = Recipe(edits=(Ablation(affine=True, affine_at="everywhere"),))
    done = finish(export(host, recipe, tmp_path / "out", format, verify=4))
    assert done.verification.ok
    assert done.verification.max_logit_error < (1e-5 if format == "adapter" else 0.02)
    assert "affine (everywhere)" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize("format", list(FORMATS))
def test_an_affine_edit_is_refused_before_anything_is_measured(host, tmp_path, format, monkeypatch):
    def measured(*_):
        raise AssertionError("directions were measured")

    monkeypatch.setattr("sst_ui.jobs.export.export.resolve", measured)
    with pytest.raises(UserError, match="'prompt_end' acts at one token"):
        finish(export(host, Recipe(edits=(Ablation(affine=True),)), tmp_path / "x", format))
    assert not any(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_no_folder(host, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sst_ui.jobs.export.export.card", broken)
    with pytest.raises(UserError, match="No space left"):
        finish(export(host, Recipe(edits=(Ablation(),)), tmp_path / "x"))
    assert not any(tmp_path.iterdir())


def test_every_format_has_words_for_the_screen():
    assert list(FORMATS) == ["adapter", "model", "mergekit", "gguf"]
    assert all(row.title and row.what for row in FORMATS.values())


# GGUF


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more"),
    [("llama_bias", {}), ("llama", {"rope_parameters": LLAMA3}), ("qwen3", {"head_dim": 16})],
    ids=["biases", "stretched", "wide"],
)
def test_a_gguf_file_passes_where_transformers_does_not_read_all_it_says(
    name, more, stored_host, in_process, tmp_path
):
    pytest.importorskip("gguf")
    host = stored_host(name, **more)
    recipe = Recipe(model=host.spec, edits=(Ablation(RANDOM, FLAT),))
    checked = finish(export(host, recipe, tmp_path / "g", "gguf", verify=2)).verification
    assert checked.ok, checked
    assert "config.json" in checked.reader


@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral", "qwen2", "qwen3"])
def test_a_gguf_file_holds_the_edited_tensors(name, stored_host, in_process, tmp_path):
    gguf = pytest.importorskip("gguf")
    host = stored_host(name, num_hidden_layers=4)
    recipe = Recipe(model=host.spec, edits=(Ablation(RANDOM, FLAT),))
    finish(export(host, recipe, tmp_path / "m", "model"))
    done = finish(export(host, recipe, tmp_path / "g", "gguf", verify=2))
    assert done.verification.ok, done.verification
    assert done.verification.residue < 1e-5
    wanted = load_file(tmp_path / "m" / "model.safetensors")
    reader = gguf.GGUFReader(tmp_path / "g" / "model.gguf")
    found = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert len(found) == len(wanted)
    down = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(found["blk.2.ffn_down.weight"], wanted[down])
    assert torch.equal(found["token_embd.weight"], wanted["model.embed_tokens.weight"])
    q, mine = found["blk.1.attn_q.weight"], wanted["model.layers.1.self_attn.q_proj.weight"]
    if name in ("llama", "llama_tied", "mistral"):  # neighbours rotate together, halves in ours
        half = 4  # of a head of 8: row 2 i is our row i, row 2 i + 1 our row i + 4
        rows = [h * 8 + i // 2 + half * (i % 2) for h in range(4) for i in range(8)]
        mine = mine[rows]
    assert torch.equal(q, mine)
    field = reader.get_field("tokenizer.ggml.tokens")
    tokens = [bytes(field.parts[i]).decode() for i in field.data]
    assert tokens[:5] == ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    assert len(tokens) == 261
    template = reader.get_field("tokenizer.chat_template")
    assert bytes(template.parts[template.data[0]]).decode() == host.template.text


def test_bfloat16_stays_bfloat16_in_a_gguf_file(host, tmp_path):
    gguf = pytest.importorskip("gguf")
    finish(export(host, Recipe(edits=(Ablation(),)), tmp_path / "g", "gguf"))
    reader = gguf.GGUFReader(tmp_path / "g" / "model.gguf")
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.3.ffn_down.weight"] == "BF16"
    assert kinds["blk.3.attn_norm.weight"] == "F32"


def test_without_gguf_or_for_other_families_the_message_says_what_to_install(
    host, stored_host, tmp_path, monkeypatch
):
    other = stored_host("gpt_neox")
    recipe = Recipe(model=other.spec, edits=(Ablation(RANDOM, FLAT),))
    with pytest.raises(UserError, match=r"gpt_neox.*LLAMA_CPP"):
        finish(export(other, recipe, tmp_path / "g", "gguf"))
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        finish(export(host, Recipe(edits=(Ablation(),)), tmp_path / "g", "gguf"))


def converter(tmp_path, monkeypatch, body):
    """A script in the place of llama.cpp's converter."""
    script = tmp_path / "llama.cpp" / gguf_file.SCRIPT
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        "import sys, pathlib, shutil\n"
        "model, out = pathlib.Path(sys.argv[1]), sys.argv[sys.argv.index('--outfile') + 1]\n"
        f"said = dict(zip(sys.argv[2::2], sys.argv[3::2]))\n{body}\n"
    )
    monkeypatch.setenv("LLAMA_CPP", str(script.parent))


def test_llama_cpps_converter_is_used_where_it_is(host, tmp_path, monkeypatch):
    recipe = Recipe("mine", edits=(Ablation(),))
    finish(export(host, recipe, tmp_path / "own", "gguf"))
    converter(
        tmp_path,
        monkeypatch,
        "assert (model / 'tokenizer.json').exists()\n"
        "assert said['--outtype'] == 'bf16', said  # as stored; its auto makes float16 of float32\n"
        "assert said['--model-name'] == 'mine', said\n"
        "assert model.name == 'demo', model  # it says the folder's name in the file\n"
        f"shutil.copy({str(tmp_path / 'own' / 'model.gguf')!r}, out)\n",
    )
    done = finish(export(host, recipe, tmp_path / "g", "gguf"))
    same = [(tmp_path / name / "model.gguf").read_bytes() for name in ("own", "g")]
    assert same[0] == same[1]
    assert any("Converted by" in note for note in done.notes)
    assert any("all 26 chats" in note for note in done.notes)
    for said, words in (
        ("Model LlamaForCausalLM is not supported", "LlamaForCausalLM is not supported"),
        ("No module named 'sentencepiece'", "pip install sentencepiece"),
        ("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()", "unset LLAMA_CPP"),
    ):
        converter(tmp_path, monkeypatch, f"raise SystemExit({said!r})")
        with pytest.raises(UserError, match=words):
            finish(export(host, Recipe(edits=(Ablation(),)), tmp_path / "h", "gguf"))
        assert not (tmp_path / "h").exists()


def test_what_the_converter_writes_is_compared_too(stored_host, tmp_path, monkeypatch):
    other = stored_host("llama_wide", tokenizer=vocabularies.byte_level(), vocab_size=800)
    finish(export(other, Recipe(model=other.spec), tmp_path / "other", "gguf"))
    host = stored_host("llama", tokenizer=vocabularies.byte_level("qwen2"), vocab_size=800)
    path = tmp_path / "other" / "model.gguf"
    converter(tmp_path, monkeypatch, f"shutil.copy({str(path)!r}, out)")
    with pytest.raises(UserError, match=r"cannot hold this tokenizer.*convert_hf"):
        finish(export(host, Recipe(model=host.spec), tmp_path / "g", "gguf"))
    converter(tmp_path, monkeypatch, "pathlib.Path(out).write_bytes(b'GGUF' + bytes(100))")
    with pytest.raises(UserError, match=r"wrote a file that cannot be read"):
        finish(export(host, Recipe(model=host.spec), tmp_path / "g", "gguf"))
    assert not (tmp_path / "g").exists()


def test_files_that_changed_since_the_model_was_loaded_are_not_exported(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("adapters", "unaligned"))
    host = finish(load(ModelSpec(id=str(folder))))
    recipe = replace(recipes.load(PRESETS / "recipes" / "default.yaml"), model=host.spec)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="have changed since they were loaded"):
        finish(export(host, recipe, tmp_path / "out", "model"))
    assert not (tmp_path / "out").exists()
