"""Low-rank weight changes: a LoRA delta, the common core space of two of them, truncation.

All of it is worked out in float64; results come back in the type of the factors.

    Δ_a = b_a a_a = U C_a Rᵀ      U orthonormal basis of both column spaces, R of both row spaces

The bases are made from the deltas and not from the factors, so that they (and everything computed
in them) are the same under B → B T⁻¹, A → T A, and hold no direction in which neither delta acts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DENSE = 1024  # up to this many rows or columns a dense matrix is decomposed in full
OVERSAMPLE, ITERATIONS = 16, 4  # of the randomised decomposition (Halko et al. 2011) beyond that


@dataclass(frozen=True, eq=False)
class Delta:
    """A weight change b @ a, with any scale folded into b.

    Attributes:
        b: [out, r].
        a: [r, in]; r may be 0, which is the zero change.
        bias: [out], added to the module's output as well, or None. Cores, sums and truncations are
            of the weights alone.
    """

    b: Tensor
    a: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.b.ndim != 2 or self.a.ndim != 2 or self.b.shape[1] != self.a.shape[0]:
            raise ValueError(
                f"b {list(self.b.shape)} and a {list(self.a.shape)} must be [out, r] and [r, in]"
            )
        if self.bias is not None and self.bias.shape != (self.out,):
            raise ValueError(f"the bias {list(self.bias.shape)} must be [{self.out}]")

    @property
    def out(self) -> int:
        return self.b.shape[0]

    @property
    def inp(self) -> int:
        return self.a.shape[1]

    @property
    def rank(self) -> int:
        """Columns of b; the matrix itself may have a lower rank."""
        return self.b.shape[1]

    def dense(self) -> Tensor:
        """b @ a, [out, in]: a matrix of the model's size."""
        return self.b @ self.a

    def norm(self) -> float:
        """Frobenius norm of b @ a, without forming it."""
        b, a = self.b.double(), self.a.double()
        return math.sqrt(max(float(((b.mT @ b) * (a @ a.mT)).sum()), 0.0))


def zero(out: int, inp: int, like: Tensor | None = None) -> Delta:
    """The delta of rank 0: no change."""
    like = torch.empty(0) if like is None else like
    return Delta(like.new_zeros(out, 0), like.new_zeros(0, inp))


@dataclass(frozen=True, eq=False)
class Core:
    """Two deltas in the space they span together.

    Attributes:
        u: [out, q] with orthonormal columns, q <= r_U + r_S.
        r: [in, p] with orthonormal columns, p <= r_U + r_S and the further inputs, if any.
        utility, safety: [q, p] float64; u @ C @ r.T is the delta.
        ranks: (r_U, r_S) of the factors they came from.
    """

    u: Tensor
    r: Tensor
    utility: Tensor
    safety: Tensor
    ranks: tuple[int, int]

    @property
    def q(self) -> int:
        return self.u.shape[1]

    @property
    def p(self) -> int:
        return self.r.shape[1]

    def delta(self, c: Tensor, rank: int | None = None) -> tuple[Delta, float]:
        """U C Rᵀ as a delta of the lowest rank that holds it, or of at most `rank`.

        Args:
            c: [q, p].

        Returns:
            The delta and ‖error‖_F, exactly √(sum of the dropped σ²); 0 where nothing was dropped.
        """
        left, right, error = truncate(c, rank)
        b, a = self.u.double() @ left, right @ self.r.double().mT
        return Delta(b.to(self.u), a.to(self.r)), error


def core(utility: Delta | None, safety: Delta | None, inputs: Tensor | None = None) -> Core:
    """The common core space of two deltas of one module; a missing one is the zero delta.

    Args:
        inputs: [in, m] orthonormal; further input directions that R shall span. Neither delta reads
            them, an edit in the wider core may: it can tell inputs apart that both deltas confuse.

    Raises:
        ValueError: both deltas are missing, or shapes differ.
    """
    given = utility or safety
    if given is None:
        raise ValueError("a core needs at least one delta")
    utility = utility or zero(given.out, given.inp, given.b)
    safety = safety or zero(given.out, given.inp, given.b)
    if (utility.out, utility.inp) != (safety.out, safety.inp):
        raise ValueError(
            f"the utility delta is [{utility.out}, {utility.inp}], "
            f"the safety delta [{safety.out}, {safety.inp}]"
        )
    parts = [_svd(delta) for delta in (utility, safety)]
    dtype = torch.promote_types(utility.b.dtype, safety.b.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    u = _basis([left for left, _, _ in parts], dtype)  # [out, q]
    extra = [] if inputs is None else [inputs.double().cpu()]
    r = _basis([*(right.mT for _, _, right in parts), *extra], dtype)  # [in, p]
    first, second = ((u.mT @ left) * sigma @ (right @ r) for left, sigma, right in parts)
    return Core(u.to(dtype), r.to(dtype), first, second, (utility.rank, safety.rank))


def truncate(c: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, float]:
    """The best factors of a matrix at a rank (Eckart and Young 1936), σ split evenly on both.

    Args:
        c: [q, p]; a core matrix, or any dense one. One with more than `DENSE` rows and columns is
            decomposed by a randomised method, and only approximately the best; its error is exact.
        rank: at most so many; None keeps all that is not rounding.

    Returns:
        left [q, k], right [k, p] in float64, and ‖c − left @ right‖_F = √(sum of dropped σ²).

    Raises:
        ValueError: a negative rank.
    """
    if rank is not None and rank < 0:
        raise ValueError(f"a rank cannot be {rank}")
    exact = c.double()
    if rank is not None and min(c.shape) > max(DENSE, 2 * rank):
        # The global generator is put back: a merge must not change what the model samples next.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, sigma, right = torch.svd_lowrank(exact, rank + OVERSAMPLE, ITERATIONS)
        left, sigma, right = left[:, :rank], sigma[:rank], right[:, :rank].mT
        error = float(torch.linalg.matrix_norm(exact - left * sigma @ right))
    else:
        left, sigma, right = torch.linalg.svd(exact, full_matrices=False)
        there = _rank(sigma)  # beyond it is rounding
        keep = there if rank is None else min(rank, there)
        error = float(sigma[keep:there].square().sum().sqrt())
        left, sigma, right = left[:, :keep], sigma[:keep], right[:keep]
    half = sigma.sqrt()
    return left * half, half[:, None] * right, error


def concat(deltas: Sequence[Delta]) -> Delta:
    """The sum of deltas of one shape, factors side by side: exact, and the ranks add up.

    Raises:
        ValueError: none given, or their shapes differ.
    """
    if not deltas:
        raise ValueError("nothing to add up")
    if len({(delta.out, delta.inp) for delta in deltas}) > 1:
        raise ValueError(f"deltas of several shapes: {[(d.out, d.inp) for d in deltas]}")
    return Delta(
        torch.cat([delta.b for delta in deltas], dim=1),
        torch.cat([delta.a for delta in deltas], dim=0),
    )


def _svd(delta: Delta) -> tuple[Tensor, Tensor, Tensor]:
    """Singular vectors [out, k], values [k] and vectors [k, in] of b @ a, from its factors."""
    left, upper = torch.linalg.qr(delta.b.double())  # [out, m], [m, r]
    right, lower = torch.linalg.qr(delta.a.double().mT)  # [in, n], [n, r]
    u, sigma, v = torch.linalg.svd(upper @ lower.mT, full_matrices=False)
    keep = _rank(sigma, delta.b.dtype)
    return left @ u[:, :keep], sigma[:keep], v[:keep] @ right.mT


def _basis(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Orthonormal basis of the columns of all parts, each of which is orthonormal in itself."""
    columns, sigma, _ = torch.linalg.svd(torch.cat(list(parts), dim=1), full_matrices=False)
    return columns[:, : _rank(sigma, dtype)]


def _rank(sigma: Tensor, dtype: torch.dtype = torch.float64) -> int:
    """How many of the falling singular values are more than rounding in that type."""
    if not sigma.numel() or not float(sigma[0]):
        return 0
    rounding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return int((sigma > 16 * rounding * sigma[0]).sum())
