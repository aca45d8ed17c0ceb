"""Conversations to learn from, as tokens: what is read and what is learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.answers import chat


@dataclass(frozen=True)
class Example:
    """A prompt under the chat template and the answer to it, end token included."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def tensors(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Examples side by side, padded on the right, where causal attention never reads it.

    Returns:
        [rows, tokens] ids, and a mask of the tokens that are learned.
    """
    longest = max(len(e.prompt) + len(e.answer) for e in examples)
    ids = torch.full((len(examples), longest), pad)
    learned = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, e in enumerate(examples):
        whole = torch.tensor([*e.prompt, *e.answer])
        ids[row, : len(whole)] = whole
        learned[row, len(e.prompt) : len(whole)] = True
    return ids, learned


def example(
    tokenizer: PreTrainedTokenizerBase, prompt: str, said: str, before: str = ""
) -> Example:
    """A conversation as tokens.

    Args:
        before: what the chat template puts between its mark of an answer and the answer.
    """
    ids = tokenizer(before + said, add_special_tokens=False)["input_ids"]
    return Example(tuple(chat(tokenizer, prompt)), (*ids, tokenizer.eos_token_id))
