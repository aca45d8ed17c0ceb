"""What the real model answered before it learned to refuse: the truth that an edit is held
against.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sst_ui import disk
from sst_ui.data import prompt_sets
from sst_ui.data.types import spread
from sst_ui.errors import UserError
from training import answers
from training.real import source

TOKENS = 100  # that are recorded; shorter answers are their beginnings
SETS = ("demo/harmful_heldout",)


def path(name: str) -> Path:
    """The file of the answers to a prompt set, there or not."""
    return source.folder() / "earlier" / f"{name.replace('/', '-')}.jsonl"


def record(name: str) -> Path:
    """Let the untrained model answer a prompt set, if that was not done before."""
    if path(name).is_file():
        return path(name)
    base = source.fetch()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    prompts = prompt_sets.load(name).prompts
    said = answers.answer(model, tokenizer, [p.user for p in prompts], TOKENS)
    lines = [
        json.dumps({"prompt": p.user, "topic": p.topic, "pair": p.pair, "tokens": ids})
        for p, ids in zip(prompts, said, strict=True)
    ]
    with disk.written(path(name)) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path(name)


def write(name: str, tokens: int, out: Path, samples: int | None = None) -> Path:
    """A prompt set whose answers are the recorded ones, cut off after so many tokens.

    Args:
        samples: how many of the prompts, evenly spread as everywhere; None for all.

    Raises:
        UserError: longer answers than were recorded.
    """
    if tokens > TOKENS:
        raise UserError(f"{tokens} tokens are asked for and {TOKENS} were recorded.")
    tokenizer = AutoTokenizer.from_pretrained(source.base())
    rows = list(map(json.loads, record(name).read_text(encoding="utf-8").splitlines()))
    lines = [
        json.dumps(
            {
                "prompt": row["prompt"],
                "topic": row["topic"],
                "pair": row["pair"],
                "answer": answers.text(tokenizer, row["tokens"][:tokens]),
            }
        )
        for row in (rows[i] for i in spread(len(rows), samples))
    ]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return out
