"""Values as people read them, and the small pictures beside them: tracks and sparklines."""

import math
from collections.abc import Container, Iterable, Sequence

from sst_ui.metrics.results import Value
from sst_ui.ui.widgets.html import safe

SPARK = (50, 15)  # width and height of a sparkline in pixels
SHOWN = 16  # variants in a sparkline, the newest


def number(value: Value | None, unit: str) -> str:
    """A value: rates as per cent, the rest with three digits."""
    if value is None or not math.isfinite(value.value):
        return "–"
    return f"{value.value * 100:.0f} %" if unit == "rate" else _plain(value.value)


def interval(value: Value | None, unit: str) -> str:
    """Its 95 % interval in brackets, rates in per cent; empty where there is none."""
    if value is None or not math.isfinite(value.low) or not math.isfinite(value.high):
        return ""
    if unit == "rate":
        return f"[{value.low * 100:.0f}, {value.high * 100:.0f}]"
    return f"[{_short(value.low)}, {_short(value.high)}]"


def exact(value: Value | None, unit: str) -> str:
    """Value and interval with one digit more, for a tip."""
    if value is None or not math.isfinite(value.value):
        return "–"
    numbers = (value.value, value.low, value.high)
    if unit == "rate":
        middle, low, high = (f"{x * 100:.1f}" for x in numbers)
        return f"{middle} % [{low}, {high}]"
    middle, low, high = (f"{x:.3g}" for x in numbers)
    return f"{middle} [{low}, {high}]"


def scale(unit: str, values: Iterable[Value | None]) -> float:
    """Right end of the tracks of one unit: 1 for rates, else the largest bound there is."""
    if unit in ("rate", "score"):
        return 1.0
    bounds = [v.high for v in values if v is not None and math.isfinite(v.high)]
    return max(bounds, default=1.0) * 1.05 or 1.0


def track(value: Value | None, end: float, kind: str) -> str:
    """The interval as a bar and the value as a tick, on a line from 0 to `end`."""
    if value is None or not math.isfinite(value.value):
        return f'<div class="track {kind}"></div>'
    low, middle, high = (
        _share(x, end) * 100 if math.isfinite(x) else 0
        for x in (value.low, value.value, value.high)
    )
    return (
        f'<div class="track {kind}"><i style="left:{low:.1f}%;width:{max(high - low, 0.8):.1f}%">'
        f'</i><b style="left:{middle:.1f}%"></b></div>'
    )


def spark(
    base: Value,
    points: Sequence[tuple[str, Value]],
    current: str,
    end: float,
    unit: str,
    name: str,
    unequal: Container[str] = (),
) -> str:
    """A line from the base over the variants so far, 0 to `end` high; the current one is marked.

    Args:
        points: (variant, value), oldest first.
        name: what the line shows, for its tip.
        unequal: variants whose samples are others than the current one's; hollow points.
    """
    known = [(v, p) for v, p in points if math.isfinite(p.value)][-SHOWN:]
    if not known or not math.isfinite(base.value):
        return "<span></span>"
    width, height = SPARK
    step = (width - 8) / len(known)
    values = [base.value, *(p.value for _, p in known)]
    places = [
        (4 + i * step, height - 3 - _share(v, end) * (height - 6)) for i, v in enumerate(values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = f'<circle class="is-base" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="1.8"/>'
    for (variant, _), (x, y) in zip(known, places[1:], strict=True):
        if variant == current:
            dots += f'<circle class="is-edited" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>'
        elif variant in unequal:
            dots += f'<circle class="is-unequal" cx="{x:.1f}" cy="{y:.1f}" r="2"/>'
    told = " · ".join(
        f"{variant} {number(p, unit)}" + (f" (○ n {p.n})" if variant in unequal else "")
        for variant, p in known
    )
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{safe(name)}: {number(base, unit)} · {safe(told)}</title>'
        f'<polyline points="{line}"/>{dots}</svg>'
    )


def _share(x: float, end: float) -> float:
    return min(max(x / end, 0), 1)


def _plain(x: float) -> str:
    size = abs(x)
    if size == 0:
        return "0"
    digits = 2 if size >= 0.1 else 3 if size >= 1e-3 else 4 if size >= 1e-4 else None
    return f"{x:.0e}".replace("e-0", "e-") if digits is None else f"{x:.{digits}f}"


def _short(x: float) -> str:
    """As `_plain`, without the zero before the point: brackets have little room."""
    return _plain(x).replace("0.", ".", 1) if abs(x) < 1 else _plain(x)
