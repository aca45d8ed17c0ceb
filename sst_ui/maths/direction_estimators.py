"""Estimators: from residuals of harmful and harmless prompts to one direction per layer.

Means, covariances and solutions are float64: a direction is a small difference of two large,
similar vectors.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths import statistics
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
    return Directions(
        vectors.float().contiguous(),
        norms.float(),
        (vectors @ mu_harmless[..., None])[..., 0].float(),
        {name: value.float() for name, value in stats.items()},
        {"model": model_digest, "estimator": spec.estimator},
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
        difference: [d] float64, the difference of the means.
        harmless: [m, d] residuals.
        shrinkage: s, 0 to 1.

    Returns:
        [d] float64.

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


def described(mu_harmful: Tensor, mu_harmless: Tensor) -> dict[str, Tensor]:
    """Per-layer statistics of two means [L, d], each [L].

    norm ‖r‖; SNR ‖r‖ / max(‖μ_h‖, ‖μ_s‖); cosine of the means; purity ‖r⊥‖ / ‖r‖, the share of r
    that is not along the harmless mean; quality SNR (1 − cosine) purity.
    """
    difference = mu_harmful - mu_harmless
    norm, size_h, size_s = (v.norm(dim=-1) for v in (difference, mu_harmful, mu_harmless))
    snr = norm / torch.maximum(size_h, size_s)
    cosine = torch.cosine_similarity(mu_harmful, mu_harmless, dim=-1)
    purity = _without(difference, unit(mu_harmless)).norm(dim=-1) / norm
    quality = snr * (1 - cosine) * purity
    return {"norm": norm, "snr": snr, "cosine": cosine, "purity": purity, "quality": quality}


def separation(harmful: Tensor, harmless: Tensor, vectors: Tensor) -> dict[str, Tensor]:
    """How well [L, d] directions tell prompts [n, L, d] apart: AUROC and Cohen's d, each [L]."""
    high, low = (
        torch.einsum("nld,ld->ln", x.double(), vectors.double()).numpy()
        for x in (harmful, harmless)
    )
    pairs = list(zip(high, low, strict=True))
    return {
        "auroc": torch.tensor([statistics.auroc(h, s) for h, s in pairs], dtype=torch.float64),
        "cohens_d": torch.tensor([statistics.cohens_d(h, s) for h, s in pairs]).double(),
    }


def unit(x: Tensor) -> Tensor:
    """x / ‖x‖ along the last dimension; zero stays zero."""
    return torch.nn.functional.normalize(x, dim=-1, eps=1e-30)


def _cleaner(mu_harmless: Tensor, concepts: Sequence[Tensor], spec: DirectionSpec) -> Clean:
    """(x [..., d], layer) -> x without what the estimator keeps out of a direction."""
    if spec.estimator == "surgical":
        means = torch.stack([x.mean(0, dtype=torch.float64) for x in concepts])  # [K, L, d]
        atoms = _atoms(means - mu_harmless, mu_harmless)
        return lambda x, layer: residualised(x, atoms[layer], spec.shrinkage)
    if spec.estimator in ("projected", "biprojected"):
        away = unit(mu_harmless)
        return lambda x, layer: _without(x, away[layer])
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
            rest = _without(clean(rest, layer), main)
            rows += _leading(rest, spec.k - 1)
        basis = torch.linalg.qr(torch.stack(rows).T)  # once more, against rounding
        layers.append((basis.Q * torch.sign(basis.R.diagonal())).T)
    return torch.stack(layers)


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


def _without(x: Tensor, direction: Tensor) -> Tensor:
    """x without its component along a unit vector (or x itself for the zero vector)."""
    return x - (x * direction).sum(-1, keepdim=True) * direction


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
