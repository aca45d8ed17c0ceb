"""Merging from the literature, on dense weight changes: TIES, DARE, and the alignment projection.

Published code often merges the factors of LoRA adapters; b₁ + b₂ times a₁ + a₂ is not the sum of
the changes, and here nothing is ever done to a factor alone.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sst_ui.maths.merge.low_rank import Delta


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the share `density` of entries that is largest in magnitude, zero for the others."""
    keep = int(density * delta.numel() + 1e-9)
    if keep >= delta.numel():
        return delta
    kept = torch.zeros_like(delta).flatten()
    largest = delta.flatten().abs().topk(keep).indices
    kept[largest] = delta.flatten()[largest]
    return kept.reshape(delta.shape)


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Trim, elect signs, disjoint mean (Yadav et al. 2023, arXiv 2306.01708).

    Each change is trimmed by itself and multiplied by its weight. An entry's sign is that of the
    sum; the result is the mean, weighted by |weight|, of the changes that have it. With weights of
    1 this is the paper's, but per matrix, where the paper trims over all of them at once.

    Args:
        deltas: each [out, in].
        weights: one for each.
        density: 0..1.

    Returns:
        [out, in].
    """
    parts = [w * trim(d, density) for d, w in zip(deltas, weights, strict=True)]
    elected = sum(parts, start=torch.zeros_like(parts[0])).sign()
    mass = torch.zeros_like(elected)
    share = torch.zeros_like(elected)
    for part, weight in zip(parts, weights, strict=True):
        agrees = part.sign() == elected
        mass += torch.where(agrees, part, 0)
        share += agrees * abs(weight)
    return torch.where(share > 0, mass / share, 0)


def dare(delta: Tensor, drop: float, draw: torch.Generator) -> Tensor:
    """Drop entries at random and rescale the others by 1 / (1 − drop): unbiased.

    Yu et al. 2023, arXiv 2311.03099.
    """
    kept = torch.rand(delta.shape, generator=draw) >= drop
    return torch.where(kept, delta / (1 - drop), 0)


def aligned(delta: Delta, v: Tensor) -> tuple[Delta, float]:
    """C Δ with C = V Vᵀ / ‖V‖_F, and how much of Δ it leaves standing (Safe LoRA's criterion).

    Hsu et al. 2024, arXiv 2405.16833. The matrix C [out, out] is never formed.

    Args:
        delta: [out, in] of low rank.
        v: [out, in], aligned minus unaligned weights.

    Returns:
        C Δ, and cos(Δ, C Δ) over all entries; nan if V or Δ is zero, where there is no telling.

    Raises:
        ValueError: V has another shape than Δ.
    """
    if v.shape != (delta.out, delta.inp):
        raise ValueError(f"V is {list(v.shape)}, the delta [{delta.out}, {delta.inp}]")
    v = v if v.dtype == torch.float64 else v.float()
    norm = float(v.norm())
    if norm == 0 or delta.norm() == 0:
        return delta, math.nan
    projected = Delta(v @ (v.mT @ delta.b.to(v)) / norm, delta.a.to(v))
    b, a = projected.b.double(), delta.a.double()
    inner = float(((delta.b.double().mT @ b) * (a @ a.mT)).sum())  # ⟨Δ, C Δ⟩ >= 0
    return projected, inner / max(delta.norm() * projected.norm(), 1e-300)
