"""The files of a PEFT LoRA adapter: what is in them, and which module each tensor is for.

A tensor that nothing here accounts for is an error that names it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.model.load import hub
from sst_ui.model.load.source import ADAPTER as CONFIG
from sst_ui.model.load.source import Source
from sst_ui.model.runtime.host import Host
from sst_ui.model.weights.blueprint import Blueprint

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
FACTOR = re.compile(r"^base_model\.model\.(.+)\.lora_(A|B)(?:\.default)?\.weight$")
BIAS = re.compile(r"^base_model\.model\.(.+)\.lora_B(?:\.default)?\.bias$")  # of `lora_bias`
COPY = re.compile(r"^(?:base_model\.model\.)?(.+?)(?:\.base_layer)?\.weight$")
# What else a tensor's name can tell, and what it means.
FOREIGN = {
    "lora_magnitude_vector": "DoRA, which is not a low-rank change",
    "lora_embedding_": "a LoRA of the embedding, and only linear modules can be merged",
    "modules_to_save": "whole retrained modules beside the low-rank changes",
    ".bias": "biases, and only weights can be merged",
}
SENSES = re.compile(r"vision|visual|audio")  # towers whose layers may have the text model's names
SAME = 2**-7  # a copy of a base weight in bfloat16 is as near as this, relatively


def check_files(source: Source) -> None:
    """Refuse what holds no adapter, or holds it as a pickle."""
    files, name = source.files, source.name
    if CONFIG not in files:
        kind = "a model, not an adapter" if "config.json" in files else "not a PEFT adapter"
        raise UserError(f"{name} is {kind}: it has no {CONFIG}.")
    if WEIGHTS not in files:
        if PICKLE in files:
            raise UserError(
                f"{name} has its weights as a pickle ({PICKLE}), which can run any code when "
                "opened. Only safetensors are read; convert it once, where you trust the file: "
                "load it with PEFT and save_pretrained(folder)."
            )
        raise UserError(f"{name} has no weights: {WEIGHTS} is not there.")


def local_file(source: Source, name: str) -> Path:
    """The path of one of the files, fetched if need be."""
    if source.folder is not None:
        return source.folder / name
    return Path(hub.fetch(source.spec.id, name, source.commit))


def read_factors(path: Path, name: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """({module in the adapter -> {"A": .., "B": ..}, with lora_bias "bias" too}, {module -> copy
    of a base weight})."""
    factors: dict[str, dict[str, Tensor]] = {}
    copies: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118, it is no mapping
            tensor = file.get_tensor(key)
            if not tensor.is_floating_point():
                raise UserError(
                    f"{key} of {name} holds {tensor.dtype}, not floating-point numbers."
                )
            if not bool(tensor.float().isfinite().all()):
                raise UserError(
                    f"{key} of {name} holds NaN or infinite numbers; the adapter is damaged."
                )
            if found := BIAS.match(key):
                factors.setdefault(found[1], {})["bias"] = tensor
                continue
            if foreign := next((why for part, why in FOREIGN.items() if part in key), None):
                raise UserError(f"{name} holds {key}: {foreign}. Only plain LoRA can be merged.")
            if found := FACTOR.match(key):
                factors.setdefault(found[1], {})[found[2]] = tensor
            elif (found := COPY.match(key)) and "lora_" not in key:
                copies[found[1]] = tensor
            else:
                raise UserError(f"{name} holds {key}, which is not part of a LoRA adapter.")
    if not factors:
        raise UserError(f"{name} holds no LoRA factors.")
    for module, pair in factors.items():
        if missing := [letter for letter in "AB" if letter not in pair]:
            raise UserError(f"{name} lacks {module}.lora_{missing[0]}.weight.")
    return factors, copies


def check_copies(copies: Mapping[str, Tensor], host: Host | Blueprint, name: str) -> None:
    """PEFT stores the embeddings of the base beside some adapters: fine if they are the base's."""
    find = finder(host, {path: None for path, _ in host.model.named_modules()})
    for module, copy in copies.items():
        path = find(module)
        weight = None if path is None else _weight(host, path)
        if weight is None:
            raise UserError(f"{name} holds {module}.weight, which {host.name} does not have.")
        same = weight.shape == copy.shape and torch.allclose(
            weight.detach().float().cpu(), copy.float(), rtol=SAME, atol=1e-6
        )
        if not same:
            raise UserError(
                f"{name} holds {module}.weight {list(copy.shape)}, which differs from the "
                f"{list(weight.shape)} of {host.name}: the embeddings were retrained or resized, "
                "and only low-rank changes of linear modules can be merged."
            )


def _weight(host: Host | Blueprint, path: str) -> Tensor | None:
    """The weight of a module, from the files where the model is a skeleton."""
    weight = getattr(host.model.get_submodule(path), "weight", None)
    if weight is None or not weight.is_meta or isinstance(host, Host):
        return weight
    return host.read(f"{path}.weight")


def finder(host: Host | Blueprint, known: Mapping | None = None) -> Callable[[str], str | None]:
    """Adapter's module name -> the model's: as it stands, else by layer and what follows, since
    wrappers put different words in front (`language_model.model.`, `model.`)."""
    known = host.architecture.matrices if known is None else known
    layers = host.architecture.layer_names[0].split(".")[-2]  # `layers`, or `h` in GPT-2

    def short(path: str) -> str:
        found = re.search(rf"(?:^|\.)({layers}\.\d+\..+)$", path)
        return found[1] if found else path.rpartition(".")[2]

    shorts: dict[str, list[str]] = {}
    for path in known:
        shorts.setdefault(short(path), []).append(path)

    def find(module: str) -> str | None:
        if module in known:
            return module
        there = shorts.get(short(module), ())
        return there[0] if len(there) == 1 and not SENSES.search(module) else None

    return find
