"""The weights and direction panels: every number and choice of an edit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.maths import kernel
from sst_ui.recipe import KINDS, Ablation, Recipe
from sst_ui.schema import setting
from sst_ui.ui.panels import prompt_files
from sst_ui.ui.state.form import FILTER_GOALS, OWN_PROFILES, Form, show
from sst_ui.ui.widgets.html import CLICKS
from sst_ui.ui.widgets.inputs import HIDDEN, Dropdown, Number, Radio, dial, wide
from sst_ui.ui.widgets.texts import has, t


@dataclass(frozen=True)
class FilterPanel:
    """What only the operation `filter` has: `decades` are the sliders beside wide numbers."""

    rows: Mapping[str, gr.Row]
    decades: Mapping[str, gr.Slider]
    readout: gr.HTML


@dataclass(frozen=True)
class WeightsPanel:
    ablation_on: gr.Checkbox
    profile: gr.Radio
    strength: gr.Slider
    peak: gr.Slider
    width: gr.Slider
    threshold: gr.Slider
    attention: gr.Slider
    mlp: gr.Slider
    operation: gr.Radio
    norm_preserving: gr.Checkbox
    affine: gr.Checkbox
    affine_at: gr.Radio
    filter_goal: gr.Radio
    filter_budget: gr.Number
    filter_kl: gr.Number
    filter_mu: gr.Number
    filter: FilterPanel
    notes: gr.HTML


@dataclass(frozen=True)
class DirectionPanel:
    estimator: gr.Dropdown
    k: gr.Slider
    scope: gr.Radio
    layer: gr.Number
    winsorize: gr.Slider
    position: gr.Radio
    shrinkage: gr.Slider
    seed: gr.Number
    samples: gr.Number
    harmful: gr.Dropdown
    harmless: gr.Dropdown
    concepts: gr.Dropdown
    null_space: gr.Number
    lookalikes: gr.Dropdown
    lookalike_weight: gr.Number
    filter_answers: gr.Number
    filter_ridge: gr.Number
    file: gr.Textbox
    measure: gr.Button
    decision: gr.Button
    upload: prompt_files.UploadPanel


@dataclass(frozen=True)
class ApplyBar:
    apply: gr.Button
    undo: gr.Button
    redo: gr.Button
    cancel: gr.Button
    pair: gr.HTML
    status: gr.HTML
    unsound: gr.Button
    by_hand: gr.Button


def _choices(prefix: str, values: Iterable[str]) -> list[tuple[Any, str]]:
    """Choices with a translated label where there is one."""
    return [(t(f"{prefix}.{v}") if has(f"{prefix}.{v}") else v, v) for v in values]


def create_weights() -> WeightsPanel:
    start, _ = show(Recipe(edits=(Ablation(),)))
    with gr.Group(elem_id="weights-panel", elem_classes="panel"):
        with gr.Row(elem_classes="head"):
            gr.HTML(t("section.weights"), elem_classes="title")
            ablation_on = gr.Checkbox(
                True, label=t("edit.on"), elem_id="ablation_on", container=False, min_width=90
            )
        made = _table(start) | _way(start)
        notes = gr.HTML(elem_id="notes")
    return WeightsPanel(ablation_on, **made, notes=notes)


def _table(start: Form) -> dict[str, Any]:
    """How strongly each layer and kind of module is edited."""

    def dialled(name: str, setting: str = "", **more: Any) -> gr.Slider:
        label = t(f"weights.{name}")
        value = getattr(start, name)
        return dial(f"weights.{setting or name}", value, label, elem_id=name, **more)

    made: dict[str, Any] = {
        "profile": Radio(
            _choices("profile", (*kernel.profiles(), *OWN_PROFILES)),
            value=start.profile,
            label=t("weights.profile"),
            show_label=False,
            elem_id="profile",
        ),
        "strength": dialled("strength", info=t("weights.strength.info")),
    }
    with gr.Row(elem_classes="pair"):
        made |= {name: dialled(name) for name in ("peak", "width")}
    with gr.Row(elem_classes="pair"):
        made |= {name: dialled(name, "modules") for name in KINDS}
    made["threshold"] = dialled("threshold")
    return made


def _way(start: Form) -> dict[str, Any]:
    """What is done with the direction, and what goes with it."""
    made: dict[str, Any] = {
        "operation": Radio(
            _choices("operation", setting("edit.operation").choices),
            value=start.operation,
            label=t("weights.operation"),
            elem_id="operation",
        )
    }
    made["filter_goal"], numbers, made["filter"] = _filter(start)
    with gr.Row(elem_id="ways"):
        made["norm_preserving"] = gr.Checkbox(
            start.norm_preserving, label=t("weights.norm_preserving"), elem_id="norm-preserving"
        )
        made["affine"] = gr.Checkbox(start.affine, label=t("weights.affine"), elem_id="affine")
    made["affine_at"] = Radio(
        _choices("affine_at", setting("edit.affine_at").choices),
        value=start.affine_at,
        label=t("weights.affine_at"),
        visible=start.affine,
        elem_id="affine-at",
    )
    return made | numbers


def _filter(start: Form) -> tuple[gr.Radio, dict[str, Number], FilterPanel]:
    """How strict a filter is: by price or by a budget, and what that is predicted to do."""
    rows, decades, numbers = {}, {}, {}
    with gr.Row(elem_classes="one", visible=False) as rows["goal"]:
        goal = Radio(
            _choices("filter.goal", FILTER_GOALS),
            value=start.filter_goal,
            label=t("filter.goal"),
            show_label=False,
            elem_id="filter_goal",
        )
    for name in ("budget", "kl", "mu"):
        ends, key = setting(f"filter.{name}").slider, f"filter_{name}"
        rows[name], decades[key], numbers[key] = wide(
            key, t(f"filter.{name}"), (ends.low, ends.high), getattr(start, key), False
        )
    readout = gr.HTML(elem_id="filter-readout", elem_classes="hint", visible=False)
    return goal, numbers, FilterPanel(rows, decades, readout)


def shown(panel: FilterPanel, operation: str, goal: str) -> dict:
    """Which of the filter's controls are there."""
    filtered = operation == "filter"
    return {
        panel.rows["goal"]: gr.update(visible=filtered),
        panel.rows["budget"]: gr.update(visible=filtered and goal == "budget"),
        panel.rows["kl"]: gr.update(visible=filtered and goal == "kl"),
        panel.rows["mu"]: gr.update(visible=filtered and goal == "price"),
    }


def create_direction() -> DirectionPanel:
    start, _ = show(Recipe(edits=(Ablation(),)))
    with gr.Accordion(t("section.direction"), open=False, elem_id="direction-panel"):
        made = _estimation(start) | _prompts(start) | _filtered(start)
        file = gr.Textbox(label=t("direction.file"), max_lines=1, elem_id="directions-file")
        upload = prompt_files.create("direction", ("harmful", "harmless"))
        with gr.Row():
            measure = gr.Button(t("direction.measure"), size="sm", elem_id="measure")
            decision = gr.Button(t("rounds.next"), size="sm", elem_id="next-decision")
    return DirectionPanel(**made, file=file, measure=measure, decision=decision, upload=upload)


def _estimation(start: Form) -> dict[str, Any]:
    """How vectors become directions: estimator, place, averaging."""

    def dialled(name: str) -> gr.Slider:
        value = getattr(start, name)
        return dial(f"directions.{name}", value, t(f"direction.{name}"), elem_id=name)

    made: dict[str, Any] = {
        "estimator": Dropdown(
            _choices("estimator", setting("directions.estimator").choices),
            value=start.estimator,
            label=t("direction.estimator"),
            elem_id="estimator",
        ),
        "scope": _chosen("scope", start.scope),
    }
    with gr.Row(elem_classes="pair"):
        made["layer"] = Number(
            start.layer, label=t("direction.layer"), elem_id="layer",
            step=setting("directions.layer").slider.step,
        )  # fmt: skip
        made["k"] = dialled("k")
    made["position"] = _chosen("position", start.position)
    with gr.Row(elem_classes="pair"):
        made |= {name: dialled(name) for name in ("winsorize", "shrinkage")}
    return made


def _chosen(name: str, value: str) -> gr.Radio:
    return Radio(
        _choices(name, setting(f"directions.{name}").choices),
        value=value,
        label=t(f"direction.{name}"),
        elem_id=name,
    )


def _prompts(start: Form) -> dict[str, Any]:
    """What is measured: which prompts, and how many of them."""
    sets = [*prompt_sets.names(), *prompt_sets.public_names()]
    made: dict[str, Any] = {}
    with gr.Row(elem_classes="pair"):
        made["samples"] = Number(start.samples, label=t("direction.samples"), elem_id="samples")
        made["seed"] = Number(start.seed, label=t("direction.seed"), elem_id="seed")
    infos = {"harmful": t("direction.prompts.info"), "concepts": t("direction.concepts.info")}
    for name in ("harmful", "harmless", "concepts"):
        made[name] = Dropdown(
            ["", *sets] if name == "concepts" else sets,
            value=getattr(start, name),
            label=t(f"direction.{name}"),
            info=infos.get(name),
            allow_custom_value=True,
            elem_id=name,
        )
    return made


def _filtered(start: Form) -> dict[str, Any]:
    """What a filter leaves alone beside harmless prompts, and how firmly."""
    sets = [*prompt_sets.names(), *prompt_sets.public_names()]
    made: dict[str, Any] = {
        "lookalikes": Dropdown(
            ["", *sets],
            value=start.lookalikes,
            label=t("filter.lookalikes"),
            allow_custom_value=True,
            elem_id="lookalikes",
        )
    }
    with gr.Row(elem_classes="factors"):
        for key, name in (
            ("null_space", "null_space"),
            ("lookalike_weight", "lookalike_weight"),
            ("filter_answers", "answers"),
            ("filter_ridge", "ridge"),
        ):
            made[key] = Number(
                getattr(start, key), label=t(f"filter.{name}"), elem_id=key, min_width=50
            )
    return made


def create_apply() -> ApplyBar:
    with gr.Group(elem_id="apply-bar", elem_classes="panel"):
        pair = gr.HTML(elem_id="edit-pair", js_on_load=CLICKS)
        status = gr.HTML(elem_id="apply-status")
        with gr.Row():
            apply = gr.Button(t("apply.dirty"), variant="primary", elem_id="apply", scale=3)
            undo = gr.Button(t("apply.undo"), elem_id="undo", scale=1, min_width=52)
            redo = gr.Button(t("apply.redo"), elem_id="redo", scale=1, min_width=52)
            cancel = gr.Button(
                t("cancel"),
                variant="stop",
                visible=HIDDEN,
                elem_id="cancel",
                scale=1,
                min_width=60,
            )
        # pressed by studio.js: when a validator refused what a control holds, and when one of a
        # profile's numbers is moved by hand
        unsound = gr.Button(visible=HIDDEN, elem_id="unsound")
        by_hand = gr.Button(visible=HIDDEN, elem_id="by-hand")
    return ApplyBar(apply, undo, redo, cancel, pair, status, unsound, by_hand)
