"""Directional ablation of one weight matrix, and of what it writes: one strength axis for both.

Knows matrices that are [out, in], with `out` the residual stream. Does not know modules, layers or
models: which matrices write to the residual stream is `model/architecture.py`.

    W'(α) = (W − α r̂ u) · diag(D)        u = r̂ᵀW        b' = b − α r̂ (r̂·b)
    D_j   = (1 − α(2 − α) c_j²)^(−1/2)    c_j = u_j / ‖W[:, j]‖; D = 1 unless norm preserving

α = 0 changes nothing, 1 removes the direction, 2 reflects it, and α < 0 strengthens it. For every α
r̂ᵀW' = (1 − α) u ∘ D. Ablation: Arditi et al. 2024, arXiv 2406.11717; keeping the norm of every
*column* is what leaves the direction removed (a norm per row would put a part of it back).
"""

import torch
from torch import Tensor

# Smallest radicand of D: a column closer to the direction than this is scaled by 100 and no more.
FLOOR = 1e-4
DEPENDENT = 1e-6  # a row whose part outside the earlier rows is shorter than this, relatively, is 0


def orthonormalise(vectors: Tensor) -> Tensor:
    """Orthonormal rows that span the same space; the first keeps its direction and sign.

    Args:
        vectors: [k, d], any floating type.

    Returns:
        [k, d] of the same type, computed in float64. A row that depends on the earlier ones, or is
        zero, becomes zero: projecting along it does nothing.
    """
    rows: list[Tensor] = []
    for vector in vectors.double():
        rest = vector
        for _ in range(2):  # the second pass removes what rounding left (Gram-Schmidt twice)
            for row in rows:
                rest = rest - (row @ rest) * row
        norm = rest.norm()
        independent = norm > DEPENDENT * vector.norm()
        rows.append(rest / norm if independent else torch.zeros_like(rest))
    return torch.stack(rows).to(vectors.dtype)


def project(values: Tensor, rows: Tensor, alpha: Tensor | float) -> Tensor:
    """y' = y − Rᵀ diag(α) R y for vectors in the residual stream.

    Args:
        values: [..., d].
        rows: [k, d] with orthonormal rows.
        alpha: scalar, [k], or anything that broadcasts against [..., k].

    Returns:
        [..., d] in the type of `values`; the work is done in float32 or better.
    """
    exact = values if values.dtype == torch.float64 else values.float()
    rows = rows.to(exact)
    along = exact @ rows.mT  # [..., k]
    return (exact - (along * alpha) @ rows).to(values.dtype)


def norm_scale(along: Tensor, norms: Tensor, alpha: Tensor | float) -> tuple[Tensor, int]:
    """The factor per column that restores the column's norm after the ablation.

    Args:
        along: u = R W, [k, in], with orthonormal rows R.
        norms: m, [in], the column norms of W.
        alpha: scalar or [k].

    Returns:
        D [in], and how many columns had their radicand clamped from below at `FLOOR`.
    """
    alpha = torch.as_tensor(alpha, dtype=along.dtype, device=along.device)
    alpha = alpha.expand(along.shape[0])
    share = (along / norms.clamp_min(torch.finfo(norms.dtype).tiny)).square()  # c², [k, in]
    radicand = 1 - (alpha * (2 - alpha)) @ share
    return radicand.clamp_min(FLOOR).rsqrt(), int((radicand < FLOOR).sum())


def edit_weight(
    weight: Tensor, rows: Tensor, alpha: Tensor | float, norm_preserving: bool = False
) -> Tensor:
    """The edited matrix W'.

    Args:
        weight: [out, in]; `out` is the residual stream.
        rows: [k, out] with orthonormal rows.
        alpha: scalar or [k].
        norm_preserving: keep every column norm.

    Returns:
        [out, in] in the type of `weight`; the work is done in float32 or better.
    """
    exact = weight if weight.dtype == torch.float64 else weight.float()
    rows = rows.to(exact)
    alpha = torch.as_tensor(alpha, dtype=exact.dtype, device=exact.device).expand(rows.shape[0])
    along = rows @ exact  # u, [k, in]
    edited = exact - rows.mT @ (alpha[:, None] * along)
    if norm_preserving:
        edited = edited * norm_scale(along, exact.norm(dim=0), alpha)[0]
    return edited.to(weight.dtype)


def edit_bias(bias: Tensor, rows: Tensor, alpha: Tensor | float) -> Tensor:
    """The edited bias b' [out]: it is part of what the module writes, so it is projected too."""
    return project(bias, rows, alpha)
