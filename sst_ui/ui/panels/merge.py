"""The merge panel: two adapters, method, how far to go, weights, data.

The controls of the methods' own parameters are made from `maths.merge.registry.METHODS`: a method
that is added brings its controls, their ranges and words along.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.maths.merge.parameters import Parameter
from sst_ui.maths.merge.registry import METHODS
from sst_ui.recipe import Merge
from sst_ui.schema import setting
from sst_ui.ui.state import merge_form
from sst_ui.ui.state.merge_form import FACTORS, GOALS, SHAPES, dials, own, priced
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.inputs import Dropdown, Number, Radio, Slider, decade, dial, wide
from sst_ui.ui.widgets.texts import has, say, t

LOWEST = 1e-5  # where a slider of decades begins; a number may be typed below it
HIGHEST = 1e5


@dataclass(frozen=True)
class MergePanel:
    """`controls` are those of the form by name, `decades` the sliders beside wide numbers."""

    controls: Mapping[str, Any]
    decades: Mapping[str, gr.Slider]
    rows: Mapping[str, gr.Row]
    bell: gr.Row
    hint: gr.HTML
    readout: gr.HTML
    predict: gr.Button


@dataclass(frozen=True)
class _Dials:
    """What a part of the panel adds: as in `MergePanel`."""

    controls: dict[str, Any] = field(default_factory=dict)
    decades: dict[str, gr.Slider] = field(default_factory=dict)
    rows: dict[str, gr.Row] = field(default_factory=dict)


def create() -> MergePanel:
    base = merge_form.first()
    values = merge_form.show(base)
    with gr.Group(elem_id="merge-panel", elem_classes="panel"):
        adapters, hint = _adapters(values)
        dialled = _goal_and_parameters(values)
        safety_weight = dial(  # a merge takes no safety away
            "weights.strength", values["safety_weight"], t("merge.safety_weight"), low=0,
            elem_id="safety_weight",
        )  # fmt: skip
        with gr.Row(elem_id="forecast"):
            readout = gr.HTML(elem_id="merge-readout")
            predict = gr.Button(t("merge.predict"), size="sm", elem_id="predict", min_width=60)
    with gr.Accordion(t("section.merge_weights"), open=False, elem_id="merge-weights"):
        weights, bell = _weights(values)
    with gr.Accordion(t("section.merge_data"), open=False, elem_id="merge-data"):
        data = _data(values)
    made = {**adapters, **dialled.controls, "safety_weight": safety_weight, **weights, **data}
    return MergePanel(made, dialled.decades, dialled.rows, bell, hint, readout, predict)


def _adapters(values: Mapping[str, Any]) -> tuple[dict[str, Any], gr.HTML]:
    """What is merged and how, and what the method does in words."""
    made: dict[str, Any] = {}
    with gr.Row(elem_classes="head"):
        gr.HTML(t("section.merge"), elem_classes="title")
        made["merge_on"] = gr.Checkbox(
            False, label=t("edit.on"), elem_id="merge_on", container=False, min_width=90
        )
    with gr.Row(elem_classes="pair"):
        for name in ("utility", "safety"):
            made[name] = Dropdown(
                merge_form.shipped(),
                value=values[name],
                label=t(f"merge.{name}"),
                allow_custom_value=True,
                elem_id=name,
            )
    made["method"] = Dropdown(
        [(m.title, m.name) for m in METHODS],
        value=values["method"],
        label=t("merge.method"),
        elem_id="method",
    )
    hint = gr.HTML(told("en", values["method"]), elem_id="method-hint", elem_classes="hint")
    return made, hint


def _goal_and_parameters(values: Mapping[str, Any]) -> _Dials:
    """How far the merge goes: within a budget, or by the parameters of its method."""
    found = _Dials()
    with gr.Row(elem_classes="one") as found.rows["goal"]:
        found.controls["goal"] = Radio(
            [(t(f"merge.goal.{name}"), name) for name in GOALS],
            value=values["goal"],
            label=t("merge.goal"),
            show_label=False,
            elem_id="goal",
        )
    ends = setting("merge.budget").slider
    _wide(found, "budget", t("merge.budget"), (ends.low, ends.high), values["budget"], True)
    mine = own(values["method"])
    for name, row in dials().items():
        _parameter(found, row, values[f"p_{name}"], visible=name in mine and name != "mu")
    return found


def _parameter(found: _Dials, row: Parameter, value: Any, visible: bool) -> None:
    """The control of a method's parameter: choices, a slider, or one of decades."""
    key = f"p_{row.name}"
    label = t(f"dial.{row.name}") if has(f"dial.{row.name}") else row.what
    if _is_wide(row):
        ends = (max(row.low, LOWEST if row.log else 1), min(row.high, HIGHEST))
        _wide(found, key, label, ends, value, visible)
        return
    with gr.Row(elem_classes="one", visible=visible) as found.rows[key]:
        if row.kind == "choice":
            found.controls[key] = Radio(list(row.choices), value=value, label=label, elem_id=key)
        else:
            found.controls[key] = Slider(
                row.low, row.high, value, step=row.step, label=label, buttons=[], elem_id=key
            )


def _weights(values: Mapping[str, Any]) -> tuple[dict[str, Any], gr.Row]:
    """How strongly each layer and kind of module is merged, and the row of the bell's shape."""
    made: dict[str, Any] = {
        "shape": Radio(
            [(t(f"merge.shape.{name}"), name) for name in SHAPES],
            value=values["shape"],
            label=t("merge.shape"),
            elem_id="shape",
        )
    }
    with gr.Row(elem_classes="pair", visible=False) as bell:
        for name in ("peak", "width"):
            key, label = f"m_{name}", t(f"weights.{name}")
            made[key] = dial(f"weights.{name}", values[key], label, elem_id=key)
    for group in (FACTORS[:4], FACTORS[4:]):
        with gr.Row(elem_classes="factors"):
            for kind in group:
                made[f"f_{kind}"] = Number(
                    values[f"f_{kind}"], label=f"{kind} ×", elem_id=f"f_{kind}", min_width=50,
                    step=setting("weights.modules").slider.step,
                )  # fmt: skip
    return made, bell


def _data(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the method learns the tasks from, and what it makes of that."""
    made: dict[str, Any] = {}
    sets = [*prompt_sets.names(), *prompt_sets.public_names()]
    for name in ("utility_set", "safety_set"):
        made[name] = Dropdown(
            sets, value=values[name], label=t(f"merge.{name}"), allow_custom_value=True,
            elem_id=name,
        )  # fmt: skip
    made["m_lookalikes"] = Dropdown(
        ["", *sets], value=values["m_lookalikes"], label=t("merge.m_lookalikes"),
        allow_custom_value=True, elem_id="m_lookalikes",
    )  # fmt: skip
    made["m_lookalike_weight"] = Number(
        values["m_lookalike_weight"], label=t("merge.m_lookalike_weight"),
        elem_id="m_lookalike_weight",
    )  # fmt: skip
    with gr.Row(elem_classes="pair"):
        for name in ("m_samples", "rank"):
            made[name] = Number(values[name], label=t(f"merge.{name}"), elem_id=name)
    for name in ("target", "fisher"):
        made[name] = Radio(
            [(t(f"merge.{name}.{word}"), word) for word in setting(f"merge.{name}").choices],
            value=values[name],
            label=t(f"merge.{name}"),
            elem_id=name,
        )
    made["inputs"] = Number(values["inputs"], label=t("merge.inputs"), elem_id="inputs")
    made["m_rounds"] = Number(values["m_rounds"], label=t("merge.m_rounds"), elem_id="m_rounds")
    made["unaligned"] = gr.Textbox(label=t("merge.unaligned"), max_lines=1, elem_id="unaligned")
    return made


def _is_wide(row: Parameter) -> bool:
    """Whether equal steps would be of no use over the parameter's range."""
    return row.log or (row.kind == "int" and row.high >= 1000 and row.name != "seed")


def _wide(
    found: _Dials, name: str, label: Any, ends: tuple[float, float], value: float, visible: bool
) -> None:
    found.rows[name], found.decades[name], found.controls[name] = wide(
        name, label, ends, value, visible
    )


def dialled(name: str, place: float) -> float:
    """The number that a slider of decades stands for, to two digits; whole for whole parameters."""
    number = 10**place
    row = dials().get(name.removeprefix("p_"))
    if row is not None and row.kind == "int":
        return max(1, round(number))
    return float(f"{number:.2g}")


def told(language: str, method: str) -> str:
    """What a method does, and where it comes from."""
    row = METHODS[method]
    words = say(language, f"method.{method}") if has(f"method.{method}") else row.what
    paper = say(language, "merge.own") if row.paper == "this project" else row.paper
    return f"{safe(words)} <em>{safe(paper)}</em>"


def shown(panel: MergePanel, spec_method: str, goal: str, shape: str) -> dict:
    """Which controls are there: those that the method and the goal have a use for."""
    mine, within = own(spec_method), priced(spec_method) and goal == "budget"
    updates = {
        panel.rows["goal"]: gr.update(visible=priced(spec_method)),
        panel.rows["budget"]: gr.update(visible=within),
        panel.bell: gr.update(visible=shape == "bell"),
    }
    for name in dials():
        there = name in mine and not (name == "mu" and within)
        key = f"p_{name}"
        updates[panel.rows[key]] = gr.update(visible=there)
    return updates


def places(panel: Any, form: Any) -> dict:
    """The sliders of decades where the form's numbers say."""
    return {
        slider: decade(getattr(form, name), slider.minimum, slider.maximum)
        for name, slider in panel.decades.items()
    }


def summary(language: str, spec: Merge, point: Any, mu: float | None) -> str:
    """The chosen point in words."""
    words = [] if mu is None else [f"μ {mu:.3g}"]
    words.append(say(language, "merge.cost", cost=f"{point.cost:.2g}"))
    words.append(say(language, "merge.kept", kept=point.kept))
    if round(point.kept * 100) > 100:
        words.append(say(language, "merge.kept.above"))
    return " · ".join(words)
