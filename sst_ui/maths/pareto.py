"""The Pareto front of named points, low being good in both coordinates. Does not know units."""

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
