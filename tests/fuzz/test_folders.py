"""Model and adapter folders with anything in them: they open, or one line says why not.

Knows the files of tiny folders and how to spoil them. Whatever is wrong, the time, the memory and
the length of the message stay bounded.
"""

import json
import resource
import shutil
import struct
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sst_ui.errors import UserError
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.lora.adapters import read_adapter, write_adapter
from sst_ui.model.runtime.host import load
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from tests.talk import VOCAB, byte_tokenizer, tiny_host
from tests.tiny import tiny

SECONDS, BYTES = 30, 1 << 29  # of processor time and memory that one folder may take
MANY = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 33, 10**6, 10**12, 10**30, -(10**9), 0.0, 0.5, -2.5, 1e300]
)
SCALARS = (
    NUMBERS
    | st.none()
    | st.booleans()
    | st.sampled_from([float("nan"), float("inf")])
    | st.sampled_from(["", "x", "twelve", "\ud800", "../../x", "float16", "y" * 5000])
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS)
RAW = st.sampled_from([b"", b"{", b"[]", b"null", b"NaN", b"\xff\xfe", b"[" * 50_000, b'{"a":1}'])
DTYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "F8_E4M3", "I8", "I64", "BOOL", "X9", "", 5])


def spoil_json(path: Path, draw, more: tuple[str, ...] = ()) -> None:
    """Change, add or drop some keys, or replace the whole file."""
    if draw(st.integers(0, 5)) == 0:
        path.write_bytes(draw(RAW))
        return
    data = json.loads(path.read_text())
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from([*sorted(data), *more, "new"]))
        if draw(st.integers(0, 4)) == 0:
            data.pop(key, None)
        else:
            data[key] = draw(VALUES)
    path.write_text(json.dumps(data))


def spoil_header(path: Path, draw) -> None:
    """Change what a safetensors file says of its tensors, and leave the tensors."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entries = json.loads(raw[8 : 8 + length])
    name = draw(st.sampled_from(sorted(n for n in entries if n != "__metadata__")))
    entry = entries[name]
    match draw(st.integers(0, 5)):
        case 0:
            entry["dtype"] = draw(DTYPES)
        case 1:
            entry["shape"] = draw(st.lists(NUMBERS, max_size=3) | SCALARS)
        case 2:
            entry["data_offsets"] = draw(st.lists(NUMBERS, max_size=3) | SCALARS)
        case 3:
            entry["shape"] = entry["shape"][::-1]
        case 4:
            entries[name] = draw(VALUES)
        case _:
            entries["__metadata__"] = draw(VALUES)
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def spoil_bytes(path: Path, draw) -> None:
    """Cut a file off, lengthen it, or overwrite a few of its bytes."""
    raw = bytearray(path.read_bytes())
    place = draw(st.integers(0, max(0, len(raw) - 1)) | st.integers(0, min(len(raw) - 1, 64)))
    match draw(st.integers(0, 2)):
        case 0:
            del raw[place:]
        case 1:
            raw += draw(st.binary(min_size=1, max_size=9))
        case _:
            patch = draw(st.binary(min_size=1, max_size=9))
            raw[place : place + len(patch)] = patch
    path.write_bytes(bytes(raw))


def spoil_tensors(path: Path, draw) -> None:
    """A sound file with other tensors in it."""
    tensors = load_file(path)
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors[name]
    match draw(st.integers(0, 5)):
        case 0:
            del tensors[name]
        case 1:
            tensors[draw(st.sampled_from([f"{name}.more", "lm_head.bias", "x"]))] = torch.ones(2)
        case 2:
            tensors[name] = value.to(draw(st.sampled_from([torch.int8, torch.float8_e4m3fn])))
        case 3:
            tensors[name] = value.flatten()[1:].clone()
        case 4:
            tensors[name] = torch.full_like(value, float(draw(st.sampled_from(["nan", "inf"]))))
        case _:
            tensors[name] = value.to(draw(st.sampled_from([torch.float16, torch.float64])))
    save_file(tensors, path, metadata={"format": "pt"})


def spoil(folder: Path, names: list[str], draw) -> None:
    """Something happens to one of the files."""
    path = folder / draw(st.sampled_from(names))
    if not path.exists():
        return
    ways = [spoil_bytes, lambda p, d: p.unlink()]
    if path.suffix == ".json":
        ways = [spoil_json] * 6 + ways
    elif path.suffix == ".safetensors":
        ways = [spoil_header, spoil_tensors] * 3 + ways
    try:
        draw(st.sampled_from(ways))(path, draw)
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        ArithmeticError,
        RecursionError,
    ):
        return  # it was spoilt before, and cannot be changed in this way any more
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise


def opens_or_says_why(work) -> None:
    """Raises AssertionError for anything but success and a UserError, in bounded time and space."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        work()
    except UserError as error:
        text = str(error)
        assert "\n" not in text
        assert 10 < len(text) < 1000
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model in one file, and one in several."""
    root = tmp_path_factory.mktemp("models")
    for name, size in (("one", "1GB"), ("several", "40KB")):
        model = tiny("llama", vocab_size=VOCAB, num_hidden_layers=1)
        model.save_pretrained(root / name, max_shard_size=size)
        byte_tokenizer().save_pretrained(root / name)
    return root


@given(data=st.data())
@settings(max_examples=24, **MANY)
def test_a_model_folder_opens_or_says_why_not(models, data):
    which = data.draw(st.sampled_from(["one", "several"]))
    files = sorted(path.name for path in (models / which).iterdir())
    with tempfile.TemporaryDirectory() as work:
        folder = shutil.copytree(models / which, Path(work) / "m")
        for _ in range(data.draw(st.integers(1, 2))):
            spoil(folder, files, data.draw)
        opens_or_says_why(lambda: finish(load(ModelSpec(id=str(folder), device="cpu"))))


@pytest.fixture(scope="module")
def base():
    return tiny_host(num_hidden_layers=2)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """An adapter of that base as PEFT stores it."""
    deltas = {
        path: Delta(torch.ones(module.out_features, 2), torch.ones(2, module.in_features))
        for path, module in base.architecture.matrices.items()
        if "self_attn" in path
    }
    return write_adapter(tmp_path_factory.mktemp("adapters") / "a", deltas, base)


@given(data=st.data())
@settings(max_examples=150, **MANY)
def test_an_adapter_folder_is_read_or_says_why_not(base, adapter, data):
    files = sorted(path.name for path in adapter.iterdir())
    with tempfile.TemporaryDirectory() as work:
        folder = shutil.copytree(adapter, Path(work) / "a")
        for _ in range(data.draw(st.integers(1, 2))):
            spoil(folder, files, data.draw)
        opens_or_says_why(lambda: read_adapter(str(folder), base))
