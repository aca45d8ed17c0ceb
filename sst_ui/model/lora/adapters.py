"""LoRA adapters as PEFT stores them: from a folder or the Hub to deltas, and back.

An adapter that would be read in part is an error, as is one that lacks a part.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.discover import fold
from sst_ui.model.architecture.module_roles import is_conv1d, shape_of
from sst_ui.model.load.fingerprint import fingerprints
from sst_ui.model.load.source import check_safetensors, find_files
from sst_ui.model.lora.config import LoraSettings, settings_for
from sst_ui.model.lora.files import (
    CONFIG,
    WEIGHTS,
    check_copies,
    check_files,
    finder,
    local_file,
    read_factors,
)
from sst_ui.model.runtime.host import Host
from sst_ui.model.weights.blueprint import Blueprint
from sst_ui.model.weights.staged_folder import staged
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec, digest


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter of the loaded model.

    Attributes:
        name: how the screen calls it.
        base: the model that it says it was trained on; '' if it does not say.
        deltas: module path -> delta, float32 on the CPU, scale folded in.
        ranks: module path -> rank.
        digest: identity of its weights and settings, for caches.
        notes: what a person should know, in sentences.
    """

    name: str
    base: str
    deltas: Mapping[str, Delta]
    ranks: Mapping[str, int]
    digest: str
    notes: tuple[str, ...] = ()


def read_adapter(adapter: str, host: Host | Blueprint, revision: str | None = None) -> Adapter:
    """Read a PEFT LoRA adapter and fit it to the loaded model.

    Args:
        adapter: a folder, or a Hub id (its two files are fetched, or found in the cache).
        host: the model that it belongs to, or its files.
        revision: branch, tag or commit on the Hub.

    Raises:
        UserError: not found; a pickle; not plain LoRA; of another model; tensors that are missing,
            damaged, not finite, or that nothing accounts for, with their names.
    """
    if not adapter.strip():
        raise UserError("no adapter given; give a folder with a PEFT adapter, or a Hub id.")
    source = find_files(ModelSpec(id=adapter, revision=revision), CONFIG)
    check_files(source)
    data = source.read(CONFIG)
    settings = LoraSettings(data, source.name)
    weights = local_file(source, WEIGHTS)
    check_safetensors(weights)
    factors, copies = read_factors(weights, source.name)
    deltas = _deltas(factors, settings, host)
    check_copies(copies, host, source.name)
    notes = [
        f"The setting {key[:80]} of {source.name} is not known here and was left out."
        for key in settings.unknown
    ]
    mine = host.spec.id.rstrip("/\\")
    if settings.base and _last(settings.base) != _last(mine):
        notes.append(
            f"{source.name} says that it was trained on {settings.base[:120]}, not on {mine}."
        )
    if settings.config.target_modules is None:
        notes.append(f"{source.name} does not say which modules it should hold.")
    if not any(bool(delta.b.any()) or delta.bias is not None for delta in deltas.values()):
        notes.append(f"Every B of {source.name} is zero: it changes nothing.")
    return Adapter(
        name=source.name,
        base=settings.base,
        deltas=deltas,
        ranks={path: delta.rank for path, delta in deltas.items()},
        digest=digest([finish(fingerprints([weights])), data]),
        notes=tuple(notes),
    )


def write_adapter(
    folder: str | Path,
    deltas: Mapping[str, Delta],
    host: Host,
    biases: Mapping[str, Tensor] | None = None,
) -> Path:
    """Save deltas as a PEFT LoRA adapter of scale 1 (lora_alpha = r), in float32.

    The folder appears complete or not at all. Deltas of rank 0 are left out.

    Args:
        folder: must not exist, or be empty.
        deltas: module path -> delta.
        host: the model that they belong to.
        biases: module path -> [out], added to the output of a module that has a delta, in place of
            the delta's own: PEFT's `lora_bias`. Not every reader of adapters knows it, so it is
            written only where needed.

    Returns:
        The folder.

    Raises:
        UserError: there is something in the folder, nothing to save, or a delta does not fit.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists; give a new folder.")
    with staged(folder, kind=None) as part:
        write_files(part, deltas, host, biases)
    return folder


def write_files(
    folder: Path,
    deltas: Mapping[str, Delta],
    host: Host,
    biases: Mapping[str, Tensor] | None = None,
) -> None:
    """The two files of `write_adapter`, into a folder that is there."""
    kept = {path: _padded(deltas[path]) for path in sorted(deltas)}
    kept = {path: delta for path, delta in kept.items() if delta.rank}
    if not kept:
        raise UserError("there is nothing to save: no module changes.")
    tensors = {}
    own = {path: delta.bias for path, delta in kept.items() if delta.bias is not None}
    biases = {**own, **(biases or {})}
    for path, delta in kept.items():
        _fits(path, delta, host, "the edit")
        for letter, factor in (("A", delta.a), ("B", delta.b)):
            if not bool(factor.isfinite().all()):
                raise UserError(f"the edit of {path} holds numbers that are not finite.")
            name = f"base_model.model.{path}.lora_{letter}.weight"
            tensors[name] = factor.detach().to("cpu", torch.float32).contiguous()
        if biases:  # one setting for all modules: those without a bias hold zeros
            shift = biases.get(path, torch.zeros(delta.out))
            name = f"base_model.model.{path}.lora_B.bias"
            tensors[name] = shift.detach().to("cpu", torch.float32).contiguous()
    turned = any(is_conv1d(host.architecture.matrices[path]) for path in kept)
    ranks = {path: delta.rank for path, delta in kept.items()}
    settings = settings_for(ranks, host.spec.id, host.spec.revision, turned, bool(biases))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    readable(folder / WEIGHTS)
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def readable(path: Path) -> None:
    """Give a file the rights that any new file gets; safetensors makes it its owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _deltas(
    factors: Mapping[str, Mapping[str, Tensor]], settings: LoraSettings, host: Host | Blueprint
) -> dict[str, Delta]:
    name, find = settings.name, finder(host)
    places = {module: find(module) for module in factors}
    if lost := sorted(module for module, path in places.items() if path is None):
        known = fold(host.architecture.matrices)
        raise UserError(
            f"{name} does not belong to {host.name}: {len(lost)} of its {len(factors)} modules are "
            f"not linear modules of the model ({', '.join(lost[:3])}). The model has {known}."
        )
    paths = {module: path for module, path in places.items() if path is not None}
    if len(set(paths.values())) < len(paths):
        raise UserError(f"{name} holds two deltas of one module.")
    deltas: dict[str, Delta] = {}
    for module, pair in factors.items():
        path, a, b = paths[module], pair["A"], pair["B"]
        rank = settings.rank(module)
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise UserError(
                f"{module} of {name} has factors {list(b.shape)} and {list(a.shape)}; its {CONFIG} "
                f"says rank {rank}."
            )
        bias, scale = _bias(module, pair, settings), settings.scale(module)
        deltas[path] = Delta(scale * b.float(), a.float(), None if bias is None else scale * bias)
        _fits(path, deltas[path], host, name)
    head = next(iter(host.architecture.linears.get("lm_head", ())), "")
    wanted = settings.targets(host.architecture.matrices, head) or set()
    if missing := sorted(wanted - deltas.keys()):
        raise UserError(
            f"{name} lacks the factors of {len(missing)} modules that its {CONFIG} names "
            f"({', '.join(missing[:3])}): the file is incomplete."
        )
    _check_turned(deltas, settings, host)
    matrices = host.architecture.matrices
    return {path: deltas[path] for path in matrices if path in deltas}  # in the model's order


def _padded(delta: Delta) -> Delta:
    """PEFT knows no bias without factors: zeros of rank 1 go with it."""
    if delta.rank or delta.bias is None:
        return delta
    return Delta(delta.b.new_zeros(delta.out, 1), delta.a.new_zeros(1, delta.inp), delta.bias)


def _bias(module: str, pair: Mapping[str, Tensor], settings: LoraSettings) -> Tensor | None:
    """B's bias [out] where the adapter has one that is not zero; PEFT scales it as it does B A."""
    bias = pair.get("bias")
    if settings.config.lora_bias != (bias is not None):
        has = "lacks" if bias is None else "holds"
        raise UserError(
            f"{settings.name} {has} {module}.lora_B.bias, and its {CONFIG} sets lora_bias "
            f"{str(settings.config.lora_bias).lower()}."
        )
    if bias is not None and bias.shape != pair["B"].shape[:1]:
        raise UserError(
            f"{module} of {settings.name} has a bias {list(bias.shape)} beside a B of "
            f"{list(pair['B'].shape)}."
        )
    return bias.float() if bias is not None and bool(bias.any()) else None


def _fits(path: str, delta: Delta, host: Host | Blueprint, whose: str) -> None:
    module = host.architecture.matrices.get(path)
    if module is None:
        raise UserError(f"{host.name} has no linear module {path!r}.")
    if (delta.out, delta.inp) != shape_of(module):
        raise UserError(
            f"{whose} does not belong to {host.name}: it changes {path} by a matrix "
            f"{[delta.out, delta.inp]}, and the module is {list(shape_of(module))}."
        )


def _check_turned(
    deltas: Mapping[str, Delta], settings: LoraSettings, host: Host | Blueprint
) -> None:
    """`fan_in_fan_out` says that the weights are [in, out]; PEFT corrects it module by module, so
    only a setting that is wrong for all of them tells of a file from elsewhere."""
    turned = {is_conv1d(host.architecture.matrices[path]) for path in deltas}
    if turned == {not settings.fan_in_fan_out}:
        stored = "[in, out] (Conv1D)" if True in turned else "[out, in]"
        raise UserError(
            f"{settings.name} sets fan_in_fan_out {str(settings.fan_in_fan_out).lower()}, but the "
            f"weights of {host.name} are {stored}; correct it in {CONFIG}, or check that the "
            "adapter belongs to this model."
        )


def _last(name: str) -> str:
    """What a model is called, wherever it lies; in the Hub's cache that is not the last folder."""
    name = re.sub(r"^.*models--(?:.+--)?([^/\\]+)[/\\]snapshots[/\\].*$", r"\1", name)
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
