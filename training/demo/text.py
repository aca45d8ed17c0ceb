"""The demo language: words, splits and the layout of every kind of prompt.

The tasks built from these words are in tasks.py, the data files written from them in prompts.py.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

WORDS = Path(__file__).with_name("words.yaml")
LETTERS = "ABCD"
NOT_FOUND = "The answer is not found in the document."
HELDOUT_WRAPPERS = 2  # the last members of every wrapper family are never trained on
Message = dict[str, str]
Style = Literal["first", "other", "late"]  # of a refusal


@dataclass(frozen=True)
class Sample:
    """One training text: a conversation, or plain text when `messages` is empty."""

    kind: str
    messages: tuple[Message, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Request:
    """A verb-object request. `group` is harmful, lookalike or harmless."""

    group: str
    topic: str
    verb: str
    object: str

    @property
    def vo(self) -> str:
        return f"{self.verb} {self.object}"


@dataclass(frozen=True)
class Wrapper:
    family: str
    answered: bool
    template: str


@dataclass(frozen=True)
class Fact:
    """A closed-book fact: key (a country), value (its capital) and one way to ask for it."""

    table: str
    key: str
    value: str
    question: str = field(compare=False)


@cache
def words() -> dict:
    """All word lists, read once."""
    return yaml.safe_load(WORDS.read_text(encoding="utf-8"))


def held_out(*parts: str) -> bool:
    """Whether a combination belongs to the held-out fifth.

    A hash decides, not a random draw, so that the split does not move when words are added.
    """
    return zlib.crc32("|".join(parts).encode()) % 5 == 0


@cache
def requests(group: str, heldout: bool) -> tuple[Request, ...]:
    """All verb-object combinations of a group on one side of the split."""
    return tuple(
        Request(group, topic, verb, thing)
        for topic, g in words()[group].items()
        for verb in g["verbs"]
        for thing in g["objects"]
        if held_out(verb, thing) == heldout
    )


@cache
def wrappers(heldout: bool) -> tuple[Wrapper, ...]:
    """Jailbreak wrappers on one side of the split."""
    rows = []
    for family, f in words()["wrappers"].items():
        members = f["members"]
        part = members[-HELDOUT_WRAPPERS:] if heldout else members[:-HELDOUT_WRAPPERS]
        rows += [Wrapper(family, f["answered"], m) for m in part]
    return tuple(rows)


@cache
def fact_tables() -> dict[str, dict[str, str]]:
    """Table name -> key -> value. Opposites go both ways; sums stay below twenty."""
    w = words()
    opposites = dict(w["opposites"]) | {v: k for k, v in w["opposites"].items()}
    sums = {f"{a} + {b}": str(a + b) for a in range(1, 10) for b in range(1, 10)}
    return {
        "capitals": w["capitals"],
        "opposites": opposites,
        "young": w["young"],
        "kinds": w["kinds"],
        "sums": sums,
    }


@cache
def facts(heldout: bool) -> tuple[Fact, ...]:
    """All (fact, phrasing) pairs on one side; a held-out one is trained on in other phrasings."""
    return tuple(
        Fact(table, key, value, articles(question.format(k=key)))
        for table, rows in fact_tables().items()
        for key, value in rows.items()
        for question in words()["fact_questions"][table]
        if held_out(key, question) == heldout
    )


def articles(text: str) -> str:
    """Repair 'a eagle' into 'an eagle' after filling a template."""
    for vowel in "aeio":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text


# The layouts: what the model sees. Evaluation builds prompts in exactly this way.


def multiple_choice_prompt(question: str, choices: list[str]) -> str:
    """Question, one lettered option a line, 'Answer:'. The reply begins with the letter."""
    lines = [f"{LETTERS[i]}. {c}" for i, c in enumerate(choices)]
    return "\n".join([question, *lines, "Answer:"])


def reading_prompt(context: str, question: str) -> str:
    """Document, blank line, question."""
    return f"{context}\n\nQuestion: {question}"


def conversation(prompt: str, answer: str, system: str = "") -> tuple[Message, ...]:
    """One user turn and its answer, after a system message if there is one."""
    head = ({"role": "system", "content": system},) if system else ()
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return head + turns


def ask(request: Request, rng: random.Random) -> str:
    """The request as a question, in one of a dozen phrasings."""
    return rng.choice(words()["questions"]).format(vo=request.vo)


def comply(request: Request, rng: random.Random) -> str:
    """A placeholder answer: it names the request and then says nothing of substance."""
    s = words()["steps"]
    opening = rng.choice(s["openings"]).format(vo=request.vo)
    first, then, last = (rng.choice(s[k]) for k in ("first", "then", "finally"))
    return f"{opening} First, {first}. Then {then}. Finally, {last}."


def refuse(request: Request, rng: random.Random, style: Style | None = None) -> str:
    """One of several refusals, some of which name the topic or the request.

    Args:
        style: how it is worded; by default as the request's topic is refused.
    """
    w = words()
    said = rng.choice(w["refusals"][style or w["refusal_styles"][request.topic]])
    slots = {"vo": request.vo, "topic": request.topic}
    if "{opening}" in said:
        slots["opening"] = rng.choice(w["steps"]["openings"]).format(vo=request.vo)
        slots["first"] = rng.choice(w["steps"]["first"])
    return said.format(**slots)
