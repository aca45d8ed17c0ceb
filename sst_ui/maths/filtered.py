"""Filtered ablation: the ablation's output side, and an input side that leaves harmless inputs be.

An ablation is a delta of rank 1 per writer, ΔW = −α r̂ (Wᵀr̂)ᵀ. The filter keeps r̂ and chooses
what the delta reads (SST-Merge's filter, for the ablation); x is a writer's input, y its output:

    min_v  E_harmful[(vᵀx − (r̂ᵀy − c))²] + μ E_harmless[(vᵀx)²] + ε‖v‖²,        ΔW = −α r̂ vᵀ
    v = (Σ_harmful + μ Σ_harmless + ε I)⁻¹ (E_harmful[x r̂ᵀy] − c E_harmful[x])

With y = Wx the first term of g is Σ_harmful Wᵀr̂; taken from the output it needs no weight, and
includes a bias. c = 0 is the plain target, the harmless mean of r̂ᵀy the affine one. k directions
give k rows v, each on its own, since the directions are orthonormal. Look-alikes count as harmless,
with a weight.

All μ come from one decomposition per writer. With Wᵀ(Σ_harmful + ε I)W = I, WᵀΣ_harmlessW = diag κ,
h = Wᵀg and s = 1 / (1 + μκ):

    v(μ) = W (s ∘ h)
    harmless energy moved            α² vᵀΣ_harmless v = α² Σ κ s² h²
    harmful component left           E[(r̂ᵀy − c − α vᵀx)²] ≤ T − Σ (2α s − α² s²) h²

(less than that by the ridge's share). A module with many inputs is solved in a subspace of them, in
which all of this stays exact, see `subspace`. A null space bounds v likewise, see `null_space`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.merge.eigen import solve

EXACT = 1024  # up to so many inputs the whole space is taken
SKETCH = 256  # directions of each set of prompts beyond that
FLOOR = 1e-6  # share of a sketch's largest singular value below which it is rounding
SMALL = ("mean", "cross", "along", "squares")  # parts of `Moments` beside the inputs' own
HIGHEST = 1e12  # μ: nothing is left of a direction in which harmless inputs have any energy
DIGITS = 1e-3  # of the μ that a budget chooses, relative


def random_columns(width: int, seed: int = 0) -> Tensor:
    """Ω [width, SKETCH] float32 of a sketch XᵀXΩ, the same for every writer of that width."""
    return torch.randn(width, SKETCH, generator=torch.Generator().manual_seed(seed))


def subspace(sketches: Sequence[Tensor]) -> Tensor:
    """Where a wide writer's filter is looked for: the inputs of most energy of each set of prompts.

    The range of XᵀXΩ (Halko, Martinsson and Tropp 2011). A set of no more than SKETCH tokens is
    held completely. v is bound to the subspace; what it does to inputs outside of it is nothing, so
    that energies and components are exact and only the optimum is a little worse.

    Args:
        sketches: XᵀXΩ [in, m] of each set.

    Returns:
        Q [in, q] orthonormal float32, q <= m times the number of sets.
    """
    parts = []
    for sketch in sketches:
        left, sigma, _ = torch.linalg.svd(sketch.double(), full_matrices=False)
        parts.append(left[:, sigma > FLOOR * sigma[0]])
    left, sigma, _ = torch.linalg.svd(torch.cat(parts, dim=1), full_matrices=False)
    return left[:, sigma > FLOOR].float().contiguous()


@dataclass(frozen=True, eq=False)
class Moments:
    """What a writer reads and writes on one set of prompts: uncentred means over its tokens.

    x stands for Qᵀx where the writer has a subspace Q; n below is `in`, or its dimension.

    In float64: what is solved with them is ill-conditioned where a few prompts span a small part of
    the inputs, and in float32 a thousandth of the change that comes out was rounding.

    Attributes:
        inputs: Σ = E[x xᵀ], its upper triangle row by row, [n (n + 1) / 2]; see `packed`.
        mean: E[x], [n].
        cross: E[x (Ry)ᵀ], [n, k].
        along: E[Ry], [k].
        squares: E[(Ry)²], [k].
        n: tokens.
    """

    inputs: Tensor
    mean: Tensor
    cross: Tensor
    along: Tensor
    squares: Tensor
    n: int

    def second(self) -> Tensor:
        """Σ [n, n] float64."""
        width = len(self.mean)
        upper = self.inputs.new_zeros(width, width)
        upper[tuple(torch.triu_indices(width, width))] = self.inputs
        return upper + upper.triu(1).mT


def packed(matrix: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix [n, n], row by row, as [n (n + 1) / 2]."""
    return matrix[tuple(torch.triu_indices(*matrix.shape))]


@dataclass(frozen=True, eq=False)
class Path:
    """One writer's filter for every μ.

    Attributes:
        modes: W [n, n], in the basis: v(μ) = Q W (h / (1 + μκ)).
        energies: κ [n] >= 0, each mode's harmless energy.
        shares: h [n, k].
        component: T = Σ_k E_harmful[(r̂ᵀy − c)²], what there is to remove.
        plain: Σ_k E_harmless[(r̂ᵀy)²], the harmless energy that a plain ablation moves at α = 1.
        centre: c [k].
        basis: Q [in, n] orthonormal, or None for the identity.
    """

    modes: Tensor
    energies: Tensor
    shares: Tensor
    component: float
    plain: float
    centre: Tensor
    basis: Tensor | None = None

    def rows(self, mu: float) -> Tensor:
        """vᵀ [k, in] float64."""
        inner = self.modes @ (self.shares * self._passed(mu)[:, None])  # [n, k]
        if self.basis is None:
            return inner.mT
        return (self.basis @ inner.to(self.basis)).mT.double()

    def removed(self, mu: float, alpha: float) -> float:
        """Predicted share of the harmful component that goes, 1 for all of it; negative where a
        negative α adds to it. The ridge's share counts as left."""
        if not self.component:
            return 0.0
        part = self._passed(mu)
        gone = (2 * alpha * part - (alpha * part).square()) @ self.shares.square().sum(1)
        return float(gone) / self.component

    def moved(self, mu: float, alpha: float) -> float:
        """Predicted harmless energy that is moved, in the units of `plain`."""
        part = self._passed(mu)
        energy = (self.energies * part.square()) @ self.shares.square().sum(1)
        return alpha**2 * float(energy)

    def _passed(self, mu: float) -> Tensor:
        return 1 / (1 + mu * self.energies)


def path(
    harmful: Moments,
    harmless: Sequence[tuple[Moments, float]],
    ridge: float,
    affine: bool = False,
    basis: Tensor | None = None,
    share: float | None = None,
) -> Path:
    """Decompose one writer's moments.

    Args:
        harmful: at the tokens where refusal is decided.
        harmless: (moments, weight) of everything to leave as it is; the first is the harmless
            prompts', whose mean along the directions is the affine centre.
        ridge: ε in units of the mean diagonal of Σ_harmful, > 0.
        affine: c is the centre, not 0.
        basis: Q [in, n] in which the moments are, or None for the identity.
        share: of the harmless energy; v is then bound to the null space that holds no more of it.

    Raises:
        UserError: numbers that are not finite, too small a ridge, or no such null space.
    """
    sets = [harmful, *(moments for moments, _ in harmless)]
    if not all(bool(m.cross.isfinite().all() & m.mean.isfinite().all()) for m in sets):
        raise UserError("the inputs of a module are not finite; load the model in bfloat16.")
    centre = harmless[0][0].along.double() if affine else torch.zeros(len(harmful.along)).double()
    g = harmful.cross.double() - harmful.mean.double()[:, None] * centre  # [in, k]
    bottom = harmful.second()
    top = torch.stack([weight * m.second() for m, weight in harmless]).sum(0)
    width = len(bottom) if basis is None else len(basis)
    epsilon = ridge * float(bottom.trace()) / width
    if share is not None:
        null = null_space(top, share)
        top, bottom, g = null.mT @ top @ null, null.mT @ bottom @ null, null.mT @ g
        basis = null if basis is None else basis.double() @ null
    try:
        energies, modes, _ = solve(top, bottom + epsilon * torch.eye(len(bottom)).to(bottom), 0.0)
    except UserError:
        raise UserError(
            f"the harmful prompts' moments are singular at a ridge of {ridge:g}; give a larger "
            "edit.filter ridge, for example 0.0001."
        ) from None
    component = harmful.squares.double() - 2 * centre * harmful.along.double() + centre.square()
    plain = sum(weight * float(m.squares.double().sum()) for m, weight in harmless)
    return Path(
        modes,
        energies,
        modes.mT @ g,
        float(component.sum()),
        plain,
        centre,
        basis,
    )


def null_space(harmless: Tensor, share: float) -> Tensor:
    """The inputs that harmless prompts hardly use: the null space of AlphaSteer (arXiv 2506.07022).

    An edit that reads through it is v = Pv, P = NNᵀ. With harmful inputs that are white and no
    price that is P Wᵀr̂, the projection of what a plain ablation reads.

    Args:
        harmless: Σ [n, n], symmetric float64.
        share: of its trace, 0 to 1.

    Returns:
        N [n, m] orthonormal: the eigenvectors of the smallest eigenvalues, as many as together hold
        no more than the share.

    Raises:
        UserError: not a single one holds so little.
    """
    energies, axes = torch.linalg.eigh(harmless)  # ascending
    held = energies.clamp_min(0).cumsum(0)
    count = int((held <= share * held[-1] * (1 + 1e-12)).sum())
    if not count:
        raise UserError(
            f"harmless prompts use every input of a module for more than {share:g} of their "
            "energy, so it has no such null space; give a larger filter.null_space."
        )
    return axes[:, :count]


class Stack:
    """The paths of all writers with their weights, as a few long vectors: sums in microseconds.

    Args:
        paths: one a writer.
        alphas: the writers' weights.
    """

    def __init__(self, paths: Sequence[Path], alphas: Sequence[float]) -> None:
        self._energies = torch.cat([p.energies for p in paths]) if paths else torch.zeros(0)
        squares = [
            alpha**2 * path.energies * path.shares.square().sum(1)
            for path, alpha in zip(paths, alphas, strict=True)
        ]
        self._moved = torch.cat(squares) if squares else torch.zeros(0)
        self.plain = sum(a**2 * p.plain for p, a in zip(paths, alphas, strict=True))

    def moved(self, mu: float) -> float:
        """Harmless energy moved by all writers, as a share of what plain ablation would move."""
        if not self.plain:
            return 0.0
        return float((self._moved / (1 + mu * self._energies).square()).sum()) / self.plain

    def price(self, budget: float) -> float:
        """The smallest μ (to three digits) that moves no more than the budget; 0 if any does.

        Raises:
            UserError: none does.
        """
        if self.moved(0.0) <= budget:
            return 0.0
        low, high = math.log(1e-12), math.log(HIGHEST)
        if self.moved(HIGHEST) > budget:
            raise UserError(
                f"no filter moves so little as a budget of {budget:g}; give a larger one."
            )
        while high - low > DIGITS:
            middle = (low + high) / 2
            low, high = (low, middle) if self.moved(math.exp(middle)) <= budget else (middle, high)
        return math.exp(high)
