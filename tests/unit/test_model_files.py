"""A model's files: which of them are the model, what identifies them, what is left unused."""

import json
import os
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import _get_resolved_checkpoint_files

from sst_ui.errors import UserError
from sst_ui.jobs.export.export import FORMATS
from sst_ui.jobs.export.formats import Job
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.discover import discover
from sst_ui.model.hooks.live_edits import LiveEdits
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.load import fingerprint
from sst_ui.model.load.fingerprint import fingerprints
from sst_ui.model.load.load import contents
from sst_ui.model.load.source import open_source
from sst_ui.model.runtime.host import load
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec, Recipe
from tests.talk import VOCAB, byte_tokenizer
from tests.tiny import ids
from tests.tiny import tiny as build
from tests.unit.test_live_edits import edit, logits

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model folder as `save_pretrained` writes it. Not to be changed: use `folder`."""
    path = tmp_path_factory.mktemp("saved") / "small"
    build("llama", vocab_size=VOCAB).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "small")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and files that count as old however new they are."""
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "FRESH", -10.0)
    return tmp_path / "cache" / "fingerprints"


def spec(folder) -> ModelSpec:
    return ModelSpec(id=str(folder), device="cpu")


def opened(folder):
    return finish(load(spec(folder)))


def exported(host, format, out):
    """Write a random edit of every writer in a format; returns the folder."""
    out.mkdir()
    finish(FORMATS[format].write(Job(host, Recipe(), (edit(0.6, 2),)), out))
    return out


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write(folder, tensors, name=WEIGHTS) -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def plain(folder):
    """What plain transformers makes of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)


# Which file is the model


def older_shards(folder) -> None:
    """Put another model's shards and index beside the single file."""
    other = folder.parent / "other"
    build("llama", vocab_size=VOCAB, seed=9).save_pretrained(other, max_shard_size="40KB")
    for path in other.glob("model*"):
        shutil.copy(path, folder / path.name)


@pytest.mark.parametrize("named", [None, WEIGHTS, INDEX, "mine.safetensors"])
@pytest.mark.parametrize("there", [(WEIGHTS,), (INDEX,), (WEIGHTS, INDEX), ("mine.safetensors",)])
def test_the_weight_files_are_those_that_transformers_takes(folder, there, named):
    older_shards(folder)
    (folder / WEIGHTS).rename(folder / "mine.safetensors")
    if WEIGHTS in there:
        (folder / "mine.safetensors").rename(folder / WEIGHTS)
    if INDEX not in there:
        (folder / INDEX).unlink()
    if named:
        edit_json(folder / "config.json", transformers_weights=named)
    theirs = None
    with suppress(OSError, ValueError):
        theirs, _ = _get_resolved_checkpoint_files(
            folder, None, None, True, None, False, transformers_explicit_filename=named
        )
    try:
        ours = [str(folder / name) for name in open_source(spec(folder)).weights()]
    except UserError:
        ours = None
    if theirs is not None and not all(map(os.path.isfile, theirs)):
        theirs = None
    assert ours == theirs


def test_an_older_index_beside_the_weights_changes_neither_export_nor_identity(folder):
    before = opened(folder)
    older_shards(folder)
    host = opened(folder)
    assert host.digest == before.digest
    out = exported(host, "model", folder.parent / "out")
    assert [path.name for path in out.glob("model*")] == [WEIGHTS]
    edited, base = load_file(out / WEIGHTS), load_file(folder / WEIGHTS)
    same = {name for name in base if torch.equal(base[name], edited[name])}
    assert len(base) - len(same) == 6  # the writers of three layers


def test_a_model_with_an_adapter_beside_it_is_refused_and_not_loaded_with_it(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="holds a model and an adapter"):
        opened(folder)


@pytest.mark.parametrize(
    "index",
    [
        [],
        {},
        {"metadata": {}, "weight_map": []},
        {"metadata": {}, "weight_map": {}},
        {"metadata": {}, "weight_map": {"a": 5}},
        {"metadata": {}, "weight_map": {"a": ["x"]}},
        {"metadata": {}, "weight_map": {"a": "../model.safetensors"}},
        {"metadata": {}, "weight_map": {"a": "model.bin"}},
        {"metadata": 3, "weight_map": {"a": "mine.safetensors"}},
        {"weight_map": {"a": "mine.safetensors"}},
    ],
)
def test_an_index_that_is_none_is_named(folder, index):
    (folder / WEIGHTS).rename(folder / "mine.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=INDEX):
        opened(folder)


def test_weights_of_a_variant_are_named(folder):
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")
    with pytest.raises(UserError, match=r"only model\.fp16\.safetensors; rename it"):
        opened(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    build("llama", vocab_size=VOCAB).save_pretrained(tmp_path, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(tmp_path)
    one, two = sorted(tmp_path.glob("model-*"))[:2]
    write(tmp_path, load_file(one) | load_file(two), two.name)
    with pytest.raises(UserError, match=r"twice, in model-00001-\S+ and in model-00002"):
        opened(tmp_path)


# Identity


def nudge(path, at: int = -5, keep_time: bool = False) -> None:
    """Change one byte in place; same path, size and inode."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_every_byte_counts(folder, cache):
    seen = {finish(contents(folder, [WEIGHTS]))}
    size = (folder / WEIGHTS).stat().st_size
    for number, at in enumerate(range(size - 8 * 1900, size, 1900), start=1):
        nudge(folder / WEIGHTS, at, keep_time=bool(number % 2))
        seen.add(finish(contents(folder, [WEIGHTS])))
        assert len(seen) == 1 + number
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (folder / name).write_text((folder / name).read_text() + " ")
        seen.add(finish(contents(folder, [WEIGHTS])))
    assert len(seen) == 12


def test_a_file_that_did_not_move_is_read_once(folder, cache):
    steps = []
    first = finish(fingerprints([folder / WEIGHTS]), steps.append)
    assert steps[-1].stage == "hash"
    assert steps[-1].done == steps[-1].total == (folder / WEIGHTS).stat().st_size
    again = []
    assert finish(fingerprints([folder / WEIGHTS]), again.append) == first
    assert again == []


def test_what_was_written_a_moment_ago_is_read_again(folder, cache, monkeypatch):
    monkeypatch.setattr(fingerprint, "FRESH", 1e6)
    finish(fingerprints([folder / WEIGHTS]))
    assert not cache.exists()


@pytest.mark.parametrize("memo", ["", "[]", "{", '{"path": 1}', "[" * 9999, None])
def test_a_damaged_memo_counts_as_none(folder, cache, memo):
    first = finish(fingerprints([folder / WEIGHTS]))
    (kept,) = cache.iterdir()
    text = kept.read_text()
    kept.write_text(memo if memo is not None else text.replace(first[0], "0" * 63))
    assert finish(fingerprints([folder / WEIGHTS])) == first
    assert kept.read_text() == text


def test_memos_are_bounded_and_nothing_unfinished_stays(folder, cache, monkeypatch):
    (left := cache / ".gone.json.partial-0123abcd").mkdir(parents=True)
    for number in range(5):
        path = folder / f"{number}.bin"
        path.write_bytes(b"x")
        finish(fingerprints([path]))
        newest = max(cache.glob("*.json"), key=os.path.getmtime)
        os.utime(newest, (100 + number, 100 + number))
        monkeypatch.setenv("SST_CACHE_GB", str(3.5 * newest.stat().st_size / 1e9))
    assert len(list(cache.glob("*.json"))) == 3
    assert not left.exists()


def test_the_live_model_does_not_change_with_its_files(folder):
    host = opened(folder)
    before = {name: p.clone() for name, p in host.model.named_parameters()}
    size = (folder / WEIGHTS).stat().st_size
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\x11" * (size - size // 2))
    assert all(torch.equal(p, before[name]) for name, p in host.model.named_parameters())


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_files_changed_in_place_are_another_model_and_stop_an_export(folder, cache, name):
    host = opened(folder)
    if name == WEIGHTS:
        nudge(folder / name, keep_time=True)
    else:
        edit_json(folder / name, rms_norm_eps=1e-3)
    assert opened(folder).digest != host.digest
    for format in ("model", "adapter"):
        with pytest.raises(UserError, match="have changed since they were loaded"):
            exported(host, format, folder.parent / format)


def test_files_that_change_while_they_are_loaded_are_an_error(folder):
    def meddle(step):
        if step.stage == "hash":
            nudge(folder / WEIGHTS)

    with pytest.raises(UserError, match="changed while"):
        finish(load(spec(folder)), meddle)


# Head and embedding


def stored_as(folder, way: str) -> None:
    """A tied model, its one matrix stored under these names."""
    build("llama_tied", vocab_size=VOCAB).save_pretrained(folder, max_shard_size="30KB")
    byte_tokenizer().save_pretrained(folder)
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    index = json.loads((folder / INDEX).read_text())
    file = index["weight_map"][table]
    tensors = load_file(folder / file)
    if way in ("head", "both"):
        tensors[head] = tensors[table].clone()
    if way == "head":
        del tensors[table], index["weight_map"][table]
    if way == "different":
        tensors[head] = 0.5 * tensors[table].flip(0)
    if way != "embedding":
        index["weight_map"][head] = file
    write(folder, tensors, file)
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("known", [True, False], ids=["live", "from-config"])
@pytest.mark.parametrize("way", ["embedding", "head", "both", "different"])
def test_a_tied_head_with_a_lora_is_exported_as_it_lives_however_it_is_stored(way, known, tmp_path):
    stored_as(tmp_path / "base", way)
    model = plain(tmp_path / "base")
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert tied == (way != "different")
    noise = torch.Generator().manual_seed(0)
    b, a = torch.randn(VOCAB, 2, generator=noise), torch.randn(2, 32, generator=noise)
    row = (RowDelta({"lm_head": Delta(b, a)}),)
    live = logits(model, ids(), LiveEdits(discover(model)), [row] * 2)
    base = logits(model, ids())
    done = finish(
        write_model(
            spec(tmp_path / "base"), row, discover(model) if known else None, tmp_path / "out"
        )
    )
    assert "lm_head.weight" in done.changed
    again = plain(tmp_path / "out")
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
    expected = model.lm_head.weight.double() + b.double() @ a.double()
    assert torch.allclose(again.lm_head.weight.double(), expected, atol=1e-6)
    assert (logits(again, ids()) - live).abs().max() < 1e-4 * live.abs().max()
    assert (base - live).abs().max() > 0.1 * live.abs().max()
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    sizes = {n: t.nbytes for f in (tmp_path / "out").glob("*.safetensors") for n, t in
             load_file(f).items()}  # fmt: skip
    assert index["weight_map"].keys() == sizes.keys()
    assert index["metadata"]["total_size"] == sum(sizes.values()) or way in ("both", "different")
