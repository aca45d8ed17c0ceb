"""Numbers by layer as a small SVG, for cards and reports."""

from collections.abc import Mapping
from html import escape

import numpy as np

COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#b45309", "#0e7490", "#be185d", "#4d7c0f")


def by_layer(lines: Mapping[str, np.ndarray], layers: int, label: str, most: float = 1.0) -> str:
    """Numbers of all layers as an SVG: one line for each name.

    Args:
        lines: name -> [layers]; NaN is left out.
        label: what it shows, for those who cannot see it.
        most: the axis reaches from 0 to here at least.
    """
    values = np.concatenate([*lines.values(), [0.0, most]])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    width, height, left, top = 640, 240, 44, 30 + 16 * max(0, len(lines) - 1)

    def x(layer: int) -> float:
        return left + (width - left - 16) * (layer / max(1, layers - 1))

    def y(value: float) -> float:
        return top + (height - 40) * (1 - (value - low) / (high - low))

    bottom = y(low)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 36:.0f}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img" '
        f'aria-label="{escape(label)}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for value in sorted({low, 0.0, most, high}):
        parts.append(
            f'<line x1="{left}" x2="{width - 16}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="{"#9ca3af" if value == 0 else "#e5e7eb"}"/>'
            f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end" '
            f'fill="#374151">{value:.3g}</text>'
        )
    for layer in sorted({0, layers // 4, layers // 2, 3 * layers // 4, layers - 1}):
        parts.append(
            f'<text x="{x(layer):.1f}" y="{bottom + 16:.1f}" text-anchor="middle" '
            f'fill="#374151">{layer}</text>'
        )
    parts.append(
        f'<text x="{(left + width) / 2:.0f}" y="{bottom + 31:.0f}" text-anchor="middle" '
        'fill="#374151">layer</text>'
    )
    for number, (name, curve) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        known = [(i, float(v)) for i, v in enumerate(curve) if np.isfinite(v)]
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in known)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{left}" y="{16 + 16 * number}" fill="{colour}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
