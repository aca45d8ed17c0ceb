"""The Pareto front of named points, low being good in both coordinates."""

from collections.abc import Sequence


def front(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Names of the points (name, x, y) that no other point beats.

    A point is beaten by one that is nowhere larger and somewhere smaller; equal points both stay.
    """
    return [
        name
        for name, x, y in points
        if not any(a <= x and b <= y and (a < x or b < y) for _, a, b in points)
    ]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that the points dominate over a reference; high is good in every coordinate.

    Exact, by slicing along the last coordinate (Zitzler and Thiele 1999); meant for few points.

    Args:
        points: of n coordinates each; what lies below the reference counts nothing there.
        reference: of n coordinates.
    """
    *rest, base = reference
    above = sorted({max(point[-1], base) for point in points})
    volume, floor = 0.0, base
    for level in above:
        slab = hypervolume([p[:-1] for p in points if p[-1] >= level], rest) if rest else 1.0
        volume, floor = volume + slab * (level - floor), level
    return volume
