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

(less than that by the ridge's share). Wide inputs keep Σ as a sketch of bounded size, see `Sketch`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.merge.eigen import solve, symmetric

EXACT = 1024  # up to so many inputs the whole second moment is kept; not below SKETCH
SKETCH = 256  # columns of the sketch beyond that
FLOOR = 1e-6  # share of a sketch's largest eigenvalue below which it is rounding
SMALL = ("mean", "cross", "along", "squares")  # parts of `Moments` beside the inputs' own
HIGHEST = 1e12  # μ: nothing is left of a direction in which harmless inputs have any energy
DIGITS = 1e-3  # of the μ that a budget chooses, relative


@dataclass(frozen=True, eq=False)
class Sketch:
    """A second moment Σ [in, in] by its product with random columns, and its trace.

    Built from a stream in one pass, XᵀXΩ; read as U diag(λ) Uᵀ by the Nyström method (Tropp,
    Yurtsever, Udell and Cevher 2017, arXiv 1706.05736). What the sketch does not hold of the trace
    is spread evenly over the directions outside U.

    Attributes:
        product: ΣΩ [in, m].
        omega: Ω [in, m].
        trace: tr Σ.
    """

    product: Tensor
    omega: Tensor
    trace: float

    def parts(self) -> tuple[Tensor, Tensor, float]:
        """(U [in, m] orthonormal, λ [m], τ) in float64: Σ ≈ U diag(λ) Uᵀ + τ (I − U Uᵀ)."""
        y, omega = self.product.double(), self.omega.double()
        size = len(y)
        values, vectors = torch.linalg.eigh(symmetric(omega.mT @ y))
        # What float32 sums cannot tell from nothing is left out, not divided by.
        keep = values > FLOOR * values[-1]
        root = vectors[:, keep] * values[keep].rsqrt()  # (ΩᵀY)^(−1/2)
        left, sigma, _ = torch.linalg.svd(y @ root, full_matrices=False)
        rest = max(self.trace - float(sigma.square().sum()), 0.0)
        return left, sigma.square(), rest / max(size - left.shape[1], 1)


def random_columns(width: int, seed: int = 0) -> Tensor:
    """Ω [width, m] float32 of a sketch: the same for every writer of that width."""
    return torch.randn(width, SKETCH, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class Moments:
    """What a writer reads and writes on one set of prompts: uncentred means over its tokens.

    Attributes:
        inputs: Σ = E[x xᵀ], [in, in] or a sketch of it.
        mean: E[x], [in].
        cross: E[x (Ry)ᵀ], [in, k].
        along: E[Ry], [k].
        squares: E[(Ry)²], [k].
        n: tokens.
    """

    inputs: Tensor | Sketch
    mean: Tensor
    cross: Tensor
    along: Tensor
    squares: Tensor
    n: int


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
        basis: Q [in, n] orthonormal float32 of a sketched writer, or None for the identity.
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
) -> Path:
    """Decompose one writer's moments.

    Args:
        harmful: at the tokens where refusal is decided.
        harmless: (moments, weight) of everything to leave as it is; the first is the harmless
            prompts', whose mean along the directions is the affine centre.
        ridge: ε in units of the mean diagonal of Σ_harmful, > 0.
        affine: c is the centre, not 0.

    Raises:
        UserError: numbers that are not finite, or too small a ridge.
    """
    sets = [harmful, *(moments for moments, _ in harmless)]
    if not all(bool(m.cross.isfinite().all() & m.mean.isfinite().all()) for m in sets):
        raise UserError("the inputs of a module are not finite; load the model in bfloat16.")
    centre = harmless[0][0].along.double() if affine else torch.zeros(len(harmful.along)).double()
    g = harmful.cross.double() - harmful.mean.double()[:, None] * centre  # [in, k]
    basis = _basis(sets)
    bottom = _within(harmful.inputs, basis)
    top = sum(weight * _within(m.inputs, basis) for m, weight in harmless)
    assert isinstance(top, Tensor)  # there is one harmless set at least
    epsilon = ridge * _mean_diagonal(harmful.inputs)
    try:
        energies, modes, _ = solve(top, bottom + epsilon * torch.eye(len(bottom)).to(bottom), 0.0)
    except UserError:
        raise UserError(
            f"the harmful prompts' moments are singular at a ridge of {ridge:g}; give a larger "
            "edit.filter ridge, for example 0.0001."
        ) from None
    inner = g if basis is None else basis.mT @ g
    component = harmful.squares.double() - 2 * centre * harmful.along.double() + centre.square()
    plain = sum(weight * float(m.squares.double().sum()) for m, weight in harmless)
    return Path(
        modes,
        energies,
        modes.mT @ inner,
        float(component.sum()),
        plain,
        centre,
        None if basis is None else basis.float(),
    )


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


def _basis(sets: Sequence[Moments]) -> Tensor | None:
    """[in, q] orthonormal: all that the sketches know apart, and what is asked of them; None where
    the moments are whole. Outside of it every sketch is a multiple of the identity, and g has no
    part there, so that the solution lies inside."""
    sketches = [m.inputs for m in sets if isinstance(m.inputs, Sketch)]
    if not sketches:
        return None
    harmful = sets[0]
    columns = [*(s.parts()[0] for s in sketches), harmful.cross.double()]
    columns.append(harmful.mean.double()[:, None])
    scaled = torch.cat([c / c.norm(dim=0).clamp_min(1e-300) for c in columns], dim=1)
    left, sigma, _ = torch.linalg.svd(scaled, full_matrices=False)
    return left[:, : int((sigma > 1e-10 * sigma[0]).sum())]


def _mean_diagonal(inputs: Tensor | Sketch) -> float:
    if isinstance(inputs, Tensor):
        return float(inputs.diagonal().double().mean())
    return inputs.trace / len(inputs.product)


def _within(inputs: Tensor | Sketch, basis: Tensor | None) -> Tensor:
    """QᵀΣQ."""
    if isinstance(inputs, Tensor):
        exact = symmetric(inputs)
        return exact if basis is None else basis.mT @ exact @ basis
    assert basis is not None  # sketches make one
    left, values, rest = inputs.parts()
    inner = basis.mT @ left
    whole = (inner * (values - rest)) @ inner.mT
    return symmetric(whole + rest * torch.eye(len(whole)).to(whole))
