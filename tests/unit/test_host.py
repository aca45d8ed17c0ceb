"""Loading a model: what is refused, and how it is said; what is kept."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

from sst_ui.errors import UserError
from sst_ui.model.load import hub
from sst_ui.model.load import memory as fit
from sst_ui.model.runtime.host import inspect, load
from sst_ui.progress import Progress, finish
from sst_ui.recipe import ModelSpec
from tests.talk import VOCAB, answers, byte_tokenizer
from tests.tiny import tiny as build

WEIGHTS = "model.safetensors"


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


def spec(folder, **settings) -> ModelSpec:
    return ModelSpec(id=str(folder), **{"device": "cpu", **settings})


def refusal(folder, **settings) -> str:
    with pytest.raises(UserError) as caught:
        finish(load(spec(folder, **settings)))
    return str(caught.value)


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# What loads


def test_loading_tells_its_stages_in_order(saved):
    steps = []
    host = finish(load(spec(saved)), steps.append)
    assert all(isinstance(step, Progress) for step in steps)
    assert list(dict.fromkeys(step.stage for step in steps)) == ["inspect", "load", "hash", "hooks"]
    assert (host.name, host.layers, host.hidden, host.context) == ("small", 3, 32, 256)


def test_a_loaded_model_is_the_saved_one_and_takes_no_gradient(saved):
    host = finish(load(spec(saved)))
    for name, weight in build("llama", vocab_size=VOCAB).named_parameters():
        assert torch.equal(host.model.get_parameter(name), weight)
    assert not host.model.training
    assert not any(p.requires_grad for p in host.model.parameters())


@pytest.mark.parametrize(("dtype", "bytes_each"), [("auto", 4), ("bfloat16", 2)])
def test_the_report_is_what_loading_then_takes(saved, dtype, bytes_each):
    report = inspect(spec(saved, dtype=dtype))
    host = finish(load(spec(saved, dtype=dtype)))
    weights = list(host.model.parameters())
    assert report.parameters == host.parameters == sum(p.numel() for p in weights)
    assert report.bytes == sum(p.nbytes for p in weights) == bytes_each * report.parameters
    assert report.architecture == "LlamaForCausalLM"
    assert report.fits


def test_the_report_reads_no_weights(folder):
    before = inspect(spec(folder))
    (folder / WEIGHTS).write_bytes(b"")
    assert inspect(spec(folder)).parameters == before.parameters


def test_tied_embeddings_are_counted_once_and_not_missing(tmp_path):
    tied = build("llama_tied", vocab_size=VOCAB)
    tied.save_pretrained(tmp_path / "tied")
    byte_tokenizer().save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / WEIGHTS)
    host = finish(load(spec(tmp_path / "tied")))
    head, table = host.model.get_output_embeddings(), host.model.get_input_embeddings()
    assert head.weight.data_ptr() == table.weight.data_ptr()
    assert host.parameters == inspect(spec(tmp_path / "tied")).parameters
    assert torch.equal(table.weight, tied.get_input_embeddings().weight)


def test_a_sharded_model_loads(tmp_path):
    build("llama", vocab_size=VOCAB).save_pretrained(tmp_path, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    assert finish(load(spec(tmp_path))).layers == 3
    next(tmp_path.glob("model-00002*")).unlink()
    assert "lacks 1 of its weight files (model-00002" in refusal(tmp_path)


def test_the_digest_follows_everything_that_changes_the_answers(saved, folder):
    def digest(path, **settings):
        return finish(load(spec(path, **settings))).digest

    first = digest(saved)
    assert digest(folder) == first  # the same files elsewhere are the same model
    assert digest(folder, dtype="float32") == first  # which is what `auto` means on a CPU
    assert digest(folder, dtype="bfloat16") != first
    assert digest(folder, enable_thinking=True) != first
    assert digest(folder, chat_template="plain") != first
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] += 1.0
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert digest(folder) != first


def test_the_demo_comes_along_and_talks(host):
    assert (host.name, host.spec.id, host.model.dtype) == ("demo", "demo", torch.float32)
    question = host.encode("What is the capital of France?")
    (answer,) = finish(answers(host, [question], None, 24))
    assert len(answer.split()) >= 1
    assert len(host.tokens(answer)) < 24  # it came to an end by itself


# What is refused


def test_an_adapter_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    message = refusal(tmp_path)
    assert "is an adapter, not a model" in message
    assert "load org/base" in message


def test_a_folder_without_config_is_no_model(folder):
    (folder / "config.json").unlink()
    assert "small has no config.json" in refusal(folder)


def test_gguf_files_are_for_other_programs(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF files are for other programs" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_and_never_opened(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    message = refusal(folder)
    assert f"pickles only ({name})" in message
    assert "save_pretrained" in message


def test_a_folder_without_weights_says_so(folder):
    (folder / WEIGHTS).unlink()
    assert "has no weights" in refusal(folder)


def test_a_cut_off_download_says_how_much_is_there(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1000])
    assert f"cut off: {len(data) - 1000:,} of {len(data):,} bytes" in refusal(folder)


@pytest.mark.parametrize("data", [b"", b"\x80\x04 no header", b"\x08" + bytes(7) + b"not json"])
def test_weights_that_are_no_safetensors_are_refused(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    assert "damaged or not a safetensors file" in refusal(folder)


def test_a_clone_without_lfs_says_what_to_run(folder):
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(folder)


def test_missing_weights_are_not_filled_with_random_numbers(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.2.mlp.down_proj.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    message = refusal(folder)
    assert "lacks 1 of its weights" in message
    assert "layers.2.mlp.down_proj" in message


def test_weights_of_another_shape_are_refused(folder):
    edit_json(folder / "config.json", intermediate_size=64)
    message = refusal(folder)
    assert "mlp.down_proj.weight [32, 48], and by its config.json it is [32, 64]" in message


def test_a_model_with_its_own_code_is_not_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('code of the model was run')")
    changes = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    edit_json(folder / "config.json", **changes)
    assert "brings its own code, which is not run" in refusal(folder)


def test_an_unknown_architecture_is_named(folder):
    edit_json(folder / "config.json", model_type="llamma")
    assert "'llamma'" in refusal(folder)


def test_a_damaged_config_is_named(folder):
    (folder / "config.json").write_text("{")
    assert "config.json of small cannot be read" in refusal(folder)


def test_a_model_that_writes_no_text_is_refused(folder):
    edit_json(folder / "config.json", model_type="vit", architectures=["ViTModel"])
    assert "not a causal language model" in refusal(folder)


def test_a_model_without_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(folder)


def test_a_model_without_template_takes_one(folder):
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in refusal(folder)
    host = finish(load(spec(folder, chat_template="chatml")))
    assert host.format([{"role": "user", "content": "Hello"}]).startswith("<|im_start|>user")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "../no-such", "~/no-such"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(model):
    assert f"the folder {model} does not exist" in refusal(model)


def test_a_file_is_not_a_folder(saved):
    assert "is a file; give the folder" in refusal(saved / WEIGHTS)


@pytest.mark.parametrize("model", ["a/b/c", "no spaces please", "x" * 120, "org/na$me"])
def test_what_is_no_hub_id_is_said_so(model):
    assert "neither a folder on this machine nor a Hub id" in refusal(model)


def test_no_model_at_all_is_said_so():
    assert "model.id is empty; give a folder, a Hub id, or demo" in refusal("")


def test_offline_a_hub_id_suggests_a_folder():
    message = refusal("org/never-heard-of")
    assert message.startswith("org/never-heard-of is not on this machine")
    assert "local folder" in message


def test_bitsandbytes_is_asked_for_by_name(saved, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install bitsandbytes" in refusal(saved, quantization="4bit")


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "'gpu' is unknown"), ("cuda:9", "cuda:9"), ("cuda:x", "unknown")],
)
def test_a_device_that_is_not_there_is_named(saved, device, message):
    assert message in refusal(saved, device=device)


def test_too_large_is_an_error_with_both_sizes_and_a_way_out(saved, monkeypatch):
    monkeypatch.setattr(fit, "free_memory", lambda device: ("cpu", 100_000))
    message = refusal(saved)
    assert "does not fit" in message
    assert "100 kB are free on cpu" in message
    assert "bfloat16" in message


@pytest.mark.parametrize(
    ("free", "device", "fits"),
    [([10, 900], "cuda:1", True), ([150, 150], "cuda:*", True), ([10, 20], "cuda:*", False)],
    ids=["one-is-enough", "both-together", "too-small"],
)
def test_several_gpus_share_only_what_does_not_fit_one(saved, monkeypatch, free, device, fits):
    report = inspect(spec(saved))
    need = report.bytes + report.overhead
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    memory = [need * percent // 200 for percent in free]  # 200: exactly what is needed
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (memory[i], 0))
    report = inspect(spec(saved, device="auto", dtype="float32"))
    assert (report.device, report.fits) == (device, fits)


def test_quantisation_needs_less_memory(saved):
    full, half, quarter = (
        inspect(spec(saved, dtype="bfloat16", quantization=q)).bytes
        for q in ("none", "8bit", "4bit")
    )
    assert quarter < half < full


# The Hub


class Hub:
    """Stands in for the Hub: serves one folder, and remembers what was fetched."""

    def __init__(self, monkeypatch, folder, error=None):
        self.folder, self.fetched, self.error = folder, [], error
        monkeypatch.setattr(hub, "HfApi", lambda: self)
        monkeypatch.setattr(hub, "hf_hub_download", self.download)
        monkeypatch.setattr(fit.AutoConfig, "from_pretrained", self.config(fit.AutoConfig))

    def model_info(self, repo, revision=None, **_):
        if self.error:
            raise self.error
        files = [p for p in self.folder.rglob("*") if p.is_file()]
        return SimpleNamespace(
            sha="c0ffee",
            siblings=[
                SimpleNamespace(
                    rfilename=p.relative_to(self.folder).as_posix(), size=p.stat().st_size
                )
                for p in files
            ],
        )

    def download(self, repo, name, revision=None):
        assert revision == "c0ffee"  # what was inspected is what is fetched
        self.fetched.append(name)
        return str(self.folder / name)

    def config(self, real):
        original = real.from_pretrained

        def from_pretrained(name, **settings):
            return original(self.folder if name == "org/small" else name, **settings)

        return from_pretrained


def test_a_hub_model_fetches_what_it_needs_and_nothing_else(folder, monkeypatch):
    for extra in ("pytorch_model.bin", "consolidated.safetensors", "code.py", "onnx/model.onnx"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"x" * 10)
    served = Hub(monkeypatch, folder)
    steps = []
    host = finish(load(ModelSpec(id="org/small")), steps.append)
    assert host.name == "org/small"
    assert WEIGHTS in served.fetched
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {*served.fetched}
    assert not any(n.startswith(("pytorch", "consol", "code", "onnx")) for n in served.fetched)
    fetching = [step for step in steps if step.stage == "download"]
    assert fetching[-1].fraction == 1.0
    assert [s.done for s in fetching] == sorted(s.done for s in fetching)


def test_too_large_for_the_device_is_found_before_the_download(folder, monkeypatch):
    served = Hub(monkeypatch, folder)
    monkeypatch.setattr(fit, "free_memory", lambda device: ("cpu", 100_000))
    assert "does not fit" in refusal("org/small")
    assert WEIGHTS not in served.fetched


def test_pickles_on_the_hub_are_refused_before_the_download(folder, monkeypatch):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    served = Hub(monkeypatch, folder)
    assert "pickles only" in refusal("org/small")
    assert served.fetched == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "is gated: accept its licence"),
        (RepositoryNotFoundError, "was not found on the Hub"),
        (RevisionNotFoundError, "has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(folder, monkeypatch, kind, message):
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error")
    Hub(monkeypatch, folder, error)
    assert message in refusal("org/small", revision="v9")
