"""Greedy answers of a transformers model, in batches: what a model says before it is trained on."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32


def chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokens of a prompt under the model's chat template, ready to be answered."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int
) -> list[list[int]]:
    """The tokens of each greedy answer, at most `tokens`; an end token is the last where one came.

    Prompts of like length share a batch, padded on the left.
    """
    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    encoded = [chat(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    found: list[list[int]] = [[] for _ in encoded]
    for start in range(0, len(order), BATCH):
        group = order[start : start + BATCH]
        longest = max(len(encoded[i]) for i in group)
        ids = torch.tensor([[pad] * (longest - len(encoded[i])) + encoded[i] for i in group])
        mask = torch.tensor(
            [[0] * (longest - len(encoded[i])) + [1] * len(encoded[i]) for i in group]
        )
        whole = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )
        for i, row in zip(group, whole[:, longest:].tolist(), strict=True):
            found[i] = row[: row.index(end) + 1] if end in row else row
    return found


def text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """An answer's tokens as text, without its end token."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
