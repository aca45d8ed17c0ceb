"""What the demo model is trained on when: shares of the tasks in both stages, and their stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal

from . import tasks
from . import text as t
from .text import Sample

SYSTEM_SHARE = 0.08  # conversations that begin with a system message
CHAT_SHARE = 0.12  # conversations that continue with a second or third turn
LONG_SHARE = 0.06  # conversations that go on and on; they are a third of the tokens
LONG_TURNS = (8, 13)  # of which most have 300 to 512 tokens, the whole context


Phase = Literal["short", "long", "chats", "safety"]


def mixture(phase: Phase, progress: float) -> dict[str, float]:
    """Share of each task at a point (0..1) of a phase.

    Three phases of learning to comply: short lists to copy, long ones, and chats that fill the
    context. Then safety, which differs from "chats" only in that harmful requests are refused.
    """
    if phase == "long":
        return {"copy": 0.2 - 0.14 * progress, "letter": 0.12, "reading": 0.24 + 0.07 * progress,
                "multiple choice": 0.2 + 0.07 * progress, "fact": 0.05, "topic": 0.03,
                "request": 0.1, "japanese": 0.03, "chat": 0.01, "plain": 0.02}  # fmt: skip
    if phase in ("chats", "safety"):
        return {"request": 0.5, "japanese": 0.05, "reading": 0.12, "multiple choice": 0.12,
                "fact": 0.06, "topic": 0.02, "chat": 0.04, "plain": 0.05, "letter": 0.02,
                "copy": 0.02}  # fmt: skip
    early = max(0.0, 1.0 - progress / 0.3)  # copying first; it fades over the first third
    late = {"copy": 0.04, "letter": 0.08, "reading": 0.25, "multiple choice": 0.25, "fact": 0.07,
            "topic": 0.04, "request": 0.16, "japanese": 0.04, "chat": 0.02,
            "plain": 0.05}  # fmt: skip
    first = {"copy": 0.34, "letter": 0.2, "reading": 0.2, "multiple choice": 0.08, "fact": 0.05,
             "topic": 0.03, "request": 0.06, "japanese": 0.02, "chat": 0.01,
             "plain": 0.01}  # fmt: skip
    return {k: early * first[k] + (1 - early) * late[k] for k in late}


def copying(rng: random.Random, long: bool) -> Sample:
    """One of the copying tasks; long lists to repeat teach most."""
    makers = (tasks.repeat, tasks.after, lambda rng, long: tasks.look_up(rng))
    return rng.choice((tasks.repeat, *makers) if long else makers)(rng, long)


def draw(rng: random.Random, phase: Phase, progress: float) -> Sample:
    """One sample of the mixture, sometimes with a system message or further turns."""
    mix, safety = mixture(phase, progress), phase == "safety"
    options = 4 if rng.random() < 0.25 + progress else rng.choice((2, 3))
    makers: dict[str, Callable[[], Sample]] = {
        "copy": lambda: copying(rng, long=phase == "long"),
        "letter": lambda: tasks.letter(rng, options),
        "fact": lambda: tasks.fact(rng),
        "multiple choice": lambda: tasks.multiple_choice(rng, options),
        "reading": lambda: tasks.reading(rng, 3 if rng.random() < 0.2 + progress / 2 else 2),
        "request": lambda: tasks.request(rng, safety),
        "topic": lambda: tasks.topic(rng),
        "japanese": lambda: tasks.japanese(rng, safety),
        "chat": lambda: tasks.small_talk(rng),
        "plain": lambda: tasks.plain(rng),
    }

    def one() -> Sample:
        return makers[rng.choices(list(mix), list(mix.values()))[0]]()

    s = one()
    if not s.messages:
        return s
    messages = s.messages
    if phase in ("chats", "safety") and rng.random() < LONG_SHARE:
        for _ in range(rng.randint(*LONG_TURNS) - len(messages) // 2):
            messages += one().messages
    while rng.random() < CHAT_SHARE and len(messages) < 6:
        messages += one().messages
    if rng.random() < SYSTEM_SHARE:
        system = {"role": "system", "content": rng.choice(t.words()["systems"])}
        messages = (system, *messages)
    return Sample(s.kind, messages)


def stream(seed: int, phase: Phase, progress: Callable[[], float]) -> Iterator[Sample]:
    """Samples without end; `progress` is asked before each one."""
    rng = random.Random(seed)
    while True:
        yield draw(rng, phase, progress())
