"""Merges a safety adapter into a utility adapter: from two folders to one live edit.

Reads both, collects Fisher moments where the method needs them, weighs each module by the table,
and merges. The statistics do not depend on the method or its parameters, so they are kept in memory
and on disk.
"""

import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError, unknown
from sst_ui.jobs.merge import fisher_moments as statistics
from sst_ui.jobs.merge import held_out
from sst_ui.lru import Memory
from sst_ui.maths import kernel
from sst_ui.maths.merge import registry, subspace
from sst_ui.maths.merge.low_rank import Delta, core
from sst_ui.maths.merge.registry import METHODS, Module, Record
from sst_ui.maths.merge.subspace import Moments
from sst_ui.maths.merge.types import Stakes
from sst_ui.model.architecture.discover import fold
from sst_ui.model.architecture.fused_rows import rows_of
from sst_ui.model.architecture.module_roles import is_conv1d, shape_of, weight_of
from sst_ui.model.hooks.low_rank import RowDelta, bias_of
from sst_ui.model.load.source import check_safetensors, find_files
from sst_ui.model.lora.adapters import Adapter, read_adapter
from sst_ui.model.runtime.host import Host
from sst_ui.paths import DEMO
from sst_ui.progress import Progress, part
from sst_ui.recipe import FUSED, MODULES, Merge, ModelSpec, Target

OTHER = "other"  # a linear module that is none of the known kinds
Parts = tuple[tuple[Tensor | slice, float], ...]  # (rows, weight) of a module's parts
# Methods that add up whole deltas, so that biases can be added too -> the target that each has.
SUMS: Mapping[str, Target] = {"task_arithmetic": "additive", "linear": "interpolating"}
SPECTRAL = ("target", "mode", "damping")  # what a spectrum depends on beside the statistics
INPUTS = 0.15  # of the time of `prepare`: to look for input directions, in forward passes only
_kept: Memory[tuple[Module, ...]] = Memory(6)  # statistics of a few pairs of adapters


@dataclass(frozen=True, eq=False)
class Pair:
    """Two adapters on the loaded model, with what was collected for them.

    Attributes:
        modules: every linear module that one of them changes; weight 1.
    """

    utility: Adapter
    safety: Adapter
    modules: tuple[Module, ...]

    @property
    def stakes(self) -> Stakes | None:
        """What each data set has to lose; None where it was not measured."""
        return self.modules[0].stakes if self.modules else None


@dataclass(frozen=True, eq=False)
class Outcome:
    """A merged adapter: its deltas relative to the base, and how they came about.

    Attributes:
        records: module -> kept energy, predicted KL, truncation error.
        parameters: of the method, as used; mu is the one that the budget or the losses chose.
    """

    deltas: Mapping[str, Delta]
    records: Mapping[str, Record]
    parameters: Mapping[str, Any]

    @property
    def live(self) -> RowDelta:
        """The merged adapter as an edit of a row."""
        return RowDelta(self.deltas)


def merge(host: Host, spec: Merge) -> Generator[Progress, None, Outcome]:
    """Carry out a merge.

    Raises:
        UserError: adapters, prompts, a method or parameters that cannot be used, named.
    """
    settings(spec)  # a misspelt parameter should not show after minutes
    pair = yield from prepare(host, spec)
    outcome = combine(host, pair, spec)
    for number in range(1, spec.rounds + 1):
        yield Progress("rounds", number - 1, spec.rounds)
        pair = yield from again(host, spec, pair, outcome)
        outcome = combine(host, pair, spec)
    return outcome


def again(host: Host, spec: Merge, pair: Pair, outcome: Outcome) -> Generator[Progress, None, Pair]:
    """The pair with statistics that count what the merged model says and does as well."""
    merged = yield from statistics.of_merged(host, spec, outcome.live)
    cores = {module.name: module.core for module in pair.modules}
    both = yield from statistics.collect(host, spec, pair.utility, pair.safety, cores, merged)
    modules = tuple(
        replace(m, utility=both["utility"][m.name], safety=both["safety"][m.name])
        for m in pair.modules
    )
    return replace(pair, modules=modules)


def settings(spec: Merge) -> dict[str, Any]:
    """The method's parameters: those of the recipe, checked, its target and Fisher mode included.

    Raises:
        UserError: an unknown method or parameter, or a budget for a method without mu.
    """
    method = METHODS[spec.method]
    known = {p.name for p in method.parameters}
    given: dict[str, Any] = dict(spec.parameters)
    given |= {n: v for n, v in (("target", spec.target), ("mode", spec.fisher)) if n in known}
    if spec.budget is not None and "mu" not in known:
        raise UserError(f"merge.budget chooses mu, and {spec.method} has none; leave it out.")
    if spec.rounds and "moments" not in method.needs:
        raise UserError(
            f"merge.rounds collects statistics of the merged model, and {spec.method} uses none; "
            "leave it out."
        )
    check_gradients(spec)
    return method.check(given)


def check_gradients(spec: Merge) -> None:
    """Refuse Fisher averaging with statistics of the inputs alone, which hold no gradients."""
    if spec.method == "fisher" and spec.fisher == "input":
        raise UserError(
            "method fisher needs the gradients of both tasks, and merge.fisher 'input' collects "
            "none; set it to nearest or kfac."
        )


def prepare(host: Host, spec: Merge) -> Generator[Progress, None, Pair]:
    """Read both adapters and collect what the method needs beside them."""
    check_gradients(spec)
    yield Progress("adapters", 0, 2, spec.utility)
    utility = read_adapter(spec.utility, host)
    yield Progress("adapters", 1, 2, spec.safety)
    safety = read_adapter(spec.safety, host)
    yield Progress("adapters", 2, 2)
    for note in (*utility.notes, *safety.notes):
        yield Progress("adapters", 2, 2, warning=note)
    check_biases(spec, utility, safety)
    needs = METHODS[spec.method].needs
    key: tuple[object, ...] = (host.digest, utility.digest, safety.digest)
    if "moments" in needs:
        sets = [prompt_sets.load(name, spec.samples).digest for name in statistics.sets(spec)]
        key = (
            *key,
            *sets,
            spec.lookalike_weight,
            spec.fisher,
            spec.target,
            spec.inputs,
            statistics.read_part(spec),
        )
    found = _kept.get(key) if host.digest else None
    if found is None:
        paths = sorted({*utility.deltas, *safety.deltas})
        wider: Mapping[str, Tensor] = {}
        begin = INPUTS if "moments" in needs and spec.inputs else 0.0
        if begin:
            wider = yield from part(statistics.inputs(host, spec, utility, paths), 0.0, begin)
        cores = {
            path: core(utility.deltas.get(path), safety.deltas.get(path), wider.get(path))
            for path in paths
        }
        both: Mapping[str, Mapping[str, Moments]] = {"utility": {}, "safety": {}}
        stakes = None
        if "losses" in needs:
            losses = held_out.stakes(host, spec, utility, safety)
            stakes = yield from part(losses, begin, begin)
        if "moments" in needs:
            job = statistics.collect(host, spec, utility, safety, cores)
            both = yield from part(job, begin, 1.0)
        found = tuple(
            Module(
                path,
                *_place(host, path),
                core=cores[path],
                utility=both["utility"].get(path),
                safety=both["safety"].get(path),
                stakes=stakes,
            )
            for path in cores
        )
        _kept.put(key, found)
    if "unaligned" in needs:
        found = registry.placed([replace(m, unaligned=v) for m, v in _unaligned(host, spec, found)])
    return Pair(utility, safety, found)


def combine(host: Host, pair: Pair, spec: Merge) -> Outcome:
    """Merge module by module; after `prepare` this takes a fraction of a second on the demo."""
    parameters = settings(spec)
    check_biases(spec, pair.utility, pair.safety)
    cells = by_part(host, spec, [m.name for m in pair.modules])
    weights = {name: parts[0][1] for name, parts in cells.items() if len(parts) == 1}
    whole = [replace(m, weight=weights[m.name]) for m in pair.modules if m.name in weights]
    if spec.budget is not None:
        _check_whole(cells)
        found = spectra(whole, towards(spec, parameters))
        active = {name: weights[name] for name in found}
        bend = registry.family(spec.method, parameters)
        parameters["mu"] = subspace.mu_for_budget(found, spec.budget, active, bend)
    merged = {m.name: registry.merge(m, spec.method, spec.rank, **parameters) for m in whole}
    for module in pair.modules:
        if module.name not in weights:
            merged[module.name] = registry.merge_rows(
                module, cells[module.name], spec.method, spec.rank, **parameters
            )
    merged = {m.name: merged[m.name] for m in pair.modules}  # in their own order
    if "base_mu" in parameters:
        parameters["mu"] = registry.price(parameters, pair.stakes)
    return Outcome(
        {name: _biased(m.delta, name, pair, spec, cells[name]) for name, m in merged.items()},
        {name: m.record for name, m in merged.items()},
        parameters,
    )


def check_biases(spec: Merge, utility: Adapter, safety: Adapter) -> None:
    """Refuse adapters with biases (PEFT's lora_bias) where the method merges weights only."""
    for adapter in (utility, safety):
        if spec.method not in SUMS and any(d.bias is not None for d in adapter.deltas.values()):
            raise UserError(
                f"{adapter.name} adds biases (lora_bias), and {spec.method} merges weights only. "
                f"Use one of {', '.join(SUMS)}, or an adapter without lora_bias."
            )


def _biased(delta: Delta, name: str, pair: Pair, spec: Merge, parts: Parts) -> Delta:
    """With the adapters' biases, summed as the method sums their deltas."""
    weight = torch.empty(delta.out, dtype=torch.float64)  # [out]
    for rows, value in parts:
        weight[rows] = value
    share = {"utility": 1 - weight if spec.method == "linear" else 1.0, "safety": weight}
    found = {side: getattr(pair, side).deltas.get(name) for side in share}
    bias = bias_of((d, share[side]) for side, d in found.items() if d is not None)
    return delta if bias is None else replace(delta, bias=bias.float())


def towards(spec: Merge, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the target that the method aims at: some have no choice."""
    return {**parameters, "target": SUMS.get(spec.method, spec.target)}


def spectra(modules: list[Module], parameters: Mapping[str, Any]) -> dict:
    """Module -> spectrum, for the predicted curve and the choice of mu."""
    chosen = {n: parameters[n] for n in SPECTRAL if n in parameters}
    return {m.name: registry.spectrum(m, **chosen) for m in modules}


def table(host: Host, spec: Merge, paths: Iterable[str] | None = None) -> dict[str, float]:
    """Module path -> w κ(l) t_m. The head has no layer: there it is the safety weight times t.

    Args:
        paths: of the modules asked for; all linear modules by default.

    Raises:
        UserError: a fused module whose parts have weights of their own, see `by_part`.
    """
    cells = by_part(host, spec, paths)
    _check_whole(cells)
    return {path: parts[0][1] for path, parts in cells.items()}


def by_part(host: Host, spec: Merge, paths: Iterable[str] | None = None) -> dict[str, Parts]:
    """Module path -> its parts with w κ(l) t_m each: one part with all rows, or where q, k and v
    (gate and up) lie in one matrix and the table tells them apart, each of them.

    Args:
        paths: of the modules asked for; all linear modules by default.

    Raises:
        UserError: such a matrix whose rows are not known to be which.
    """
    linears = host.architecture.linears
    kinds = {path: kind for kind, names in linears.items() for path in names}
    parts = {part for kind in linears for part in FUSED.get(kind, (kind,))}
    held = {name for part in parts for name in kernel.names(part)}
    if strangers := spec.weights.overrides.keys() - held:
        raise unknown("module kind", min(strangers), held)
    columns = tuple(dict.fromkeys(p for kind in MODULES for p in FUSED.get(kind, (kind,))))
    alpha = kernel.table(spec.weights, host.layers, (*columns, OTHER))  # [layers, columns]
    place = {kind: i for i, kind in enumerate((*columns, OTHER))}
    found: dict[str, Parts] = {}
    for path in kinds if paths is None else paths:
        kind, (_, layer) = kinds.get(path, OTHER), _place(host, path)
        if layer is None:
            weight = spec.weights.strength * spec.weights.modules.get(kind, 1.0)
            found[path] = ((slice(None), weight),)
            continue
        names = FUSED.get(kind, (kind if kind in place else OTHER,))
        values = [float(alpha[layer, place[name]]) for name in names]
        if len(set(values)) == 1:
            found[path] = ((slice(None), values[0]),)
            continue
        rows = _rows(host, path, kind)
        if rows is None:
            told = ", ".join(
                f"{name} {value:.3g}" for name, value in zip(names, values, strict=True)
            )
            raise UserError(
                f"{told} have different weights but share one matrix, {path}, whose row layout is "
                f"not known for {host.architecture.model_type}. Give them one factor: "
                f"weights.modules.{kind}."
            )
        found[path] = tuple((rows[name], v) for name, v in zip(names, values, strict=True))
    return found


def _rows(host: Host, path: str, kind: str) -> Mapping[str, Tensor] | None:
    config = host.model.config.get_text_config(decoder=True)
    return rows_of(config, kind, shape_of(host.architecture.matrices[path])[0])


def _check_whole(cells: Mapping[str, Parts]) -> None:
    split = [path for path, parts in cells.items() if len(parts) > 1]
    if split:
        raise UserError(
            f"the parts of {fold(split)} have different weights, and a KL budget needs a predicted "
            "cost, which only matrices with a single weight have. Give q, k and v one factor (and "
            "gate and up), or no budget."
        )


def _place(host: Host, path: str) -> tuple[str, int | None]:
    """(kind, layer) of a module by its path."""
    kind = next((k for k, names in host.architecture.linears.items() if path in names), "other")
    for number, layer in enumerate(host.architecture.layer_names):
        if path.startswith(f"{layer}."):
            return kind, number
    return kind, None


def _unaligned(
    host: Host, spec: Merge, modules: tuple[Module, ...]
) -> Generator[tuple[Module, Tensor]]:
    """Each module with W_aligned − W_unaligned [out, in]."""
    folder = Path(os.path.expanduser(spec.unaligned)) if spec.unaligned else DEMO / "unaligned"
    if not spec.unaligned and host.spec.id != "demo":
        raise UserError(
            f"{spec.method} needs an unaligned checkpoint: name its folder in merge.unaligned."
        )
    weights: dict[str, Tensor] = {}
    for name in find_files(ModelSpec(id=str(folder.absolute()))).weights():
        check_safetensors(folder / name)
        weights |= load_file(folder / name)
    for module in modules:
        aligned = weight_of(host.architecture.matrices[module.name])
        name = f"{module.name}.weight"
        if name not in weights and module.kind == "lm_head":
            name = "model.embed_tokens.weight"  # a tied head
        if name not in weights or weights[name].shape != aligned.shape:
            raise UserError(
                f"{folder} has no {name} of shape {list(aligned.shape)}: it is not a checkpoint of "
                f"{host.name}."
            )
        difference = aligned.detach().float().cpu() - weights[name].to(torch.float32)
        turned = is_conv1d(host.architecture.matrices[module.name])
        yield module, difference.mT if turned else difference
