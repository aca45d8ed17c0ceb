"""Whether a change is a directional ablation, along which directions, and how strong.

    W' = (W − Qᵀ A B W) · diag(D)        D = 1, or what keeps the norm of every column

Without a norm behind the matrix B = Q = R; through a norm of gain g Q = R/g and B = R∘g (see
`maths/ablation.py`). R spans what the change writes, which is known from the change alone. Then A
is a small least-squares problem, and α its eigenvalues. What fits no A reads something else than
W's own component: a filter, or an adapter.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sst_ui.maths.ablation import OBLIQUE, orthonormalise
from sst_ui.maths.audit.pair import GRID, INDEPENDENT, SHORT, Noise, Pair, Sizes, first, second
from sst_ui.maths.audit.spectrum import leading, product

MOST = 8  # directions of an ablation that are looked for
STEPS = 30  # of the alternation that finds D and R together
SETTLED = 1e-12  # change of the projector on R between two steps, squared
UNCLEAR = 0.15  # standard deviation of `kept_norms` beyond which it says nothing
MISFIT = 2e-3  # of the removed component: what an ablation may lack, beside the rounding


@dataclass(frozen=True, eq=False)
class Fit:
    """The ablation that is nearest to a change.

    Attributes:
        rows: R [k, out] orthonormal, directions of the residual stream.
        span: [k, out] orthonormal, what the change writes: R where no norm stands behind.
        alphas: [k] eigenvalues of A, by size.
        misfit: ‖what A leaves‖ / ‖what the change writes along R‖.
        allowed: misfit that rounding and precision explain.
        read: |cos| between what the change reads and Wᵀr̂, over all rows.
        least: the smallest singular value of what the change writes along R.
        share: how much of the component along R goes, weighted by its size: α where it is an
            ablation, of a filter the part that W's own inputs see.
    """

    rows: Tensor
    span: Tensor
    alphas: Tensor
    misfit: float
    allowed: float
    read: float
    share: float
    least: float

    @property
    def ablates(self) -> bool:
        """Whether the change reads W's own component and nothing else."""
        return self.misfit <= self.allowed

    @property
    def alpha(self) -> float:
        """The mean of the eigenvalues."""
        return float(self.alphas.mean())


def fit(
    pair: Pair, blur: Noise, span: Tensor, gain: Tensor | None = None, scale: Tensor | None = None
) -> Fit:
    """Fit A, for a change whose output side is known.

    Args:
        span: [k, out] orthonormal rows that span what the change writes.
        gain: [out] of the norm behind the matrix, or None.
        scale: D [in], or None for ones.
    """
    written = pair.onto(span, pair.change(scale))  # S = R (W' − W D), [k, in]
    factor = torch.ones(pair.inp, dtype=torch.float64) if scale is None else scale.double()
    best: Fit | None = None
    for rows, write, read in _sides(span, gain):
        coordinates = torch.linalg.solve((write @ span.mT).mT, written)  # Qᵀ C = Rᵀ S
        along = pair.onto(read, first) * factor  # B W D
        found = replace(_solve(pair, blur, rows, coordinates, along), span=span)
        if best is None or found.misfit < best.misfit:
            best = found
    assert best is not None  # there is always the orthogonal one
    return best


def _sides(span: Tensor, gain: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(directions, what is written, what is read) of the ablations that write along a span."""
    if gain is None:
        return [(span, span, span)]
    exact = gain.double()
    scaled = orthonormalise(span * exact)  # Q = R/g: R spans Q∘g
    sides = [(scaled, scaled / exact, scaled * exact)]
    # where that is too oblique, both sides span R∘g: R spans Q/g
    other = orthonormalise(span / exact)
    tilt = torch.linalg.matrix_norm(other * exact, 2) * torch.linalg.matrix_norm(other / exact, 2)
    if not tilt <= OBLIQUE or not bool(torch.isfinite(scaled / exact).all()):
        sides.append((other, span, span))
    return [side for side in sides if all(bool(part.isfinite().all()) for part in side)]


def _solve(pair: Pair, blur: Noise, rows: Tensor, written: Tensor, along: Tensor) -> Fit:
    """C = −A U, by least squares over all columns."""
    gram = along @ along.mT
    matrix = -torch.linalg.lstsq(gram, along @ written.mT).solution.mT  # A [k, k]
    size = float(written.norm())
    left = float((written + matrix @ along).norm())
    alphas = torch.linalg.eigvals(matrix).real.sort(descending=True).values
    rounding = (len(rows) * blur.energy / pair.out) ** 0.5
    share = -float((written * along).sum() / along.square().sum().clamp_min(1e-300))
    cosine = float((written * along).sum().abs() / (size * along.norm()).clamp_min(1e-300))
    least = float(torch.linalg.svdvals(written)[-1])
    margin = 3 * (GRID if pair.types[1] in SHORT else INDEPENDENT)
    allowed = MISFIT + margin * rounding / max(size, 1e-300)
    return Fit(rows, rows, alphas, left / max(size, 1e-300), allowed, cosine, share, least)


def preserving(pair: Pair, sums: Sizes, count: int) -> tuple[Tensor, Tensor, float]:
    """D and R of W' = (W − Rᵀ S) diag(D), by turns.

    For given R every column's D is a regression of W'_j on W_j outside of R; for given D, R is the
    leading output side of W' − W D.

    Args:
        count: directions.

    Returns:
        D [in], R [k, out], and the squared norm that neither explains.
    """
    own, cross, _ = sums.columns
    scale = _ratio(cross, own)
    span, _ = leading(pair, count, scale)
    for _ in range(STEPS):
        a, b = pair.onto(span, first), pair.onto(span, second)  # R W, R W'
        scale = _ratio(cross - (a * b).sum(0), own - a.square().sum(0))
        inner = b - a * scale  # S [k, in]
        turned = torch.linalg.qr(pair.along(inner.mT, pair.change(scale))).Q.mT
        moved = len(span) - float((turned @ span.mT).square().sum())
        span = turned
        if moved < SETTLED:
            break
    inner = pair.onto(span, pair.change(scale))
    return scale, span, _left(pair, span, inner, scale)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """A quotient per column; 1 for a column of nothing but zeros."""
    return torch.where(below > 0, above / below.clamp_min(1e-300), torch.ones_like(above))


def _left(pair: Pair, span: Tensor, inner: Tensor, scale: Tensor) -> float:
    """‖W' − W D − Rᵀ S‖², summed from what is left rather than from a difference of sums."""
    pick, total = pair.change(scale), 0.0
    for some, base, other in pair.blocks():
        block = pick(base, other, some)
        total += float((block - product(pair, span, inner, some)).double().square().sum())
    return total


def kept_norms(pair: Pair, sums: Sizes, blur: Noise, span: Tensor) -> float | None:
    """How far column norms stayed, on a scale from 0 (as a plain ablation leaves them) to 1.

    In a wide model what a plain ablation takes of one column's norm is far below its rounding; the
    regression over all columns is not.

    Args:
        span: R [k, out], what the change writes.

    Returns:
        None where the two cannot be told apart: a reflection (α = 2) keeps norms by itself.
    """
    own = sums.columns[0].clamp_min(1e-300)
    along, written = pair.onto(span, first), pair.onto(span, pair.change())
    expected = (written * (2 * along + written)).sum(0) / own  # what W + Rᵀ S gains per column
    gained = sums.columns[2] / own - 1
    total = float(expected.square().sum())
    deviation = 2 * (blur.energy / max(float(sums.rows.sum()), 1e-300) / pair.out) ** 0.5
    if not total or deviation / total**0.5 > UNCLEAR:
        return None
    return 1 - float((expected * gained).sum()) / total
