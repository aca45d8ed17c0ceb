"""What the hooks do to a batch: the edits of its rows as a few small tensors for each module.

`live_edits.py` compiles rows of `RowEdit` into a `Plan` and runs it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.directions import Directions
from sst_ui.recipe import KINDS, Operation

if TYPE_CHECKING:
    from sst_ui.model.hooks.layer_sharing import Fork
    from sst_ui.model.hooks.low_rank import LowRank

Place = tuple[int, int]  # a writer: layer, index into KINDS
Where = TypeVar("Where")
Step = TypeVar("Step", "Op", "Scale", "LowRank")


@dataclass(frozen=True, eq=False)
class RowEdit:
    """One edit of one row of a batch. A row is a tuple of them, applied in order; () is the base.

    Attributes:
        directions: [L, k, d], of the same model.
        alpha: [L, len(KINDS)] strength of every cell: 1 removes, 2 reflects, below 0 strengthens.
        norm_preserving: keep the column norms of the edited matrices (`ablate` only).
        affine: act on the residual after the layer, towards the harmless prompts' component (ACE).
        operation: `ablate`, or `add`: shift the residual after the layer along the main direction.
    """

    directions: Directions
    alpha: np.ndarray
    norm_preserving: bool = False
    affine: bool = False
    operation: Operation = "ablate"

    def __post_init__(self) -> None:
        alpha = np.asarray(self.alpha, dtype=np.float64)
        object.__setattr__(self, "alpha", alpha)
        shape = (self.directions.layers, len(KINDS))
        if alpha.shape != shape:
            raise UserError(f"the weights are {list(alpha.shape)}; they must be {list(shape)}.")
        if not np.isfinite(alpha).all():
            raise UserError("the weights hold a number that is not finite.")
        if self.norm_preserving and self.on_residual:
            raise UserError("norm_preserving goes with a plain ablation only: not affine or add.")
        if self.affine and self.operation == "add":
            raise UserError("affine goes with operation 'ablate', not with 'add'.")
        if self.operation == "filter":
            raise UserError("a filtered ablation is a RowFilter: its rows have to be solved for.")

    @property
    def on_residual(self) -> bool:
        """Whether it acts on the residual after a layer, not on what its modules write."""
        return self.affine or self.operation == "add"

    def per_layer(self) -> np.ndarray:
        """[L] one strength per layer, the mean of its cells: for edits of the residual."""
        return self.alpha.mean(axis=1)

    def shifts(self) -> np.ndarray:
        """[L] what `add` subtracts along r̂ after each layer.

        The difference of the means is spread over the layers in the proportion of their weights, so
        that the layers together add it (strength) times, once and not L times:
        shift_l = α_l · norms_l / Σ|α| · max|α|.
        With strength −1 the stream receives the harmful−harmless difference once.
        """
        alpha = self.per_layer()
        total = np.abs(alpha).sum()
        if total == 0:
            return np.zeros_like(alpha)
        return alpha * self.directions.norms.double().numpy() / total * np.abs(alpha).max()


@dataclass(frozen=True, eq=False)
class Op:
    """x' = x − (factor ∘ (R x) + offset) Q on some rows of the batch; Q is R unless a norm follows.

    Ablation is factor = α; affine is factor = α with offset = −α t; adding is an offset alone.

    Attributes:
        rows: numbers of the rows it acts on.
        index: the same as a tensor, or None when it is all of them, in order.
        basis: R [k, d], orthonormal unless there is a Q.
        factor: [n, 1, k], or None for 0.
        offset: [n, 1, k], or None for 0.
        write: Q [k, d] where it is not R: see `maths.ablation.through_gain`.
    """

    rows: tuple[int, ...]
    index: Tensor | None
    basis: Tensor
    factor: Tensor | None
    offset: Tensor | None
    write: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[n, tokens, d] -> the same; computed in float32 or better, for bfloat16's sake."""
        exact = x if x.dtype == torch.float64 else x.float()
        basis = self.basis.to(exact)
        if self.factor is None:
            along = exact.new_zeros(())
        else:
            along = (exact @ basis.mT) * self.factor.to(exact)
        if self.offset is not None:
            along = along + self.offset.to(exact)
        back = basis if self.write is None else self.write.to(exact)
        return (exact - along @ back).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Scale:
    """x' = D ∘ x on some rows: the input side of a norm-preserving ablation. D is [n, 1, in]."""

    rows: tuple[int, ...]
    index: Tensor | None
    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        exact = x if x.dtype == torch.float64 else x.float()
        return (exact * self.factor.to(exact)).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Plan:
    """The edits of a whole batch, compiled.

    Attributes:
        size: rows of the batch.
        outputs: for each writer, what happens to what it writes, in order.
        inputs: for each writer, what happens to its input.
        residuals: for each layer, what happens to the residual stream after it.
        clamped: columns whose norm could not be restored, over all writers and rows.
        deltas: for each linear module, what is added to its output, before anything else.
        fork: which rows share layers; None where every row goes through all of them.
    """

    size: int
    outputs: Mapping[Place, tuple[Op, ...]]
    inputs: Mapping[Place, tuple[Scale, ...]]
    residuals: Mapping[int, tuple[Op, ...]]
    clamped: int = 0
    deltas: "Mapping[str, tuple[LowRank, ...]]" = field(default_factory=dict)
    fork: "Fork | None" = None

    def at(self, layer: int) -> int:
        """Rows of the batch in a layer; the number of layers stands for what comes behind them."""
        return self.size if self.fork is None else self.fork.sizes[layer]

    def forked(self, fork: "Fork") -> "Plan":
        """The plan of this batch in the fork's order. An operation of a layer names only rows that
        have forked there, since they fork at the first layer that has one for them."""
        return replace(self.select(fork.order), fork=fork)

    def select(self, indices: Sequence[int]) -> "Plan":
        """The plan of a batch that consists of these rows of this one, in this order."""
        indices = [int(i) for i in indices]

        def chosen(part: Mapping[Where, tuple[Step, ...]]) -> dict[Where, tuple[Step, ...]]:
            kept = {place: [_select(op, indices) for op in ops] for place, ops in part.items()}
            some = {place: tuple(op for op in ops if op is not None) for place, ops in kept.items()}
            return {place: ops for place, ops in some.items() if ops}

        return Plan(
            len(indices),
            chosen(self.outputs),
            chosen(self.inputs),
            chosen(self.residuals),
            self.clamped,
            chosen(self.deltas),
        )


def run(ops: Sequence[Op | Scale], x: Tensor, size: int) -> Tensor:
    """Apply operations one after the other; rows that none of them names keep every bit.

    Args:
        x: [size, tokens, width], or flattened to [size · tokens, width] as experts see it.
    """
    shape = x.shape
    x = by_rows(x, size)
    for op in ops:
        if op.index is None:
            x = op(x)
        else:
            index = op.index.to(x.device)
            x = x.index_copy(0, index, op(x.index_select(0, index)))
    return x.view(shape)


def stream_of(output: Any) -> Any:
    """The hidden states that a module returns: alone, or in front of what goes beside them."""
    return output[0] if isinstance(output, tuple | list) else output


def with_stream(output: Any, x: Tensor) -> Any:
    """The same output with other hidden states, in the same kind of container."""
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{output._fields[0]: x})
    if isinstance(output, tuple | list):
        return type(output)([x, *output[1:]])
    return x


def by_rows(x: Tensor, size: int) -> Tensor:
    """[size, tokens, width] of what a module reads or writes; experts flatten the first two."""
    shape = x.shape
    if x.dim() == 2 and shape[0] % size == 0:
        x = x.view(size, -1, shape[-1])
    if x.dim() != 3 or x.shape[0] != size:
        raise ValueError(f"the plan is for {size} rows; the batch is {list(shape)}")
    return x


def index_of(rows: Sequence[int], size: int, device: torch.device) -> Tensor | None:
    """The rows as an index tensor, or None when they are the whole batch."""
    whole = len(rows) == size and list(rows) == list(range(size))
    return None if whole else torch.tensor(rows, device=device)


def _select(op: Step, indices: Sequence[int]) -> Step | None:
    where = {row: position for position, row in enumerate(op.rows)}
    rows = [new for new, old in enumerate(indices) if old in where]
    if not rows:
        return None
    kept = [where[old] for old in indices if old in where]
    tensors = {
        name: getattr(op, name)[kept]
        for name in ("factor", "offset")
        if getattr(op, name, None) is not None
    }
    device = next(iter(tensors.values())).device
    return replace(op, rows=tuple(rows), index=index_of(rows, len(indices), device), **tensors)
