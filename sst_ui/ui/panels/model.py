"""The model panel: which model, how to load it, what it would take, and the swap itself."""

from dataclasses import dataclass

import gradio as gr

from sst_ui.recipe import ModelSpec
from sst_ui.schema import setting
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.services.job_runner import Told, watched
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import Dropdown
from sst_ui.ui.widgets.texts import say, t


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
                list(setting("model.dtype").choices), value=start.dtype, label=t("model.dtype")
            )
            device = Dropdown(
                ["auto", "cpu", "cuda", "mps", "balanced"],
                value=start.device,
                label=t("model.device"),
                allow_custom_value=True,
            )
        with gr.Row(elem_classes="pair"):
            quantization = Dropdown(
                list(setting("model.quantization").choices),
                value=start.quantization,
                label=t("model.quantization"),
            )
            revision = gr.Textbox(
                label=t("model.revision"), placeholder=t("model.revision.hint"), max_lines=1
            )
        template = gr.Textbox(label=t("model.template"), max_lines=1)
        thinking = gr.Checkbox(False, label=t("model.thinking"))
        remote = gr.Checkbox(False, label=t("model.remote"))
        with gr.Row(elem_id="model-buttons"):
            inspect = gr.Button(t("model.inspect"), size="sm")
            load = gr.Button(t("model.load"), size="sm", variant="primary", elem_id="load-model")
            cancel = gr.Button(t("cancel"), size="sm", variant="stop", visible=False)
        status = gr.HTML(elem_id="model-status")
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


def spec(ident, revision, dtype, device, quantization, remote, thinking, template) -> ModelSpec:
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


def connect(panel: ModelPanel, engine: Engine, language: gr.State, loaded: gr.State):
    """Wire inspect and load; returns the load event, whose success means a new model."""

    @guarded
    def look(lang, *values):
        try:
            report = engine.inspect(spec(*values))
        except Exception as error:
            return notice(message(error, lang), "bad")
        verdict = say(lang, "model.fits" if report.fits else "model.too_big")
        return notice(f"{report.summary()} — {verdict}", "good" if report.fits else "warn")

    @guarded
    def swap(lang, current: Loaded, *values):
        try:
            current = yield from watched(
                lang,
                engine.load(spec(*values)),
                lambda bar: (bar, gr.skip(), gr.update(visible=True)),
                told=Told(toast=False),  # they stay under the button
            )
        except Exception as error:
            text = message(error, lang)
            yield notice(text, "bad"), gr.skip(), gr.update(visible=False)
            # what was open stays open, and what is wrong has been said
            raise gr.Error(text, visible=False, print_exception=False) from error
        text = " ".join([say(lang, "model.loaded", name=current.name), *current.warnings])
        done = notice(text, "warn" if current.warnings else "good")
        yield done, current, gr.update(visible=False)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    panel.inspect.click(look, [language, *panel.inputs], panel.status, **private)
    event = gr.on(
        [panel.load.click, panel.id.submit],
        swap,
        [language, loaded, *panel.inputs],
        [panel.status, loaded, panel.cancel],
        concurrency_id="load",
        concurrency_limit=1,
        **private,
    )
    panel.cancel.click(
        lambda lang: (notice(say(lang, "stage.stopped")), gr.update(visible=False)),
        language,
        [panel.status, panel.cancel],
        cancels=event,
        **private,
    )
    return event
