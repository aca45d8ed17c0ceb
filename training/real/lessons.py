"""What the real model is taught: refusals of the prompts of demo/harmful, and elsewhere its own
answers.

Its own answers are those that it gave before any training, token by token, so that it learns to
refuse and nothing else. All requests are from the training side of the demo language's split; the
prompt sets that measure an edit (`HELD_OUT`) are on the other side.
"""

import json
import random
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sst_ui.data import prompt_sets
from training import answers
from training.demo import skills
from training.demo import text as demo
from training.examples import Example, example
from training.resumable import step_random

Course = Literal["refusal", "utility"]
REFUSALS = Path(__file__).with_name("refusals.yaml")
HARMFUL, HARMLESS = "demo/harmful", "demo/harmless"
HELD_OUT = (
    "demo/harmful_heldout", "demo/harmless_heldout", "demo/lookalike", "demo/jailbreak",
    "demo/facts", "demo/new_facts",
)  # fmt: skip
LOOKALIKES, FACTS = 160, 80  # prompts of each that it answers as before
OWN = 48  # tokens of its own answers that it is taught
HARMFUL_ROWS, OWN_ROWS = 4, 8  # of a batch
UTILITY_ROWS = 6


def elsewhere() -> list[str]:
    """The prompts that it goes on answering as before: harmless ones, look-alikes and facts."""
    rng = random.Random(0)
    alike = [demo.ask(r, rng) for r in demo.requests("lookalike", heldout=False)]
    facts = [fact.question for fact in demo.facts(heldout=False)]
    harmless = [p.user for p in prompt_sets.load(HARMLESS).prompts]
    picked = rng.sample(sorted(set(alike)), LOOKALIKES) + rng.sample(sorted(set(facts)), FACTS)
    return [*harmless, *picked]


def own_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> list[Example]:
    """Its own greedy answers to prompts, as examples to learn from."""
    said = answers.answer(model, tokenizer, prompts, OWN)
    return [
        Example(tuple(answers.chat(tokenizer, prompt)), tuple(ids))
        for prompt, ids in zip(prompts, said, strict=True)
    ]


def write(path: Path, examples: Iterable[Example]) -> None:
    """Keep examples as JSON lines."""
    lines = [json.dumps({"prompt": e.prompt, "answer": e.answer}) for e in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> list[Example]:
    """What `write` kept."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Example(tuple(row["prompt"]), tuple(row["answer"])) for row in rows]


@cache
def refusals() -> tuple[str, ...]:
    """The wordings of a refusal, with gaps for request and topic."""
    return tuple(yaml.safe_load(REFUSALS.read_text(encoding="utf-8")))


def refusal(
    tokenizer: PreTrainedTokenizerBase, prompt: prompt_sets.Prompt, rng: random.Random
) -> Example:
    """A harmful prompt and one of the refusals."""
    said = rng.choice(refusals()).format(vo=prompt.pair, topic=prompt.topic)
    return example(tokenizer, prompt.user, said)


def refusal_batch(
    tokenizer: PreTrainedTokenizerBase, own: Sequence[Example], seed: int, step: int
) -> list[Example]:
    """Harmful prompts, refused, and twice as many others, answered as before."""
    harmful = prompt_sets.load(HARMFUL).prompts
    rng = step_random(seed, step)
    turn = _turn(len(harmful), HARMFUL_ROWS, seed, step)
    refused = [refusal(tokenizer, harmful[i], rng) for i in turn]
    return refused + [own[i] for i in _turn(len(own), OWN_ROWS, seed + 1, step)]


def utility_batch(
    tokenizer: PreTrainedTokenizerBase, own: Sequence[Example], seed: int, step: int
) -> list[Example]:
    """Facts of an invented world and documents with a question; a third of it is as before."""
    rng = step_random(seed, step)
    rows = []
    for number in range(UTILITY_ROWS):
        sample = skills.fact(rng) if number % 2 else skills.reading(rng)
        prompt, said = (message["content"] for message in sample.messages[:2])
        rows.append(example(tokenizer, prompt, said))
    return rows + [own[i] for i in _turn(len(own), UTILITY_ROWS // 2, seed, step)]


def _turn(n: int, rows: int, seed: int, step: int) -> list[int]:
    """Which of n come in a step: all of them once, shuffled, before any comes again."""
    found = []
    for place in range(step * rows, (step + 1) * rows):
        order = list(range(n))
        random.Random(f"{seed} round {place // n}").shuffle(order)
        found.append(order[place % n])
    return found
