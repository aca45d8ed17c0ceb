"""Directional ablation of one weight matrix, and of what it writes: one strength axis for both.

    W'(α) = (W − α r̂ u) · diag(D)        u = r̂ᵀW        b' = b − α r̂ (r̂·b)
    D_j   = (1 − α(2 − α) c_j²)^(−1/2)    c_j = u_j / ‖W[:, j]‖; D = 1 unless norm preserving

α = 0 changes nothing, 1 removes the direction, 2 reflects it, and α < 0 strengthens it. For every α
r̂ᵀW' = (1 − α) u ∘ D. Ablation: Arditi et al. 2024, arXiv 2406.11717; keeping the norm of every
*column* is what leaves the direction removed (a norm per row would put a part of it back).

Where a norm of gain g stands between the matrix and the residual stream, the stream receives
(g ∘ y) / rms(y), and the projection that removes r̂ from *that* is an oblique one of y:

    y' = y − α Q (B y)        B = r̂ ∘ g (read), Q = r̂ ⊘ g (written); see `through_gain`

so that W' = W − α Q (B W), of the same rank. Without a norm B = Q = r̂.
"""

import torch
from torch import Tensor

# Smallest radicand of D: a column closer to the direction than this is scaled by 100 and no more.
FLOOR = 1e-4
# ‖B‖ ‖Q‖ of an oblique projection (1: it is orthogonal). Beyond this the gain is nearly 0 where the
# direction is not, and dividing by it would swell y and so, through the norm, shrink all the rest.
OBLIQUE = 10.0
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


def through_gain(rows: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What to read and what to write so that directions vanish *behind* a norm with a gain.

    Args:
        rows: [k, d] with orthonormal rows, directions of the residual stream.
        gain: [d] of the norm (any multiple of it), or None where there is no norm.

    Returns:
        (B, Q), each [k, d] in the type of `rows`; Q is None where it is B (no norm). For
        y' = y − α Qᵀ B y the components of g ∘ y' along the rows are (1 − α) of those of g ∘ y.
        B = R diag(g). Q = R diag(g)⁻¹ changes nothing else of g ∘ y; where that is too oblique
        (`OBLIQUE`), or g has zeros, Q spans the same space as B: for one direction,
        y' = y − α p (p·y) with p along g ∘ r̂.
    """
    if gain is None:
        return rows, None
    exact, gain = rows.double(), gain.to(rows.device, torch.float64)
    read = exact * gain
    write = exact / gain
    tilt = torch.linalg.matrix_norm(read, 2) * _spectral(write)
    if not tilt <= OBLIQUE:
        write = torch.linalg.pinv(read).mT
    return read.to(rows.dtype), write.to(rows.dtype)


def _spectral(matrix: Tensor) -> Tensor:
    """The largest singular value; infinite where some number is not finite."""
    if not bool(matrix.isfinite().all()):
        return matrix.new_tensor(float("inf"))
    return torch.linalg.matrix_norm(matrix, 2)


def project(
    values: Tensor, rows: Tensor, alpha: Tensor | float, write: Tensor | None = None
) -> Tensor:
    """y' = y − Rᵀ diag(α) R y for vectors in the residual stream.

    Args:
        values: [..., d].
        rows: [k, d] with orthonormal rows.
        alpha: scalar, [k], or anything that broadcasts against [..., k].
        write: [k, d], Q of y' = y − Qᵀ diag(α) R y where it is not R (see `through_gain`).

    Returns:
        [..., d] in the type of `values`; the work is done in float32 or better.
    """
    exact = values if values.dtype == torch.float64 else values.float()
    rows = rows.to(exact)
    along = exact @ rows.mT  # [..., k]
    back = rows if write is None else write.to(exact)
    return (exact - (along * alpha) @ back).to(values.dtype)


def norm_scale(
    along: Tensor,
    norms: Tensor,
    alpha: Tensor | float,
    across: Tensor | None = None,
    gram: Tensor | None = None,
) -> tuple[Tensor, int]:
    """The factor per column that restores the column's norm after the ablation.

    Args:
        along: u = R W, [k, in], with orthonormal rows R.
        norms: m, [in], the column norms of W.
        alpha: scalar or [k].
        across, gram: Q W [k, in] and Q Qᵀ [k, k] where the ablation writes along Q instead of R
            (see `through_gain`); then no rows need be orthonormal.

    Returns:
        D [in], and how many columns had their radicand clamped from below at `FLOOR`.
    """
    alpha = torch.as_tensor(alpha, dtype=along.dtype, device=along.device)
    alpha = alpha.expand(along.shape[0])
    tiny = norms.clamp_min(torch.finfo(norms.dtype).tiny)
    if across is None or gram is None:
        share = (along / tiny).square()  # c², [k, in]
        radicand = 1 - (alpha * (2 - alpha)) @ share
    else:
        taken = alpha[:, None] * along / tiny  # of ‖w − Qᵀ taken‖²
        radicand = 1 + (taken * (gram @ taken - 2 * across / tiny)).sum(0)
    return radicand.clamp_min(FLOOR).rsqrt(), int((radicand < FLOOR).sum())


def edit_weight(
    weight: Tensor,
    rows: Tensor,
    alpha: Tensor | float,
    norm_preserving: bool = False,
    write: Tensor | None = None,
) -> Tensor:
    """The edited matrix W'.

    Args:
        weight: [out, in]; `out` is the residual stream.
        rows: [k, out] with orthonormal rows.
        alpha: scalar or [k].
        norm_preserving: keep every column norm.
        write: [k, out], where the ablation reads `rows` and writes along these instead.

    Returns:
        [out, in] in the type of `weight`; the work is done in float32 or better.
    """
    exact = weight if weight.dtype == torch.float64 else weight.float()
    rows = rows.to(exact)
    alpha = torch.as_tensor(alpha, dtype=exact.dtype, device=exact.device).expand(rows.shape[0])
    along = rows @ exact  # u, [k, in]
    back = rows if write is None else write.to(exact)
    edited = exact - back.mT @ (alpha[:, None] * along)
    if norm_preserving:
        oblique = () if write is None else (back @ exact, back @ back.mT)
        edited = edited * norm_scale(along, exact.norm(dim=0), alpha, *oblique)[0]
    return edited.to(weight.dtype)


def edit_bias(
    bias: Tensor,
    rows: Tensor,
    alpha: Tensor | float,
    write: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """The edited bias b' = b − Qᵀ diag(α) (R b − t), [out]: it is part of what the module writes,
    so it is projected too.

    Args:
        rows, alpha, write: as for `project`.
        target: t [k], what the component of the module's output moves to (an affine edit); None
            for zero.
    """
    edited = project(bias, rows, alpha, write)
    if target is None:
        return edited
    exact = edited if edited.dtype == torch.float64 else edited.float()
    back = (rows if write is None else write).to(exact)
    return (exact + (target.to(exact) * alpha) @ back).to(bias.dtype)
