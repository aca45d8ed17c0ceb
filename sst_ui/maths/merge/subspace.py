"""The safety subspace: which parts of an edit matter to one task and not to the other.

    J(E) = ½‖E − D‖²_{F_S} + (μ/2)‖E‖²_{F̃_U}        D target edit, E applied edit, F̃_U damped
    F_S v = λ F̃_U v,  Vᵀ F̃_U V = I,  c = Vᵀ F̃_U D;   E = Σ_j g(λ_j) c_j v_j,  g = λ / (λ + μ)

A module's Fisher matrix is taken as G ⊗ A (K-FAC: Martens and Grosse 2015), A = E[x̃ x̃ᵀ] over the
inputs and G = E[δ̃ δ̃ᵀ] over the gradients of log p at the outputs, so that the problem splits in two
small ones: λ_mn = γ_m α_n. An edit C [q, p] is flattened by rows, which is the order of kron(G, A).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from sst_ui.errors import UserError, unknown
from sst_ui.maths.merge import eigen
from sst_ui.maths.merge.low_rank import Core
from sst_ui.recipe import Fisher as Mode
from sst_ui.recipe import Target

Filter = Callable[[Tensor], Tensor]

PARTS = ("a", "g", "block")  # the matrices of `Moments`
LOWEST, HIGHEST = 1e-12, 1e12  # where the search for a μ ends


@dataclass(frozen=True, eq=False)
class Moments:
    """Uncentred second moments of one task in one module's core space, a token's mean.

    Attributes:
        a: [p, p], E[x̃ x̃ᵀ] with x̃ = Rᵀ x.
        g: [q, q], E[δ̃ δ̃ᵀ] with δ̃ = Uᵀ ∂ log p/∂y; None after a forward-only pass.
        n: number of tokens.
        block: [qp, qp], E[e eᵀ] with e = (δ̃ x̃ᵀ) flattened by rows; for small cores only.
    """

    a: Tensor
    g: Tensor | None
    n: int
    block: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One module's edit, taken apart into directions that can be weighed one by one.

    Attributes:
        eigenvalues: λ [m, n]; how much more a direction matters to safety than to utility. K-FAC:
            [q, p]. Input-only: [1, p]. Block: [qp, 1].
        c: [M, n] coefficients of the target; M is m, or q where λ is the same for all outputs.
        left, right: [M, M] and [n, n]; the edit is left @ (g(λ) c) @ right.T.
        target: D [q, p].
        kl, loss: pairs of [M, M] and [n, n], the Fisher matrices of utility and safety data between
            the directions, neither damped nor scaled; None where no gradients were collected.
    """

    eigenvalues: Tensor
    c: Tensor
    left: Tensor
    right: Tensor
    target: Tensor
    kl: tuple[Tensor, Tensor] | None
    loss: tuple[Tensor, Tensor] | None

    def edit(self, g: Filter) -> Tensor:
        """E = Σ g(λ_j) c_j v_j in the core space, [q, p] float64."""
        flat = self.left @ (g(self.eigenvalues) * self.c) @ self.right.mT
        return flat.reshape(self.target.shape)

    def predicted_kl(self, g: Filter) -> float:
        """½ vec(E)ᵀ F_U vec(E): what the edit costs on utility data, nats per token.

        F_U is the utility data's own, neither damped nor normalised; nan without gradients.
        """
        return float(eigen.half_square(g(self.eigenvalues) * self.c, self.kl))

    def kept(self, g: Filter) -> float:
        """‖E‖ / ‖D‖ in the norm of F_S: the share of the effect on safety data that is left.

        It falls in μ and rises in k. 1 where there was nothing to keep. (In the plain norm, `size`,
        neither holds: the directions are not orthogonal there, and can cancel.)
        """
        part, whole = self.energies(g(self.eigenvalues))
        if whole == 0:
            return 0.0 if self.target.any() else 1.0
        return math.sqrt(float(part / whole))

    def energies(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """‖E‖² [...] and ‖D‖² in the norm of the normalised F_S, for g(λ) [..., m, n]."""
        each = self.eigenvalues * self.c.square()  # [M, n]
        return (share.square() * each).sum((-2, -1)), each.sum()

    def size(self, g: Filter) -> float:
        """‖E‖_F / ‖D‖_F, the plain norm of the weights; 1 where there was nothing to keep."""
        whole = float(self.target.norm())
        return float(self.edit(g).norm()) / whole if whole else 1.0


def soft(mu: float, stages: int = 1, ratio: float = 0.0) -> Filter:
    """g(λ) = λ / (λ + μ), the minimiser of J; μ = 0 keeps everything, also what has λ = 0.

    Args:
        stages: times that g is applied to what the stages before left of the target, 1 or more:
            E_i = E_{i-1} + g(D − E_{i-1}), which is 1 − (1 − g)^n (iterated Tikhonov
            regularisation: King and Chillingworth 1979).
        ratio: 0..1, share of the target that is kept whatever its λ: ρ + (1 − ρ) of the above.

    Raises:
        UserError: μ below 0 or not a number.
    """
    if _free(mu):
        return torch.ones_like

    def g(eigenvalues: Tensor) -> Tensor:
        once = eigenvalues / (eigenvalues + mu)
        # 1 − (1 − g)^n, exact also where g is tiny
        kept = once if stages == 1 else -torch.expm1(stages * torch.log1p(-once))
        return ratio + (1 - ratio) * kept

    return g


def above(mu: float) -> Filter:
    """g = 1 for λ > μ and 0 for the others: k follows from μ, in every module for itself.

    μ = 0 keeps everything, also what has λ = 0.

    Raises:
        UserError: μ below 0 or not a number.
    """
    if _free(mu):
        return torch.ones_like
    return lambda eigenvalues: (eigenvalues > mu).to(eigenvalues)


def _free(mu: float) -> bool:
    """Whether nothing has a price."""
    if not mu >= 0:
        raise UserError(f"mu is {mu}; it must be 0 (keep everything) or above.")
    return mu == 0


def top(k: int, rest: float = 0.0) -> Filter:
    """g = 1 for the k largest λ of a module and `rest` for the others: an oblique projector.

    Raises:
        UserError: k below 0.
    """
    if k < 0:
        raise UserError(f"k is {k}; it must be 0 or above.")

    def g(eigenvalues: Tensor) -> Tensor:
        flat = torch.full_like(eigenvalues, rest).flatten()
        flat[eigenvalues.flatten().argsort(descending=True, stable=True)[:k]] = 1.0
        return flat.reshape(eigenvalues.shape)

    return g


def scaled(g: Filter, weight: float) -> Filter:
    """The filter of `weight` times the edit."""
    return lambda eigenvalues: weight * g(eigenvalues)


def decompose(
    core: Core,
    safety: Moments,
    utility: Moments,
    target: Target = "additive",
    mode: Mode = "kfac",
    damping: float = 1e-3,
) -> Spectrum:
    """Solve the generalised eigenvalue problem of one module; O(q³), for `block` O((qp)³).

    Args:
        core: of the two deltas.
        safety, utility: moments in that core's space.
        target: D is Δ_S (`additive`) or Δ_S − Δ_U (`interpolating`).
        mode: `kfac`, or `nearest` for moments that were collected so; `input` uses A alone,
            E = D A_S (A_S + μ Ã_U)⁻¹; `block` the exact block.
        damping: of the utility side, relative to the mean eigenvalue of each factor: with
            η = damping · √(tr A tr G / pq), Ã = A + πη I and G̃ = G + (η/π) I.

    Returns:
        The spectrum. λ is per unit of μ: the safety task's G is scaled to the utility task's trace
        first, because refusals are so certain that their gradients are tiny.

    Raises:
        UserError: an unknown target or mode; moments that the mode needs and that are not there,
            are not finite, hold no token, or that damping 0 leaves singular.
        ValueError: moments of another core.
    """
    if target not in get_args(Target):
        raise unknown("target", target, get_args(Target))
    if mode not in get_args(Mode):
        raise unknown("mode", mode, get_args(Mode))
    if not damping >= 0:
        raise UserError(f"damping is {damping}; it must be 0 or above, for example 0.001.")
    for what, moments in (("safety", safety), ("utility", utility)):
        _check(what, moments, core, mode)
    d = core.safety - core.utility if target == "interpolating" else core.safety
    (g_s, a_s), (g_u, a_u) = pair_s, pair_u = _fisher(safety, mode), _fisher(utility, mode)
    if mode == "input":
        gamma, left, unleft = eigen.identity(core.q)
    else:
        assert g_s is not None  # checked above, as are the others
        assert g_u is not None
        gamma, left, unleft = eigen.solve(_ratio(utility, safety) * g_s, g_u, damping)
    if mode == "block":
        alpha, right, unright = eigen.identity(1)
    else:
        assert a_s is not None
        assert a_u is not None
        alpha, right, unright = eigen.solve(a_s, a_u, damping)
    return Spectrum(
        gamma[:, None] * alpha,
        unleft @ d.reshape(len(left), len(right)) @ unright.mT,
        left,
        right,
        d,
        None if g_u is None else eigen.between(left, pair_u, right),
        None if g_s is None else eigen.between(left, pair_s, right),
    )


@dataclass(frozen=True)
class Curve:
    """What is predicted for all modules together, one entry per μ.

    Attributes:
        mus: the μ asked for.
        kl: KL on utility data against the utility adapter alone, nats per token.
        residual: safety loss left, nats per token.
        kept: 0..1, share of the effect on safety data, all modules pooled.
    """

    mus: tuple[float, ...]
    kl: tuple[float, ...]
    residual: tuple[float, ...]
    kept: tuple[float, ...]


def total(
    spectra: Mapping[str, Spectrum], g: Filter, weights: Mapping[str, float] | None = None
) -> tuple[float, float, float]:
    """(KL, residual, kept) of all modules under any one filter; see `Curve`."""
    kl, residual, kept = _sums(spectra, g, weights)
    return float(kl), float(residual), float(kept)


def _sums(
    spectra: Mapping[str, Spectrum], g: Filter, weights: Mapping[str, float] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """KL, residual and kept for g(λ) [..., m, n], summed in the order of the modules' names."""
    kl = residual = part = whole = torch.zeros((), dtype=torch.float64)
    for name in sorted(spectra):
        spectrum = spectra[name]
        share = g(spectrum.eigenvalues) * (weights or {}).get(name, 1.0)
        kl = kl + eigen.half_square(share * spectrum.c, spectrum.kl)
        residual = residual + eigen.half_square((1 - share) * spectrum.c, spectrum.loss)
        kept, there = spectrum.energies(share)
        part, whole = part + kept, whole + there
    return kl, residual, (part / whole).sqrt() if whole else torch.ones_like(part)


def mu_for_budget(
    spectra: Mapping[str, Spectrum],
    kl: float,
    weights: Mapping[str, float] | None = None,
    family: Callable[[float], Filter] = soft,
) -> float:
    """The smallest μ, one for all modules, whose predicted utility KL is within the budget.

    Args:
        kl: budget in nats per token, > 0.
        family: μ -> filter, which keeps less the larger μ is.

    Returns:
        μ by bisection of its logarithm; 0 if the whole edit is within the budget.

    Raises:
        UserError: a budget that is not above 0 or is too small, or moments without gradients.
    """
    if not kl > 0:
        raise UserError(f"the KL budget is {kl}; it must be above 0, for example 0.05.")
    if any(s.kl is None for s in spectra.values()):
        raise UserError(
            "a KL budget needs gradients, and these moments come from forward passes only; "
            "give mu or k instead, or collect the moments with gradients."
        )

    def cost(mu: float) -> float:
        return total(spectra, family(mu), weights)[0]

    if cost(0.0) <= kl:
        return 0.0
    high = 1.0
    while cost(high) > kl and high < HIGHEST:
        high *= 10
    if cost(high) > kl:
        raise UserError(f"no price keeps the predicted KL within {kl:g}; give a larger budget.")
    low = high / 10
    while cost(low) <= kl and low > LOWEST:
        high, low = low, low / 10
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= kl else (middle, high)
    return high


def _fisher(moments: Moments, mode: Mode) -> eigen.Pair:
    """The Fisher matrix as a Kronecker pair (G, A), float64 on the CPU; G may be unknown."""
    if mode == "block":
        assert moments.block is not None  # checked by `_check`
        return eigen.symmetric(moments.block), None
    g = None if moments.g is None else eigen.symmetric(moments.g)
    return g, eigen.symmetric(moments.a)


def _ratio(utility: Moments, safety: Moments) -> float:
    """What brings the safety task's gradients to the size of the utility task's."""
    known = utility.g is not None and safety.g is not None
    pair = (utility.g, safety.g) if known else (utility.block, safety.block)
    traces = [float(matrix.double().trace()) for matrix in pair if matrix is not None]
    return traces[0] / traces[1] if min(traces) > 0 else 1.0


def _check(what: str, moments: Moments, core: Core, mode: Mode) -> None:
    """Raises what `decompose` raises for moments."""
    q, p = core.q, core.p
    shapes = {"a": (p, p), "g": (q, q), "block": (q * p, q * p)}
    needed = {"input": ("a",), "block": ("block",)}.get(mode, ("a", "g"))
    if moments.n < 1:
        raise UserError(f"the {what} moments hold no token; give data with responses.")
    for name, shape in shapes.items():
        value = getattr(moments, name)
        if value is None and name in needed:
            hint = "use mode input" if name == "g" else "use mode kfac"
            raise UserError(
                f"mode {mode} needs {name} of the {what} moments; {hint}, or collect it."
            )
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{what} {name} is {list(value.shape)}, the core's is {list(shape)}")
        if value is not None and not torch.isfinite(value).all():
            raise UserError(
                f"the {what} moments are not finite; collect them in float32 rather than float16."
            )
