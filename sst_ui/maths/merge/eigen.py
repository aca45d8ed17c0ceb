"""Pairs of symmetric matrices: one basis in which both are diagonal, and quadratic forms in it."""

import math

import torch
from torch import Tensor

from sst_ui.errors import UserError

TINY = 1e-30  # damping of a matrix that is zero: in the other one's terms nothing counts there

Pair = tuple[Tensor | None, Tensor | None]  # (G, A); None stands for the identity


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part, float64 on the CPU."""
    exact = matrix.detach().to("cpu", torch.float64)
    return (exact + exact.mT) / 2


def solve(top: Tensor, bottom: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """top v = λ B v with B = bottom + damping · mean(diag bottom) I, by Cholesky and whitening.

    Args:
        top, bottom: [n, n] symmetric float64, positive semi-definite.
        damping: >= 0.

    Returns:
        λ [n] >= 0; V [n, n] with Vᵀ B V = I and Vᵀ top V = diag λ; V⁻¹ = Vᵀ B.

    Raises:
        UserError: B is singular.
    """
    n = len(bottom)
    shift = damping * max(float(bottom.trace()) / max(n, 1), TINY)
    lower, failed = torch.linalg.cholesky_ex(bottom + shift * torch.eye(n).to(bottom))
    if failed:
        raise UserError(
            "the utility data's moments are singular; give a damping above 0, for example 0.001, "
            "or more data."
        )
    white = torch.linalg.solve_triangular(lower, top, upper=False)  # L⁻¹ S
    white = torch.linalg.solve_triangular(lower, white.mT, upper=False)  # L⁻¹ S L⁻ᵀ
    values, vectors = torch.linalg.eigh((white + white.mT) / 2)
    v = torch.linalg.solve_triangular(lower.mT, vectors, upper=True)  # L⁻ᵀ Q
    return values.clamp_min(0), v, vectors.mT @ lower.mT


def identity(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `solve` would give where the side does not matter: λ = 1 for all, as [1]."""
    whole = torch.eye(n, dtype=torch.float64)
    return whole.new_ones(1), whole, whole


def between(left: Tensor, pair: Pair, right: Tensor) -> tuple[Tensor, Tensor]:
    """(leftᵀ G left, rightᵀ A right): a Kronecker pair in another basis."""
    g, a = pair
    return (
        left.mT @ left if g is None else left.mT @ g @ left,
        right.mT @ right if a is None else right.mT @ a @ right,
    )


def half_square(h: Tensor, pair: tuple[Tensor, Tensor] | None) -> Tensor:
    """½ vec(h)ᵀ (G ⊗ A) vec(h) for each h [..., q, p] by rows; nan for an unknown pair."""
    if pair is None:
        return h.new_full(h.shape[:-2], math.nan)
    return ((pair[0] @ h @ pair[1]) * h).sum((-2, -1)) / 2
