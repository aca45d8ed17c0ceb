"""Several compiled plans as the plan of one batch: the rows of one below those of the other.

Callers come with plans of their own, each for a row or two. What acts alike becomes one operation:
ablations along the same directions are one matrix product anyway, and those along different ones
become one as long as they are small, each row with zeros where another's directions are.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from sst_ui.model.hooks.low_rank import LowRank
from sst_ui.model.hooks.row_plan import Op, Plan, Scale, index_of

# Numbers in one operation of joined factors. Copies of factors take memory in every module, and a
# matrix product that is larger than this is worth a call of its own.
WIDE = 1 << 18

Where = TypeVar("Where")
Step = TypeVar("Step", Op, Scale, LowRank)


def joined(plans: Sequence[Plan]) -> Plan:
    """The plan of one batch that holds the rows of all these, in order.

    Raises:
        ValueError: a plan whose rows share layers, or plans of which only some say where their
            prompts end.
    """
    if any(plan.fork is not None for plan in plans):
        raise ValueError("rows that share layers cannot be joined")
    if len({plan.tails is None for plan in plans}) > 1:
        raise ValueError("either all plans say where their prompts end, or none")
    if len(plans) == 1:
        return plans[0]
    size = sum(plan.size for plan in plans)
    tails = [tail for plan in plans for tail in plan.tails or ()]
    return Plan(
        size,
        _joined(plans, [plan.outputs for plan in plans], _one_op, size),
        _joined(plans, [plan.inputs for plan in plans], _one_scale, size),
        _joined(plans, [plan.residuals for plan in plans], _one_op, size),
        sum(plan.clamped for plan in plans),
        _joined(plans, [plan.deltas for plan in plans], _one_low_rank, size),
        None if plans[0].tails is None else tuple(tails),
    )


def _joined(
    plans: Sequence[Plan],
    parts: Sequence[Mapping[Where, tuple[Step, ...]]],
    one: Callable[[Sequence[Step]], Step],
    size: int,
) -> dict[Where, tuple[Step, ...]]:
    """One part of all plans, e.g. what happens to the outputs of the writers."""
    offsets = [sum(plan.size for plan in plans[:number]) for number in range(len(plans))]
    found = {}
    for place in dict.fromkeys(place for part in parts for place in part):
        columns = [
            [_moved(step, offset, size) for step in part.get(place, ())]
            for part, offset in zip(parts, offsets, strict=True)
        ]
        # A row's operations stay in their order: those of one level are of different rows.
        levels = [[step for step in level if step is not None] for level in zip_longest(*columns)]
        found[place] = tuple(
            _placed(one(group) if len(group) > 1 else group[0], size)
            for level in levels
            for group in _groups(level)
        )
    return found


def _moved(step: Step, offset: int, size: int) -> Step:
    """The same on rows further down; without an index, which `_placed` sets."""
    return replace(step, rows=tuple(row + offset for row in step.rows), index=None)


def _placed(step: Step, size: int) -> Step:
    tensors = (getattr(step, name, None) for name in ("factor", "offset"))
    device = next(tensor.device for tensor in tensors if tensor is not None)
    return replace(step, index=index_of(step.rows, size, device))


def _groups(level: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps that become one each: of the same kind, and not too wide together."""
    kinds: dict[Hashable, list[Step]] = {}
    for step in level:
        key = step.at_end if isinstance(step, Op) else None
        kinds.setdefault((type(step), key), []).append(step)
    for steps in kinds.values():
        group: list[Step] = []
        sides: dict[int, int] = {}
        for step in sorted(steps, key=lambda step: id(_side(step))):
            sides[id(_side(step))] = _numbers(step)
            if len(sides) > 1 and sum(sides.values()) > WIDE:
                yield group
                group, sides = [], {id(_side(step)): _numbers(step)}
            group.append(step)
        yield group


def _side(step: Op | Scale | LowRank) -> Tensor | None:
    """What steps have in common that are one matrix product."""
    return step.basis if isinstance(step, Op) else step.a if isinstance(step, LowRank) else None


def _numbers(step: Op | Scale | LowRank) -> int:
    """Size of what is copied where different ones become one."""
    if isinstance(step, Op):
        return step.basis.numel() * (1 if step.write is None else 2)
    return step.a.numel() + step.b.numel() if isinstance(step, LowRank) else 0


def _one_op(ops: Sequence[Op]) -> Op:
    """Ops of different rows as one: x' = x − (factor ∘ (R x) + offset) Q with all their R and Q."""
    apart = {id(op.basis): op for op in ops}
    basis = torch.cat([op.basis for op in apart.values()])
    write = None
    if any(op.write is not None for op in apart.values()):
        write = torch.cat([op.basis if op.write is None else op.write for op in apart.values()])
    if len(apart) == 1:  # the very tensors, which the next join knows again
        basis, write = ops[0].basis, ops[0].write
    widths = [len(op.basis) for op in apart.values()]
    places = [list(apart).index(id(op.basis)) for op in ops]
    sizes = [len(op.rows) for op in ops]
    return replace(
        ops[0],
        rows=tuple(row for op in ops for row in op.rows),
        basis=basis,
        write=write,
        factor=_spread([op.factor for op in ops], sizes, places, widths),
        offset=_spread([op.offset for op in ops], sizes, places, widths),
    )


def _one_scale(scales: Sequence[Scale]) -> Scale:
    return replace(
        scales[0],
        rows=tuple(row for scale in scales for row in scale.rows),
        factor=torch.cat([scale.factor for scale in scales]),
    )


def _one_low_rank(deltas: Sequence[LowRank]) -> LowRank:
    """Deltas of different rows as one: y' = y + ((x Aᵀ) ∘ factor) Bᵀ + offset with all A and B."""
    apart = {id(delta.a): delta for delta in deltas}
    a, b = deltas[0].a, deltas[0].b
    if len(apart) > 1:
        a = torch.cat([delta.a for delta in apart.values()])
        b = torch.cat([delta.b for delta in apart.values()], dim=1)
    widths = [len(delta.a) for delta in apart.values()]
    places = [list(apart).index(id(delta.a)) for delta in deltas]
    sizes = [len(delta.rows) for delta in deltas]
    factor = _spread([delta.factor for delta in deltas], sizes, places, widths)
    offsets = [delta.offset for delta in deltas]
    assert factor is not None  # every delta has one
    return replace(
        deltas[0],
        rows=tuple(row for delta in deltas for row in delta.rows),
        b=b,
        a=a,
        factor=factor,
        offset=_spread(offsets, sizes, [0] * len(deltas), [len(b)]),
    )


def _spread(
    tables: Sequence[Tensor | None],
    sizes: Sequence[int],
    places: Sequence[int],
    widths: Sequence[int],
) -> Tensor | None:
    """[n, 1, width] tables of several steps below one another, each in columns of its own.

    Args:
        tables: None for a table of zeros.
        sizes: n of each.
        places: for each table its number among the blocks of columns.
        widths: of the blocks.
    """
    known = next((table for table in tables if table is not None), None)
    if known is None:
        return None
    found = known.new_zeros(sum(sizes), 1, sum(widths))
    row = 0
    for table, size, place in zip(tables, sizes, places, strict=True):
        if table is not None:
            left = sum(widths[:place])
            found[row : row + size, :, left : left + widths[place]] = table
        row += size
    return found
