"""From a folder to a model and a tokenizer, safely: safetensors only, nothing missing, no code run.

Knows how to load. Does not know where the folder came from or what the model is for.
"""

import hashlib
import importlib.util
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from sst_ui.errors import UserError
from sst_ui.model.devices import SEVERAL
from sst_ui.model.fit import Report
from sst_ui.recipe import ModelSpec, digest

SAMPLES, SAMPLE = 16, 65536  # pieces of a weight file that go into its identity, and their bytes
OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)


def read_model(spec: ModelSpec, folder: Path, report: Report, kind=AutoModelForCausalLM):
    """Load tokenizer and model from a folder.

    Args:
        kind: the transformers class that knows which model the configuration means.

    Returns:
        (model, tokenizer); the model is on its device.

    Raises:
        UserError: no tokenizer, damaged or missing weights, out of memory, no bitsandbytes.
    """
    tokenizer = _tokenizer(spec, folder)
    settings = {"dtype": getattr(torch, report.dtype)}
    if report.device == SEVERAL:
        settings["device_map"] = spec.device  # several devices: accelerate divides the layers
    elif report.device != "cpu":
        settings["device_map"] = {"": report.device}
    if spec.quantization != "none":
        settings["quantization_config"] = _bitsandbytes(spec, settings["dtype"])
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would report about keys is an error here, or harmless
    try:
        model, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            **settings,
        )
    except SafetensorError as error:
        raise UserError(
            f"the weights of {spec.id} are damaged: {error}; fetch them again."
        ) from error
    except OUT_OF_MEMORY as error:
        raise UserError(
            f"{spec.id} did not fit into the memory of {report.device} after all; free some, or "
            "try model.dtype bfloat16, a quantisation, or a smaller model."
        ) from error
    except (ValueError, RuntimeError, OSError, ImportError, KeyError) as error:
        raise UserError(f"{spec.id} cannot be loaded: {_short(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    # transformers fills what a checkpoint lacks with random numbers and goes on
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{spec.id} lacks {len(missing)} of its weights, for example {missing[0]}: the "
            "checkpoint is incomplete or does not belong to its config.json."
        )
    return model, tokenizer


def identity(
    spec: ModelSpec, folder: Path, files: list[str], commit: str | None, template: str, dtype: str
) -> str:
    """Twelve hex digits for everything that changes what the unedited model computes.

    Args:
        files: names of the weight files. A commit of the Hub stands for all of them; otherwise
            sizes, headers and samples of their bytes do, which takes no time on large models.
        template: the chat template.
        dtype: the type it was loaded in.
    """
    return digest(
        {
            "weights": contents(folder, files, commit),
            "config": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
            "template": template,
            "dtype": dtype,
            "quantization": spec.quantization,
            "enable_thinking": spec.enable_thinking,
        }
    )


def contents(folder: Path, files: list[str], commit: str | None) -> str:
    """Twelve hex digits of the weight files alone, from the same as `identity`."""
    return digest(commit or [_sample(folder / name) for name in files])


def _sample(path: Path) -> str:
    total = path.stat().st_size
    seen = hashlib.sha256(str(total).encode())
    with path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
        seen.update(file.read(header))
        body = max(0, total - 8 - header - SAMPLE)
        for i in range(SAMPLES):
            file.seek(8 + header + body * i // (SAMPLES - 1))
            seen.update(file.read(SAMPLE))
    return seen.hexdigest()


def _tokenizer(spec: ModelSpec, folder: Path):
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=spec.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # tokenizer files fail in as many ways as there are formats
        raise UserError(f"the tokenizer of {spec.id} cannot be read: {_short(error)}") from error


def _bitsandbytes(spec: ModelSpec, dtype: torch.dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization {spec.quantization} needs bitsandbytes, which is not installed: "
            "pip install bitsandbytes, or set it to none."
        )
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
