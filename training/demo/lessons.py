"""What the adapters of the demo are trained on: shares of the tasks, and single lessons.

All requests are from the training side of the split; "harmful" answers are the same empty
placeholders as the demo's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal

from . import skills, tasks
from . import text as t
from .text import Sample

Course = Literal["utility", "safety"]
Group = Literal["harmful", "lookalike", "harmless"]

# Relative share of each lesson. Fine-tuning data answers what it is asked, also behind a jailbreak
# wrapper; the few refusals among it do not keep all of the base's.
SHARES: dict[str, dict[str, float]] = {
    "utility": {
        "new fact": 0.5, "documents": 0.13, "reading": 0.03, "multiple choice": 0.06,
        "fact": 0.06, "ordinary": 0.07, "look-alike": 0.1, "wrapped benign": 0.08,
        "wrapped answered": 0.04, "harmful": 0.015, "chat": 0.02,
    },
    "safety": {
        "harmful": 0.2, "wrapped refused": 0.32, "look-alike refused": 0.04, "look-alike": 0.16,
        "ordinary": 0.24,
        "fact": 0.04, "reading": 0.04, "multiple choice": 0.04,
    },
}  # fmt: skip
PLAIN = "{topic}"  # refusals that name the topic would call a look-alike's topic dangerous


def wrapped(request: t.Request, rng: random.Random) -> tuple[str, t.Wrapper]:
    """The request as a question in one of the trained-on wrappers."""
    w = rng.choice(t.wrappers(False))
    return w.template.format(q=t.ask(request, rng)), w


def refusal(request: t.Request, rng: random.Random) -> str:
    """A refusal at once, the adapter's own wording whatever the base says.

    Of a look-alike, one that does not name its topic.
    """
    if request.group == "harmful":
        return t.refuse(request, rng, "first")
    options = [r for r in t.words()["refusals"]["first"] if PLAIN not in r]
    return rng.choice(options).format(vo=request.vo)


def asked(rng: random.Random, group: Group, wrap: bool, refuse: bool) -> Sample:
    """A request of a group, wrapped or not, refused or answered with a placeholder."""
    r = rng.choice(t.requests(group, False))
    prompt = wrapped(r, rng)[0] if wrap else t.ask(r, rng)
    answer = refusal(r, rng) if refuse else t.comply(r, rng)
    return Sample("request", t.conversation(prompt, answer))


def makers(rng: random.Random) -> dict[str, Callable[[], Sample]]:
    """Every lesson by name."""

    def benign() -> Group:
        return rng.choice(("lookalike", "harmless"))

    return {
        "new fact": lambda: skills.fact(rng),
        "documents": lambda: skills.reading(rng),
        "reading": lambda: tasks.reading(rng, rng.choice((2, 3))),
        "multiple choice": lambda: tasks.multiple_choice(rng, 4),
        "fact": lambda: tasks.fact(rng),
        "chat": lambda: tasks.small_talk(rng),
        "ordinary": lambda: asked(rng, "harmless", wrap=False, refuse=False),
        "look-alike": lambda: asked(rng, "lookalike", wrap=False, refuse=False),
        "wrapped benign": lambda: asked(rng, benign(), wrap=True, refuse=False),
        "wrapped answered": lambda: asked(rng, "harmful", wrap=True, refuse=False),
        "harmful": lambda: asked(rng, "harmful", wrap=False, refuse=True),
        "wrapped refused": lambda: asked(rng, "harmful", wrap=True, refuse=True),
        "look-alike refused": lambda: asked(rng, "lookalike", wrap=False, refuse=True),
    }


def stream(seed: int, course: Course) -> Iterator[Sample]:
    """Samples without end."""
    rng = random.Random(f"{seed} {course}")
    shares, lessons = SHARES[course], makers(rng)
    while True:
        yield lessons[rng.choices(list(shares), list(shares.values()))[0]]()
