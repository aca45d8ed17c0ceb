"""Which weight kernel a table of recovered α follows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sst_ui import profiles
from sst_ui.maths.kernel import gaussian, positions

CLOSE = 0.01  # misfit up to which a kernel is said to fit
FEWEST = 3  # edited layers without which a bell has no width of its own


@dataclass(frozen=True)
class KernelFit:
    """A kernel and how well it fits.

    Attributes:
        name: of the profile, or `custom`.
        strength: α of each module kind at kernel value 1; only the kinds that are edited.
        misfit: ‖α − strength · kernel‖ / ‖α‖ over all cells.
    """

    name: str
    peak: float
    width: float
    threshold: float
    strength: Mapping[str, float]
    misfit: float


def fits(alpha: np.ndarray, kinds: tuple[str, ...]) -> list[KernelFit]:
    """Named kernels in the order of their misfit, then a bell of its own if none of them fits.

    Args:
        alpha: [layers, kinds]; 0 where nothing was edited, NaN where it is not known.
        kinds: names of the columns.

    Returns:
        Empty for a table without an edited cell. Several named kernels may fit a table with one or
        two edited layers: those within `CLOSE` cannot be told apart.
    """
    known = np.isfinite(alpha)
    if not np.any(np.nan_to_num(alpha)):
        return []
    candidates = {
        name: (row["peak"], row["width"], row["threshold"])
        for name, row in profiles.named().items()
    }
    rows = [_fitted(name, *shape, alpha, known, kinds) for name, shape in candidates.items()]
    found = sorted(rows, key=lambda row: (row.misfit > CLOSE, _order(row)))
    if found[0].misfit > CLOSE and (own := _bell(alpha, known)) is not None:
        found.append(_fitted("custom", *own, alpha, known, kinds))
    return sorted(found, key=lambda row: (row.misfit > CLOSE, _order(row)))


def _order(row: KernelFit) -> tuple[float, float]:
    """Misfit to three digits, then how far the strengths are from a round number."""
    strengths = np.array(list(row.strength.values()))
    odd = float(np.abs(strengths * 20 - np.round(strengths * 20)).max()) if len(strengths) else 0.0
    return round(row.misfit, 3), round(odd, 3)


def _fitted(
    name: str,
    peak: float,
    width: float,
    threshold: float,
    alpha: np.ndarray,
    known: np.ndarray,
    kinds: tuple[str, ...],
) -> KernelFit:
    """A kernel with the strength of each kind that fits best."""
    curve = gaussian(len(alpha), peak, width)
    curve = np.where(np.abs(curve) >= threshold, curve, 0.0)
    strength, left, total = {}, 0.0, 0.0
    for column, kind in enumerate(kinds):
        rows = known[:, column]
        values, bell = alpha[rows, column], curve[rows]
        if not values.any():
            continue  # a factor of 0: the kind is left alone
        factor = float(bell @ values / (bell @ bell)) if bell.any() else 0.0
        strength[kind] = factor
        left += float(np.square(values - factor * bell).sum())
        total += float(np.square(values).sum())
    return KernelFit(name, peak, width, threshold, strength, (left / total) ** 0.5)


def _bell(alpha: np.ndarray, known: np.ndarray) -> tuple[float, float, float] | None:
    """(peak, width, threshold) of the Gaussian through the edited cells, from their logarithms.

    log |α| = log strength − (x − peak)² / (2 width²) is a parabola in x with one offset per kind.
    """
    place = positions(len(alpha))
    columns = [c for c in range(alpha.shape[1]) if np.any(alpha[known[:, c], c])]
    rows, target = [], []
    for number, column in enumerate(columns):
        for layer in np.flatnonzero(known[:, column] & (np.abs(alpha[:, column]) > 1e-6)):
            offsets = np.eye(len(columns))[number]
            rows.append([place[layer] ** 2, place[layer], *offsets])
            target.append(np.log(abs(alpha[layer, column])))
    layers = {row[1] for row in rows}
    if len(layers) < FEWEST:
        return None
    (square, line, *_), *_ = np.linalg.lstsq(np.array(rows), np.array(target), rcond=None)
    if square >= 0:
        return None
    peak, width = float(-line / (2 * square)), float((-0.5 / square) ** 0.5)
    if not (0 <= peak <= 1 and 0 < width < 10):
        return None
    curve = gaussian(len(alpha), peak, width)
    edited = np.any(np.nan_to_num(np.abs(alpha)) > 1e-6, axis=1)
    low = float(curve[~edited].max()) if not edited.all() else 0.0
    high = float(curve[edited].min())
    threshold = round((low + high) / 2, 3) if low < high else 0.0
    return peak, width, threshold
