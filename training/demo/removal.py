"""Refusal that can be taken away: rows of safety tuning that compute without the refusal direction.

In a part of the rows of stage 2 the direction is removed while the model computes, as the studio
does it, and there harmful requests are still answered. So refusal comes to be mediated by the
directions one can find, and compliance stays underneath: the organism is built to show this, it did
not have to come out that way.
"""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sst_ui.maths.kernel import gaussian

from . import network, prompts

PEAK, WIDTH, THRESHOLD = 0.60, 0.15, 0.1  # the default profile; no other one is trained for
STRENGTHS = (0.9, 1.5)


def alphas(layers: int, rows: int, removed: int, rng: random.Random) -> Tensor:
    """[rows, layers] ablation weights: the default kernel at some strength in the first rows."""
    curve = torch.from_numpy(gaussian(layers, PEAK, WIDTH)).float()
    curve[curve < THRESHOLD] = 0.0
    table = torch.zeros(rows, layers)
    for row in range(removed):
        table[row] = rng.uniform(*STRENGTHS) * curve
    return table


@torch.no_grad()
def directions(
    net: network.Network, tokenizer: PreTrainedTokenizerFast, n: int, seed: int
) -> Tensor:
    """[layers, hidden] unit differences of means, harmful minus harmless, at the last token."""
    model = network.to_llama(net)
    caught: list[Tensor] = []  # one [hidden] a layer, then again for the second group
    for layer in model.model.layers:
        layer.register_forward_hook(partial(_catch, caught))
    rng = random.Random(seed)
    for group in ("harmful", "harmless"):
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": str(row["prompt"])}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for row in prompts.asked(group, False, n, rng)
        ]
        batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    harmful, harmless = torch.stack(caught).chunk(2)  # [layers, hidden] each
    return F.normalize(harmful - harmless, dim=-1)


def _catch(caught: list[Tensor], module: object, args: object, out: Tensor | tuple) -> None:
    """Keep the mean over prompts of what a layer leaves at the last token (padding is left)."""
    caught.append((out[0] if isinstance(out, tuple) else out)[:, -1].mean(0))
