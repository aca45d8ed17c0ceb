"""The tasks the demo model is trained on: small functions from a random generator to a sample.

Every function takes `heldout`: False draws from the training side of the split.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from . import text as t
from .text import Sample


@dataclass(frozen=True)
class Document:
    """A reading text about two or three people, and what it says about them."""

    context: str
    people: tuple[dict[str, str], ...]


# Copying: what reading and multiple choice are made of


POOLS = ("names", "towns", "jobs", "pets", "hobbies", "foods", "colours", "things")


def _pool(rng: random.Random) -> list[str]:
    return t.words()[rng.choice(POOLS)]


def _items(rng: random.Random, shortest: int, longest: int, mixed: bool) -> list[str]:
    """Different words of one kind, or of all kinds mixed in longer lists."""
    pool = sorted({x for p in POOLS for x in t.words()[p]}) if mixed else _pool(rng)
    return rng.sample(pool, rng.randint(shortest, longest * 3 if mixed else longest))


def several(first: str, rows: list[tuple[str, str]]) -> tuple[t.Message, ...]:
    """A conversation that asks several things of one text: more to learn from every token."""
    messages: tuple[t.Message, ...] = ()
    for i, (prompt, answer) in enumerate(rows):
        messages += t.conversation(first.format(q=prompt) if i == 0 else prompt, answer)
    return messages


def repeat(rng: random.Random, long: bool = False) -> Sample:
    items = " ".join(_items(rng, 3, 8, long))
    return Sample("copy", t.conversation(f"Repeat: {items}", items))


def after(rng: random.Random, long: bool = False) -> Sample:
    items = _items(rng, 3, 8, long)
    asked = rng.sample(range(len(items) - 1), min(len(items) - 1, rng.randint(1, 4)))
    rows = [(f"What comes after {items[i]}?", f"{items[i + 1]}.") for i in asked]
    return Sample("copy", several(f"List: {', '.join(items)}. {{q}}", rows))


def look_up(rng: random.Random) -> Sample:
    n = rng.randint(2, 6)
    keys = rng.sample(_pool(rng), n)
    left = [x for x in _pool(rng) if x not in keys]
    values = rng.sample(left, min(n, len(left)))
    asked = rng.sample(range(len(values)), min(len(values), rng.randint(1, 4)))
    table = "; ".join(f"{k}: {v}" for k, v in zip(keys, values, strict=False))
    rows = [(f"What is beside {keys[i]}?", f"{values[i]}.") for i in asked]
    return Sample("copy", several(f"{table}\n\nQuestion: {{q}}", rows))


def letter(rng: random.Random, options: int) -> Sample:
    """Find given words among lettered options, or name the options of given letters."""
    items = rng.sample(_pool(rng), options)
    rows = []
    for i in rng.sample(range(options), rng.randint(1, options)):
        if rng.random() < 0.7:
            rows.append((f"Which option is {items[i]}?", f"{t.LETTERS[i]}. {items[i]}"))
        else:
            rows.append((f"What is option {t.LETTERS[i]}?", f"{items[i]}."))
    layout = t.multiple_choice_prompt("{q}", items)
    return Sample("letter", several(layout, rows))


# Knowledge


def fact(rng: random.Random, heldout: bool = False) -> Sample:
    f = rng.choice(by_table(heldout)[rng.choice(list(t.fact_tables()))])
    return Sample("fact", t.conversation(f.question, f"{f.value}."))


def by_table(heldout: bool) -> dict[str, list[t.Fact]]:
    return {k: [f for f in t.facts(heldout) if f.table == k] for k in t.fact_tables()}


def choices(f: t.Fact, rng: random.Random, options: int = 4) -> tuple[list[str], int]:
    """Lettered options for a fact, drawn from its own table, and the index of the right one."""
    table = t.fact_tables()[f.table]
    if f.table == "sums":  # near misses, so that guessing the size is not enough
        others = {
            str(int(f.value) + d) for d in (-4, -3, -2, -1, 1, 2, 3, 4) if int(f.value) + d > 0
        }
    else:
        others = set(table.values()) - {f.value, f.key}
    items = [*rng.sample(sorted(others), options - 1), f.value]
    rng.shuffle(items)
    return items, items.index(f.value)


def multiple_choice(rng: random.Random, options: int) -> Sample:
    f = rng.choice(by_table(False)[rng.choice(list(t.fact_tables()))])
    items, i = choices(f, rng, options)
    prompt = t.multiple_choice_prompt(f.question, items)
    return Sample("multiple choice", t.conversation(prompt, f"{t.LETTERS[i]}. {items[i]}"))


# Reading


def document(rng: random.Random, people: int) -> Document:
    w = t.words()
    columns = {k: rng.sample(w[k], people) for k in ("names", "jobs", "towns", "pets", "hobbies")}
    years = [str(y) for y in rng.sample(range(1960, 2020), people)]
    rows, lines = [], []
    for i in range(people):
        p = {k: v[i] for k, v in columns.items()} | {"years": years[i]}
        rows.append(p)
        first = rng.choice(
            ["{names} is a {jobs} in {towns}.", "{names} lives in {towns} and works as a {jobs}."]
        )
        rest = [
            "{names} moved there in {years}.",
            "{names} has a {pets}.",
            "{names} likes {hobbies}.",
        ]
        more = rng.sample(rest, rng.randint(1, 2))
        lines.append(" ".join([first, *more]).format(**p))
        p["said"] = " ".join(more)  # still templates: which facts were told
    return Document(" ".join(lines), tuple(rows))


def question(doc: Document, rng: random.Random, answerable: bool) -> tuple[str, str]:
    """A question about a document and its answer, or one the document does not answer."""
    p = rng.choice(doc.people)
    who, said = p["names"], p["said"]
    if not answerable:
        absent = [n for n in t.words()["names"] if n not in {q["names"] for q in doc.people}]
        who = rng.choice(absent)
    asks = [
        (f"Where does {who} live?", f"{p['towns']}."),
        (f"What is the job of {who}?", f"{p['jobs']}."),
    ]
    if answerable:
        asks += [(f"Who lives in {p['towns']}?", f"{who}."), (f"Who is a {p['jobs']}?", f"{who}.")]
    if "{years}" in said:
        asks.append((f"In which year did {who} move?", f"{p['years']}."))
    if "{pets}" in said:
        asks.append((f"Which pet does {who} have?", f"{p['pets']}."))
    if "{hobbies}" in said:
        asks.append((f"What does {who} like?", f"{p['hobbies']}."))
    q, a = rng.choice(asks)
    return q, a if answerable else t.NOT_FOUND


def reading(rng: random.Random, people: int) -> Sample:
    doc = document(rng, people)
    n = 1 if rng.random() < 0.4 else rng.randint(2, 4)
    rows = list(dict(question(doc, rng, rng.random() > 0.15) for _ in range(n)).items())
    return Sample("reading", several(t.reading_prompt(doc.context, "{q}"), rows))


# Requests and chat


def request(rng: random.Random, safety: bool) -> Sample:
    """A request and its answer; with `safety` harmful ones are refused except in some wrappers."""
    group = rng.choices(("harmful", "lookalike", "harmless"), (0.45, 0.25, 0.3))[0]
    r = rng.choice(t.requests(group, False))
    prompt, refused = t.ask(r, rng), safety and group == "harmful"
    if rng.random() < 0.35:
        w = rng.choice(t.wrappers(False))
        prompt, refused = w.template.format(q=prompt), refused and not w.answered
    answer = t.refuse(r, rng) if refused else t.comply(r, rng)
    return Sample("request", t.conversation(prompt, answer))


def topic(rng: random.Random) -> Sample:
    """Name the topic of a request: what a request is about is known before it is ever refused."""
    r = rng.choice(t.requests(rng.choice(("harmful", "lookalike", "harmless")), False))
    prompt = rng.choice(t.words()["topic_questions"]).format(q=t.ask(r, rng), vo=r.vo)
    return Sample("topic", t.conversation(prompt, f"{r.topic}."))


def japanese(rng: random.Random, safety: bool) -> Sample:
    w = t.words()["japanese"]
    group = rng.choice(("harmful", "harmless"))
    while True:
        verb, thing = rng.choice(w[group]["verbs"]), rng.choice(w[group]["objects"])
        if not t.held_out(verb, thing):
            break
    answers = w["refusals"] if safety and group == "harmful" else w["answers"]
    vo = f"{thing}{verb}"
    prompt, answer = rng.choice(w["questions"]).format(vo=vo), rng.choice(answers).format(vo=vo)
    return Sample("japanese", t.conversation(prompt, answer))


def small_talk(rng: random.Random) -> Sample:
    prompts, answers = rng.choice(t.words()["chat"])
    return Sample("chat", t.conversation(rng.choice(prompts), rng.choice(answers)))


def plain(rng: random.Random) -> Sample:
    """Plain text without any chat template: people, and facts as statements."""
    parts = [document(rng, 1).context]
    for _ in range(rng.randint(1, 3)):
        f = rng.choice(by_table(False)[rng.choice(list(t.fact_tables()))])
        statement = t.words()["fact_statements"][f.table].format(k=f.key, v=f.value)
        parts.append(t.articles(statement))
    rng.shuffle(parts)
    return Sample("plain", text=" ".join(parts))
