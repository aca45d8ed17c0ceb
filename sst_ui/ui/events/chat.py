"""Sending a message: both columns answer from one batch and stream side by side.

The model is used through the engine only.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.chat import new_seed
from sst_ui.jobs.merge.compare_methods import utility_only
from sst_ui.recipe import check_seed
from sst_ui.ui.panels.chat import BASE, EDITED, MERGED, UTILITY, ChatPanel
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.state.form import split
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.merge_form import number, whole
from sst_ui.ui.state.window import Conversation, Source, Turn, Variants
from sst_ui.ui.widgets import plots
from sst_ui.ui.widgets.html import notice, safe
from sst_ui.ui.widgets.texts import say

PACE = 0.1  # seconds between two updates of the screen, at least: a browser draws each of them
SHARE = 4  # ... and this many times what an update takes, so that a busy machine sends fewer
LENGTHS, HEATS = (1, 4096), (0, 2)  # tokens of an answer, temperature


def view(language: str, conversation: Conversation, column: int) -> list[dict[str, str]]:
    """A column's messages for `gr.Chatbot`, every answer below where it came from.

    A turn in progress shows what has come so far.
    """
    messages = []
    for turn in conversation.turns:
        messages.append({"role": "user", "content": turn.message})
        if turn.sources:
            head = source_of(language, turn.sources[column])
            text = f"{head}\n\n{turn.answers[column].strip()}"
            messages.append({"role": "assistant", "content": text})
    return messages


def source_of(language: str, source: Source) -> str:
    """Who gave an answer and how, as the HTML above it; no blank line, which would end it."""
    name = named(language, source)
    parts = [f"<b>{_inline(name)}</b>"]
    parts += [f"<code>{_inline(source.digest)}</code>"] if source.digest else []
    if source.temperature > 0:
        words = say(language, "chat.drawn", heat=source.temperature, seed=source.seed)
        parts.append(f"<span>{_inline(words)}</span>")
    if source.left_out:
        words = say(language, "chat.left_out", count=source.left_out)
        parts.append(f"<i>{_inline(words)}</i>")
    return f'<div class="source is-{source.part}">{" ".join(parts)}</div>'


def named(language: str, source: Source) -> str:
    """Which model gave an answer, as it was called then."""
    if source.part in (BASE, EDITED):
        return source.name or say(language, "chat.base")
    return f"{say(language, f'chat.{source.part}')} · {source.name}"


def _inline(text: str) -> str:
    """Text that neither HTML nor Markdown nor mathematics reads anything into, on one line."""
    return safe(" ".join(text.split())).replace("$", "&#36;")


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


def source(choice: str, variants: Variants, recipe, temperature: float, seed: int) -> Source:
    """Where an answer comes from that a column with this picked gives now; None is the base."""
    if recipe is None:
        return Source(BASE, temperature=temperature, seed=seed)
    named = variants.get(choice.removeprefix("variant:")) or variants.now
    part = choice if choice in (UTILITY, MERGED) else EDITED
    return Source(part, named.name if named else "", recipe.digest(), temperature, seed)


def drawn(tokens, temperature, seed) -> tuple[int, float, int]:
    """How an answer is drawn, as the three boxes say; an empty seed is a new one each time.

    Raises:
        UserError: a number that is missing or out of range.
    """
    limits = {"tokens": LENGTHS, "temperature": HEATS}
    values = {
        "tokens": whole("chat.tokens", tokens),
        "temperature": number("chat.temperature", temperature),
    }
    for name, (low, high) in limits.items():
        if not low <= values[name] <= high:
            raise UserError(f"chat.{name} is {values[name]:.12g}; it must be {low} to {high}.")
    typed = str("" if seed is None else seed).strip()
    chosen = int(whole("chat.seed", typed)) if typed else new_seed()
    check_seed("chat.seed", chosen)
    return int(values["tokens"]), values["temperature"], chosen


def problems(values: Sequence) -> dict[int, str]:
    """Place among the three boxes -> what is wrong with its number."""
    sound, found = (1, 0.0, ""), {}
    for place, value in enumerate(values):
        try:
            drawn(*sound[:place], value, *sound[place + 1 :])
        except UserError as error:
            found[place] = str(error)
    return found


def kept(now: Loaded, talk: Conversation) -> dict:
    """A chat as plain data, with the model that it was with."""
    return {"model": now.key, "turns": talk.rows()}


def restore(panel: ChatPanel, session, opened) -> None:
    """After a reload: the chat with this model goes on, every answer under its own recipe.

    Args:
        opened: the event of the page's load.
    """

    @guarded
    def back(lang, now: Loaded, rows):
        if not isinstance(rows, dict) or rows.get("model") != now.key or not now.key:
            return gr.skip()
        talk = Conversation.from_rows(rows.get("turns"))
        return talk, view(lang, talk, 0), view(lang, talk, 1)

    opened.success(
        back,
        [session.language, session.loaded, session.talk],
        [session.conversation, *panel.columns],
        show_progress="hidden",
        api_visibility="private",
    )


def connect(panel: ChatPanel, engine: Engine, session, probe: gr.Plot) -> None:
    """Wire sending, stopping and editing; the probe follows every answered message."""
    language, loaded, variants = session.language, session.loaded, session.variants
    conversation = session.conversation
    running = {
        panel.send: gr.update(visible=False),
        panel.stop: gr.update(visible=True, interactive=True),
    }
    idle = {panel.send: gr.update(visible=True), panel.stop: gr.update(visible=False)}

    def screen(lang: str, talk: Conversation, text: str = "") -> dict:
        columns = {panel.columns[i]: view(lang, talk, i) for i in (0, 1)}
        return {conversation: talk, **columns, panel.status: text}

    def answer(lang, request, now: Loaded, known: Variants, talk: Conversation, picked, numbers):
        """Stream the last turn's answers into both columns."""
        tokens, heat, seed = drawn(*numbers)
        mine = engine.answering(request.session_hash)
        try:
            yield from stream(lang, mine, now, known, talk, picked, tokens, heat, seed)
        finally:
            mine.over.set()

    def stream(lang, mine, now, known, talk, picked, tokens, heat, seed):
        recipes = [recipe_of(choice, known) for choice in picked]
        sources = tuple(source(c, known, r, heat, seed) for c, r in zip(picked, recipes))  # noqa: B905
        last = Turn(talk.turns[-1].message)
        histories = [
            replace(talk, turns=(*talk.turns[:-1], last)).history(column) for column in (0, 1)
        ]
        start, shown, cost = time.monotonic(), 0.0, 0.0

        def told(**changes) -> Conversation:
            nonlocal talk, last
            last = replace(last, **changes)
            talk = replace(talk, turns=(*talk.turns[:-1], last))
            return talk

        def left_out(counts: list[int]) -> None:
            pairs = zip(sources, counts, strict=True)
            told(sources=tuple(replace(one, left_out=count) for one, count in pairs))

        yield {**screen(lang, told(sources=sources)), **running, panel.box: ""}
        try:
            job = engine.chat(now.key, recipes, histories, tokens, heat, seed, left_out)
            with closing(job):
                for texts in job:
                    if mine.replaced:
                        return
                    told(answers=tuple(texts))
                    if mine.stopped:
                        break
                    if time.monotonic() - shown >= max(PACE, SHARE * cost):
                        begun = time.monotonic()
                        # the buttons again: Gradio's page loses what makes one visible when the
                        # next update comes right behind it
                        yield {**screen(lang, talk), **running}
                        shown = time.monotonic()
                        cost = shown - begun
            count = engine.tokens(now.key, last.answers)
            speed = count / max(time.monotonic() - start, 1e-6)
            words = say(lang, "chat.speed", tokens=count, speed=speed)
        except Exception as error:
            if not any(last.answers):
                told(sources=())
            words = notice(message(error, lang), "bad")
        if not mine.replaced:
            yield {**screen(lang, talk, words), **idle}

    def refuse(lang, key: str) -> dict:
        """A button that cannot do anything now says so below the chat, and changes nothing."""
        return {panel.status: notice(say(lang, key), "info")}

    def check(before: int, text_at: int | None = None):
        """A validator of `before` inputs, then those of an answer."""

        def sound(lang, *values):
            wrong = {
                before + len(common) - 3 + i: text for i, text in problems(values[-3:]).items()
            }
            if text_at is not None and not (values[text_at - 1] or "").strip():
                wrong[text_at] = say(lang or "en", "chat.empty")
            shown = {i: message(UserError(text), lang or "en") for i, text in wrong.items()}
            return [gr.validate(i not in shown, shown.get(i, "")) for i in range(len(values) + 1)]

        return sound

    @guarded
    def send(lang, request: gr.Request, text, now, known, talk, left, right, *numbers):
        talk = replace(talk, turns=(*talk.turns, Turn(text.strip())))
        yield from answer(lang, request, now, known, talk, (left, right), numbers)

    @guarded
    def again(lang, request: gr.Request, now, known, talk, left, right, *numbers):
        if not talk.turns:
            yield refuse(lang, "chat.nothing")
            return
        yield from answer(lang, request, now, known, talk, (left, right), numbers)

    @guarded
    def edit(lang, request: gr.Request, talk):
        if not talk.turns:
            return refuse(lang, "chat.nothing_to_edit")
        engine.hush(request.session_hash)
        text = talk.turns[-1].message
        talk = replace(talk, turns=talk.turns[:-1])
        return {**screen(lang, talk), **idle, panel.box: text}

    @guarded
    def clear(lang, request: gr.Request):
        engine.hush(request.session_hash)
        return {**screen(lang, Conversation()), **idle}

    @guarded
    def stop(lang, request: gr.Request):
        """Only asks: the answer ends at its next step and has the last word."""
        if engine.cut_short(request.session_hash):
            return {panel.stop: gr.update(interactive=False)}
        return idle

    common = [
        loaded, variants, conversation, *panel.pickers, panel.tokens, panel.temperature, panel.seed,
    ]  # fmt: skip
    outputs = [
        conversation,
        *panel.columns,
        panel.status,
        panel.box,
        panel.send,
        panel.stop,
    ]
    private = {"show_progress": "hidden", "api_visibility": "private"}
    options = {
        **private,
        "concurrency_id": "chat",
        "concurrency_limit": 8,
        "trigger_mode": "multiple",  # a new answer takes the place of one that still runs
    }
    events = [
        gr.on(
            [panel.send.click, panel.box.submit],
            send,
            [language, panel.box, *common],
            outputs,
            validator=check(2, text_at=1),
            **options,
        )
    ]
    for button in panel.examples:
        inputs = [language, button, *common]
        events.append(button.click(send, inputs, outputs, validator=check(2), **options))
    events.append(
        panel.again.click(again, [language, *common], outputs, validator=check(1), **options)
    )
    panel.stop.click(stop, language, [panel.send, panel.stop], **private)
    changed = [
        *events,
        panel.edit.click(edit, [language, conversation], outputs, **private),
        panel.clear.click(clear, language, outputs, **private),
    ]
    for event in changed:
        event.then(kept, [loaded, conversation], session.talk, **private)

    @guarded
    def measure(lang, now: Loaded, known: Variants, talk: Conversation):
        if known.now is None or not talk.turns:
            return gr.skip()
        asked = replace(talk, turns=(*talk.turns[:-1], Turn(talk.turns[-1].message)))
        base, edited = engine.probe(now.key, known.now.recipe, asked.history(0))
        return plots.probe(lang, base, edited, known.now.name)

    for event in events:
        event.success(measure, [language, loaded, variants, conversation], probe, **private)
