"""Prompts with answers for a merge of the safety and the utility adapter: what each was taught.

A merge reads them for its Fisher information. They are from the training side, like all that is
taught; what measures a merge (demo/harmful_heldout, demo/new_facts, ...) is on the other.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sst_ui import disk
from sst_ui.data import prompt_sets
from training.demo import skills
from training.real import lessons, source
from training.resumable import step_random

ROWS = 128  # of each set
NAMES = ("utility", "safety")
Row = dict[str, str]


def path(name: str) -> Path:
    """The file of a set, there or not."""
    return source.folder() / "merge_sets" / f"{name}.jsonl"


def write() -> Path:
    """Write both sets and return their folder."""
    for name, rows in (("utility", utility()), ("safety", safety())):
        lines = [json.dumps(row) for row in rows]
        with disk.written(path(name)) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path("utility").parent


def utility() -> Iterator[Row]:
    """Facts of the invented world and documents with a question."""
    for number in range(ROWS):
        rng = step_random(1000, number)
        sample = skills.fact(rng) if number % 2 else skills.reading(rng)
        prompt, said = (message["content"] for message in sample.messages[:2])
        yield {"prompt": prompt, "answer": said}


def safety() -> Iterator[Row]:
    """Harmful prompts, refused."""
    for number, prompt in enumerate(prompt_sets.load(lessons.HARMFUL, ROWS).prompts):
        said = step_random(1001, number).choice(lessons.refusals())
        answer = said.format(vo=prompt.pair, topic=prompt.topic)
        yield {"prompt": prompt.user, "answer": answer, "topic": prompt.topic}
