"""Asking at several strengths: the ablation of the controls, with one strength after the other.

All answers come from one batch, beside the probe of the message at each strength.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.metrics.text.labels import label
from sst_ui.recipe import Recipe
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.events.chat import PACE, SHARE, drawn, problems
from sst_ui.ui.events.draw_draft import Draft, Editor
from sst_ui.ui.panels.chat import ChatPanel
from sst_ui.ui.panels.ladder import AskPanel, LadderPanel, Rung, flips, render
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services.engine import CHATS, Answering, Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.window import Conversation
from sst_ui.ui.widgets import plots
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.texts import say

MOST = 12  # strengths at a time
REACH = (-2.0, 2.0)  # of a strength


@dataclass(frozen=True)
class Buttons:
    """Where many answers to one message are written, and the buttons beside it."""

    panel: AskPanel

    @property
    def outputs(self) -> list:
        """The components that an answer may write to."""
        p = self.panel
        return [p.rungs, p.status, p.ask, p.stop]

    def buttons(self, running: bool) -> dict:
        """Ask or Stop."""
        shown = {"visible": True, "interactive": True}
        hidden = {"visible": HIDDEN}
        ask, stop = (hidden, shown) if running else (shown, hidden)
        return {self.panel.ask: gr.update(**ask), self.panel.stop: gr.update(**stop)}


@dataclass(frozen=True)
class Screen(Buttons):
    """What a ladder writes to."""

    panel: LadderPanel
    probe: gr.Plot

    @property
    def outputs(self) -> list:
        """... and the probe's figure."""
        return [*super().outputs, self.probe]


def parse(text: str | None) -> tuple[float, ...]:
    """The strengths that were typed, in order, each once.

    Raises:
        UserError: something is no number, is out of range, or there are none or too many.
    """
    words = (text or "").replace("−", "-").replace("、", ",").replace(",", " ").split()
    found = set()
    for word in words:
        try:
            found.add(float(word))
        except ValueError:
            raise UserError(
                f"{word[:40]!r} is not a strength; type numbers, as in 0, 1, 2."
            ) from None
    if not found or len(found) > MOST:
        raise UserError(f"{len(found)} strengths; give 1 to {MOST} of them, as in 0, 1, 2.")
    low, high = REACH
    if wrong := [each for each in found if not low <= each <= high]:
        raise UserError(f"strength {wrong[0]:g} is out of range; it may be {low:g} to {high:g}.")
    return tuple(sorted(found))


def recipes(draft: Draft, strengths: Sequence[float]) -> list[Recipe | None]:
    """The recipe at each strength; at 0 without its ablation, None where nothing else is left."""
    edit, before = draft.ablation(), draft.before()
    found: list[Recipe | None] = []
    for strength in strengths:
        edits: tuple[Any, ...] = before
        if strength:
            weights = replace(edit.weights, strength=strength)
            edits = (*before, replace(edit, weights=weights))
        found.append(Recipe(model=draft.loaded.spec, edits=edits) if edits else None)
    return found


def connect(
    panel: LadderPanel,
    chat: ChatPanel,
    editor: Editor,
    session: Session,
    probe: gr.Plot,
    engine: Engine,
) -> None:
    """Wire the ladder; length, temperature, seed and system prompt are the chat's."""
    screen = Screen(panel, probe)
    numbers = [chat.tokens, chat.temperature, chat.seed]
    language = session.language
    asked = Reads(
        [*numbers, chat.system, session.conversation, panel.box, panel.strengths], Asked.of
    )
    gr.on(
        [panel.ask.click, panel.box.submit, panel.strengths.submit],
        **call(
            partial(climb, screen, engine), editor.draft, asked,
            check=partial(wrong, numbers, panel), may="chat",
        ),
        outputs=screen.outputs,
        **CHATS,
        trigger_mode="multiple",
        **PRIVATE,
    )  # fmt: skip
    panel.stop.click(
        **call(partial(stop, screen, engine), language), outputs=[panel.ask, panel.stop], **PRIVATE
    )


@dataclass(frozen=True)
class Asked:
    """What is asked, and how it is answered."""

    numbers: tuple
    talk: Conversation
    text: str
    strengths: str
    system: str = ""

    @classmethod
    def of(
        cls,
        tokens: Any,
        heat: Any,
        seed: Any,
        system: str | None,
        talk: Conversation,
        text: str | None,
        strengths: str = "",
    ) -> "Asked":
        """From the components; without a message of its own it is the chat's last one."""
        last = talk.turns[-1].message if talk.turns else ""
        message, told = (text or "").strip() or last, (system or "").strip()
        return cls((tokens, heat, seed), talk, message, strengths, told)

    @property
    def question(self) -> list[dict[str, str]]:
        """The messages that every strength answers."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]


def unasked(numbers: Sequence[Any], panel: AskPanel, draft: Draft, asked: Asked) -> dict:
    """What is wrong with the chat's numbers, and whether there is no message."""
    lang = draft.language or "en"
    found: dict[Any, str] = {
        numbers[place]: message(UserError(text), lang)
        for place, text in problems(asked.numbers).items()
    }
    if not asked.text:
        found[panel.box] = message(UserError(say(lang, "chat.empty")), lang)
    return found


def wrong(numbers: Sequence[Any], panel: LadderPanel, draft: Draft, asked: Asked) -> dict:
    """What is wrong at which control."""
    found = unasked(numbers, panel, draft, asked)
    try:
        parse(asked.strengths)
    except UserError as error:
        found[panel.strengths] = message(error, draft.language or "en")
    return found


def climb(
    screen: Screen, engine: Engine, draft: Draft, asked: Asked, request: gr.Request
) -> Iterator[dict]:
    """Answer at every strength, side by side."""
    mine = engine.answering(window(screen, request))
    try:
        yield from _stream(screen, engine, mine, draft, asked)
    finally:
        mine.over.set()


def window(screen: Buttons, request: gr.Request) -> str:
    """What the engine knows the answers of this place on the page by."""
    return f"{request.session_hash}:{screen.panel.rungs.elem_id}"


def side_by_side(
    engine: Engine,
    mine: Answering,
    key: str,
    rungs: Sequence[Rung],
    rows: Sequence[Recipe | None],
    asked: Asked,
) -> Iterator[list[Rung]]:
    """All answers of one batch as they grow, no faster than a screen draws them; at last with their
    labels, unless they were stopped. Says nothing more once another question took their place.
    """
    tokens, heat, seed = drawn(*asked.numbers)
    found, shown, cost = list(rungs), 0.0, 0.0
    histories = [asked.question] * len(rows)
    with closing(engine.chat(key, rows, histories, tokens, heat, seed)) as job:
        for texts in job:
            if mine.replaced:
                return
            found = [replace(r, answer=text) for r, text in zip(found, texts, strict=True)]
            if mine.stopped:
                break
            if time.monotonic() - shown >= max(PACE, SHARE * cost):
                begun = time.monotonic()
                yield found
                shown = time.monotonic()
                cost = shown - begun
    if not mine.stopped:
        ended = [engine.tokens(key, [rung.answer]) < tokens for rung in found]
        found = [
            replace(rung, label=label(asked.text, rung.answer, ended=end))
            for rung, end in zip(found, ended, strict=True)
        ]
    yield found


def speed(engine: Engine, language: str, key: str, rungs: Sequence[Rung], start: float) -> str:
    """How many tokens were written since `start`, and how fast."""
    count = engine.tokens(key, [rung.answer for rung in rungs])
    per_second = count / max(time.monotonic() - start, 1e-6)
    return say(language, "chat.speed", tokens=count, speed=per_second)


def _stream(
    screen: Screen, engine: Engine, mine: Answering, draft: Draft, asked: Asked
) -> Iterator[dict]:
    lang, key, panel = draft.language, draft.loaded.key, screen.panel
    rungs = [Rung(strength) for strength in parse(asked.strengths)]
    start = time.monotonic()
    yield {panel.rungs: render(lang, rungs), panel.status: "", **screen.buttons(True)}
    try:
        rows = recipes(draft, [rung.strength for rung in rungs])
        lines = engine.probes(key, rows, asked.question)
        pairs = [(rung.title, line) for rung, line in zip(rungs, lines, strict=True)]
        yield {screen.probe: plots.ladder(lang, pairs)}
        answers = side_by_side(engine, mine, key, rungs, rows, asked)
        for rungs in answers:
            yield {panel.rungs: render(lang, rungs), **screen.buttons(True)}
        words = [flips(lang, rungs), speed(engine, lang, key, rungs, start)]
        said = notice(" · ".join(word for word in words if word), "info")
    except Exception as error:
        said = notice(message(error, lang), "bad")
    if not mine.replaced:
        yield {panel.rungs: render(lang, rungs), panel.status: said, **screen.buttons(False)}


def stop(screen: Buttons, engine: Engine, language: str, request: gr.Request) -> dict:
    """Only asks: the answers end at their next step."""
    if engine.cut_short(window(screen, request)):
        return {screen.panel.stop: gr.update(interactive=False)}
    return screen.buttons(False)
