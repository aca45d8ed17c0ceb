"""Sending a message: both columns answer from the running batch and stream side by side.

The model is used through the engine only.
"""

import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.chat import new_seed
from sst_ui.jobs.merge.compare_methods import utility_only
from sst_ui.metrics.text.labels import Label, label
from sst_ui.options import ChatOptions
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe
from sst_ui.ui.events.binding import PRIVATE, Reads, call
from sst_ui.ui.panels import votes
from sst_ui.ui.panels.chat import BASE, EDITED, MERGED, UTILITY, WAITING, ChatPanel, named
from sst_ui.ui.panels.figures import TOKENS
from sst_ui.ui.panels.session import Session
from sst_ui.ui.panels.turns import view
from sst_ui.ui.services.engine import CHATS, Answering, Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.services.progress_bars import Bar
from sst_ui.ui.state.form import split
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.merge_form import number, whole
from sst_ui.ui.state.window import Conversation, Source, Turn, Variants
from sst_ui.ui.widgets import plots
from sst_ui.ui.widgets.html import notice, safe
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.texts import say

Found = TypeVar("Found")
PACE = 0.1  # seconds between two updates of the screen, at least: a browser draws each of them
SHARE = 4  # ... and this many times what an update takes, so that a busy machine sends fewer
SOUND = (ChatOptions().max_new_tokens, ChatOptions().temperature, "")  # what the boxes begin with


def choices(language: str, variants: Variants) -> list[tuple[str, str]]:
    """What a column can answer as: the base, the current variant, or any earlier one.

    For variants with a merge, also the utility adapter alone, and the merge without the ablation.
    """
    edited = say(language, "answers.edited")
    found = [(say(language, "chat.base"), BASE)]
    if variants.now:
        name = shown_name(language, variants.now.name)
        edited = f"{edited} · {name}"
        merge, ablation = split(variants.now.recipe)
        if merge is not None:
            found.append((say(language, "chat.utility"), UTILITY))
        if merge is not None and ablation is not None:
            found.append((say(language, "chat.merged"), MERGED))
            edited = f"{say(language, 'chat.merged_ablated')} · {name}"
    named = [(shown_name(language, v.name), f"variant:{v.name}") for v in variants.items]
    return [*found, (edited, EDITED), *named]


def recipe_of(choice: str, variants: Variants) -> Recipe | None:
    """The recipe a picker's value stands for; None is the base."""
    now = variants.now.recipe if variants.now else None
    if choice == EDITED:
        return now
    if choice in (UTILITY, MERGED):
        merge, _ = split(now) if now else (None, None)
        if now is None or merge is None:
            return None
        return replace(now, edits=(utility_only(merge) if choice == UTILITY else merge,))
    found = variants.get(choice.removeprefix("variant:"))
    return found.recipe if found else None


def source(
    choice: str, variants: Variants, recipe: Recipe | None, temperature: float, seed: int
) -> Source:
    """Where an answer comes from that a column with this picked gives now; None is the base."""
    if recipe is None:
        return Source(BASE, temperature=temperature, seed=seed)
    named = variants.get(choice.removeprefix("variant:")) or variants.now
    part = choice if choice in (UTILITY, MERGED) else EDITED
    return Source(part, named.name if named else "", recipe.digest(), temperature, seed)


def drawn(tokens: Any, temperature: Any, seed: Any) -> tuple[int, float, int]:
    """How an answer is drawn, as the three boxes say; an empty seed is a new one each time.

    Raises:
        UserError: a number that is missing or out of range.
    """
    typed = str("" if seed is None else seed).strip()
    said = ChatOptions(
        whole("chat.max_new_tokens", tokens),
        number("chat.temperature", temperature),
        whole("chat.seed", typed) if typed else None,
    )
    chosen = new_seed() if said.seed is None else said.seed
    return said.max_new_tokens, said.temperature, chosen


def problems(values: Sequence) -> dict[int, str]:
    """Place among the three boxes -> what is wrong with its number."""
    found: dict[int, str] = {}
    for place, value in enumerate(values):
        tried: list[Any] = list(SOUND)  # but for this one
        tried[place] = value
        try:
            drawn(*tried)
        except UserError as error:
            found[place] = str(error)
    return found


def outdated(
    language: str, variants: Variants, talk: Conversation, *picked: str
) -> tuple[str, ...]:
    """Below each column: whether its last answer is that of another recipe than would answer now,
    as HTML with a button to ask again; empty where it is not. Earlier answers only name theirs.
    """
    given = talk.turns[-1].sources if talk.turns else ()
    if not given or talk.turns[-1].hidden:  # else the line would say who gave the answer
        return ("",) * len(picked)
    now = [source(each, variants, recipe_of(each, variants), 0.0, 0) for each in picked]
    return tuple(
        _outdated(language, new) if new.digest != old.digest else ""
        for new, old in zip(now, given, strict=True)
    )


def _outdated(language: str, now: Source) -> str:
    """The line itself, with who would answer now."""
    words = say(language, "chat.outdated", name=named(language, now))
    button = (
        f'<a role="button" tabindex="0" data-pick="again">{say(language, "chat.ask_again")}</a>'
    )
    return f'<p role="status">{safe(words)} {button}</p>'


def settled(
    language: str, now: Loaded, variants: Variants, talk: Conversation, left: str, right: str
) -> tuple[dict, str, str, str]:
    """After the chat has changed: what the browser keeps of it (plain data, with the model that it
    was with), the lines below the columns, and the votes.
    """
    first, second = outdated(language, variants, talk, left, right)
    return {"model": now.key, **talk.saved()}, first, second, votes.render(language, talk)


@dataclass(frozen=True)
class Asked:
    """What a message is answered with: the model, the variants, the conversation, the settings."""

    language: str
    loaded: Loaded
    variants: Variants
    talk: Conversation
    picked: tuple[str, str]
    numbers: tuple
    system: str = ""
    blind: bool = False

    @classmethod
    def of(
        cls,
        language: str,
        loaded: Loaded,
        variants: Variants,
        talk: Conversation,
        left: str,
        right: str,
        system: str | None,
        blind: bool,
        *numbers: Any,
    ) -> "Asked":
        """From the values of the components that `connect` lists."""
        told = (system or "").strip()
        return cls(language, loaded, variants, talk, (left, right), numbers, told, bool(blind))


@dataclass(frozen=True)
class Screen:
    """What an answer writes to."""

    panel: ChatPanel
    conversation: gr.State

    @property
    def outputs(self) -> list:
        """The components that an answer may write to."""
        p = self.panel
        lines = [*p.outdated, p.votes, p.status]
        return [self.conversation, *p.columns, *lines, p.box, p.send, p.stop]

    def show(
        self, language: str, talk: Conversation, text: str = "", running: bool = False
    ) -> dict:
        """Both columns, and a line below them."""
        columns = {self.panel.columns[i]: view(language, talk, i, running) for i in (0, 1)}
        return {self.conversation: talk, **columns, self.panel.status: text}

    def refuse(self, language: str, key: str) -> dict:
        """A button that cannot do anything now says so below the chat, and changes nothing."""
        return {self.panel.status: notice(say(language, key), "info")}

    @property
    def running(self) -> dict:
        """The buttons while an answer comes."""
        stop = gr.update(visible=True, interactive=True)
        return {self.panel.send: gr.update(visible=HIDDEN), self.panel.stop: stop}

    @property
    def idle(self) -> dict:
        """The buttons while none does."""
        return {
            self.panel.send: gr.update(visible=True),
            self.panel.stop: gr.update(visible=HIDDEN),
        }


def restore(panel: ChatPanel, session: Session, opened: Any) -> None:
    """After a reload: the chat with this model goes on, every answer under its own recipe.

    Args:
        opened: the event of the page's load.
    """
    told = [
        session.language, session.loaded, session.talk, session.variants, *panel.pickers,
        session.conversation,
    ]  # fmt: skip
    opened.success(
        **call(back, *told),
        outputs=[
            session.conversation, *panel.columns, *panel.outdated, panel.votes, panel.system,
            panel.blind,
        ],
        **PRIVATE,
    )  # fmt: skip


def back(
    language: str,
    now: Loaded,
    rows: object,
    variants: Variants,
    left: str,
    right: str,
    begun: Conversation,
) -> Any:
    """The chat that the browser kept, if it was with this model and none has begun meanwhile."""
    if begun.turns or not isinstance(rows, dict) or rows.get("model") != now.key or not now.key:
        return gr.skip()
    talk = Conversation.restored({name: rows.get(name) for name in ("turns", "votes")})
    columns = view(language, talk, 0), view(language, talk, 1)
    lines = *outdated(language, variants, talk, left, right), votes.render(language, talk)
    last = talk.turns[-1] if talk.turns else Turn("")
    return talk, *columns, *lines, last.system, last.blind


def connect(panel: ChatPanel, engine: Engine, session: Session, applied: Sequence[Any]) -> list:
    """Wire sending, stopping and editing.

    Args:
        applied: the events after which another variant is current.

    Returns:
        The events after which there are answers that say whose they are.
    """
    language, conversation = session.language, session.conversation
    screen = Screen(panel, conversation)
    events = _answering(screen, session, engine)
    panel.stop.click(
        **call(partial(stop, screen, engine), language), outputs=[panel.send, panel.stop], **PRIVATE
    )
    changed = [
        *events,
        panel.edit.click(
            **call(partial(edit, screen, engine), language, conversation),
            outputs=screen.outputs,
            **PRIVATE,
        ),
        panel.clear.click(
            **call(partial(clear, screen, engine), language, conversation),
            outputs=screen.outputs,
            **PRIVATE,
        ),
        voted := panel.votes.click(
            **call(partial(vote, screen), language, conversation),
            outputs=screen.outputs,
            **PRIVATE,
        ),
    ]
    _settle(panel, session, changed, applied)
    # the page marks them itself (assets/differences.js)
    panel.differences.input(None, panel.differences, js="(on) => differences.turn(on)", **PRIVATE)
    return [*events, voted]


def probing(
    engine: Engine,
    session: Session,
    probe: gr.Plot,
    answered: Sequence[Any],
    drawn: Sequence[Any],
) -> None:
    """Wire the probe, which follows every answered message. While the token view is open it comes
    behind that, which can be seen then.

    Args:
        answered: events after which a message has its answers.
        drawn: events after which the token view shows them.
    """
    told = [session.language, session.figure, session.loaded, session.variants,
            session.conversation]  # fmt: skip
    for events, behind in ((answered, False), (drawn, True)):
        measuring = call(partial(measure, engine, behind), *told, may="measure")
        for event in events:
            event.success(**measuring, outputs=probe, **PRIVATE)


def _settle(
    panel: ChatPanel, session: Session, changed: Sequence[Any], applied: Sequence[Any]
) -> None:
    """Wire what follows when the chat has changed, or who answers in it."""
    language, known, talk = session.language, session.variants, session.conversation
    settling = call(settled, language, session.loaded, known, talk, *panel.pickers)
    for event in changed:
        event.then(**settling, outputs=[session.talk, *panel.outdated, panel.votes], **PRIVATE)
    comparing: dict[str, Any] = {
        **call(outdated, language, known, talk, *panel.pickers),
        "outputs": panel.outdated,
        **PRIVATE,
    }
    for event in applied:
        event.success(**comparing)
    gr.on([picker.change for picker in panel.pickers], **comparing, trigger_mode="always_last")


def _answering(screen: Screen, session: Session, engine: Engine) -> list:
    """Wire what is answered: Send, the examples, Regenerate; their events."""
    panel = screen.panel
    numbers = [panel.tokens, panel.temperature, panel.seed]
    asked = Reads(
        [session.language, session.loaded, session.variants, session.conversation,
         *panel.pickers, panel.system, panel.blind, *numbers],
        Asked.of,
    )  # fmt: skip
    options: dict[str, Any] = {
        **PRIVATE,
        "outputs": screen.outputs,
        **CHATS,
        "trigger_mode": "multiple",  # a new answer takes the place of one that still runs
    }
    sending, wrong = partial(send, screen, engine), partial(_wrong, numbers)
    written = partial(_unwritten, numbers, panel.box)
    return [
        gr.on(
            [panel.send.click, panel.box.submit],
            **call(sending, asked, panel.box, check=written, may="chat"),
            **options,
        ),
        *(
            button.click(**call(sending, asked, button, check=wrong, may="chat"), **options)
            for button in panel.examples
        ),
        gr.on(
            [panel.again.click, *(line.click for line in panel.outdated)],
            **call(partial(again, screen, engine), asked, check=wrong, may="chat"),
            **options,
        ),
    ]


def _wrong(numbers: Sequence[Any], asked: Asked, *more: object) -> dict:
    """What is wrong with the three boxes."""
    return {
        numbers[place]: message(UserError(text), asked.language or "en")
        for place, text in problems(asked.numbers).items()
    }


def _unwritten(numbers: Sequence[Any], box: gr.Textbox, asked: Asked, text: str | None) -> dict:
    """... and that there is something to send."""
    wrong = _wrong(numbers, asked)
    if not (text or "").strip():
        lang = asked.language or "en"
        wrong[box] = message(UserError(say(lang, "chat.empty")), lang)
    return wrong


def send(
    screen: Screen, engine: Engine, asked: Asked, text: str, request: gr.Request
) -> Iterator[dict]:
    """Answer a new message."""
    talk = replace(asked.talk, turns=(*asked.talk.turns, Turn(text.strip())))
    yield from _answer(screen, engine, replace(asked, talk=talk), request)


def again(screen: Screen, engine: Engine, asked: Asked, request: gr.Request) -> Iterator[dict]:
    """Answer the last message anew."""
    if not asked.talk.turns:
        yield screen.refuse(asked.language, "chat.nothing")
        return
    yield from _answer(screen, engine, asked, request)


def _answer(screen: Screen, engine: Engine, asked: Asked, request: gr.Request) -> Iterator[dict]:
    """Stream the last turn's answers into both columns."""
    tokens, heat, seed = drawn(*asked.numbers)
    mine = engine.answering(request.session_hash)
    try:
        yield from _stream(screen, engine, mine, asked, tokens, heat, seed)
    finally:
        mine.over.set()


class _Growing:
    """A conversation whose last turn is being answered; where the reader is to say which answer is
    better, chance decides which column shows whose.
    """

    def __init__(self, asked: Asked) -> None:
        talk, blind = asked.talk, asked.blind
        swapped = blind and bool(secrets.randbits(1))
        self.last = Turn(  # unfinished, whatever ends it too early
            talk.turns[-1].message, system=asked.system, blind=blind, swapped=swapped,
            unfinished=True,
        )  # fmt: skip
        self.talk = replace(talk, turns=(*talk.turns[:-1], self.last))
        self.histories = [self.talk.history(column) for column in (0, 1)]
        self.key, self.short, self.waited = asked.loaded.key, 0, 0.0

    def patient(self, job: Generator[Progress, None, Found]) -> Generator[Progress, None, Found]:
        """Wait for something, and count the seconds."""
        begun = time.monotonic()
        found = yield from job
        self.waited += time.monotonic() - begun
        return found

    def told(self, **changes: Any) -> Conversation:
        """With what has come of the last turn."""
        self.last = replace(self.last, **changes)
        self.talk = replace(self.talk, turns=(*self.talk.turns[:-1], self.last))
        return self.talk

    def left_out(self, places: Sequence[int], counts: list[int]) -> None:
        """How many turns these columns did not see."""
        sources = list(self.last.sources)
        for place, count in zip(places, counts, strict=True):
            sources[place] = replace(sources[place], left_out=count)
        self.told(sources=tuple(sources))


def _stream(
    screen: Screen,
    engine: Engine,
    mine: Answering,
    asked: Asked,
    tokens: int,
    heat: float,
    seed: int,
) -> Iterator[dict]:
    lang, growing = asked.language, _Growing(asked)
    start, shown, cost, line = time.monotonic(), 0.0, 0.0, ""
    bar = Bar(lang)
    if growing.key:
        _late(engine, asked, growing, heat, seed)
    first = screen.show(lang, growing.talk, running=True)
    current = dict.fromkeys([*screen.panel.outdated, screen.panel.votes], "")
    yield {**first, **current, **screen.running, screen.panel.box: ""}
    try:
        with closing(_parts(engine, asked, growing, tokens, heat, seed)) as job:
            for part in job:
                if mine.replaced:
                    return
                if mine.stopped:
                    break
                if isinstance(part, Progress):  # it waits for what is measured first
                    bar.place(part)
                    if not line:
                        line = bar.html
                        yield {**screen.show(lang, growing.talk, line, True), **screen.running}
                    continue
                line = ""
                if time.monotonic() - shown >= max(PACE, SHARE * cost):
                    begun = time.monotonic()
                    # the buttons again: Gradio's page loses what makes one visible when the
                    # next update comes right behind it
                    yield {**screen.show(lang, growing.talk, line, True), **screen.running}
                    shown = time.monotonic()
                    cost = shown - begun
        count = engine.tokens(growing.key, growing.last.answers)
        if not mine.stopped:
            labels = _labels(engine, growing.key, growing.last, tokens)
            growing.told(labels=labels, unfinished=False)
        speed = count / max(time.monotonic() - start - growing.waited, 1e-6)
        words = say(lang, "chat.speed", tokens=count, speed=speed)
        if engine.short(growing.key) > growing.short:
            words += " · " + say(lang, "chat.short")
    except Exception as error:
        if not any(growing.last.answers):
            growing.told(sources=())
        words = notice(message(error, lang), "bad")
    if not mine.replaced:
        yield {**screen.show(lang, growing.talk, words), **screen.idle}


def _parts(
    engine: Engine, asked: Asked, growing: "_Growing", tokens: int, heat: float, seed: int
) -> Generator[list[str] | Progress, None, None]:
    """Let both columns answer; a step of what is waited for, or what has come.

    A message that is sent before the model is there waits for it. A column whose edit is being
    measured (see `first_look`) answers behind the other one.
    """
    if not asked.loaded.key:
        growing.key = (yield from growing.patient(engine.arrived())).key
    key, known = growing.key, asked.variants
    growing.short = engine.short(key)
    late = _late(engine, asked, growing, heat, seed)
    recipes = [recipe_of(choice, known) for choice in asked.picked]
    at_once = [place for place in (0, 1) if place not in late]
    yield from _answers(engine, growing, recipes, at_once, (tokens, heat, seed))
    if not late:
        return
    measured = yield from growing.patient(engine.first.next(key))
    if measured is not None:
        known = known.add(measured)
    sources = list(growing.last.sources)
    for place in late:
        choice = asked.picked[place]
        recipes[place] = recipe_of(choice, known)
        sources[place] = source(choice, known, recipes[place], heat, seed)
    growing.told(sources=tuple(sources))
    yield from _answers(engine, growing, recipes, late, (tokens, heat, seed))


def _late(engine: Engine, asked: Asked, growing: "_Growing", heat: float, seed: int) -> list[int]:
    """Write down where the answers come from; the columns whose edit is still being measured."""
    known = asked.variants
    late = [
        place
        for place, choice in enumerate(asked.picked)
        if choice == EDITED and known.now is None and engine.first.running(growing.key)
    ]
    if late and asked.blind:  # who comes first would say who it is
        late = [0, 1]
    sources = [
        source(choice, known, recipe_of(choice, known), heat, seed) for choice in asked.picked
    ]
    for place in late:
        sources[place] = Source(WAITING)
    growing.told(sources=tuple(sources))
    return late


def _answers(
    engine: Engine,
    growing: "_Growing",
    recipes: Sequence[Recipe | None],
    places: Sequence[int],
    limits: tuple[int, float, int],
) -> Iterator[list[str]]:
    """The answers of some columns, in one batch."""
    if not places:
        return
    rows = [recipes[place] for place in places]
    histories = [growing.histories[place] for place in places]
    left_out = partial(growing.left_out, places)
    with closing(engine.chat(growing.key, rows, histories, *limits, left_out)) as job:
        for texts in job:
            answers = list(growing.last.answers)
            for place, text in zip(places, texts, strict=True):
                answers[place] = text
            growing.told(answers=tuple(answers))
            yield answers


def _labels(engine: Engine, key: str, turn: Turn, tokens: int) -> tuple[Label, ...]:
    """What kind of answer each column gave, of at most so many tokens."""
    return tuple(
        label(turn.message, answer, ended=engine.tokens(key, [answer]) < tokens)
        for answer in turn.answers
    )


def edit(
    screen: Screen, engine: Engine, language: str, talk: Conversation, request: gr.Request
) -> dict:
    """The last message back into the box."""
    if not talk.turns:
        return screen.refuse(language, "chat.nothing_to_edit")
    engine.hush(request.session_hash)
    text = talk.turns[-1].message
    talk = replace(talk, turns=talk.turns[:-1])
    return {**screen.show(language, talk), **screen.idle, screen.panel.box: text}


def clear(
    screen: Screen, engine: Engine, language: str, talk: Conversation, request: gr.Request
) -> dict:
    """Forget the conversation, but for the votes."""
    engine.hush(request.session_hash)
    return {**screen.show(language, Conversation(votes=talk.votes)), **screen.idle}


def vote(screen: Screen, language: str, talk: Conversation, event: gr.EventData) -> dict:
    """The reader says which answer is better, or has the votes on these two models forgotten."""
    if event.pick == votes.FORGET:
        pair = talk.turns[-1].sources if talk.turns else ()
        talk = talk.without(votes.votes_on(talk, pair))
        return {screen.conversation: talk}
    said = votes.choice(event.pick, talk)
    return screen.show(language, talk.judged(said)) if said else {}


def stop(screen: Screen, engine: Engine, language: str, request: gr.Request) -> dict:
    """Only asks: the answer ends at its next step and has the last word."""
    if engine.cut_short(request.session_hash):
        return {screen.panel.stop: gr.update(interactive=False)}
    return screen.idle


def measure(
    engine: Engine,
    behind: bool,
    language: str,
    figure: str,
    now: Loaded,
    known: Variants,
    talk: Conversation,
) -> Any:
    """The probe of the last message.

    Args:
        behind: this is asked when the token view is drawn; else when the answer is there.
        figure: whose tab is open.
    """
    if known.now is None or not talk.turns or behind != (figure == TOKENS):
        return gr.skip()
    last = replace(talk.turns[-1], answers=("", ""))
    asked = replace(talk, turns=(*talk.turns[:-1], last))
    base, edited = engine.probes(now.key, [None, known.now.recipe], asked.history(0))
    return plots.probe(language, base, edited, shown_name(language, known.now.name))
