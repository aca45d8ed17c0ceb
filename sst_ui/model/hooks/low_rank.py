"""Low-rank deltas while the model computes: y' = y + s ((x Aᵀ) Bᵀ + b), on some rows of a batch.

No weight is touched, so it works the same on quantised modules. Deltas come first and ablations
after: a row with both computes as a model whose weights were merged and then edited, whatever the
order in its tuple.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sst_ui.errors import UserError
from sst_ui.maths.directions import Directions
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.discover import Architecture, fold
from sst_ui.model.architecture.module_roles import device_of, shape_of
from sst_ui.model.hooks.row_plan import Plan, by_rows, index_of

Scaled = tuple[Delta, float]  # one delta of a module, and how much of it


@dataclass(frozen=True, eq=False)
class RowDelta:
    """Low-rank deltas of one row of a batch: W + s B A in every module named.

    Attributes:
        deltas: module path -> delta. Rows that hold the same `Delta` objects share a product.
        scale: s, one number for all modules or one each; a module that is missing has 0. Where s is
            0 nothing is computed.
    """

    deltas: Mapping[str, Delta]
    scale: float | Mapping[str, float] = 1.0

    def __post_init__(self) -> None:
        scales = self.scale.values() if isinstance(self.scale, Mapping) else [self.scale]
        if not np.isfinite([*scales]).all():
            raise UserError("the deltas' scales hold a number that is not finite.")
        if isinstance(self.scale, Mapping) and (extra := [*self.scale.keys() - self.deltas.keys()]):
            raise UserError(f"a scale is given for {fold(extra)}, which no delta changes.")

    def active(self) -> dict[str, Scaled]:
        """Path -> (delta, scale) of every module that this changes."""
        scale = self.scale
        scales = {
            path: scale.get(path, 0.0) if isinstance(scale, Mapping) else scale
            for path in self.deltas
        }
        return {
            path: (self.deltas[path], float(s))
            for path, s in scales.items()
            if s and (self.deltas[path].rank or self.deltas[path].bias is not None)
        }

    def weighed(self) -> dict[str, Delta]:
        """Path -> delta of every module that this changes, the scale folded in."""
        return {
            path: Delta(s * d.b, d.a, None if d.bias is None else s * d.bias)
            for path, (d, s) in self.active().items()
        }


@dataclass(frozen=True, eq=False)
class RowFilter(RowDelta):
    """A filtered ablation of one row: −r̂ vᵀ in every writer, with its weight as the scale.

    Attributes:
        directions: [L, k, d] that it acts along.
        alpha: [L, len(KINDS)] strength of every cell, as of a `RowEdit`.
        sources: names of the prompt sets that it was solved on.
        mu: the price it was solved at.
        removed: predicted share of the harmful component that goes.
        moved: predicted harmless energy that is moved, as a share of what plain ablation moves.
    """

    directions: Directions = field(kw_only=True)
    alpha: np.ndarray = field(kw_only=True)
    sources: tuple[str, ...] = field(kw_only=True, default=())
    mu: float = field(kw_only=True, default=0.0)
    removed: float = field(kw_only=True, default=0.0)
    moved: float = field(kw_only=True, default=0.0)

    @property
    def summary(self) -> str:
        """What it is predicted to do, in a sentence."""
        verb = "remove" if self.removed >= 0 else "add"
        return (
            f"filter at μ {self.mu:.3g}: predicted to {verb} {abs(self.removed):.1%} of the "
            f"harmful component and to move {self.moved:.2%} of the harmless energy that plain "
            "ablation moves."
        )


@dataclass(frozen=True, eq=False)
class LowRank:
    """y' = y + ((x Aᵀ) ∘ factor) Bᵀ + offset on some rows of the batch: those with the same deltas.

    Attributes:
        rows: numbers of the rows it acts on.
        index: the same as a tensor, or None when it is all of them, in order.
        b: [out, r], the factors of all deltas side by side.
        a: [r, in].
        factor: [n, 1, r], each row's scale of each delta.
        offset: [n, 1, out], the deltas' biases in each row, or None for none.
    """

    rows: tuple[int, ...]
    index: Tensor | None
    b: Tensor
    a: Tensor
    factor: Tensor
    offset: Tensor | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """[rows, tokens, in] and [rows, tokens, out] -> the same as y; float32 or better inside."""
        exact = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        index = None if self.index is None else self.index.to(y.device)
        some = x if index is None else x.index_select(0, index)
        inner = (some.to(exact) @ self.a.to(exact).mT) * self.factor.to(exact)
        change = inner @ self.b.to(exact).mT
        if self.offset is not None:
            change = change + self.offset.to(exact)
        if index is None:
            return (y.to(exact) + change).to(y.dtype)
        if y.dtype == exact:
            return y.index_add(0, index, change)
        return y.index_copy(0, index, (y.index_select(0, index).to(exact) + change).to(y.dtype))


@dataclass(eq=False)
class DeltaHooks:
    """The hooks that add deltas. A module gets its hook when a plan first has a delta for it, so
    that a model without deltas pays nothing.

    Attributes:
        architecture: of the model.
        plan: asked at every call for the plan that applies.
    """

    architecture: Architecture
    plan: Callable[[], Plan | None]
    _handles: dict[str, RemovableHandle] = field(default_factory=dict)
    _placed: WeakKeyDictionary[Delta, dict] = field(default_factory=WeakKeyDictionary)

    def register(self, paths: Iterable[str]) -> None:
        """Hook these modules, if they are not yet. Hold the host's lock: forward passes iterate
        over the hooks."""
        for path in paths:
            if path not in self._handles:
                module = self.architecture.matrices[path]
                # In front of the ablation's hook on the same module, which projects the sum.
                hook = module.register_forward_hook(self._hook(path), prepend=True)
                self._handles[path] = hook

    def close(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def compile(self, rows: Sequence[Sequence[RowDelta]]) -> dict[str, tuple[LowRank, ...]]:
        """For every module, what is added to its output; rows with the same delta in one product.

        Raises:
            UserError: a module that the model lacks, or a delta of another shape.
        """
        groups: dict[str, dict[tuple[Delta, ...], list[tuple[int, Sequence[float]]]]] = {}
        for row, edits in enumerate(rows):
            for path, scaled in summed(edits).items():
                self._fits(path, scaled)
                deltas, scales = zip(*scaled, strict=True)
                groups.setdefault(path, {}).setdefault(deltas, []).append((row, scales))
        return {path: self._ops(path, group, len(rows)) for path, group in groups.items()}

    def _fits(self, path: str, scaled: Sequence[Scaled]) -> None:
        module = self.architecture.matrices.get(path)
        if module is None:
            raise UserError(
                f"the model has no linear module {path!r} that a delta could be added to; it has "
                f"{fold(self.architecture.matrices)}."
            )
        shape = shape_of(module)
        for delta, _ in scaled:
            if (delta.out, delta.inp) != shape:
                raise UserError(
                    f"the delta of {path} is {[delta.out, delta.inp]}, the module {list(shape)}: "
                    "it belongs to another model."
                )

    def _ops(self, path: str, group: dict, size: int) -> tuple[LowRank, ...]:
        device = device_of(self.architecture.matrices[path])
        ops = []
        for deltas, members in group.items():
            rows = tuple(row for row, _ in members)
            ranks = torch.tensor([delta.rank for delta in deltas])
            scales = torch.tensor([scales for _, scales in members])  # [n, deltas]
            factor = scales.repeat_interleave(ranks, dim=1)[:, None].to(device)
            sides = [self._on(delta, device) for delta in deltas]
            b, a = sides[0]
            if len(sides) > 1:
                b, a = (torch.cat([side[i] for side in sides], dim=1 - i) for i in (0, 1))
            offset = _offset(deltas, scales)
            offset = None if offset is None else offset[:, None].to(device)
            ops.append(LowRank(rows, index_of(rows, size, device), b, a, factor, offset))
        return tuple(ops)

    def _on(self, delta: Delta, device: torch.device) -> tuple[Tensor, Tensor]:
        """(b, a) on the device of their module; kept as long as the delta lives."""
        kept = self._placed.setdefault(delta, {})
        if device not in kept:
            kept[device] = (delta.b.to(device), delta.a.to(device))
        return kept[device]

    def _hook(self, path: str) -> Callable:
        layer = max(0, self.architecture.layer_of(path))

        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            plan = self.plan()
            if plan is None or not (ops := plan.deltas.get(path)):
                return None
            x, y = (by_rows(z, plan.at(layer)) for z in (args[0], output))
            for op in ops:
                y = op(x, y)
            return y.reshape(output.shape)

        return hook


def summed(edits: Iterable[RowDelta]) -> dict[str, tuple[Scaled, ...]]:
    """Path -> all deltas that one row adds there; a delta that comes twice counts with the sum."""
    found: dict[str, dict[Delta, float]] = {}
    for edit in edits:
        for path, (delta, scale) in edit.active().items():
            there = found.setdefault(path, {})
            there[delta] = there.get(delta, 0.0) + scale
    return {path: tuple(there.items()) for path, there in found.items()}


def bias_of(scaled: Iterable[tuple[Delta, float | Tensor]]) -> Tensor | None:
    """[out] float64 on the CPU, Σ s b: what the deltas of one module add to its bias, or None."""
    parts = [s * delta.bias.double().cpu() for delta, s in scaled if delta.bias is not None]
    return sum(parts[1:], parts[0]) if parts else None


def _offset(deltas: Sequence[Delta], scales: Tensor) -> Tensor | None:
    """[n, out] of rows with the scales [n, deltas]."""
    rows = [bias_of(zip(deltas, row, strict=True)) for row in scales.tolist()]
    known = [row for row in rows if row is not None]  # all of them or, without biases, none
    return torch.stack(known).float() if known else None


def columns(scaled: Sequence[Scaled], weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a norm-preserving ablation must know of W + Σ s B A.

    Args:
        weight: [out, in].

    Returns:
        (B [out, r], A [r, in], squares [in]): all deltas as one, scales in B, and what they add to
        the squared column norms of W: 2 Σ W ∘ BA + Σ (BA)².
    """
    b = torch.cat([scale * delta.b.to(weight) for delta, scale in scaled], dim=1)
    a = torch.cat([delta.a.to(weight) for delta, _ in scaled], dim=0)
    return b, a, (a * (2 * b.mT @ weight + (b.mT @ b) @ a)).sum(0)
