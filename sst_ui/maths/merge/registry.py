"""Merging two adapters: one registry of methods, each a pure function of one module.

A method returns what changes relative to the base, Δ_U + w · (the edit), with w the module's weight
in the table. To add one, write the function and decorate it: its parameters, with defaults, ranges
and words, become the controls of the command line and the studio.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.merge import baselines, eigen
from sst_ui.maths.merge.low_rank import Core, Delta, core, truncate
from sst_ui.maths.merge.parameters import Dial, Method, Words, described
from sst_ui.maths.merge.subspace import (
    HIGHEST,
    Filter,
    Moments,
    Spectrum,
    above,
    scaled,
    soft,
    top,
)
from sst_ui.maths.merge.types import Change, Merged, Module, Record, Stakes, spectrum
from sst_ui.recipe import GROUPS, KINDS, Target
from sst_ui.recipe import Fisher as Mode
from sst_ui.registry import Registry

__all__ = [
    "METHODS", "Merged", "Module", "Record", "family", "merge", "merge_rows", "placed", "price",
    "spectrum",
]  # fmt: skip

ATTENTION, MLP = (
    tuple(kind for kind, role in GROUPS.items() if role == wanted) for wanted in KINDS
)

METHODS: Registry[Method] = Registry("merge method")

Mu = Annotated[float, Dial(0, HIGHEST, 0.1, "price of utility; 0 keeps the whole edit", log=True)]
BaseMu = Annotated[float, Dial(0, HIGHEST, 0.1, "mu where both data sets weigh the same", log=True)]
Adapt = Annotated[float, Dial(0, 4, 0.1, "how far held-out losses move mu; 0 not at all")]
Stages = Annotated[int, Dial(1, 16, 1, "times that the rest is filtered again")]
K = Annotated[int, Dial(0, 4096, 1, "directions kept in each module")]
Ratio = Annotated[float, Dial(0, 1, 0.01, "share of the other directions that is kept")]
Attention = Annotated[float, Dial(0, 4, 0.1, "factor of q, k, v and o")]
Mlp = Annotated[float, Dial(0, 4, 0.1, "factor of gate, up and down")]
Head = Annotated[float, Dial(0, 20, 0.1, "factor of lm_head")]
Towards = Annotated[Target, Words("target: add the safety edit, or move towards it")]
Sides = Annotated[Mode, Words("Fisher: both sides (nearest, kfac), inputs only, or the block")]
Damping = Annotated[float, Dial(0, 1, 0.001, "relative damping of the utility Fisher", log=True)]
Selected = Annotated[
    float, Dial(0, 1, 0.01, "share of modules, lowest cosines first, that may count as unsafe")
]
Threshold = Annotated[float, Dial(-1, 1, 0.01, "cosine below which a module may count as unsafe")]


def method(
    name: str, *, title: str, paper: str, needs: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Decorate a function (module, **parameters) to make it a method.

    Raises:
        UserError: a name that is taken.
    """

    def add(run: Callable) -> Callable:
        METHODS.add(described(run, name, title, paper, needs))
        return run

    return add


def merge(
    module: Module, name: str = "sst", rank: int | None = None, **parameters: object
) -> Merged:
    """Merge one module.

    Args:
        module: with the moments or the unaligned difference that the method needs.
        name: of a method in `METHODS`.
        rank: of the result at most. By default whatever is exact, at most r_U + r_S; the dense
            methods are truncated to r_U + r_S, with the error in the record.
        parameters: of the method; others are its defaults.

    Raises:
        UserError: an unknown method or parameter, a value out of range, something needed missing.
    """
    row = METHODS[name]
    values = row.check(parameters)
    if not math.isfinite(module.weight):
        raise UserError(f"the weight of {module.name} is {module.weight}; give a finite number.")
    if module.weight == 0:
        change = Change(torch.zeros_like(module.core.utility), kept=0.0, size=0.0)
    elif module.core.q == 0:  # neither adapter does anything here
        change = Change(torch.zeros_like(module.core.utility))
    else:
        row.require(module)
        change = row.run(module, **values)
    return _finish(module, change, rank)


def merge_rows(
    module: Module,
    parts: Sequence[tuple[Tensor | slice, float]],
    name: str = "sst",
    rank: int | None = None,
    **parameters: Any,
) -> Merged:
    """Merge a fused module whose parts have weights of their own: q, k and v in one matrix.

    The method sees the whole module, once under each weight; each part takes its rows from the
    merge under its weight. The result's rank is the lowest that holds all of them, or `rank`.

    Args:
        parts: (numbers of its rows, its weight); together they are all rows.

    Raises:
        UserError: as `merge`.
    """
    b, a, lost, note = [], [], 0.0, ""
    for weight in dict.fromkeys(weight for _, weight in parts):
        whole = merge(replace(module, weight=weight), name, **parameters)
        mine = torch.zeros(module.core.u.shape[0], 1, dtype=torch.bool)
        for rows, other in parts:
            mine[rows] |= other == weight
        b.append(torch.where(mine.to(whole.delta.b.device), whole.delta.b, 0))
        a.append(whole.delta.a)
        lost, note = math.hypot(lost, whole.record.error), whole.record.note
    own = core(Delta(torch.cat(b, 1), torch.cat(a, 0)), None)
    delta, cut = own.delta(own.utility, rank)
    record = Record(None, None, None, math.hypot(lost, cut), delta.rank, note)
    return Merged(delta, record)


@method("sst", title="SST, soft", paper="this project", needs=("moments",))
def sst(
    module: Module,
    mu: Mu = 30.0,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Weigh each direction by λ / (λ + μ): what matters to safety and not to utility stays."""
    return _filtered(module, soft(mu), spectrum(module, target, mode, damping))


@method("sst_topk", title="SST, k directions", paper="this project", needs=("moments",))
def sst_topk(
    module: Module,
    k: K = 128,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Keep the k directions of each module with the largest λ."""
    return _filtered(module, top(k), spectrum(module, target, mode, damping))


@method("sst_residual", title="SST, residual ratio", paper="this project", needs=("moments",))
def sst_residual(
    module: Module,
    k: K = 128,
    ratio: Ratio = 0.2,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Keep k directions in full and a share of all others."""
    return _filtered(module, top(k, rest=ratio), spectrum(module, target, mode, damping))


@method("sst_layerwise", title="SST, layer-wise", paper="this project", needs=("moments",))
def sst_layerwise(
    module: Module,
    k: K = 5,
    attention: Attention = 1.0,
    mlp: Mlp = 0.3,
    lm_head: Head = 3.0,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Keep k directions and weigh them by kind of module, on top of the weight table."""
    g = scaled(top(k), factors(attention, mlp, lm_head).get(module.kind, 1.0))
    return _filtered(module, g, spectrum(module, target, mode, damping))


@method("sst_ranks", title="SST, rank per module", paper="this project", needs=("moments",))
def sst_ranks(
    module: Module,
    mu: Mu = 30.0,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Keep the directions with λ above μ: one bar for all modules, a k of its own for each."""
    parts = spectrum(module, target, mode, damping)
    g = above(mu)
    return replace(_filtered(module, g, parts), note=f"k {int(g(parts.eigenvalues).sum())}")


@method("sst_staged", title="SST, in stages", paper="this project", needs=("moments",))
def sst_staged(
    module: Module,
    mu: Mu = 100.0,
    stages: Stages = 3,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Filter by λ / (λ + μ), then what that left of the edit, and so on: iterated Tikhonov."""
    return _filtered(module, soft(mu, stages), spectrum(module, target, mode, damping))


@method("sst_adaptive", title="SST, adaptive", paper="this project", needs=("moments", "losses"))
def sst_adaptive(
    module: Module,
    base_mu: BaseMu = 30.0,
    adapt: Adapt = 1.0,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Weigh the two data sets by what each loses, on held-out prompts, without its own adapter."""
    mu = price({"base_mu": base_mu, "adapt": adapt}, module.stakes)
    return _filtered(module, soft(mu), spectrum(module, target, mode, damping))


@method("sst_combined", title="SST, combined", paper="this project", needs=("moments", "losses"))
def sst_combined(
    module: Module,
    base_mu: BaseMu = 100.0,
    adapt: Adapt = 1.0,
    stages: Stages = 3,
    ratio: Ratio = 0.1,
    attention: Attention = 1.0,
    mlp: Mlp = 0.3,
    lm_head: Head = 3.0,
    target: Towards = "additive",
    mode: Sides = "nearest",
    damping: Damping = 1e-3,
) -> Change:
    """Adaptive weights, stages, a residual ratio and factors by kind of module, all at once."""
    mu = price({"base_mu": base_mu, "adapt": adapt}, module.stakes)
    factor = factors(attention, mlp, lm_head).get(module.kind, 1.0)
    g = scaled(soft(mu, stages, ratio), factor)
    return _filtered(module, g, spectrum(module, target, mode, damping))


def price(parameters: Mapping[str, Any], stakes: Stakes | None) -> float:
    """The μ that a method filters with.

    Args:
        parameters: of the method; with mu, or with base_mu and adapt.
        stakes: for the latter.
    """
    if "mu" in parameters:
        return float(parameters["mu"])
    assert stakes is not None  # `needs` says so
    return stakes.price(parameters["base_mu"], parameters["adapt"])


def family(name: str, parameters: Mapping[str, Any]) -> Callable[[float], Filter]:
    """μ -> filter, without factors of modules; the soft one for a method that has no price."""
    if name == "sst_ranks":
        return above
    if "stages" in parameters:
        stages, ratio = int(parameters["stages"]), float(parameters.get("ratio", 0.0))
        return lambda mu: soft(mu, stages, ratio)
    return soft


def factors(attention: float, mlp: float, lm_head: float) -> dict[str, float]:
    """Kind of module -> its factor."""
    return dict.fromkeys(ATTENTION, attention) | dict.fromkeys(MLP, mlp) | {"lm_head": lm_head}


@method("fisher", title="Fisher averaging", paper="arXiv 2111.09832", needs=("moments",))
def fisher(
    module: Module,
    price: Annotated[float, Dial(1e-6, 1e6, 0.1, "weight of the utility Fisher", log=True)] = 1.0,
) -> Change:
    """(F_S Δ_S + p F_U Δ_U) / (F_S + p F_U), entry by entry, with diagonal Fisher matrices."""
    safety, utility = (_diagonal(module.core, m) for m in (module.safety, module.utility))
    share = safety / (safety + price * utility).clamp(min=torch.finfo(safety.dtype).tiny)
    known, wanted = _dense(module)
    return _whole(module, known + module.weight * share * (wanted - known))


@method("task_arithmetic", title="Task arithmetic", paper="arXiv 2212.04089")
def task_arithmetic(module: Module) -> Change:
    """Δ_U + w Δ_S, Ilharco et al. 2023."""
    return _straight(module, module.core.safety)


@method("linear", title="Linear interpolation", paper="arXiv 2203.05482")
def linear(module: Module) -> Change:
    """(1 − w) Δ_U + w Δ_S, the mean of two model soups by Wortsman et al. 2022."""
    return _straight(module, module.core.safety - module.core.utility)


@method("ties", title="TIES", paper="arXiv 2306.01708")
def ties(
    module: Module,
    density: Annotated[float, Dial(0.01, 1, 0.01, "share of entries kept when trimming")] = 0.2,
    scale: Annotated[float, Dial(0, 4, 0.1, "factor of the merged change")] = 1.0,
) -> Change:
    """Trim, elect signs, disjoint mean; the safety adapter has weight w."""
    both = _dense(module)
    return _whole(module, scale * baselines.ties(both, (1.0, module.weight), density))


@method("dare", title="DARE", paper="arXiv 2311.03099")
def dare(
    module: Module,
    drop: Annotated[float, Dial(0, 0.99, 0.01, "share of entries dropped at random")] = 0.5,
    seed: Annotated[int, Dial(0, 9999, 1, "seed of the random draws")] = 0,
) -> Change:
    """Drop entries of both at random, rescale, and add; every module draws for itself."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{seed} {module.name}".encode()))
    utility, safety = (baselines.dare(delta, drop, draw) for delta in _dense(module))
    return _whole(module, utility + module.weight * safety)


@method("safe_lora", title="Safe LoRA", paper="arXiv 2405.16833", needs=("unaligned",))
def safe_lora(module: Module, selected: Selected = 0.5, threshold: Threshold = 1.0) -> Change:
    """C Δ_U in the modules where cos(Δ_U, C Δ_U) is lowest; the safety adapter is not used."""
    utility, _ = module.core.delta(module.core.utility)
    projected, cosine = _aligned(module, utility)
    if not _unsafe(module, cosine, selected, threshold):
        return Change(delta=utility, note=_note("kept", cosine))
    w = module.weight
    mixed = Delta((1 - w) * utility.b + w * projected.b.to(utility.b), utility.a)
    return Change(delta=mixed, note=_note("projected", cosine))


@method("safe_merge", title="SafeMERGE", paper="arXiv 2503.17239", needs=("unaligned",))
def safe_merge(
    module: Module,
    selected: Selected = 0.5,
    threshold: Threshold = 1.0,
    share: Annotated[float, Dial(0, 1, 0.01, "share of the safety adapter where merged")] = 0.2,
) -> Change:
    """(1 − s) Δ_U + s Δ_S in the modules where cos(Δ_U, C Δ_U) is lowest, Δ_U elsewhere."""
    utility, _ = module.core.delta(module.core.utility)
    _, cosine = _aligned(module, utility)
    unsafe = _unsafe(module, cosine, selected, threshold)
    w = module.weight * share if unsafe else 0.0
    d = module.core.safety - module.core.utility
    note = _note("merged" if unsafe else "kept", cosine)
    return Change(w * d, kept=abs(w), size=abs(w), note=note)


def placed(modules: Sequence[Module]) -> tuple[Module, ...]:
    """The modules with the `percentile` of each one's cosine(Δ_U, C Δ_U) among all.

    Safe LoRA's published code can choose a number of layers, those of the lowest cosines, as well
    as all below a threshold; a percentile is that for a model of any size. 0 for the lowest, and
    for a module that has no cosine, which no method takes for unsafe.

    Args:
        modules: all those of a merge, with `unaligned`.
    """
    cosines = [_aligned(m, m.core.delta(m.core.utility)[0])[1] for m in modules]
    known = [cosine for cosine in cosines if not math.isnan(cosine)]
    return tuple(
        replace(m, percentile=sum(other < cosine for other in known) / max(1, len(known)))
        for m, cosine in zip(modules, cosines, strict=True)
    )


def _unsafe(module: Module, cosine: float, selected: float, threshold: float) -> bool:
    """Whether a module is among the selected share and its cosine below the threshold."""
    assert module.percentile is not None  # `needs` says so
    return cosine < threshold and module.percentile < selected


def _aligned(module: Module, utility: Delta) -> tuple[Delta, float]:
    assert module.unaligned is not None  # `needs` says so
    return baselines.aligned(utility, module.unaligned)


def _diagonal(space: Core, moments: Moments | None) -> Tensor:
    """[out, in] diagonal of G ⊗ A in the weights' own coordinates, of mean 1."""
    assert moments is not None  # `needs` says so
    if moments.g is None:
        raise UserError(
            "method fisher needs the gradients of both tasks; collect them with nearest or kfac."
        )
    ends = ((space.u, moments.g), (space.r, moments.a))
    rows, columns = ((b.double() @ m.to(b.device).double() * b).sum(1) for b, m in ends)
    both = torch.outer(rows, columns).clamp(min=0)
    return (both / both.mean().clamp(min=torch.finfo(both.dtype).tiny)).to(space.u)


def _note(done: str, cosine: float) -> str:
    return f"{done}: nothing to compare" if math.isnan(cosine) else f"{done}: cosine {cosine:.3f}"


def _straight(module: Module, d: Tensor) -> Change:
    return Change(module.weight * d, kept=abs(module.weight), size=abs(module.weight))


def _filtered(module: Module, g: Filter, parts: Spectrum) -> Change:
    g = scaled(g, module.weight)
    kl = parts.predicted_kl(g)  # nan after a forward-only pass
    known = None if math.isnan(kl) else kl
    return Change(parts.edit(g), kept=parts.kept(g), size=parts.size(g), kl=known)


def _dense(module: Module) -> tuple[Tensor, Tensor]:
    """Both deltas [out, in] in the factors' type: matrices of the model's size."""
    space = module.core
    utility, safety = (space.u @ c.to(space.u) @ space.r.mT for c in (space.utility, space.safety))
    return utility, safety


def _whole(module: Module, dense: Tensor) -> Change:
    utility, safety = _dense(module)
    size = float(safety.norm())
    return Change(dense=dense, size=float((dense - utility).norm()) / size if size else None)


def _finish(module: Module, change: Change, rank: int | None) -> Merged:
    """Truncate, and say what was lost."""
    space, kl = module.core, change.kl
    if change.edit is not None:
        total = space.utility + change.edit
        delta, error = space.delta(total, rank)
        kl = _cost(module, change.edit) if kl is None else kl
    elif change.dense is not None:
        left, right, error = truncate(change.dense, sum(space.ranks) if rank is None else rank)
        delta = Delta(left.to(space.u), right.to(space.r))
    else:
        assert change.delta is not None  # a change is one of the three
        delta, error = change.delta, 0.0
        if rank is not None and rank < delta.rank:
            own = core(delta, None)
            delta, error = own.delta(own.utility, rank)
    numbers = (change.kept, change.size, kl, error, delta.rank)
    return Merged(delta, Record(*numbers, change.note))


def _cost(module: Module, edit: Tensor) -> float | None:
    """½ vec(E)ᵀ (G ⊗ A) vec(E) on the utility data, where its gradients are known."""
    moments = module.utility
    if moments is None or moments.g is None:
        return None
    pair = (eigen.symmetric(moments.g), eigen.symmetric(moments.a))
    return float(eigen.half_square(edit, pair))
