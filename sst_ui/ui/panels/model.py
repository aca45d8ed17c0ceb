"""The model panel: which model, how to load it, what it would take."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sst_ui.recipe import ModelSpec
from sst_ui.schema import setting
from sst_ui.ui.services.roles import may
from sst_ui.ui.widgets.inputs import HIDDEN, Dropdown
from sst_ui.ui.widgets.texts import t


@dataclass(frozen=True)
class ModelPanel:
    id: gr.Textbox
    revision: gr.Textbox
    dtype: gr.Dropdown
    device: gr.Dropdown
    quantization: gr.Dropdown
    thinking: gr.Checkbox
    remote: gr.Checkbox
    template: gr.Textbox
    inspect: gr.Button
    load: gr.Button
    cancel: gr.Button
    status: gr.HTML

    @property
    def inputs(self) -> list:
        """What `spec` takes, in order."""
        return [
            self.id,
            self.revision,
            self.dtype,
            self.device,
            self.quantization,
            self.remote,
            self.thinking,
            self.template,
        ]


def create() -> ModelPanel:
    start = ModelSpec()
    with gr.Accordion(t("section.model"), open=False, elem_id="model-panel"):
        ident = gr.Textbox(start.id, label=t("model.id"), elem_id="model-id", max_lines=1)
        with gr.Row(elem_classes="pair"):
            dtype = Dropdown(
                list(setting("model.dtype").choices),
                value=start.dtype,
                label=t("model.dtype"),
                elem_id="model-dtype",
            )
            device = Dropdown(
                ["auto", "cpu", "cuda", "mps", "balanced"],
                value=start.device,
                label=t("model.device"),
                allow_custom_value=True,
                elem_id="model-device",
            )
        with gr.Row(elem_classes="pair"):
            quantization = Dropdown(
                list(setting("model.quantization").choices),
                value=start.quantization,
                label=t("model.quantization"),
                elem_id="model-quantization",
            )
            revision = gr.Textbox(
                label=t("model.revision"),
                placeholder=t("model.revision.hint"),
                max_lines=1,
                elem_id="model-revision",
            )
        template = gr.Textbox(label=t("model.template"), max_lines=1, elem_id="model-template")
        thinking = gr.Checkbox(False, label=t("model.thinking"), elem_id="model-thinking")
        remote = gr.Checkbox(False, label=t("model.remote"), elem_id="model-remote")
        with gr.Row(elem_id="model-buttons"):
            free: dict[str, Any] = {"size": "sm", "interactive": may("change the model")}
            inspect = gr.Button(t("model.inspect"), elem_id="inspect-model", **free)
            load = gr.Button(t("model.load"), variant="primary", elem_id="load-model", **free)
            cancel = gr.Button(
                t("cancel"), size="sm", variant="stop", visible=HIDDEN, elem_id="cancel-load"
            )
        told = None if may("change the model") else t("model.shared")
        status = gr.HTML(told, elem_id="model-status")
    return ModelPanel(
        ident,
        revision,
        dtype,
        device,
        quantization,
        thinking,
        remote,
        template,
        inspect,
        load,
        cancel,
        status,
    )


def spec(
    ident: str | None,
    revision: str | None,
    dtype: Any,
    device: str | None,
    quantization: Any,
    remote: Any,
    thinking: Any,
    template: str | None,
) -> ModelSpec:
    """The controls as a `ModelSpec`; empty texts are the defaults.

    Raises:
        UserError: an unknown number format or quantisation.
    """
    return ModelSpec(
        id=(ident or "").strip() or "demo",
        revision=(revision or "").strip() or None,
        dtype=dtype,
        device=(device or "auto").strip(),
        quantization=quantization,
        trust_remote_code=bool(remote),
        enable_thinking=bool(thinking),
        chat_template=(template or "").strip() or None,
    )
