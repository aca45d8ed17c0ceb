"""What a merge will cost and leave undone, before it is applied, and what it then really does.

The prediction is maths alone, a few milliseconds; the measurement asks the model, with the same two
quantities:

    cost      KL(utility adapter ‖ merged) on utility data, nats/token
    residual  KL(utility + whole target ‖ merged) on safety data, nats/token
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.jobs.merge.fisher_moments import conversations, read_part
from sst_ui.jobs.merge.merge import SPECTRAL, SUMS, Outcome, Pair, settings, spectra, table, towards
from sst_ui.maths.merge import registry, subspace
from sst_ui.maths.merge.subspace import Curve, Filter, Spectrum
from sst_ui.metrics.families.divergence import kl_by_token
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.inference.logprobs import teacher_forced
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Merge

Gain = Callable[[Tensor, Tensor], Tensor]  # (λ, its rank in the module) -> share that stays
Share = Callable[[np.ndarray], np.ndarray]  # λ -> share that stays
PRICES = tuple(float(x) for x in np.logspace(-4, 5, 55))  # μ of the drawn curve
STEPS = (0, *(2**i for i in range(13)))  # k of the drawn curve
BATCH = 8
SAMPLES = 16  # conversations of each set that a measurement reads


@dataclass(frozen=True)
class Point:
    """A merge between its two goals: nats per token each; kept is 0..1, None when measured."""

    cost: float
    residual: float
    kept: float | None = None


@dataclass(frozen=True, eq=False)
class Forecast:
    """The predicted trade-off of a pair of adapters, and where a merge lies on it.

    Attributes:
        curve: the method's filter over μ; the soft one for methods without a μ.
        steps: the method's own filter over k, for methods with a k.
        chosen: of the merge; None for a method that is no filter of the spectrum.
        parameters: of the method as it would use them; mu is the one that the budget or the losses
            chose.
        share: what the method keeps under that μ, without factors; None without a μ.
    """

    curve: Curve
    steps: Curve | None
    chosen: Point | None
    parameters: Mapping[str, Any]
    share: Share | None = None


class Stack:
    """The spectra of all modules in a few tensors: a curve in milliseconds, not in a second.

    Modules of one shape lie together [b, m, n]; the formulas are those of
    `maths.merge.subspace.total`.
    """

    def __init__(self, spectra: Mapping[str, Spectrum]) -> None:
        if any(s.kl is None for s in spectra.values()):
            raise UserError(
                "the trade-off needs gradients, and input-only statistics have none; choose the "
                "Fisher kfac, or a k in place of a budget."
            )
        self.spectra = dict(spectra)
        groups: dict[tuple, list[str]] = {}
        for name, s in self.spectra.items():
            groups.setdefault((s.eigenvalues.shape, s.c.shape), []).append(name)
        self._parts = [(names, *self._stacked(names)) for names in groups.values()]

    def _stacked(self, names: list[str]) -> tuple:
        each = [self.spectra[name] for name in names]
        values = torch.stack([s.eigenvalues for s in each])  # [b, m, n]
        order = values.flatten(1).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1).reshape(values.shape)  # 0 for a module's largest λ
        c = torch.stack([s.c for s in each])
        pairs = [
            tuple(torch.stack([getattr(s, name)[side] for s in each]) for side in (0, 1))
            for name in ("kl", "loss")
        ]
        return values, rank, c, *pairs

    def point(self, g: Gain, weights: Mapping[str, float]) -> Point:
        """Cost, residual and kept of all modules under g(λ, rank), weighed."""
        cost = residual = part = whole = 0.0
        for names, values, rank, c, kl, loss in self._parts:
            w = torch.tensor([weights[name] for name in names], dtype=values.dtype)
            share = g(values, rank) * w[:, None, None]
            cost += _half(share * c, kl)
            residual += _half((1 - share) * c, loss)
            each = values * c.square()
            part += float((share.square() * each).sum())
            whole += float(each.sum())
        return Point(cost, residual, math.sqrt(part / whole) if whole else 1.0)

    def curve(self, gains: Sequence[tuple[float, Gain]], weights: Mapping[str, float]) -> Curve:
        """The points of several filters, each under its name, a μ or a k."""
        points = [(name, *astuple(self.point(g, weights))) for name, g in gains]
        return Curve(*zip(*points, strict=True))


def stack(pair: Pair, spec: Merge) -> Stack:
    """The spectra that a merge's method looks at, from a pair prepared with moments."""
    return Stack(spectra(list(pair.modules), towards(spec, settings(spec))))


def forecast(
    host: Host, pair: Pair, spec: Merge, spectra: Stack, curve: Curve | None = None
) -> Forecast:
    """Predict a merge.

    Args:
        spectra: of `stack` for the same merge.
        curve: over μ from an earlier forecast with the same spectra, weights and `bend`.

    Raises:
        UserError: bad parameters, or a budget that cannot be kept.
    """
    parameters = settings(spec)
    weights = table(host, spec, [module.name for module in pair.modules])
    family = registry.family(spec.method, parameters)
    curve = curve or spectra.curve([(mu, plain(family(mu))) for mu in PRICES], weights)
    if spec.budget is not None:
        parameters["mu"] = _price(spectra, curve, spec.budget, weights, family)
    if "base_mu" in parameters:
        parameters["mu"] = registry.price(parameters, pair.stakes)
    kinds = {module.name: module.kind for module in pair.modules}
    factors = _factors(parameters)
    shaped = {name: weights[name] * factors.get(kinds[name], 1.0) for name in spectra.spectra}
    g = _gain(spec.method, parameters, family)
    chosen = None if g is None else spectra.point(g, shaped)
    steps = None
    if "k" in parameters:
        ratio = float(parameters.get("ratio", 0.0))
        steps = spectra.curve([(k, first(k, ratio)) for k in STEPS], shaped)
    share = _share(family(float(parameters["mu"]))) if "mu" in parameters else None
    return Forecast(curve, steps, chosen, parameters, share)


def bend(spec: Merge) -> tuple[object, ...]:
    """What the curve over μ depends on beside spectra and weights."""
    parameters = settings(spec)
    return (spec.method == "sst_ranks", parameters.get("stages"), parameters.get("ratio"))


def first(k: int, ratio: float) -> Gain:
    """The k directions of largest λ whole, `ratio` of the others."""
    return lambda values, rank: torch.where(rank < k, 1.0, ratio).to(values)


def plain(g: Filter) -> Gain:
    """A filter that looks at λ alone."""
    return lambda values, rank: g(values)


def _price(
    spectra: Stack,
    curve: Curve,
    budget: float,
    weights: Mapping[str, float],
    family: Callable[[float], Filter],
) -> float:
    """The μ of `subspace.mu_for_budget` to three digits, from a bracket on the curve."""
    if spectra.point(plain(family(0.0)), weights).cost <= budget:
        return 0.0
    inside = [mu for mu, cost in zip(curve.mus, curve.kl, strict=True) if cost <= budget]
    if not inside or inside[0] == curve.mus[0]:
        return subspace.mu_for_budget(spectra.spectra, budget, weights, family)
    high = inside[0]
    low = curve.mus[curve.mus.index(high) - 1]
    while high / low > 1 + 2e-3:
        middle = math.sqrt(low * high)
        if spectra.point(plain(family(middle)), weights).cost <= budget:
            high = middle
        else:
            low = middle
    return high


def measured(
    host: Host, pair: Pair, outcome: Outcome, spec: Merge, samples: int = SAMPLES
) -> Generator[Progress, None, Point]:
    """Measure what `forecast` predicts, on the first conversations of both data sets."""
    utility, safety = RowDelta(pair.utility.deltas), RowDelta(pair.safety.deltas)
    whole = (safety,) if towards(spec, {}).get("target") == "interpolating" else (utility, safety)
    sides = ((spec.utility_prompts, (utility,)), (spec.safety_prompts, whole))
    found = []
    for number, (name, before) in enumerate(sides):
        asked = conversations(host, name, min(samples, spec.samples or samples))
        nats: list[np.ndarray] = []
        for start in range(0, len(asked), BATCH):
            group = asked[start : start + BATCH]
            yield Progress("divergence", number * len(asked) + start, 2 * len(asked))
            both = [part for conversation in group for part in (conversation, conversation)]
            rows = [before, (outcome.live,)] * len(group)
            prompts, answers = zip(*both, strict=True)
            tables = teacher_forced(host, prompts, answers, rows)
            nats += [kl_by_token(a, b) for a, b in zip(tables[::2], tables[1::2], strict=True)]
        found.append(float(np.concatenate(nats).mean()))
    return Point(*found)


def kept(pair: Pair, outcome: Outcome) -> dict[tuple[str, int | None], float]:
    """(kind, layer) -> share of the effect that a merge kept, where the method knows it."""
    return {
        (module.kind, module.layer): value
        for module in pair.modules
        if (value := outcome.records[module.name].kept) is not None
    }


def by_kind(pair: Pair, spectra: Mapping[str, Spectrum]) -> dict[str, np.ndarray]:
    """Kind -> [n] λ of its mean module, largest first; the geometric mean over its modules."""
    kinds: dict[str, list[np.ndarray]] = {}
    for module in pair.modules:
        values = spectra[module.name].eigenvalues.flatten().sort(descending=True).values
        kinds.setdefault(module.kind, []).append(np.log(values.clamp(min=1e-12).numpy()))
    sizes = {kind: min(len(row) for row in rows) for kind, rows in kinds.items()}
    return {k: np.exp(np.mean([r[: sizes[k]] for r in rows], axis=0)) for k, rows in kinds.items()}


def _gain(
    method: str, parameters: Mapping[str, Any], family: Callable[[float], Filter]
) -> Gain | None:
    """g of a method, without the factors of modules; None for one that is no such filter."""
    if method in SUMS:
        return plain(subspace.soft(0.0))
    if "k" in parameters:
        return first(int(parameters["k"]), float(parameters.get("ratio", 0.0)))
    return plain(family(float(parameters["mu"]))) if "mu" in parameters else None


def _half(edit: Tensor, pairs: tuple[Tensor, Tensor]) -> float:
    """½ Σ E ∘ (G E A), over a stack."""
    return 0.5 * float((edit * (pairs[0] @ edit @ pairs[1].mT)).sum())


def _share(g: Filter) -> Share:
    return lambda values: g(torch.tensor(values)).numpy()


def _factors(parameters: Mapping[str, Any]) -> dict[str, float]:
    """Kind of module -> what the method itself multiplies it by."""
    given = [float(parameters[n]) for n in ("attention", "mlp", "lm_head") if n in parameters]
    return registry.factors(*given) if given else {}


def basis(spec: Merge) -> Merge:
    """The part of a merge that its statistics follow from; the same for every weight, and for every
    method but those that hold conversations out."""
    bare = Merge(spec.utility, spec.safety)
    if read_part(spec) != "all":
        bare = replace(bare, method="sst_adaptive")
    return replace(
        bare, target=spec.target, fisher=spec.fisher, inputs=spec.inputs, samples=spec.samples,
        utility_prompts=spec.utility_prompts, safety_prompts=spec.safety_prompts,
        lookalikes=spec.lookalikes, lookalike_weight=spec.lookalike_weight,
    )  # fmt: skip


def aim(spec: Merge) -> tuple[object, ...]:
    """What the spectra depend on beside the statistics: target, Fisher mode, damping."""
    parameters = towards(spec, settings(spec))
    return tuple(parameters.get(name) for name in SPECTRAL)
