"""From a folder to a model and a tokenizer, safely: safetensors only, nothing missing, no code
run.
"""

import hashlib
import importlib.util
import re
from collections.abc import Generator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from sst_ui.errors import UserError
from sst_ui.model.load.devices import SEVERAL
from sst_ui.model.load.fingerprint import fingerprints
from sst_ui.model.load.memory import Report, becomes_plain, padded
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec, digest

# Small files that change what a model computes or how it reads and ends a text.
MEANING = (
    "config.json", "generation_config.json", "*.py", "tokenizer*", "vocab*", "merges.txt",
    "*.model", "*.tiktoken", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
SENSES = re.compile(r"vision|visual|audio")  # towers, whose layers count for themselves
OUT_OF_MEMORY = (torch.cuda.OutOfMemoryError, MemoryError)


def read_model(
    spec: ModelSpec, folder: Path, report: Report, kind: Any = AutoModelForCausalLM
) -> tuple[Any, Any, tuple[str, ...]]:
    """Load tokenizer and model from a folder.

    Args:
        kind: the transformers class that knows which model the configuration means.

    Returns:
        (model, tokenizer, warnings); the model is on its device, and nothing of it is a view of a
        file: what happens to the files later does not reach it.

    Raises:
        UserError: no tokenizer, damaged or missing weights, out of memory, no bitsandbytes.
    """
    tokenizer = _tokenizer(spec, folder)
    dtype = getattr(torch, report.dtype)
    settings = _settings(spec, report, dtype)
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would report about keys is said here
    try:
        config, plain = _config(spec, folder, report)
        model, info = kind.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to say which; see below
            **settings,
        )
        if plain:
            model = model.to(dtype)  # it leaves some in the type they are stored in
    except SafetensorError as error:
        raise UserError(
            f"the weights of {spec.id} are damaged: {error}; fetch them again."
        ) from error
    except OUT_OF_MEMORY as error:
        raise UserError(
            f"{spec.id} did not fit into the memory of {report.device} after all; free some, or "
            "try model.dtype bfloat16, a quantisation, or a smaller model."
        ) from error
    except Exception as error:  # a wrong configuration fails in as many ways as there are models
        raise UserError(f"{spec.id} cannot be loaded: {_short(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    _refuse_incomplete(spec, info)
    if report.device == "cpu" and spec.quantization == "none":
        _own(model)
    return model, tokenizer, _unused(spec, model, sorted(info["unexpected_keys"]))


def _settings(spec: ModelSpec, report: Report, dtype: torch.dtype) -> dict[str, Any]:
    """Where the model goes and in which numbers, as arguments of `from_pretrained`."""
    settings: dict[str, Any] = {"dtype": dtype}
    if report.device == SEVERAL:
        settings["device_map"] = spec.device  # several devices: accelerate divides the layers
    elif report.device != "cpu":
        settings["device_map"] = {"": report.device}
    if spec.quantization != "none":
        settings["quantization_config"] = _bitsandbytes(spec, dtype)
    return settings


def _refuse_incomplete(spec: ModelSpec, info: Mapping[str, Any]) -> None:
    """transformers fills what a checkpoint lacks with random numbers and goes on; this does not.

    Args:
        info: `from_pretrained`'s loading info.
    """
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{spec.id} lacks {len(missing)} of its weights, for example {missing[0]}: the "
            "checkpoint is incomplete or does not belong to its config.json."
        )
    if wrong := sorted(info["mismatched_keys"]):
        name, there, wanted = wrong[0]
        raise UserError(
            f"{len(wrong)} weights of {spec.id} have another shape than its config.json says, for "
            f"example {name}: {list(there)}, not {list(wanted)}."
        )


def _own(model: Any) -> None:
    """Copy what is a view of a mapped file, one tensor at a time.

    Otherwise the model changes with its file when that is written to, and the process dies when it
    is cut off.
    """
    for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
        if tensor.device.type == "cpu" and type(tensor) in (Tensor, torch.nn.Parameter):
            tensor.data = tensor.data.clone()


def _unused(spec: ModelSpec, model: Any, names: list[str]) -> tuple[str, ...]:
    """What to say about tensors of the files that the model has no place for."""
    if not names:
        return ()
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = {name: LAYER.search(name) for name in names if not SENSES.search(name)}
    beyond = [name for name, at in found.items() if at and layers and int(at[1]) >= layers]
    shown = (beyond or names)[0]
    text = (
        f"{len(names)} tensors in the files of {spec.id} are not part of the model that its "
        f"config.json describes and are not used, for example {shown[:120]}."
    )
    if beyond:
        text += f" config.json says {layers} layers, and the files hold more."
    return (text,)


def _config(spec: ModelSpec, folder: Path, report: Report) -> tuple[Any, bool]:
    """The configuration to load with, and whether FP8 weights become plain ones by it."""
    config = AutoConfig.from_pretrained(
        folder, trust_remote_code=spec.trust_remote_code, local_files_only=True
    )
    config = padded(config)
    if not becomes_plain(config, report.device):
        return config, False
    stored = config.quantization_config
    if isinstance(stored, dict):
        stored["dequantize"] = True
    else:
        stored.dequantize = True
    return config, True


def identity(spec: ModelSpec, files: str, template: str, dtype: str) -> str:
    """Twelve hex digits for everything that changes what the unedited model computes.

    Args:
        files: `contents` of its folder.
        template: the chat template.
        dtype: the type it was loaded in.
    """
    return digest(
        {
            "files": files,
            "template": template,
            "dtype": dtype,
            "quantization": spec.quantization,
            "enable_thinking": spec.enable_thinking,
        }
    )


def contents(folder: Path, weights: Sequence[str]) -> Generator[Progress, None, str]:
    """Twelve hex digits of all bytes of a model's weights, configuration and tokenizer.

    Args:
        weights: names of the weight files.

    Yields:
        Progress in bytes, where weights have to be read (see `fingerprint`).

    Raises:
        UserError: a file cannot be read, or changes meanwhile.
    """
    found = yield from fingerprints([folder / name for name in weights])
    others = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in MEANING)
    }
    return digest([found, others])


def _tokenizer(spec: ModelSpec, folder: Path) -> PreTrainedTokenizerBase:
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
