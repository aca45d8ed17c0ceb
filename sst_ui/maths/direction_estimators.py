"""Estimators: from residuals of harmful and harmless prompts to one direction per layer.

Means, covariances and solutions are float64: a direction is a small difference of two large,
similar vectors.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths import reliability
from sst_ui.maths.direction_statistics import described, separation, unit, without
from sst_ui.maths.directions import Directions, random
from sst_ui.recipe import DirectionSpec

Clean = Callable[[Tensor, int], Tensor]  # (x [..., d], layer) -> [..., d]
NEGLIGIBLE = 1e-6  # a difference of means below this share of their size is rounding, not signal


def estimate(
    harmful: Tensor,
    harmless: Tensor,
    spec: DirectionSpec,
    model_digest: str = "",
    heldout: tuple[Tensor, Tensor] | None = None,
    concepts: Sequence[Tensor] = (),
) -> Directions:
    """Directions of every layer, with the per-layer statistics shown beside the kernel.

    Args:
        harmful: [n, L, d] residuals, n >= 2.
        harmless: [m, L, d] residuals, m >= 2.
        spec: estimator, k, scope, layer, winsorize, shrinkage and seed are used.
        model_digest: goes into the meta data.
        heldout: (harmful, harmless) residuals of other prompts, for `auroc` and `cohens_d`.
        concepts: residuals [n, L, d] of each concept that a `surgical` direction protects.

    Returns:
        Directions; `norm`, `snr`, `cosine`, `purity` and `quality` describe the two means of each
        layer, whichever estimator and scope; `auroc` and `cohens_d` the direction itself.

    Raises:
        UserError: too few prompts, sets that do not differ, values that are not finite, k or layer
            beyond what the data has, concepts that are missing or leave nothing.
    """
    _check(harmful, harmless, spec, concepts)
    if spec.winsorize is not None:
        harmful, harmless = (winsorized(x, spec.winsorize) for x in (harmful, harmless))
        concepts = [winsorized(x, spec.winsorize) for x in concepts]
    mu_harmful = harmful.mean(0, dtype=torch.float64)  # [L, d]
    mu_harmless = harmless.mean(0, dtype=torch.float64)  # [L, d]
    difference = mu_harmful - mu_harmless
    _check_difference(difference, mu_harmful, mu_harmless)
    if spec.estimator == "random":
        layers, width = difference.shape
        vectors = random(layers, width, spec.k, spec.seed).vectors.double()
    else:
        clean = _cleaner(mu_harmless, concepts, spec)
        vectors = _per_layer(harmful, harmless, mu_harmless, difference, spec, clean)  # [L, k, d]
    if spec.scope == "single":
        assert spec.layer is not None  # a DirectionSpec without it does not exist
        vectors = _spread(vectors, spec.layer)
        if spec.estimator == "biprojected":
            vectors = _off(vectors, unit(mu_harmless))
    norms = (vectors[:, 0] * difference).sum(-1).clamp(min=0)
    if spec.estimator == "random":
        norms = difference.norm(dim=-1)  # a control shifts as far as the real direction would
    stats = described(mu_harmful, mu_harmless)
    if heldout is not None:
        stats |= separation(*heldout, vectors[:, 0])
    tested = _assessed((harmful, harmless), heldout, vectors[:, 0], spec, concepts)
    return Directions(
        vectors.float().contiguous(),
        norms.float(),
        (vectors @ mu_harmless[..., None])[..., 0].float(),
        {name: value.float() for name, value in stats.items()},
        {"model": model_digest, "estimator": spec.estimator},
        **vars(tested),
    )


def winsorized(x: Tensor, quantile: float) -> Tensor:
    """Clip every vector at the `quantile` of its own magnitudes; [n, L, d] to [n, L, d].

    A few channels of some models (Gemma 3) are a thousand times larger than the rest and would
    decide the mean alone.
    """
    rank = max(1, math.ceil(quantile * x.shape[-1]))  # kthvalue: torch.quantile stops at 16M values
    limit = torch.stack([row.abs().kthvalue(rank, dim=-1).values for row in x])[..., None]
    return x.clamp(-limit, limit)


def whitened(difference: Tensor, harmless: Tensor, shrinkage: float) -> Tensor:
    """Fisher's direction Σ⁻¹r of one layer, Σ = (1 − s) Σ̂_harmless + s tr(Σ̂)/d · I.

    With fewer prompts than dimensions the d × d matrix is never built (Woodbury identity).

    Args:
        difference: [d] or [d, B] float64, the difference of the means, or several.
        harmless: [m, d] residuals.
        shrinkage: s, 0 to 1.

    Returns:
        The same shape, float64.

    Raises:
        UserError: Σ̂ is singular and nothing is added to it.
    """
    x = harmless.double() - harmless.mean(0, dtype=torch.float64)
    m, d = x.shape
    scale = x.square().sum() / (m - 1) / d  # tr(Σ̂) / d
    ridge = shrinkage * scale
    if scale == 0:
        return difference  # harmless prompts that do not vary: nothing to whiten with
    if shrinkage == 0 and m <= d:
        raise UserError(
            f"directions.shrinkage is 0, but {m} harmless prompts cannot whiten {d} dimensions; "
            f"use a shrinkage above 0 (0.1 is usual) or more than {d} prompts."
        )
    if m > d:
        covariance = (1 - shrinkage) * (x.T @ x) / (m - 1)
        covariance.diagonal().add_(ridge)
        return torch.linalg.solve(covariance, difference)
    inner = (1 - shrinkage) * (x @ x.T)  # [m, m]
    inner.diagonal().add_(ridge * (m - 1))
    correction = torch.linalg.solve(inner, (1 - shrinkage) * (x @ difference))
    return (difference - x.T @ correction) / ridge


def residualised(x: Tensor, atoms: Tensor, ridge: float) -> Tensor:
    """What a ridge regression on the atoms does not explain: x − A (AᵀA + λI)⁻¹ Aᵀx.

    Surgical refusal ablation (arXiv 2601.08489): the spectrum of A decides how much of each of its
    directions goes, σ² / (σ² + λ); without a ridge all that the atoms span.

    Args:
        x: [..., d] float64.
        atoms: Aᵀ [K, d], unit rows.
        ridge: λ >= 0.

    Returns:
        [..., d].
    """
    _, sigma, axes = torch.linalg.svd(atoms, full_matrices=False)
    axes, squares = axes[sigma > NEGLIGIBLE * sigma[0]], sigma[sigma > NEGLIGIBLE * sigma[0]] ** 2
    return x - (x @ axes.mT * (squares / (squares + ridge))) @ axes


def _cleaner(mu_harmless: Tensor, concepts: Sequence[Tensor], spec: DirectionSpec) -> Clean:
    """(x [..., d], layer) -> x without what the estimator keeps out of a direction."""
    if spec.estimator == "surgical":
        means = torch.stack([x.mean(0, dtype=torch.float64) for x in concepts])  # [K, L, d]
        atoms = _atoms(means - mu_harmless, mu_harmless)
        return lambda x, layer: residualised(x, atoms[layer], spec.shrinkage)
    if spec.estimator in ("projected", "biprojected"):
        away = unit(mu_harmless)
        return lambda x, layer: without(x, away[layer])
    return lambda x, layer: x


def _atoms(shifts: Tensor, mu_harmless: Tensor) -> list[Tensor]:
    """Of every layer the concepts' directions, unit [K, d]; [K, L, d] with rounding alone left out.

    Raises:
        UserError: a layer in which no concept differs from the harmless prompts.
    """
    found = []
    for layer in range(shifts.shape[1]):
        shift = shifts[:, layer]
        own = shift[shift.norm(dim=-1) > NEGLIGIBLE * mu_harmless[layer].norm()]
        if not len(own):
            raise UserError(
                f"in layer {layer} the protected concepts have the same mean as the harmless "
                "prompts, so there is nothing to protect; name other prompts in "
                "directions.concepts."
            )
        found.append(unit(own))
    return found


def _per_layer(
    harmful: Tensor,
    harmless: Tensor,
    mu_harmless: Tensor,
    difference: Tensor,
    spec: DirectionSpec,
    clean: Clean,
) -> Tensor:
    """[L, k, d] float64 orthonormal rows: the main direction, then what else the prompts share."""
    layers = []
    for layer, r in enumerate(difference):
        if spec.estimator == "whitened":
            main = unit(whitened(r, harmless[:, layer], spec.shrinkage))
        else:
            left = clean(r, layer)
            if left.norm() < NEGLIGIBLE * r.norm():
                along = "within the protected concepts"
                along = along if spec.estimator == "surgical" else "along the harmless mean"
                raise UserError(
                    f"in layer {layer} the difference of the means lies {along}, "
                    f"so {spec.estimator!r} leaves nothing; use estimator 'mean_difference'."
                )
            main = unit(left)
        rows = [main]
        if spec.k > 1:
            # Not centred: the mean of these differences is the signal itself.
            rest = harmful[:, layer].double() - mu_harmless[layer]  # [n, d]
            rest = without(clean(rest, layer), main)
            rows += _leading(rest, spec.k - 1)
        basis = torch.linalg.qr(torch.stack(rows).T)  # once more, against rounding
        layers.append((basis.Q * torch.sign(basis.R.diagonal())).T)
    return torch.stack(layers)


def _again(
    harmless: Tensor, vectors: Tensor, spec: DirectionSpec, concepts: Sequence[Tensor]
) -> reliability.Again:
    """The main direction anew from other means of the same prompts, [B, L, d] float32.

    The covariance, the protected concepts and a random direction [L, d] stay what they are.
    """

    def directions(difference: Tensor, mu_harmless: Tensor) -> Tensor:
        found = difference
        if spec.estimator == "random":
            return vectors.float().expand_as(difference)
        if spec.estimator in ("projected", "biprojected"):
            found = without(difference, unit(mu_harmless))
        elif spec.estimator == "surgical":
            clean = _cleaner(harmless.mean(0, dtype=torch.float64), concepts, spec)
            layers = [clean(difference[:, i].double(), i) for i in range(difference.shape[1])]
            found = torch.stack(layers, 1).float()
        elif spec.estimator == "whitened":
            layers = [
                whitened(difference[:, i].double().T, harmless[:, i], spec.shrinkage).T
                for i in range(difference.shape[1])
            ]
            found = torch.stack(layers, 1).float()
        if spec.scope == "single":
            assert spec.layer is not None
            below, share = math.floor(spec.layer), spec.layer - math.floor(spec.layer)
            ends = [unit(found[:, i : i + 1]) for i in (below, min(below + 1, len(vectors) - 1))]
            found = ((1 - share) * ends[0] + share * ends[1]).expand_as(found)
            if spec.estimator == "biprojected":
                found = without(found, unit(mu_harmless))
        return unit(found)

    return directions


def _assessed(
    measured: reliability.Pair,
    heldout: reliability.Pair | None,
    vectors: Tensor,
    spec: DirectionSpec,
    concepts: Sequence[Tensor],
) -> reliability.Assessment:
    """Intervals and reliability; random directions have no evidence to be assessed."""
    again = _again(measured[1], vectors, spec, concepts)
    found = reliability.assess(measured, heldout, vectors, again)
    if spec.estimator == "random":
        del found.intervals["evidence"], found.reliability["evidence"]
    return found


def _leading(rows: Tensor, count: int) -> Sequence[Tensor]:
    """The first right singular vectors of [n, d], each with its largest component positive."""
    n, d = rows.shape
    if n < d:  # by the small Gram matrix: twenty times faster at the width of a large model
        squares, left = torch.linalg.eigh(rows @ rows.T)
        size = squares.flip(0).clamp(min=0).sqrt()
        right = left.flip(1).T[:count] @ rows / size[:count, None].clamp(min=1e-30)
    else:
        _, size, right = torch.linalg.svd(rows, full_matrices=False)
    rank = int((size > NEGLIGIBLE * size[0].clamp(min=1e-30)).sum())
    if rank < count:
        raise UserError(
            f"directions.k is {count + 1}, but these prompts differ in {rank + 1} directions only; "
            "lower k or add harmful prompts."
        )
    return [v * torch.sign(v[v.abs().argmax()]) for v in right[:count]]


def _spread(vectors: Tensor, layer: float) -> Tensor:
    """The directions of one (fractional) layer on all layers; [L, k, d] to [L, k, d]."""
    below, share = math.floor(layer), layer - math.floor(layer)
    chosen = vectors[below]
    if share:
        above = vectors[below + 1]
        # Directions after the first have no sign of their own: give them the neighbour's.
        sign = torch.where((chosen * above).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        sign[0] = 1.0
        basis = torch.linalg.qr(((1 - share) * chosen + share * sign * above).T)
        chosen = (basis.Q * torch.sign(basis.R.diagonal())).T
    return chosen.expand_as(vectors)


def _off(vectors: Tensor, means: Tensor) -> Tensor:
    """[L, k, d] without their layer's own unit vector [L, d], orthonormal again.

    Raises:
        UserError: nothing is left of a direction somewhere.
    """
    rest = vectors - (vectors @ means[..., None]) * means[:, None]
    basis = torch.linalg.qr(rest.mT)
    sizes = basis.R.diagonal(dim1=-2, dim2=-1)  # [L, k]
    if (gone := (sizes.abs() < NEGLIGIBLE).any(-1)).any():
        raise UserError(
            f"a direction lies along the harmless mean of layer {int(gone.nonzero()[0])}, so "
            "'biprojected' leaves nothing there; use another directions.layer, or estimator "
            "'projected'."
        )
    return (basis.Q * torch.sign(sizes)[:, None]).mT


def _check(
    harmful: Tensor, harmless: Tensor, spec: DirectionSpec, concepts: Sequence[Tensor]
) -> None:
    if spec.estimator == "surgical" and not concepts:
        raise UserError("estimator 'surgical' needs concepts to protect; none were measured here.")
    sets = [("harmful", harmful), ("harmless", harmless), *(("concept", x) for x in concepts)]
    for name, x in sets:
        if len(x) < 2:
            raise UserError(f"{len(x)} {name} prompts are too few: give at least 2, better 50.")
        if not x.isfinite().all():
            layer = int((~x.isfinite()).any(-1).any(0).nonzero()[0])
            raise UserError(
                f"the residual of the {name} prompts is not finite from layer {layer} on; load the "
                "model as bfloat16 or float32."
            )
    layers, hidden = harmful.shape[1:]
    if spec.scope == "single" and not (spec.layer is not None and spec.layer <= layers - 1):
        raise UserError(
            f"directions.layer is {spec.layer}, but the model's layers are 0 to {layers - 1}."
        )
    if spec.k > hidden:
        raise UserError(f"directions.k is {spec.k}, but the residual has {hidden} dimensions.")
    if len(concepts) >= hidden:
        raise UserError(
            f"{len(concepts)} concepts leave nothing of a residual of {hidden} dimensions; protect "
            "fewer with directions.concepts."
        )


def _check_difference(difference: Tensor, mu_harmful: Tensor, mu_harmless: Tensor) -> None:
    size = torch.maximum(mu_harmful.norm(dim=-1), mu_harmless.norm(dim=-1))
    same = difference.norm(dim=-1) <= NEGLIGIBLE * size
    if same.any():
        layer = int(same.nonzero()[0])
        raise UserError(
            f"harmful and harmless prompts have the same mean in layer {layer}, so there is "
            "no direction between them; are the two prompt sets the same?"
        )
