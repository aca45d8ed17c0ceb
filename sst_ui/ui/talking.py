"""Sending a message: both columns answer from one batch and stream side by side.

Knows conversations and variants. The model is used through the engine only.
"""

import time
from contextlib import closing
from dataclasses import replace

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.lab.versus import utility_only
from sst_ui.ui import plots
from sst_ui.ui.chat import BASE, EDITED, MERGED, UTILITY, ChatPanel
from sst_ui.ui.engine import Engine
from sst_ui.ui.errors import guarded, message
from sst_ui.ui.form import split
from sst_ui.ui.html import notice
from sst_ui.ui.loaded import Loaded
from sst_ui.ui.state import Conversation, Turn, Variants
from sst_ui.ui.texts import say

PACE = 0.04  # seconds between two updates of the screen


def view(conversation: Conversation, column: int) -> list[dict[str, str]]:
    """A column's messages for `gr.Chatbot`; a turn in progress shows what has come so far."""
    return [{**m, "content": m["content"].strip()} for m in conversation.history(column)]


def choices(language: str, variants: Variants) -> list[tuple[str, str]]:
    """What a column can answer as: the base, the current variant, or any earlier one.

    Of a variant that merges also the utility adapter alone, and the merge without the ablation.
    """
    edited = say(language, "answers.edited")
    found = [(say(language, "chat.base"), BASE)]
    if variants.now:
        edited = f"{edited} · {variants.now.name}"
        merge, ablation = split(variants.now.recipe)
        if merge is not None:
            found.append((say(language, "chat.utility"), UTILITY))
        if merge is not None and ablation is not None:
            found.append((say(language, "chat.merged"), MERGED))
            edited = f"{say(language, 'chat.merged_ablated')} · {variants.now.name}"
    named = [(v.name, f"variant:{v.name}") for v in variants.items]
    return [*found, (edited, EDITED), *named]


def recipe_of(choice: str, variants: Variants):
    """The recipe a picker's value stands for; None is the base."""
    now = variants.now.recipe if variants.now else None
    if choice == EDITED:
        return now
    if choice in (UTILITY, MERGED):
        merge, _ = split(now) if now else (None, None)
        if merge is None:
            return None
        return replace(now, edits=(utility_only(merge) if choice == UTILITY else merge,))
    found = variants.get(choice.removeprefix("variant:"))
    return found.recipe if found else None


def connect(panel: ChatPanel, engine: Engine, session, probe: gr.Plot) -> None:
    """Wire sending, stopping and editing; the probe follows every answered message."""
    language, loaded, variants = session.language, session.loaded, session.variants
    conversation = session.conversation
    running = {panel.send: gr.update(visible=False), panel.stop: gr.update(visible=True)}
    idle = {panel.send: gr.update(visible=True), panel.stop: gr.update(visible=False)}

    def answer(lang, now: Loaded, known: Variants, talk: Conversation, picked, tokens, heat):
        """Stream the last turn's answers into both columns."""
        recipes = [recipe_of(choice, known) for choice in picked]
        last = talk.turns[-1]
        talk = replace(talk, turns=(*talk.turns[:-1], Turn(last.message)))
        histories = [talk.history(column) for column in (0, 1)]
        start, shown = time.monotonic(), 0.0

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
                    talk = replace(talk, turns=(*talk.turns[:-1], Turn(last.message, tuple(texts))))
                    if time.monotonic() - shown >= PACE:
                        shown = time.monotonic()
                        yield screen()
            count = engine.tokens(now.key, talk.turns[-1].answers)
            speed = count / max(time.monotonic() - start, 1e-6)
            words = say(lang, "chat.speed", tokens=count, speed=speed)
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

    @guarded
    def measure(lang, now: Loaded, known: Variants, talk: Conversation):
        if known.now is None or not talk.turns:
            return gr.skip()
        asked = replace(talk, turns=(*talk.turns[:-1], Turn(talk.turns[-1].message)))
        base, edited = engine.probe(now.key, known.now.recipe, asked.history(0))
        return plots.probe(lang, base, edited)

    for event in events:
        event.success(
            measure,
            [language, loaded, variants, conversation],
            probe,
            show_progress="hidden",
            api_visibility="private",
        )
