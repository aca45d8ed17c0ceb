"""From a recipe's filtered ablation to an edit that the model can apply, and what it is predicted
to do.

The formulas are in `maths/filtered.py`; what they need of the model is collected once
(`filter_moments.py`), and any μ, budget or weight table is maths alone from then on.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.jobs.directions.filter_moments import Statistics, collect, single
from sst_ui.lru import Memory
from sst_ui.maths import kernel
from sst_ui.maths.directions import Directions
from sst_ui.maths.filtered import Path, Stack, path
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.architecture.discover import fold
from sst_ui.model.hooks.low_rank import RowFilter
from sst_ui.model.hooks.row_plan import RowEdit
from sst_ui.model.inference.batch import Row
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import KINDS, Ablation

Place = tuple[int, int]  # a writer: layer, index into KINDS
PRICES = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)  # μ of a printed trade-off
RECENT = 4  # filters that a host keeps in memory
DELTAS = 512  # solved rows that a set of filters keeps
_recent: WeakKeyDictionary[Host, Memory] = WeakKeyDictionary()


@dataclass(frozen=True)
class Forecast:
    """What a filtered ablation is predicted to do.

    Attributes:
        mu: the price it is solved at; the one that a budget chose.
        removed: [L] share of the harmful component that goes; nan in a layer that is not edited.
        moved: [L] harmless energy that is moved, as a share of what plain ablation at weight 1
            would move there; nan in such a layer.
        total_removed: over all edited layers.
        total_moved: over all, as a share of what plain ablation at these weights would move.
    """

    mu: float
    removed: np.ndarray
    moved: np.ndarray
    total_removed: float
    total_moved: float


@dataclass(frozen=True)
class Point:
    """The predicted trade-off at one price, over all edited layers."""

    mu: float
    removed: float
    moved: float


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of all writers, for every μ and every weight table.

    A writer is decomposed when it is first asked for. Nothing here refers to the model.

    Attributes:
        directions: what they act along.
        statistics: what they are made of.
        names: place -> module path of every writer that can be filtered.
        written: place -> [k, d], what each writes for its directions (see `Writer.sides`).
        ridge, lookalike_weight, null_space, affine: the settings that a decomposition depends on.
    """

    directions: Directions
    statistics: Statistics
    names: Mapping[Place, str]
    written: Mapping[Place, Tensor]
    ridge: float
    lookalike_weight: float
    null_space: float | None
    affine: bool
    kept: Memory[float] = field(default_factory=lambda: Memory(RECENT))  # KL budget -> its μ
    _rates: list[float] = field(default_factory=list)  # nats a token of a unit of energy moved
    _paths: dict[Place, Path] = field(default_factory=dict)
    _deltas: Memory = field(default_factory=lambda: Memory(DELTAS))

    def path(self, place: Place) -> Path:
        """One writer's filter for every μ."""
        if place not in self._paths:
            name, known = self.names[place], self.statistics
            harmless = [(known.harmless[name], 1.0)]
            if known.lookalikes:
                harmless.append((known.lookalikes[name], self.lookalike_weight))
            self._paths[place] = path(
                known.harmful[name],
                harmless,
                self.ridge,
                self.affine,
                known.bases.get(name),
                self.null_space,
            )
        return self._paths[place]

    def delta(self, place: Place, mu: float) -> Delta:
        """−r̂ vᵀ of one writer; the same object for the same μ, so that rows share a product."""
        if (found := self._deltas.get((place, mu))) is None:
            rows = self.path(place).rows(mu)
            found = Delta(-self.written[place].mT.contiguous(), rows.float().contiguous())
            self._deltas.put((place, mu), found)
        return found

    def price(self, edit: Ablation, alpha: np.ndarray) -> float:
        """μ: the recipe's, or the one that keeps its budget with these weights.

        A KL budget is predicted by what the last one came to that was measured (see `kl_budget`);
        before there is any it is the recipe's μ.
        """
        wanted = edit.filter
        if wanted.budget is not None:
            return self._stack(alpha).price(wanted.budget)
        if wanted.kl is None or not self._rates:
            return wanted.mu
        stack = self._stack(alpha)
        return (
            stack.price(wanted.kl / (self._rates[-1] * stack.plain)) if stack.plain else wanted.mu
        )

    def learn(self, edit: Ablation, nats: float) -> None:
        """Note what an edit at a price was measured to cost."""
        stack = self._stack(kernel.table(edit.weights, self.directions.layers))
        if (energy := stack.moved(edit.filter.mu) * stack.plain) and nats > 0:
            self._rates[:] = [nats / energy]

    def _stack(self, alpha: np.ndarray) -> Stack:
        active = _active(alpha)
        return Stack([self.path(p) for p in active], [float(alpha[p]) for p in active])

    def edit_row(self, edit: Ablation) -> RowFilter:
        """The edit with this recipe's weights and price."""
        alpha = kernel.table(edit.weights, self.directions.layers)
        told = self.forecast(edit)
        places = _active(alpha)
        return RowFilter(
            {self.names[p]: self.delta(p, told.mu) for p in places},
            {self.names[p]: float(alpha[p]) for p in places},
            directions=self.directions,
            alpha=alpha,
            sources=self.statistics.sources,
            mu=told.mu,
            removed=told.total_removed,
            moved=told.total_moved,
        )

    def forecast(self, edit: Ablation) -> Forecast:
        """What this recipe's weights and price are predicted to do. A few milliseconds, once its
        layers have been decomposed."""
        layers = self.directions.layers
        alpha = kernel.table(edit.weights, layers)
        places = _active(alpha)
        mu = self.price(edit, alpha)
        gone, there, moved, plain = (np.zeros(layers) for _ in range(4))
        at_these = 0.0
        for place in places:
            layer, mine = place[0], self.path(place)
            gone[layer] += mine.component * mine.removed(mu, float(alpha[place]))
            there[layer] += mine.component
            moved[layer] += mine.moved(mu, float(alpha[place]))
            plain[layer] += mine.plain
            at_these += float(alpha[place]) ** 2 * mine.plain
        with np.errstate(invalid="ignore", divide="ignore"):
            return Forecast(
                mu,
                gone / there,
                moved / plain,
                float(gone.sum() / there.sum()) if places else 0.0,
                float(moved.sum() / at_these) if at_these else 0.0,
            )


def refuse(host: Host, edit: Ablation) -> None:
    """Refuse what a filter cannot do on this model, before anything is measured.

    Raises:
        UserError: weights on experts, or an affine target behind a norm.
    """
    alpha = kernel.table(edit.weights, host.layers)
    hit = [w for w in host.architecture.writers if alpha[w.layer, KINDS.index(w.role)] != 0]
    if mixtures := [w.name for w in hit if w.form == "experts"]:
        raise UserError(
            f"{fold(mixtures)} of {host.name} are mixtures of experts, whose inputs are the "
            "router's choice and cannot be filtered one by one. Set weights.modules.mlp to 0, or "
            "use operation 'ablate'."
        )
    if edit.affine and any(w.norm is not None for w in hit):
        raise UserError(
            f"{host.name} has a norm behind what its modules write, which scales every token by "
            "itself, so that an affine centre is no single number there. Set affine to false."
        )


def filters(
    host: Host, edit: Ablation, directions: Directions, before: Row = (), identity: str = ""
) -> Generator[Progress, None, Filters]:
    """Collect what an edit's filters need; remembered, whatever its weights and price.

    Args:
        before: the edits in front of it in the recipe.
        identity: of those edits.

    Raises:
        UserError: as `refuse` and `collect`; an ablation in front of it.
    """
    refuse(host, edit)
    for earlier in before:
        if isinstance(earlier, RowEdit) and not earlier.on_residual:
            raise UserError(
                "an edit with operation 'filter' stands behind one with 'ablate', which is applied "
                "after it while the model computes; put the filter first."
            )
    statistics = yield from collect(host, edit, directions, before, identity)
    wanted = edit.filter
    settings = (wanted.ridge, wanted.lookalike_weight, wanted.null_space, edit.affine)
    key = (statistics.key, settings)
    memory = _recent.setdefault(host, Memory(RECENT))
    found = memory.get(key)
    if found is None:
        names, written = {}, {}
        for writer in single(host):
            place = (writer.layer, KINDS.index(writer.role))
            read, write = writer.sides(directions.vectors[writer.layer].float())
            names[place], written[place] = writer.name, read if write is None else write
        found = Filters(directions, statistics, names, written, *settings)
        memory.put(key, found)
    return found


def tradeoff(
    host: Host, edit: Ablation, directions: Directions
) -> Generator[Progress, None, list[Point]]:
    """What an edit is predicted to do at the prices of `PRICES`.

    Raises:
        UserError: as `filters`.
    """
    found = yield from filters(host, edit, directions)
    points = []
    for mu in PRICES:
        priced = replace(edit, filter=replace(edit.filter, mu=mu, budget=None, kl=None))
        told = found.forecast(priced)
        points.append(Point(mu, told.total_removed, told.total_moved))
    return points


def _active(alpha: np.ndarray) -> list[Place]:
    return [(int(layer), int(kind)) for layer, kind in zip(*alpha.nonzero(), strict=True)]
