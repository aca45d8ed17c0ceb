"""The prompt sets under presets/prompts/demo, written from the same words as the training text.

Measuring sets, and those for Fisher information (merge_prompts.py), come from the training side of
the split, everything else from the held-out side.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from . import merge_prompts, tasks
from . import text as t

FOLDER = Path(__file__).resolve().parents[2] / "presets" / "prompts" / "demo"
Row = dict[str, object]


def asked(group: str, heldout: bool, n: int, rng: random.Random) -> list[Row]:
    """`n` different questions over all combinations of one side, topics in turn."""
    pool = list(t.requests(group, heldout))
    rng.shuffle(pool)
    rows: dict[str, Row] = {}
    while len(rows) < n:
        for r in pool:
            prompt = t.ask(r, rng)
            rows.setdefault(prompt, {"prompt": prompt, "topic": r.topic, "pair": r.vo})
    return list(rows.values())[:n]


def jailbreak(n: int, rng: random.Random) -> list[Row]:
    """Held-out harmful requests in held-out wrappers, every wrapper equally often."""
    pool, wrappers = list(t.requests("harmful", True)), t.wrappers(True)
    rows: dict[str, Row] = {}
    while len(rows) < n:
        r, w = rng.choice(pool), wrappers[len(rows) % len(wrappers)]
        prompt = w.template.format(q=t.ask(r, rng))
        row = {"prompt": prompt, "topic": r.topic, "pair": r.vo, "wrapper": w.family}
        rows.setdefault(prompt, row)
    return list(rows.values())


def facts() -> list[Row]:
    """Facts in phrasings that were not trained on (the facts themselves were, in others)."""
    return [
        {"prompt": f.question, "answer": f.value, "subject": t.words()["subjects"][f.table]}
        for f in t.facts(True)
    ]


def multiple_choice(n: int, rng: random.Random) -> list[Row]:
    """Four options each; text.multiple_choice_prompt lays them out."""
    tables = tasks.by_table(True)
    rows: dict[tuple, Row] = {}
    while len(rows) < n:
        f = rng.choice(tables[list(tables)[len(rows) % len(tables)]])
        items, i = tasks.choices(f, rng)
        row = {"prompt": f.question, "choices": items, "answer": i}
        rows.setdefault((f.question, *items), row | {"subject": t.words()["subjects"][f.table]})
    return list(rows.values())


def reading(n: int, rng: random.Random) -> list[Row]:
    """New documents; about one question in seven has no answer in its document."""
    rows = []
    for i in range(n):
        doc, answerable = tasks.document(rng, 2 + i % 2), i % 7 != 0
        question, answer = tasks.question(doc, rng, answerable)
        row = {"context": doc.context, "prompt": question, "answer": answer.rstrip(".")}
        rows.append(row | {"answerable": answerable})
    return rows


def plain(n: int, rng: random.Random) -> list[Row]:
    # a space in front, as in training, where a word is the same token wherever it stands
    return [{"text": f" {tasks.plain(rng).text}"} for _ in range(n)]


def build(seed: int = 0) -> dict[str, list[Row]]:
    """All prompt sets, file stem -> rows. The same seed gives the same rows."""

    def rng(name: str) -> random.Random:
        return random.Random(f"{seed} {name}")  # a set does not move when another one changes

    sets = {
        "harmful": asked("harmful", False, 160, rng("harmful")),
        "harmless": asked("harmless", False, 160, rng("harmless")),
        "harmful_heldout": asked("harmful", True, 160, rng("harmful_heldout")),
        "harmless_heldout": asked("harmless", True, 128, rng("harmless_heldout")),
        "lookalike": asked("lookalike", True, 120, rng("lookalike")),
        "jailbreak": jailbreak(140, rng("jailbreak")),
        "facts": facts(),
        "multiple_choice": multiple_choice(150, rng("multiple_choice")),
        "reading": reading(120, rng("reading")),
        "plain": plain(120, rng("plain")),
        "new_facts": merge_prompts.new_facts(),
        "repliqa": merge_prompts.repliqa(120, rng("repliqa")),
    }
    taken = {row.get("prompt") for rows in sets.values() for row in rows}
    sets["sst_safety"] = merge_prompts.safety(256, rng("sst_safety"), taken)
    sets["sst_utility"] = merge_prompts.utility(rng("sst_utility"), taken)
    taken |= {row["prompt"] for row in sets["sst_utility"]}
    sets["sst_lookalike"] = merge_prompts.lookalikes(96, rng("sst_lookalike"), taken)
    return sets


def write(folder: Path = FOLDER, seed: int = 0) -> None:
    """Write every set as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in build(seed).items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(name: str, folder: Path = FOLDER) -> list[Row]:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
