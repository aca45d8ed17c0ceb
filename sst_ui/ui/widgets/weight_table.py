"""The layer × module table: cells that were typed or dragged, and pasted rows."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sst_ui.errors import UserError
from sst_ui.recipe import KINDS, WeightTable
from sst_ui.schema import setting
from sst_ui.ui.state.form import Extras
from sst_ui.ui.widgets.texts import say


@dataclass(frozen=True)
class Edited:
    """What a typed cell came to, and what to say about it."""

    extras: Extras
    complaint: str = ""


def typed(
    language: str,
    cells: Sequence[tuple[str, int, str]],
    weights: WeightTable,
    layers: int,
) -> Edited:
    """Overrides after a visitor typed cells or dragged their points: they are pinned, empty ones
    freed.

    A cell that is no number, or one out of range, keeps its old value and is complained about.

    Args:
        cells: (kind of module, layer, what was typed).
    """
    pinned = {kind: dict(weights.overrides.get(kind, {})) for kind in KINDS}
    complaint, allowed = "", setting("weights.overrides").limits
    for kind, layer, text in cells:
        if kind not in KINDS or not 0 <= layer < layers:  # of a model that was here before
            continue
        if not text.strip():
            pinned[kind].pop(layer, None)
            continue
        found, name = number(text), say(language, f"kind.{kind}")
        if found is None:
            complaint = say(language, "table.bad", value=repr(text), layer=layer, kind=name)
        elif not allowed.hold(found):
            complaint = say(
                language, "table.range", value=text, layer=layer, kind=name,
                low=allowed.low, high=allowed.high,
            )  # fmt: skip
        else:
            pinned[kind][layer] = found
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
