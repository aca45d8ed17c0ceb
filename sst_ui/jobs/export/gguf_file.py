"""Writes a GGUF file: with llama.cpp's converter where it is installed, else here, for the families
whose tensors llama.cpp keeps as they are.

Either way the whole model is written first, beside it, and then converted. Keys and names are in
`gguf_keys.py`.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.jobs.export import formats, gguf_compare, gguf_vocabulary
from sst_ui.jobs.export.formats import Job, Made
from sst_ui.jobs.export.gguf_keys import FAMILIES, Family, describe, frequencies, turned, window
from sst_ui.model.load.companion_files import CONFIG, carry
from sst_ui.model.runtime.host import Host
from sst_ui.model.weights.given_biases import with_flags
from sst_ui.model.weights.staged_folder import room
from sst_ui.model.weights.tensor_edits import granted
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe

FILE, SCRIPT, FOLDER = "model.gguf", "convert_hf_to_gguf.py", "LLAMA_CPP"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FILE_TYPES = {
    torch.float32: "ALL_F32",
    torch.float16: "MOSTLY_F16",
    torch.bfloat16: "MOSTLY_BF16",
}
TYPES = {dtype: name for name, dtype in DTYPES.items()}
OUT = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # stored type -> the converter's word
WORK = ".gguf"  # the whole model, while it is converted


def converter() -> Path | None:
    """llama.cpp's script, in the folder (or at the path) that LLAMA_CPP names, or on the PATH."""
    if given := os.environ.get(FOLDER):
        place = Path(given).expanduser()
        place = place / SCRIPT if place.is_dir() else place
        if not place.is_file():
            raise UserError(f"{FOLDER} is {given}, and there is no {SCRIPT} there.")
        return place
    found = shutil.which(SCRIPT)
    return Path(found) if found else None


def check(host: Host, recipe: Recipe, rank: int | None) -> None:
    """Raises UserError where neither way is there for this model."""
    formats.check_model(host, recipe)
    if converter() is not None:
        return
    family = host.architecture.model_type
    get = (
        f"get llama.cpp and set {FOLDER} to its folder: its {SCRIPT} converts what it knows "
        "(or export format model, and convert that yourself)."
    )
    if family not in FAMILIES:
        raise UserError(
            f"GGUF files of {family} models are not written here "
            f"(only {', '.join(FAMILIES)}); {get}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"GGUF needs a package that is not installed: pip install gguf; or {get}")
    flags, _ = granted(formats.pretended(host, recipe), host.architecture)
    # refuses what the keys cannot say
    describe(with_flags(host.model.config, flags), FAMILIES[family])
    gguf_compare.planned(host)


def write(job: Job, folder: Path) -> Generator[Progress, None, Made]:
    """`model.gguf`, and the tokenizer's files and settings beside it."""
    size = sum(p.numel() * p.element_size() for p in job.host.model.parameters())
    room(folder, 2 * size)  # the whole model first, and its GGUF beside it
    with tempfile.TemporaryDirectory(prefix=WORK, dir=folder) as work:
        # the converter reads the name of the folder, and has a file say it
        model = Path(work) / re.sub(r"[^\w.-]+", "-", job.host.name.split("/")[-1])
        model.mkdir()
        made = yield from formats.model(job, model)
        # the settings of what was written, which may have biases that the original has not
        shutil.copyfile(model / CONFIG, folder / CONFIG)
        script = converter()
        if script is not None:
            yield from _converted(script, job, model, folder / FILE)
            notes = [f"Converted by {SCRIPT} of llama.cpp."]
        else:
            count = yield from _written(job, model, folder / FILE)
            notes = [f"{count} tensors written with the package gguf, no quantisation."]
            if width := window(job.host.model.config):
                notes.append(
                    f"The model looks back {width} tokens, llama.cpp over all of them. Up to "
                    f"{width} tokens they compute the same: that is the context in the file."
                )
    yield Progress("gguf", 0, 1, "tokens")
    how = SCRIPT if script is not None else "the studio"
    notes += gguf_compare.written(job.host, folder / FILE, how)
    readable = importlib.util.find_spec("gguf") is not None
    carry(job.host.spec, folder)
    return Made((*made.notes, *notes), check=readable)


def _title(job: Job) -> str:
    """What the file says it is called. Two programs read more into it: transformers takes a model
    called mistral for an architecture, llama.cpp strips spaces after tokens of a phi-3."""
    name = job.recipe.name or job.host.name
    name = re.sub(r"(?i)(phi)-?(3)", r"\1 \2", name)
    return name.title() if name == "mistral" else name


def _converted(script: Path, job: Job, model: Path, out: Path) -> Generator[Progress, None, None]:
    yield Progress("gguf", 0, 1, script.name)
    # its `auto` makes 16 bits of float32
    command = [sys.executable, str(script), str(model), "--outfile", str(out)]
    command += ["--outtype", _common(model), "--model-name", _title(job)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                try:
                    child.wait(0.5)
                except subprocess.TimeoutExpired:
                    yield Progress("gguf", 0, 1, script.name)
        finally:
            child.kill()
            child.wait()
        log.seek(0)
        said = log.read().strip().splitlines() or ["it said nothing"]
    if child.returncode or not out.is_file():
        raise UserError(f"{script} failed: {said[-1][:300]}{_advice(said[-1], job.host)}")
    yield Progress("gguf", 1, 1)


def _common(model: Path) -> str:
    """The converter's word for the type that most matrices of a folder have."""
    kinds: Counter[str] = Counter()
    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            facts = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
        kinds.update(fact.get_dtype() for fact in facts if len(fact.get_shape()) > 1)
    return OUT.get(kinds.most_common(1)[0][0], "auto")


def _advice(said: str, host: Host) -> str:
    """What to do about what the converter says."""
    if found := re.search(r"No module named '([\w.]+)'", said):
        return f". Install what it needs: pip install {found[1]}."
    if "pre-tokenizer was not recognized" in said:
        can = host.architecture.model_type in FAMILIES
        do = f"unset {FOLDER}, and the file is written here" if can else "export format model"
        return f". It knows tokenizers by name, and not this model's: {do}."
    return ""


def _written(job: Job, model: Path, out: Path) -> Generator[Progress, None, int]:
    """Write it here, one tensor at a time: the largest is all that is in memory."""
    import gguf

    host = job.host
    flags, _ = granted(job.edits, host.architecture)
    config = with_flags(host.model.config, flags)
    family = FAMILIES[host.architecture.model_type]
    writer = gguf.GGUFWriter(out, family.arch)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.arch.upper()], host.layers)
    try:
        for key, value in describe(config, family).items():
            getattr(writer, f"add_{key}")(value)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(_title(job))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        gguf_vocabulary.write(writer, gguf_compare.planned(host)[0])
        made: list[tuple[str, Callable[[], Tensor]]] = []
        infos: list[tuple[str, tuple[int, ...], torch.dtype]] = []
        for name, value in frequencies(config).items():
            made.append((name, partial(value.to, torch.float32)))
            infos.append((name, tuple(value.shape), torch.float32))
        for name, shape, dtype, read in _stored(model, config, family):
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise UserError(f"GGUF has no name for {name}; export format model instead.")
            # matrices keep their type; norms and biases are float32, as llama.cpp wants them
            kind = dtype if len(shape) > 1 and dtype in TYPES else torch.float32
            infos.append((known, shape, kind))
            made.append((name, partial(_typed, read, kind)))
        widths = [kind for _, shape, kind in infos if len(shape) > 1]
        common = max(set(widths), key=widths.count)
        writer.add_file_type(int(gguf.LlamaFileType[FILE_TYPES[common]]))
        for name, shape, kind in infos:
            count = torch.Size(shape).numel() * kind.itemsize
            raw = gguf.GGMLQuantizationType[TYPES[kind]]
            number = np.float32 if kind == torch.float32 else np.float16
            writer.add_tensor_info(name, shape, np.dtype(number), count, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, read) in enumerate(made):
            yield Progress("gguf", done, len(made), name)
            value = read()
            bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
            writer.write_tensor_data(bits.contiguous().numpy())
        yield Progress("gguf", len(made), len(made))
    finally:
        writer.close()
    return len(made)


def _typed(read: Callable[[], Tensor], kind: torch.dtype) -> Tensor:
    return read().to(kind)


def _stored(
    folder: Path, config: Any, family: Family
) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Callable[[], Tensor]]]:
    """(name, shape, type, read) of every tensor in a folder's weight files, in order."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            facts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            facts = {name: (tuple(f.get_shape()), f.get_dtype()) for name, f in facts.items()}
        for name, (shape, dtype) in facts.items():
            if name.endswith("rotary_emb.inv_freq"):
                continue  # computed, in old files

            def read(path: Path = path, name: str = name) -> Tensor:
                with safe_open(path, "pt") as file:
                    return turned(name, file.get_tensor(name), config, family)

            yield name, shape, DTYPES.get(dtype, torch.float32), read
