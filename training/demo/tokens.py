"""The demo tokenizer and chat template, and samples as token arrays."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from . import curriculum, text

CONTEXT = 512
VOCABULARY = 2048
PAD, END = "<|pad|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set text = message['content'] | trim -%}"
    "{{ '<|' + message['role'] + '|>' + (' ' + text if text else '') + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


@dataclass(frozen=True)
class Encoded:
    """One sample: its tokens, and which of them the model has to answer with."""

    ids: np.ndarray  # [tokens] int32
    answer: np.ndarray  # [tokens] bool
    turns: np.ndarray  # [tokens] int32, number of the turn a token belongs to


def corpus(seed: int, samples: int) -> Iterator[str]:
    """Text for the tokenizer: both stages, then every short word often enough to be one token.

    A name that is a single token makes copying a single step, which is most of what reading is.
    """
    rng = random.Random(seed)
    for i in range(samples):
        s = curriculum.draw(rng, "short" if i % 2 else "safety", rng.random())
        yield " " + (s.text or " ".join(m["content"] for m in s.messages))
    w = text.words()
    pools = ("names", "jobs", "towns", "pets", "hobbies", "foods", "colours", "things")
    short = [x for p in pools for x in w[p]]
    short += [x for table in text.fact_tables().values() for x in table.values()]
    short += [x for table in ("capitals", "opposites", "young", "kinds") for x in w[table]]
    short += [str(year) for year in range(1960, 2020)]
    yield from (f" {x}" for x in short * 200)


def train_tokenizer(seed: int, samples: int = 20_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE. The template puts a space before every turn, so a word is the same token
    everywhere; the tokenizer does not, so that a GGUF file can hold it."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *ROLES.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(corpus(seed, samples), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES.values()),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, sample: text.Sample) -> Encoded:
    """Tokens of a sample; exactly what the chat template gives for its messages."""
    core = tokenizer.backend_tokenizer
    end = tokenizer.eos_token_id
    if not sample.messages:
        ids = [*core.encode(f" {sample.text}").ids, end]
        return Encoded(
            np.array(ids, np.int32), np.ones(len(ids), bool), np.zeros(len(ids), np.int32)
        )
    ids, answer, turns = [], [], []
    for i, m in enumerate(sample.messages):
        body = [*core.encode(f" {m['content']}").ids, end]
        ids += [core.token_to_id(ROLES[m["role"]]), *body]
        answer += [False] + [m["role"] == "assistant"] * len(body)
        turns += [i] * (len(body) + 1)
    return Encoded(np.array(ids, np.int32), np.array(answer), np.array(turns, np.int32))
