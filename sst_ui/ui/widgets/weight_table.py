"""The layer × module table as text cells: numbers that follow the curve, and pinned ones (✎)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.recipe import KINDS, WeightTable
from sst_ui.schema import setting
from sst_ui.ui.state.form import Extras
from sst_ui.ui.widgets.texts import say

PIN = " ✎"


@dataclass(frozen=True)
class Edited:
    """What a typed cell came to, and what to say about it."""

    extras: Extras
    complaint: str = ""


def rows(weights: WeightTable, layers: int) -> list[list[str]]:
    """One row per layer: number, kernel value, alpha per kind; overridden cells carry a pin."""
    bell, alpha = kernel.kernel(weights, layers), kernel.table(weights, layers)
    return [
        [
            str(layer),
            _format(bell[layer]),
            *(
                _format(alpha[layer, column])
                + (PIN if layer in weights.overrides.get(kind, {}) else "")
                for column, kind in enumerate(KINDS)
            ),
        ]
        for layer in range(layers)
    ]


def typed(
    language: str, cells: Sequence[Sequence[object]], weights: WeightTable, layers: int
) -> Edited:
    """Overrides after a visitor typed into the table: changed cells are pinned, empty ones freed.

    A cell that is no number, or one out of range, keeps its old value and is complained about.
    """
    before = rows(weights, layers)
    pinned = {kind: dict(weights.overrides.get(kind, {})) for kind in KINDS}
    complaint, allowed = "", setting("weights.overrides").limits
    for layer, (old, new) in enumerate(zip(before, cells, strict=False)):
        for column, kind in enumerate(KINDS, start=2):
            text = _plain(new[column]) if column < len(new) else ""
            if text == _plain(old[column]):
                continue
            if not text:
                pinned[kind].pop(layer, None)
                continue
            value = number(text)
            if value is None:
                name = say(language, f"kind.{kind}")
                complaint = say(language, "table.bad", value=repr(text), layer=layer, kind=name)
                continue
            if not allowed.hold(value):
                name, low, high = say(language, f"kind.{kind}"), allowed.low, allowed.high
                complaint = say(
                    language, "table.range", value=text, layer=layer, kind=name, low=low, high=high
                )
                continue
            pinned[kind][layer] = value
    kept = {kind: cells for kind, cells in pinned.items() if cells}
    extras = Extras(weights.curve, kept, peaks=weights.peaks, widths=weights.widths)
    return Edited(extras, complaint)


def pasted(language: str, text: str, target: str, extras: Extras, layers: int) -> Extras:
    """A row of numbers, one per layer, as the curve or as one kind's column.

    Raises:
        UserError: a word among the numbers, or not one number per layer.
    """
    words = [word for word in re.split(r"[\s,;]+", text.strip().strip("[]")) if word]
    values = []
    for word in words:
        if (value := number(word)) is None:
            raise UserError(say(language, "table.numbers", value=repr(word)))
        values.append(value)
    if len(values) != layers:
        raise UserError(say(language, "table.count", count=len(values), layers=layers))
    if target == "curve":
        return replace(extras.one_bell(), curve=tuple(values))
    overrides: Mapping = {**extras.overrides, target: dict(enumerate(values))}
    return replace(extras, overrides=overrides)


def number(text: str) -> float | None:
    """A finite number, or None; accepts the typographic minus and a decimal comma."""
    try:
        value = float(text.replace("−", "-").replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _plain(cell: object) -> str:
    return "" if cell is None else str(cell).replace(PIN.strip(), "").strip()


def _format(value: float | np.floating) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if value else "0"
