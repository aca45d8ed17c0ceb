"""Edits while the model computes: no weight is touched, and every row of a batch has its own.

The one thing that changes here is which plan is applied; the host's lock makes that safe.

A module that writes y to the residual stream writes y − α r̂ (r̂·y) instead; where a norm follows,
the projection is the one that removes r̂ behind it (`maths.ablation.through_gain`). It commutes
with sums, so it works the same on quantised modules, Conv1D and mixtures of experts. In a mixture a
token's experts share one matrix product with other rows' tokens, so there, and only there, a row's
last bits may depend on how its neighbours are routed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.maths.ablation import norm_scale
from sst_ui.maths.directions import Directions
from sst_ui.model.architecture.discover import Architecture, fold
from sst_ui.model.architecture.module_roles import Writer, device_of
from sst_ui.model.hooks.layer_sharing import ForkHooks
from sst_ui.model.hooks.low_rank import (
    DeltaHooks,
    RowDelta,
    RowFilter,
    Scaled,
    columns,
    summed,
)
from sst_ui.model.hooks.row_plan import (
    Op,
    Place,
    Plan,
    RowEdit,
    Scale,
    index_of,
    run,
    stream_of,
    with_stream,
)
from sst_ui.model.hooks.self_check import EditReport, check
from sst_ui.model.hooks.stream_accounting import account
from sst_ui.recipe import KINDS

__all__ = ["Edit", "EditReport", "LiveEdits", "Plan", "RowDelta", "RowEdit", "RowFilter"]

Edit = RowEdit | RowDelta  # a row of a batch is a tuple of these
Link = tuple[Directions, float, bool]  # one ablation of a chain: along what, α, norm preserving
Chain = tuple[tuple[Scaled, ...], tuple[Link, ...]]  # of one writer: its deltas, then its ablations


class LiveEdits:
    """The hooks on one model's writers and layers; without a plan they do nothing.

    Args:
        architecture: of the model; the hooks are registered here, once. A few random tokens are run
            through it, to see how its layers add up.

    Attributes:
        account: how they do, and which layers cannot be edited.

    Raises:
        UserError: the model cannot be run.
    """

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        self._plan: Plan | None = None
        self._norms: dict[Place, Tensor] = {}  # column norms m [in] of each writer
        self._along: WeakKeyDictionary[Directions, dict[Place, tuple]] = WeakKeyDictionary()
        self._basis: WeakKeyDictionary[Directions, dict] = WeakKeyDictionary()
        self._handles = []
        self._deltas = DeltaHooks(architecture, lambda: self._plan)
        for writer in architecture.writers:
            place = (writer.layer, KINDS.index(writer.role))
            before, after = self._before(place), self._after("outputs", place)
            self._handles.append(writer.module.register_forward_pre_hook(before))
            self._handles.append(writer.module.register_forward_hook(after))
        for number, layer in enumerate(architecture.layers):
            after = self._after("residuals", number)
            self._handles.append(layer.register_forward_hook(after))
        self._forks = ForkHooks(architecture, lambda: self._plan)
        self.account = account(architecture)

    def close(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()
        self._deltas.close()
        self._forks.close()

    @contextmanager
    def applied(self, plan: Plan | None) -> Iterator[None]:
        """Forward passes inside compute with this plan; their batch must have `plan.size` rows."""
        if plan is not None:
            self._deltas.register(plan.deltas)
        previous, self._plan = self._plan, plan
        try:
            yield
        finally:
            self._plan = previous

    def compile(self, rows: Sequence[tuple[Edit, ...]]) -> Plan:
        """A plan for a batch whose rows have these edits. Cheap: a slider is a few numbers.

        Only norm preservation reads the weights, at its first use of a set of directions and
        whenever deltas go with it: then it keeps the column norms of the merged matrix.

        Raises:
            UserError: directions or deltas of another shape than the model; norm preservation with
                experts or quantised weights; an edit that could not be exact, see `refuse`.
        """
        for edits in dict.fromkeys(rows):
            self.refuse(edits)
        writes: dict[Place, dict] = {}
        streams: dict[int, dict] = {}
        chains: dict[Place, list[tuple[int, Chain]]] = {}
        added = [tuple(edit for edit in edits if isinstance(edit, RowDelta)) for edits in rows]
        deltas = self._deltas.compile(added) if any(added) else {}
        for row, edits in enumerate(rows):
            ablations = tuple(edit for edit in edits if not isinstance(edit, RowDelta))
            for slot, edit in enumerate(ablations):
                self._fits(edit.directions)
                key = (slot, edit.directions)  # rows that share both share one matrix product
                for place, terms in self._terms(edit):
                    if isinstance(place, int):
                        group = streams.setdefault(place, {})
                    else:
                        group = writes.setdefault(place, {})
                    group.setdefault((*key, edit.at_end), []).append((row, *terms))
            if any(edit.norm_preserving for edit in ablations):
                for writer, chain in self._chains(ablations, added[row]):
                    chains.setdefault(writer, []).append((row, chain))
        size, clamped = len(rows), 0
        inputs = {}
        for place, members in chains.items():
            inputs[place], count = self._scale(place, members, size)
            clamped += count
        outputs = {place: self._ops(place, group, size) for place, group in writes.items()}
        residuals = {layer: self._ops(layer, group, size) for layer, group in streams.items()}
        return Plan(size, outputs, inputs, residuals, clamped, deltas)

    def forget(self) -> None:
        """Prepare edits anew: the model has moved to another device."""
        self._along.clear()
        self._basis.clear()

    def refuse(self, edits: Sequence[Edit]) -> None:
        """Refuse edits of what does not reach the residual stream, or not only.

        Raises:
            UserError: an ablation of a layer that does not add up, or a delta of a module that the
                model does not call; names them.
        """
        family, problems = self.architecture.model_type, self.account.problems
        for edit in edits:
            if isinstance(edit, RowDelta):
                uncalled = self.account.uncalled
                if uncalled and (idle := sorted(uncalled & edit.active().keys())):
                    raise UserError(
                        f"this {family} does not call {fold(idle)}: it uses the weight in another "
                        "way, which a live adapter does not reach. Leave that module out."
                    )
            if not isinstance(edit, RowFilter) and (isinstance(edit, RowDelta) or edit.on_residual):
                continue
            if hit := sorted(layer for layer in problems if edit.alpha[layer].any()):
                more = f" ({len(hit)} layers are like that.)" if len(hit) > 1 else ""
                raise UserError(
                    f"this {family} cannot be ablated exactly: {problems[hit[0]]}{more} Set the "
                    "weight of such layers to 0, or use an affine edit, which acts on the stream "
                    "behind the layer."
                )

    def check(self, edits: tuple[Edit, ...]) -> EditReport:
        """Do the edits do what they say? Every changed module is run on random inputs.

        Runs modules of the model: hold the host's lock, as for a forward pass.

        Raises:
            UserError: an edit had no effect on a module that it should change; names the modules.
        """
        return check(self, edits)

    def _before(self, place: Place) -> Callable:
        def hook(module: nn.Module, args: tuple) -> tuple | None:
            plan = self._plan
            if plan is None or not (ops := plan.inputs.get(place)):
                return None
            return (run(ops, args[0], plan.at(place[0]), plan.tails), *args[1:])

        return hook

    def _after(self, part: str, place: Place | int) -> Callable:
        layer = place if isinstance(place, int) else place[0]

        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
            plan = self._plan
            if plan is None or not (ops := getattr(plan, part).get(place)):
                return None
            x = run(ops, stream_of(output), plan.at(layer), plan.tails)
            return with_stream(output, x)

        return hook

    def _fits(self, directions: Directions) -> None:
        layers, hidden = len(self.architecture.layers), self.architecture.hidden
        if (directions.layers, directions.hidden) != (layers, hidden):
            raise UserError(
                f"the directions have {directions.layers} layers of {directions.hidden}, "
                f"the model has {layers} of {hidden}: they were measured on another model."
            )

    def _terms(self, edit: RowEdit) -> Iterator[tuple[Place | int, tuple]]:
        """(place, (factor, offset)) of every cell that is not 0; see `Op`."""
        k = edit.directions.k
        if not edit.on_residual:
            for layer, kind in zip(*edit.alpha.nonzero(), strict=True):
                alpha, target = float(edit.alpha[layer, kind]), edit.target(layer, kind)
                offset = None if target is None else [-alpha * t for t in target.tolist()]
                yield (int(layer), int(kind)), ([alpha] * k, offset)
            return
        strength, shifts = edit.per_layer(), edit.shifts()
        for layer in strength.nonzero()[0].tolist():
            if edit.operation == "add":
                yield layer, (None, [float(shifts[layer])] + [0.0] * (k - 1))
            else:
                neutral = edit.directions.neutral[layer].tolist()
                alpha = float(strength[layer])
                yield layer, ([alpha] * k, [-alpha * t for t in neutral])

    def _ops(self, place: Place | int, group: dict, size: int) -> tuple[Op, ...]:
        ops = []
        for (_, directions, at_end), members in sorted(group.items(), key=lambda i: i[0][0]):
            basis, write = self._sides(directions, place)
            rows = tuple(row for row, *_ in members)
            zero = [0.0] * directions.k
            stacked = []
            for values in zip(*(terms for _, *terms in members), strict=True):
                some = any(v is not None for v in values)
                table = [zero if v is None else v for v in values]
                stacked.append(basis.new_tensor(table)[:, None] if some else None)
            factor, offset = stacked
            index = index_of(rows, size, basis.device)
            ops.append(Op(rows, index, basis, factor, offset, write, at_end))
        return tuple(ops)

    def _sides(self, directions: Directions, place: Place | int) -> tuple[Tensor, Tensor | None]:
        """What is read and written, [k, d] each, on the device of that layer; the latter None where
        it is the same. Kept as long as the directions live.

        Args:
            place: a writer, or a layer for the stream behind it.
        """
        layer = place if isinstance(place, int) else place[0]
        writer = None
        if not isinstance(place, int):
            writer = self.architecture.writer(layer, KINDS[place[1]])
        if writer is None or writer.norm is None:
            writer, place = None, layer  # all of these share one copy
        kept = self._basis.setdefault(directions, {})
        if place not in kept:
            device = device_of(self.architecture.layers[layer])
            rows = directions.vectors[layer].float()
            sides = (rows, None) if writer is None else writer.sides(rows)
            kept[place] = tuple(None if side is None else side.to(device) for side in sides)
        return kept[place]

    def _chains(
        self, edits: tuple[RowEdit, ...], added: tuple[RowDelta, ...]
    ) -> Iterator[tuple[Place, Chain]]:
        """For each writer that a norm-preserving edit changes, its deltas and all its ablations in
        order."""
        deltas = summed(added)
        ablations = [edit for edit in edits if not edit.on_residual]
        for writer in self.architecture.writers:
            layer, kind = place = (writer.layer, KINDS.index(writer.role))
            chain = tuple(
                (edit.directions, float(edit.alpha[layer, kind]), edit.norm_preserving)
                for edit in ablations
                if edit.alpha[layer, kind] != 0
            )
            if any(preserving for *_, preserving in chain):
                yield place, (deltas.get(writer.name, ()), chain)

    def _scale(
        self, place: Place, members: list[tuple[int, Chain]], size: int
    ) -> tuple[tuple[Scale, ...], int]:
        done: dict[Chain, tuple[Tensor, int]] = {}
        for _, chain in members:
            if chain not in done:
                done[chain] = self._chain_scale(place, *chain)
        rows = tuple(row for row, _ in members)
        factor = torch.stack([done[chain][0] for _, chain in members])[:, None]  # [n, 1, in]
        clamped = sum(done[chain][1] for _, chain in members)
        return (Scale(rows, index_of(rows, size, factor.device), factor),), clamped

    def _chain_scale(
        self, place: Place, scaled: tuple[Scaled, ...], chain: tuple[Link, ...]
    ) -> tuple[Tensor, int]:
        """D [in] of several ablations one after the other, without editing W (deltas included).

        Each ablation sees the matrix that the earlier ones left. Its u = R W' and the column norms
        follow from theirs: u ← (u − R Qₑᵀ αₑ uₑ) ∘ Dₑ and m² ← (m² − αₑ(2 − αₑ) Σ uₑ²) ∘ Dₑ²; where
        Q is not R, v = Q W' goes the same way and m² ← (m² + Σ αₑ uₑ (Q Qᵀ αₑ uₑ − 2 vₑ)) ∘ Dₑ².
        """
        norms = self._weight_norms(place)
        squares, total, clamped = norms.square(), torch.ones_like(norms), 0
        if scaled:
            b, a, more = columns(scaled, self._readable(place).weight())
            squares = (squares + more).clamp_min(0)
        before: list[tuple[Tensor, float, Tensor, Tensor]] = []

        def now(rows: Tensor, along: Tensor) -> Tensor:
            """rows · W' from rows · W, [k, in]."""
            if scaled:
                along = along + (rows @ b) @ a
            for other, weight, others_along, scale in before:
                along = (along - (rows @ other.mT) @ (weight * others_along)) * scale
            return along

        for directions, alpha, preserving in chain:
            basis, write = self._sides(directions, place)
            sides = [s.to(norms.device) for s in (basis, write) if s is not None]
            fresh = self._weight_along(place, directions)
            along, *across = map(now, sides, fresh)  # u, and v where there is a Q
            oblique = (*across, sides[1] @ sides[1].mT) if across else ()
            scale, count = torch.ones_like(norms), 0
            if preserving:
                scale, count = norm_scale(along, squares.sqrt(), alpha, *oblique)
            if oblique:
                taken = alpha * along
                squares = squares + (taken * (oblique[1] @ taken - 2 * oblique[0])).sum(0)
            else:
                squares = squares - alpha * (2 - alpha) * along.square().sum(0)
            squares = squares.clamp_min(0) * scale.square()
            total, clamped = total * scale, clamped + count
            before.append((sides[-1], alpha, along, scale))
        return total, clamped

    def _weight_norms(self, place: Place) -> Tensor:
        if place not in self._norms:
            self._norms[place] = self._readable(place).weight().norm(dim=0)
        return self._norms[place]

    def _weight_along(self, place: Place, directions: Directions) -> tuple[Tensor, ...]:
        """R W [k, in], and Q W where Q is not R."""
        kept = self._along.setdefault(directions, {})
        if place not in kept:
            weight = self._readable(place).weight()
            sides = self._sides(directions, place)
            kept[place] = tuple(s.to(weight.device) @ weight for s in sides if s is not None)
        return kept[place]

    def _readable(self, place: Place) -> Writer:
        writer = self.architecture.writer(place[0], KINDS[place[1]])
        if writer.form == "experts" or writer.quantized:
            has = "holds several experts" if writer.form == "experts" else "is quantised"
            raise UserError(
                f"norm_preserving needs the numbers of every weight matrix, and {writer.name} "
                f"{has}. Turn norm_preserving off here, or export the model: the export edits the "
                "original weights, experts included, and keeps their norms."
            )
        return writer
