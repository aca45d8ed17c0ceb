"""The chat: one box, two columns, both answering the same message from one batch."""

import time
from contextlib import closing
from dataclasses import dataclass, replace

import gradio as gr

from sst_ui.data import prompts
from sst_ui.errors import UserError
from sst_ui.ui.engine import Engine, Loaded
from sst_ui.ui.errors import guarded, message
from sst_ui.ui.html import notice
from sst_ui.ui.state import Conversation, Turn, Variants
from sst_ui.ui.texts import say, t

BASE = "base"  # the picker's value for the untouched model
EDITED = "edited"  # ... and for whichever variant is current
PACE = 0.04  # seconds between two updates of the screen
EXAMPLES = (  # label, prompt set of the demo, which prompt
    ("harmful", "demo/harmful_heldout", 0),
    ("harmful", "demo/harmful_heldout", 7),
    ("lookalike", "demo/lookalike", 0),
    ("jailbreak", "demo/jailbreak", 0),
    ("fact", "demo/facts", 0),
)


@dataclass(frozen=True)
class ChatPanel:
    pickers: tuple[gr.Dropdown, gr.Dropdown]
    columns: tuple[gr.Chatbot, gr.Chatbot]
    examples: tuple[gr.Button, ...]
    box: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    edit: gr.Button
    clear: gr.Button
    tokens: gr.Number
    temperature: gr.Number
    status: gr.HTML


def create() -> ChatPanel:
    pickers, columns = [], []
    with gr.Row(elem_id="columns"):
        for side, value in (("left", BASE), ("right", EDITED)):
            with gr.Column(min_width=200, elem_classes=f"side {side}"):
                pickers.append(
                    gr.Dropdown(
                        [(t("chat.base"), BASE), (t("answers.edited"), EDITED)],
                        value=value,
                        show_label=False,
                        container=False,
                        elem_id=f"picker-{side}",
                        filterable=False,
                    )
                )
                columns.append(
                    gr.Chatbot(
                        show_label=False,
                        container=False,
                        elem_id=f"chat-{side}",
                        height="100%",
                        buttons=["copy"],
                        feedback_options=None,
                        layout="bubble",
                        placeholder=" ",
                    )
                )
    with gr.Row(elem_id="examples"):
        examples = tuple(_example(*row) for row in EXAMPLES)
    with gr.Row(elem_id="ask"):
        box = gr.Textbox(
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
            t("chat.stop"), variant="stop", scale=0, min_width=76, elem_id="stop", visible=False
        )
    with gr.Row(elem_id="chat-tools"):
        again = gr.Button(t("chat.again"), size="sm", elem_id="again", min_width=70)
        edit = gr.Button(t("chat.edit"), size="sm", elem_id="edit", min_width=50)
        clear = gr.Button(t("chat.clear"), size="sm", elem_id="clear", min_width=50)
        status = gr.HTML(elem_id="chat-status")
        tokens = gr.Number(
            64, label=t("chat.tokens"), minimum=1, maximum=4096, precision=0, elem_id="tokens"
        )
        temperature = gr.Number(
            0, label=t("chat.temperature"), minimum=0, maximum=2, step=0.1, elem_id="temperature"
        )
    return ChatPanel(
        tuple(pickers),
        tuple(columns),
        examples,
        box,
        send,
        stop,
        again,
        edit,
        clear,
        tokens,
        temperature,
        status,
    )


def _example(label: str, name: str, place: int) -> gr.Button:
    try:
        text = prompts.load(name).prompts[place].user
    except (UserError, IndexError):
        text = ""
    return gr.Button(
        text,
        size="sm",
        visible=bool(text),
        elem_classes=["example", f"is-{label}"],
        min_width=60,
    )


def view(conversation: Conversation, column: int) -> list[dict[str, str]]:
    """A column's messages for `gr.Chatbot`; a turn in progress shows what has come so far."""
    return conversation.history(column)


def choices(language: str, variants: Variants) -> list[tuple[str, str]]:
    """What a column can answer as: the base, the current variant, or any earlier one."""
    edited = say(language, "answers.edited")
    if variants.now:
        edited = f"{edited} · {variants.now.name}"
    named = [(v.name, f"variant:{v.name}") for v in variants.items]
    return [(say(language, "chat.base"), BASE), (edited, EDITED), *named]


def recipe_of(choice: str, variants: Variants):
    """The recipe a picker's value stands for; None is the base."""
    if choice == EDITED:
        return variants.now.recipe if variants.now else None
    found = variants.get(choice.removeprefix("variant:"))
    return found.recipe if found else None


def connect(panel: ChatPanel, engine: Engine, language, loaded, variants, conversation):
    """Wire sending, stopping and editing; returns the event that answers."""
    running = {panel.send: gr.Button(visible=False), panel.stop: gr.Button(visible=True)}
    idle = {panel.send: gr.Button(visible=True), panel.stop: gr.Button(visible=False)}

    def answer(lang, now: Loaded, known: Variants, talk: Conversation, picked, tokens, heat):
        """Stream the last turn's answers into both columns."""
        recipes = [recipe_of(choice, known) for choice in picked]
        last = talk.turns[-1]
        talk = replace(talk, turns=(*talk.turns[:-1], Turn(last.message)))
        histories = [talk.history(column) for column in (0, 1)]
        start, shown, steps = time.monotonic(), 0.0, 0

        def screen(text=""):
            return {
                conversation: talk,
                **{panel.columns[i]: view(talk, i) for i in (0, 1)},
                panel.status: text,
            }

        yield {**screen(), **running, panel.box: ""}
        try:
            job = engine.chat(now.key, recipes, histories, int(tokens), float(heat))
            with closing(job):
                for texts in job:
                    steps += 1
                    talk = replace(talk, turns=(*talk.turns[:-1], Turn(last.message, tuple(texts))))
                    if time.monotonic() - shown >= PACE:
                        shown = time.monotonic()
                        yield screen()
            speed = steps / max(time.monotonic() - start, 1e-6)
            words = say(lang, "chat.speed", tokens=steps, speed=speed)
            yield {**screen(words), **idle}
        except Exception as error:
            yield {**screen(notice(message(error, lang), "bad")), **idle}

    def sound(lang, text, now, known, talk, left, right, tokens, heat):
        good = (True, "")
        checks = [good] * 9
        if not (text or "").strip():
            checks[1] = (False, say(lang or "en", "chat.empty"))
        return [gr.validate(*check) for check in checks]

    @guarded
    def send(lang, text, now, known, talk, left, right, tokens, heat):
        talk = replace(talk, turns=(*talk.turns, Turn(text.strip())))
        yield from answer(lang, now, known, talk, (left, right), tokens, heat)

    @guarded
    def again(lang, now, known, talk, left, right, tokens, heat):
        if not talk.turns:
            raise UserError(say(lang, "chat.nothing"))
        yield from answer(lang, now, known, talk, (left, right), tokens, heat)

    @guarded
    def edit(lang, talk):
        if not talk.turns:
            raise UserError(say(lang, "chat.nothing"))
        text = talk.turns[-1].message
        talk = replace(talk, turns=talk.turns[:-1])
        return text, talk, view(talk, 0), view(talk, 1), ""

    common = [loaded, variants, conversation, *panel.pickers, panel.tokens, panel.temperature]
    outputs = [
        conversation,
        *panel.columns,
        panel.status,
        panel.box,
        panel.send,
        panel.stop,
    ]
    options = {
        "show_progress": "hidden",
        "concurrency_id": "chat",
        "concurrency_limit": 8,
        "api_visibility": "private",
    }
    sent = gr.on(
        [panel.send.click, panel.box.submit],
        send,
        [language, panel.box, *common],
        outputs,
        validator=sound,
        **options,
    )
    events = [sent]
    for button in panel.examples:
        events.append(button.click(send, [language, button, *common], outputs, **options))
    events.append(panel.again.click(again, [language, *common], outputs, **options))
    stopped = [*panel.columns, panel.send, panel.stop]
    panel.stop.click(
        lambda talk: (view(talk, 0), view(talk, 1), *idle.values()),
        conversation,
        stopped,
        cancels=events,
        api_visibility="private",
    )
    changed = [panel.box, conversation, *panel.columns, panel.status]
    panel.edit.click(
        edit, [language, conversation], changed, cancels=events, api_visibility="private"
    )
    panel.clear.click(
        lambda: (Conversation(), [], [], "", *idle.values()),
        None,
        [conversation, *panel.columns, panel.status, panel.send, panel.stop],
        cancels=events,
        api_visibility="private",
    )
    return events
