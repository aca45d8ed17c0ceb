"""The chat panel: one box, two columns, example prompts."""

from dataclasses import dataclass

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.options import ChatOptions
from sst_ui.schema import setting
from sst_ui.ui.state.window import Source
from sst_ui.ui.widgets.html import CLICKS
from sst_ui.ui.widgets.inputs import HIDDEN, Dropdown, Number
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.texts import say, t

BASE = "base"  # the picker's value for the untouched model
UTILITY = "utility"  # ... for the utility adapter alone, where the current variant merges
MERGED = "merged"  # ... for its merge without its ablation
EDITED = "edited"  # ... and for whichever variant is current
WAITING = "waiting"  # not in the picker: whose answer comes when its edit is measured
EXAMPLES = (  # label, prompt set of the demo, which prompt
    ("harmful", "demo/harmful_heldout", 0),
    ("lookalike", "demo/lookalike", 0),
    ("jailbreak", "demo/jailbreak", 0),
    ("fact", "demo/facts", 0),
)

# The line takes its height from the chat above it, whose end stays in sight where it was
OUTDATED = (
    CLICKS
    + """
new MutationObserver(() => {
  const chat = element.closest('.side').querySelector('.bubble-wrap');
  const hidden = chat ? chat.scrollHeight - chat.clientHeight - chat.scrollTop : 0;
  if (hidden > 0 && hidden <= element.offsetHeight + 20) chat.scrollTop = chat.scrollHeight;
}).observe(element, {childList: true, subtree: true});
"""
)


@dataclass(frozen=True)
class ChatPanel:
    pickers: tuple[gr.Dropdown, gr.Dropdown]
    columns: tuple[gr.Chatbot, gr.Chatbot]
    outdated: tuple[gr.HTML, gr.HTML]
    examples: tuple[gr.Button, ...]
    box: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    edit: gr.Button
    clear: gr.Button
    tokens: gr.Number
    temperature: gr.Number
    seed: gr.Textbox
    system: gr.Textbox
    blind: gr.Checkbox
    differences: gr.Checkbox
    votes: gr.HTML
    status: gr.HTML


def create() -> ChatPanel:
    with gr.Row(elem_id="columns"):
        picker_left, left, outdated_left = _column("left", BASE)
        picker_right, right, outdated_right = _column("right", EDITED)
    votes = gr.HTML(elem_id="votes", js_on_load=CLICKS)
    with gr.Row(elem_id="examples"):
        examples = tuple(_example(*row) for row in EXAMPLES)
    with gr.Row(elem_id="ask"):
        box = gr.Textbox(
            label=t("chat.message"),
            placeholder=t("chat.placeholder"),
            show_label=False,
            container=False,
            lines=1,
            max_lines=4,
            scale=8,
            elem_id="box",
        )
        send = gr.Button(t("chat.send"), variant="primary", scale=0, min_width=76, elem_id="send")
        stop = gr.Button(
            t("chat.stop"), variant="stop", scale=0, min_width=76, elem_id="stop", visible=HIDDEN
        )
    with gr.Row(elem_id="chat-tools"):
        again = gr.Button(t("chat.again"), size="sm", elem_id="again", min_width=70)
        edit = gr.Button(t("chat.edit"), size="sm", elem_id="edit", min_width=50)
        clear = gr.Button(t("chat.clear"), size="sm", elem_id="clear", min_width=50)
        status = gr.HTML(elem_id="chat-status")
        usual = ChatOptions()
        tokens = Number(usual.max_new_tokens, label=t("chat.tokens"), elem_id="tokens")
        temperature = Number(
            usual.temperature, label=t("chat.temperature"), elem_id="temperature",
            step=setting("chat.temperature").slider.step,
        )  # fmt: skip
        seed = gr.Textbox(  # a number may be left out, which gr.Number makes a 0
            "", label=t("chat.seed"), placeholder=t("chat.seed.new"), max_lines=1,
            elem_id="chat-seed",
        )  # fmt: skip
        system, blind, differences = _asking()
    return ChatPanel(
        (picker_left, picker_right),
        (left, right),
        (outdated_left, outdated_right),
        examples,
        box,
        send,
        stop,
        again,
        edit,
        clear,
        tokens,
        temperature,
        seed,
        system,
        blind,
        differences,
        votes,
        status,
    )


def _asking() -> tuple[gr.Textbox, gr.Checkbox, gr.Checkbox]:
    """What comes before the conversation, and how its answers are shown."""
    system = gr.Textbox(
        "", label=t("chat.system"), placeholder=t("chat.system.none"), lines=1, max_lines=6,
        elem_id="system",
    )  # fmt: skip
    blind = gr.Checkbox(False, label=t("chat.blind"), container=False, elem_id="blind")
    differences = gr.Checkbox(
        True, label=t("chat.differences"), container=False, elem_id="differences"
    )
    return system, blind, differences


def named(language: str, source: Source) -> str:
    """Which model gave an answer, as it was called then."""
    if source.part == WAITING:
        return say(language, "chat.waiting")
    if source.part in (BASE, EDITED):
        return shown_name(language, source.name) or say(language, "chat.base")
    return f"{say(language, f'chat.{source.part}')} · {shown_name(language, source.name)}"


def _column(side: str, value: str) -> tuple[gr.Dropdown, gr.Chatbot, gr.HTML]:
    """One side: who answers there, the conversation with it, and whether that is outdated."""
    with gr.Column(min_width=200, elem_classes=f"side {side}"):
        picker = Dropdown(
            [(t("chat.base"), BASE), (t("answers.edited"), EDITED)],
            value=value,
            label=t(f"chat.{side}"),  # read out by screen readers
            show_label=False,
            container=False,
            elem_id=f"picker-{side}",
            filterable=False,
        )
        column = gr.Chatbot(
            show_label=False,
            container=False,
            elem_id=f"chat-{side}",
            height="100%",
            buttons=["copy"],
            feedback_options=None,
            layout="bubble",
            placeholder=t("chat.hello") if side == "left" else " ",
        )
        outdated = gr.HTML(elem_id=f"outdated-{side}", elem_classes="outdated", js_on_load=OUTDATED)
    return picker, column, outdated


def _example(label: str, name: str, place: int) -> gr.Button:
    try:
        text = prompt_sets.load(name).prompts[place].user
    except (UserError, IndexError):
        text = ""
    return gr.Button(
        text,
        size="sm",
        visible=bool(text),
        elem_classes=["example", f"is-{label}"],
        min_width=60,
    )
