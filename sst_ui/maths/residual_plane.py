"""Harmful and harmless residuals of one layer in two components: along the direction, and along
what varies most beside it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Plane:
    """Residuals of one layer in two components; the origin is the harmless prompts' mean.

    Attributes:
        harmful, harmless: [n, 2] float64: along the direction, and along the second axis, in the
            residual's own unit.
        means: [2, 2] of the harmful ones (first) and of the harmless ones.
        shown: share of the variance of all residuals that the two components hold, 0 to 1.
    """

    harmful: np.ndarray
    harmless: np.ndarray
    means: np.ndarray
    shown: float


def plane(harmful: np.ndarray, harmless: np.ndarray, direction: np.ndarray) -> Plane:
    """Project residuals on a direction, and on the first principal component of what is left.

    The second axis is orthogonal to the direction. Its sign is that of its largest coordinate, so
    that the picture does not turn over from run to run.

    Args:
        harmful, harmless: [n, d] and [m, d] residuals, at least one each.
        direction: [d] of any length but zero.

    Raises:
        ValueError: no residuals, other widths, or a direction of length zero.
    """
    harmful, harmless = (np.asarray(x, dtype=np.float64) for x in (harmful, harmless))
    axis = np.asarray(direction, dtype=np.float64)
    widths = {harmful.shape[1:], harmless.shape[1:], axis.shape}
    if not (len(harmful) and len(harmless)) or len(widths) > 1:
        raise ValueError(f"residuals {harmful.shape} and {harmless.shape}, direction {axis.shape}")
    if not (length := np.linalg.norm(axis)) > 0:
        raise ValueError("the direction has length zero")
    axis = axis / length
    origin = harmless.mean(0)
    every = np.concatenate([harmful, harmless])
    along = (every - origin) @ axis  # [n + m]
    centred = every - every.mean(0)
    rest = centred - np.outer(centred @ axis, axis)
    second = np.linalg.svd(rest, full_matrices=False)[2][0]  # [d]
    second = second - (second @ axis) * axis  # exactly, also where nothing is left
    second *= np.sign(second[np.argmax(np.abs(second))]) or 1.0
    beside = (every - origin) @ second
    points = np.stack([along, beside], 1)
    total = float((centred**2).sum())
    held = float(((points - points.mean(0)) ** 2).sum())
    parts = points[: len(harmful)], points[len(harmful) :]
    means = np.stack([part.mean(0) for part in parts])
    return Plane(*parts, means, held / total if total > 0 else 1.0)
