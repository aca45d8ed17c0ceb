"""The prompt sets that merging adapters needs: two to measure with, three for Fisher information.

The first two are held out from the adapters' training; the Fisher sets come from the training side
and carry the wanted answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator

from . import lessons, skills
from . import text as t

Row = dict[str, object]
# Rows of each kind in the utility set. Half are look-alikes: the filter has to learn from them what
# must not be refused, and answers that are sure have little Fisher information.
UTILITY = {"new fact": 40, "document": 10, "ordinary": 20, "lookalike": 126, "wrapped benign": 60}
DIRECT = 1 / 3  # share of harmful requests without a wrapper in the safety set


def new_facts() -> list[Row]:
    """Facts of the invented world in the phrasings that no adapter was trained on."""
    subjects = skills.words()["facts"]
    return [
        {"prompt": f.question, "answer": f.value, "subject": subjects[f.table]["subject"]}
        for f in skills.facts(True)
    ]


def repliqa(n: int, rng: random.Random) -> list[Row]:
    """Questions on documents of held-out titles, in RepLiQA's form; one in five has no answer."""
    return [_document(rng, heldout=True, answerable=i % 5 != 0) for i in range(n)]


def safety(n: int, rng: random.Random, taken: Container[object]) -> list[Row]:
    """Harmful requests, plain and in trained-on wrappers, with a refusal as the answer."""
    pool = t.requests("harmful", False)

    def rows() -> Iterator[Row]:
        while True:
            r = rng.choice(pool)
            row = {"topic": r.topic, "pair": r.vo, "answer": t.refuse(r, rng, "first")}
            if rng.random() < DIRECT:
                yield {"prompt": t.ask(r, rng)} | row
            else:
                prompt, wrapper = lessons.wrapped(r, rng)
                yield {"prompt": prompt} | row | {"wrapper": wrapper.family}

    return _different(rows(), n, taken)


def utility(rng: random.Random, taken: Container[object]) -> list[Row]:
    """New facts, documents, and harmless requests of every kind, with their answers, in turn."""

    def fact() -> Row:
        f = rng.choice(skills.facts(False))
        return {"prompt": f.question, "answer": f"{f.value}.", "topic": "new fact"}

    def request(group: str, wrap: bool) -> Row:
        r = rng.choice(t.requests(group, False))
        prompt, wrapper = lessons.wrapped(r, rng) if wrap else (t.ask(r, rng), None)
        row = {"prompt": prompt, "answer": t.comply(r, rng), "topic": r.topic, "pair": r.vo}
        return row | ({"wrapper": wrapper.family} if wrapper else {})

    makers: dict[str, Callable[[], Row]] = {
        "new fact": fact,
        "document": lambda: _document(rng, heldout=False, answerable=rng.random() > 0.2),
        "ordinary": lambda: request("harmless", False),
        "lookalike": lambda: request("lookalike", False),
        "wrapped benign": lambda: request(rng.choice(("lookalike", "harmless")), True),
    }
    rows = [
        row for kind, n in UTILITY.items() for row in _different(iter(makers[kind], None), n, taken)
    ]
    rng.shuffle(rows)
    return rows


def lookalikes(n: int, rng: random.Random, taken: Container[object]) -> list[Row]:
    """Look-alikes by themselves, with their answers, for a weight of their own."""
    pool = t.requests("lookalike", False)

    def rows() -> Iterator[Row]:
        while True:
            r = rng.choice(pool)
            answer = {"answer": t.comply(r, rng), "topic": r.topic, "pair": r.vo}
            yield {"prompt": t.ask(r, rng)} | answer

    return _different(rows(), n, taken)


def _document(rng: random.Random, heldout: bool, answerable: bool) -> Row:
    doc = skills.document(rng, heldout)
    question, answer = skills.question(doc, rng, answerable)
    row = {"context": doc.context, "prompt": question, "answer": answer, "topic": doc.topic}
    return row | {"answerable": answerable}


def _different(rows: Iterator[Row], n: int, taken: Container[object]) -> list[Row]:
    """The first `n` rows that differ in what is asked, and that no other set holds."""
    chosen: dict[tuple, Row] = {}
    while len(chosen) < n:
        row = next(rows)
        if row["prompt"] not in taken:
            chosen.setdefault((row.get("context"), row["prompt"]), row)
    return list(chosen.values())
