"""The weights and direction panels: every number and choice of an edit."""

from dataclasses import dataclass
from typing import get_args

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.maths import kernel
from sst_ui.recipe import Estimator, Operation, Position, Scope
from sst_ui.ui.panels import prompt_files
from sst_ui.ui.state.form import OWN_PROFILES
from sst_ui.ui.widgets.inputs import Dropdown, Number, Radio, Slider
from sst_ui.ui.widgets.texts import has, t


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
    file: gr.Textbox
    measure: gr.Button
    upload: prompt_files.UploadPanel


@dataclass(frozen=True)
class ApplyBar:
    apply: gr.Button
    undo: gr.Button
    cancel: gr.Button
    status: gr.HTML
    unsound: gr.Button


def _choices(prefix: str, values) -> list:
    """Choices with a translated label where there is one."""
    return [(t(f"{prefix}.{v}") if has(f"{prefix}.{v}") else v, v) for v in values]


def _slider(low, high, value, key, step=0.01, **more) -> gr.Slider:
    return Slider(low, high, value, step=step, label=t(key), buttons=[], **more)


def create_weights() -> WeightsPanel:
    with gr.Group(elem_id="weights-panel", elem_classes="panel"):
        with gr.Row(elem_classes="head"):
            gr.HTML(t("section.weights"), elem_classes="title")
            ablation_on = gr.Checkbox(
                True, label=t("edit.on"), elem_id="ablation_on", container=False, min_width=90
            )
        profile = Radio(
            _choices("profile", (*kernel.profiles(), *OWN_PROFILES)),
            value="default",
            label=t("weights.profile"),
            show_label=False,
            elem_id="profile",
        )
        strength = _slider(
            -1, 2, 1, "weights.strength", 0.05, info=t("weights.strength.info"), elem_id="strength"
        )
        with gr.Row(elem_classes="pair"):
            peak = _slider(0, 1, 0.6, "weights.peak", elem_id="peak")
            width = _slider(0, 0.5, 0.15, "weights.width", elem_id="width")
        with gr.Row(elem_classes="pair"):
            attention = _slider(0, 2, 1, "weights.attention", 0.05, elem_id="attention")
            mlp = _slider(0, 2, 1, "weights.mlp", 0.05, elem_id="mlp")
        threshold = _slider(0, 1, 0.1, "weights.threshold", elem_id="threshold")
        operation = Radio(
            _choices("operation", get_args(Operation)),
            value="ablate",
            label=t("weights.operation"),
            elem_id="operation",
        )
        with gr.Row(elem_id="ways"):
            norm_preserving = gr.Checkbox(
                False, label=t("weights.norm_preserving"), elem_id="norm-preserving"
            )
            affine = gr.Checkbox(False, label=t("weights.affine"), elem_id="affine")
        notes = gr.HTML(elem_id="notes")
    return WeightsPanel(
        ablation_on,
        profile,
        strength,
        peak,
        width,
        threshold,
        attention,
        mlp,
        operation,
        norm_preserving,
        affine,
        notes,
    )


def create_direction() -> DirectionPanel:
    sets = [*prompt_sets.names(), *prompt_sets.public_names()]
    with gr.Accordion(t("section.direction"), open=False, elem_id="direction-panel"):
        estimator = Dropdown(
            _choices("estimator", get_args(Estimator)),
            value="mean_difference",
            label=t("direction.estimator"),
            elem_id="estimator",
        )
        scope = Radio(
            _choices("scope", get_args(Scope)),
            value="per_layer",
            label=t("direction.scope"),
            elem_id="scope",
        )
        with gr.Row(elem_classes="pair"):
            layer = Number(0, label=t("direction.layer"), step=0.5, elem_id="layer")
            k = _slider(1, 8, 1, "direction.k", 1, elem_id="k")
        position = Radio(
            _choices("position", get_args(Position)),
            value="template",
            label=t("direction.position"),
            elem_id="position",
        )
        with gr.Row(elem_classes="pair"):
            winsorize = _slider(0.9, 1, 1, "direction.winsorize", 0.005, elem_id="winsorize")
            shrinkage = _slider(0, 1, 0.1, "direction.shrinkage", elem_id="shrinkage")
        with gr.Row(elem_classes="pair"):
            samples = Number(0, label=t("direction.samples"), elem_id="samples")
            seed = Number(0, label=t("direction.seed"), elem_id="seed")
        harmful = Dropdown(
            sets,
            value="demo/harmful",
            label=t("direction.harmful"),
            info=t("direction.prompts.info"),
            allow_custom_value=True,
            elem_id="harmful",
        )
        harmless = Dropdown(
            sets,
            value="demo/harmless",
            label=t("direction.harmless"),
            allow_custom_value=True,
            elem_id="harmless",
        )
        file = gr.Textbox(label=t("direction.file"), max_lines=1, elem_id="directions-file")
        upload = prompt_files.create("direction", ("harmful", "harmless"))
        measure = gr.Button(t("direction.measure"), size="sm", elem_id="measure")
    return DirectionPanel(
        estimator,
        k,
        scope,
        layer,
        winsorize,
        position,
        shrinkage,
        seed,
        samples,
        harmful,
        harmless,
        file,
        measure,
        upload,
    )


def create_apply() -> ApplyBar:
    with gr.Group(elem_id="apply-bar", elem_classes="panel"):
        status = gr.HTML(elem_id="apply-status")
        with gr.Row():
            apply = gr.Button(t("apply.dirty"), variant="primary", elem_id="apply", scale=3)
            undo = gr.Button(t("apply.undo"), elem_id="undo", scale=1, min_width=60)
            cancel = gr.Button(
                t("cancel"), variant="stop", visible=False, elem_id="cancel", scale=1, min_width=60
            )
        # pressed by studio.js when a validator refused what a control holds
        unsound = gr.Button(visible="hidden", elem_id="unsound")
    return ApplyBar(apply, undo, cancel, status, unsound)
