"""The components that hold a value of the visitor's, passed on as it arrived.

Gradio checks values before any handler or validator sees them, and what it refuses becomes a toast
in words of its own ("Value: 'x' (type: <class 'str'>) is not in the list of choices") that names no
control; a number it may round. Here every value reaches our own checks, which say what is wrong at
the control. No handler may rely on a slider's ends or a menu's entries.
"""

import math
from typing import Any, Literal
from unittest.mock import patch

import gradio as gr

from sst_ui.schema import setting


def _as_it_came(self: Any, payload: Any) -> Any:
    """The browser's value, unchecked."""
    return payload


# Gradio writes a stub file beside the source of every subclass of a component: not beside this one.
with patch("gradio.component_meta.create_or_modify_pyi"):

    class Number(gr.Number):
        """A number box; an empty one is None."""

        is_template = True  # for the front end it is its base class
        preprocess = _as_it_came

    class Slider(gr.Slider):
        """A slider; its number may lie beyond its ends."""

        is_template = True
        preprocess = _as_it_came

    class Dropdown(gr.Dropdown):
        """A menu; what is picked may be no entry of it any more."""

        is_template = True
        preprocess = _as_it_came

    class Radio(gr.Radio):
        """A row of choices."""

        is_template = True
        preprocess = _as_it_came


# Gradio takes what is not visible out of the page, and what it is told while it is put back may be
# lost: it is then missing, or shows what it began with. What is hidden stays in the page. For
# buttons that come and go.
HIDDEN: Literal["hidden"] = "hidden"


def visibility(there: bool) -> Literal[True, "hidden"]:
    """The `visible` of a button that comes and goes."""
    return there or HIDDEN


def dial(name: str, value: float, label: Any, low: float | None = None, **more: Any) -> Slider:
    """The slider of a setting, with the setting's own ends and step.

    Args:
        name: such as `weights.peak`.
        low: where it begins, if not where the setting's slider does.
    """
    row = setting(name).slider
    start = row.low if low is None else low
    return Slider(start, row.high, value, step=row.step, label=label, buttons=[], **more)


def wide(
    name: str, label: Any, ends: tuple[float, float], value: float, visible: bool
) -> tuple[gr.Row, Slider, Number]:
    """A slider of decades with the number itself beside it; the number is the form's control."""
    low, high = (math.log10(end) for end in ends)
    with gr.Row(elem_classes="wide", visible=visible) as row:
        slider = Slider(
            low, high, decade(value, low, high), step=0.01, label=label, buttons=[],
            elem_id=f"{name}-decades", scale=4, min_width=120,
        )  # fmt: skip
        number = Number(
            value, label=label, show_label=False, container=False, elem_id=name, scale=1,
            min_width=96,
        )  # fmt: skip
    return row, slider, number


def decade(value: Any, low: float, high: float) -> float:
    """Where a slider of decades stands for a number; at its end for what lies beyond."""
    number = float(value) if isinstance(value, int | float) and value > 0 else 0.0
    return round(min(max(math.log10(number) if number else low, low), high), 2)
