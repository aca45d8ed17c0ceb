"""The curve and its table, as data for the page, which draws them (assets/curve.js).

The page computes the same kernel (assets/kernel.js) for what moves under the pointer; what stands
here is what counts.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sst_ui.maths import kernel
from sst_ui.recipe import KINDS, WeightTable
from sst_ui.schema import setting
from sst_ui.ui.widgets.definitions import definition
from sst_ui.ui.widgets.texts import raw, say

PLAIN, TABLES = ("peak", "width", "threshold", "strength"), ("modules", "peaks", "widths")
TEXTS = ("layer", "bell", "hint", "kernel", "cell", "pinned", "summary")
START = "curve.start(element, props, trigger, watch)"


@dataclass(frozen=True)
class Behind:
    """What is measured or predicted, behind and beside the weights; the page cannot compute it.

    Attributes:
        signal: [layers] the statistic behind the curve, or None when not measured.
        removed, moved: of a filter, [layers] each: share of the harmful component removed, of the
            harmless energy moved; nan where a layer is not edited. None when not predicted.
        filtered: a filter leaves alone what the first quarter does: it is not shaded.
        interval: [layers, 2] 95 % intervals of the statistic, or None when not known.
        doubtful: the statistic is not reliable, and drawn so.
    """

    name: str = ""
    signal: Iterable[float] | None = None
    removed: Iterable[float] | None = None
    moved: Iterable[float] | None = None
    filtered: bool = False
    interval: Iterable[Iterable[float]] | None = None
    doubtful: bool = False


def create() -> gr.HTML:
    """The component: figure and table. Its event `input` tells of cells that were pinned."""
    return gr.HTML(
        None, html_template="", js_on_load=START, apply_default_css=False, elem_id="curve"
    )


def value(language: str, weights: WeightTable, layers: int, behind: Behind) -> dict[str, Any]:
    """What the page draws, as JSON."""
    return {
        "layers": layers,
        "kinds": {kind: say(language, f"kind.{kind}") for kind in KINDS},
        "profile": weights.profile,
        "weights": _plain(weights),
        "kernel": kernel.kernel(weights, layers).tolist(),
        "alpha": kernel.table(weights, layers).tolist(),
        "early": None if behind.filtered else kernel.EARLY,
        "signal": _numbers(behind.signal),
        "interval": None if behind.interval is None else [_numbers(x) for x in behind.interval],
        "doubtful": behind.doubtful,
        "predicted": [
            {"name": say(language, f"filter.{key}"), "key": key, "values": _numbers(values)}
            for key, values in (("removed", behind.removed), ("moved", behind.moved))
            if values is not None
        ],
        "limits": {name: _ends(name) for name in (*PLAIN, "modules", "overrides")},
        "means": [definition(language, f"column.{name}") for name in ("kernel", *KINDS)],
        "texts": {"signal": behind.name} | {key: raw(language, f"curve.{key}") for key in TEXTS},
    }


def _ends(name: str) -> list[float | None]:
    """The smallest and the largest number of a setting; beyond them the page draws nothing new."""
    limits = setting(f"weights.{name}").limits
    return [limits.low, limits.high]


def _plain(weights: WeightTable) -> dict[str, Any]:
    """What the page computes with, as assets/kernel.js takes it."""
    overrides = {
        kind: {str(layer): alpha for layer, alpha in cells.items()}
        for kind, cells in weights.overrides.items()
    }
    return {
        **{name: getattr(weights, name) for name in PLAIN},
        **{name: dict(getattr(weights, name)) for name in TABLES},
        "curve": None if weights.curve is None else list(weights.curve),
        "overrides": overrides,
    }


def _numbers(values: Iterable[float] | None) -> list[float | None] | None:
    """Numbers for JSON, which has no nan."""
    if values is None:
        return None
    return [float(each) if math.isfinite(each) else None for each in values]
