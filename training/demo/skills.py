"""What the utility adapters teach the demo: facts of an invented world, and longer documents.

Some phrasings, and documents of some titles, are held out: every function that takes `heldout`
draws from the training side of the split for False.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from . import tasks
from . import text as t
from .text import Fact, Sample

WORDS = Path(__file__).with_name("skills.yaml")
HELDOUT_PHRASINGS = 3  # of the six of every fact
LEFT_OUT = 0.3  # share of a document's lines that is not told
UNANSWERABLE = 0.2  # share of questions about them, as in RepLiQA

Asked = tuple[str, str]  # a question and its answer


@dataclass(frozen=True)
class Document:
    """A longer text about an invented place, what it answers, and what it does not."""

    topic: str
    title: str
    context: str
    answers: tuple[tuple[Asked, ...], ...]  # per question told: its phrasings, each with the answer
    absent: tuple[tuple[Asked, ...], ...]  # the same for what was left out


@cache
def words() -> dict:
    """All word lists of this file, read once."""
    return yaml.safe_load(WORDS.read_text(encoding="utf-8"))


@cache
def facts(heldout: bool) -> tuple[Fact, ...]:
    """All (fact, phrasing) pairs on one side; a held-out one is trained on in other phrasings."""
    rows = []
    for table, f in words()["facts"].items():
        for key, value in f["rows"].items():
            # a hash decides, so that the split of a fact does not move when others are added
            order = sorted(f["questions"], key=lambda q: zlib.crc32(f"{key}|{q}".encode()))
            kept = order[:HELDOUT_PHRASINGS] if heldout else order[HELDOUT_PHRASINGS:]
            rows += [Fact(table, key, value, t.articles(q.format(k=key))) for q in kept]
    return tuple(rows)


def fact(rng: random.Random) -> Sample:
    """One to four questions about the invented world."""
    rows = [(f.question, f"{f.value}.") for f in rng.sample(facts(False), rng.randint(1, 4))]
    return Sample("new fact", tasks.several("{q}", rows))


def document(rng: random.Random, heldout: bool = False) -> Document:
    """A document of a held-out title or of one that is trained on."""
    w = words()
    topic = rng.choice(list(w["kinds"]))
    kind = w["kinds"][topic]
    while True:
        adjective, noun = rng.choice(w["adjectives"]), rng.choice(w["nouns"])
        if t.held_out(adjective, noun) == heldout:
            break
    title = kind["title"].format(adjective=adjective, noun=noun)
    slots = _fill(kind["slots"], rng) | {"title": title}
    lines = kind["lines"]
    # the first line is always told: it names what the document is about
    told = [0, *(i for i in range(1, len(lines)) if rng.random() > LEFT_OUT)]
    if len(told) == len(lines):
        told.pop()
    said = [_sentence(rng.choice(lines[i]["say"]), slots) for i in told]
    body = said[1:] + rng.sample(w["fillers"], rng.randint(1, 3))
    rng.shuffle(body)
    asked = [_questions(line["ask"], slots) for line in lines]
    answers = tuple(q for i in told for q in asked[i])
    absent = tuple(
        tuple((question, t.NOT_FOUND) for question, _ in phrasings)
        for i in range(len(lines))
        if i not in told
        for phrasings in asked[i]
    )
    return Document(topic, title, " ".join([said[0], *body]), answers, absent)


def question(doc: Document, rng: random.Random, answerable: bool) -> Asked:
    """A question about a document with its answer, or one the document does not answer."""
    return rng.choice(rng.choice(doc.answers if answerable else doc.absent))


def reading(rng: random.Random) -> Sample:
    """A document and several questions about it: more to learn from every token."""
    doc = document(rng)
    rows = dict(question(doc, rng, rng.random() > UNANSWERABLE) for _ in range(rng.randint(2, 5)))
    prompt = t.reading_prompt(doc.context, "{q}")
    return Sample("documents", tasks.several(prompt, list(rows.items())))


def _fill(slots: dict[str, str], rng: random.Random) -> dict[str, str]:
    """A word for every slot, never the same one twice."""
    filled: dict[str, str] = {}
    for slot, pool in slots.items():
        if pool == "years":
            items = [str(year) for year in range(1960, 2020)]
        else:
            items = words()["lists"].get(pool) or t.words()[pool]
        filled[slot] = rng.choice([x for x in items if x not in filled.values()])
    return filled


def _sentence(template: str, slots: dict[str, str]) -> str:
    said = t.articles(template.format(**slots))
    return said[0].upper() + said[1:]


def _questions(asks: list, slots: dict[str, str]) -> list[tuple[Asked, ...]]:
    return [
        tuple((_sentence(q, slots), _sentence(answer, slots)) for q in phrasings)
        for phrasings, answer in asks
    ]
