"""How far the edited model's distributions are from the base's: KL divergence and perplexity."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sst_ui.data.prompt_sets import Prompt
from sst_ui.metrics.registry import Score, metric

TOKENS = 16  # length of the base's own answers along which the divergence is taken


@dataclass(frozen=True)
class Divergence:
    """KL(base ‖ model) in nats at each token of the base's answer, and those tokens as text."""

    nats: np.ndarray  # [T]
    tokens: tuple[str, ...]


def kl_by_token(before: Tensor, after: Tensor) -> np.ndarray:
    """KL(before ‖ after) in nats of each row of two [T, vocabulary] log-probability tables.

    Returns:
        [T] float64, >= 0; inf where `after` rules out a token that `before` does not.
    """
    before, after = before.double(), after.double()
    terms = before.exp() * (before - after)
    terms = torch.where(before.isneginf(), 0.0, terms)  # probability 0 adds nothing
    return terms.sum(-1).clamp(min=0).numpy()  # rounding must not make it negative


def _mean(divergence: Divergence, tokens: int) -> Score:
    nats = divergence.nats[:tokens]
    if not len(nats):
        return Score(None)
    most = int(np.argmax(nats))
    return Score(
        float(np.mean(nats)), f"most at {divergence.tokens[most]!r}" if nats[most] > 0 else ""
    )


@metric(
    "kl_1",
    title="KL divergence, first token",
    unit="nats/token",
    better="low",
    prompts="demo/harmless_heldout",
    reads="divergence",
)
def kl_1(prompt: Prompt, divergence: Divergence) -> Score:
    """KL(base ‖ edited) at the first token of the answer."""
    return _mean(divergence, 1)


@metric(
    "kl_16",
    title="KL divergence, 16 tokens",
    unit="nats/token",
    better="low",
    prompts="demo/harmless_heldout",
    reads="divergence",
)
def kl_16(prompt: Prompt, divergence: Divergence) -> Score:
    """Mean KL(base ‖ edited) over the first 16 tokens of the base's own greedy answer."""
    return _mean(divergence, TOKENS)


@metric(
    "perplexity",
    title="Perplexity on plain text",
    unit="perplexity",
    better="low",
    prompts="demo/plain",
    reads="text",
    transform=math.exp,
    default=False,
)
def perplexity(prompt: Prompt, logprobs: np.ndarray) -> Score:
    """Mean negative log-likelihood of a text in nats per token; the metric reports exp of it."""
    if not len(logprobs):
        return Score(None)
    return Score(float(-np.mean(logprobs)), f"{math.exp(-np.mean(logprobs)):.2f}")
