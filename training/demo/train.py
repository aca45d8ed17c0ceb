"""Training of the demo model in two stages, from nothing to a model that refuses.

Stage 1 learns to comply with everything; stage 2 continues from it and learns to refuse, so that
compliance stays latent underneath.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from . import curriculum, network, optim, tokens

ROWS, ROW = 32, 128  # samples are packed into rows: 4,096 tokens per step
LONG_ROWS, LONG_ROW = ROWS * ROW // tokens.CONTEXT, tokens.CONTEXT  # as many, for long chats


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        steps, until: the schedule's length, and the share of it after which the next stage begins.
        question_weight: loss weight of tokens that are not the answer.
        answer_limit: an answer counts as this many tokens at most, so that long placeholders,
            which are chance, do not drown what has to be read off the prompt.
        rows, row: of a step; a sample longer than a row is left out.
    """

    name: str
    phase: curriculum.Phase
    lr: float
    steps: int
    question_weight: float = 0.0
    answer_limit: float = math.inf
    until: float = 1.0
    warmup: int = 100
    rows: int = ROWS
    row: int = ROW


STAGE_1 = (
    Stage("stage 1, first half", "short", 0.02, 3000, question_weight=0.2, until=0.4),
    Stage("stage 1, second half", "long", 0.02, 1800, question_weight=0.05, answer_limit=10),
    Stage("stage 1, long chats", "chats", 0.005, 150, warmup=20, rows=LONG_ROWS, row=LONG_ROW),
)
STAGE_2 = Stage(
    "stage 2, safety tuning", "safety", 0.005, 300, warmup=20, rows=LONG_ROWS, row=LONG_ROW
)


def batches(
    tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int, progress: Callable[[], float]
) -> Iterator[dict[str, Tensor]]:
    """Packed batches: samples side by side in rows, each attending to itself only."""
    encoded = (tokens.encode(tokenizer, x) for x in curriculum.stream(seed, stage.phase, progress))
    samples = (e for e in encoded if len(e.ids) <= stage.row)
    pool = [next(samples) for _ in range(200)]
    rng = np.random.default_rng(seed)
    while True:
        ids = torch.zeros(stage.rows, stage.row + 1, dtype=torch.long)
        documents, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        weights = torch.zeros(stage.rows, stage.row + 1)
        for row in range(stage.rows):
            used = number = 0
            while True:
                fit = next((i for i, s in enumerate(pool) if len(s.ids) <= stage.row - used), None)
                if fit is None:
                    break
                s = pool.pop(fit)
                pool.append(next(samples))
                number += 1
                here = slice(used, used + len(s.ids))
                ids[row, here] = torch.from_numpy(s.ids).long()
                documents[row, here] = number
                positions[row, here] = torch.from_numpy(spread(s.turns, rng))
                limit = np.minimum(1.0, stage.answer_limit / np.bincount(s.turns)[s.turns])
                weight = np.where(s.answer, limit, stage.question_weight)
                weights[row, here] = torch.from_numpy(weight).float()
                weights[row, used] = 0.0  # nothing before it says what the first token is
                used += len(s.ids)
        batch = {
            "ids": ids[:, :-1],
            "documents": documents[:, :-1],
            "positions": positions[:, :-1],
            "targets": ids[:, 1:],
            "weights": weights[:, 1:],
        }
        yield {k: v.contiguous() for k, v in batch.items()}  # other strides compile again


def spread(turns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions of a sample's tokens; in one of eight, the turns lie far apart.

    Most rows are short, conversations need not be: so the model sees distances up to the context.
    """
    positions = np.arange(len(turns))
    if rng.random() < 0.125 and turns[-1] > 0:
        room = tokens.CONTEXT - len(turns)
        positions += np.sort(rng.integers(0, room + 1, turns[-1] + 1))[turns]
    return positions


def schedule(progress: float, step: int, warmup: int) -> float:
    """Linear warm-up, flat, then linear to zero over the last half."""
    return min((step + 1) / warmup, 1.0) * min(1.0, 2 * (1 - progress))


def run(
    net: network.Network, tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int,
    every: tuple[int, Callable[[int], None]] | None = None, compiled: bool = True,
    log: Callable[[str], None] | None = None,
) -> int:  # fmt: skip
    """Train `net` in place through one stage and return the number of tokens seen."""
    device = next(net.parameters()).device
    opt = optim.Muon(net)
    forward = compiled_or_not(net, stage) if compiled else net
    step, begin, mean = 0, time.monotonic(), 0.0

    def progress() -> float:
        return step / stage.steps

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"), TimeRemainingColumn(),
    )  # fmt: skip
    with bar:
        job = bar.add_task(stage.name, total=stage.until, loss=0.0, speed=0.0)
        source = batches(tokenizer, stage, seed, progress)
        while (now := progress()) < stage.until:
            batch = {k: v.to(device) for k, v in next(source).items()}
            loss = forward(**batch)
            loss.backward()
            opt.step(stage.lr * schedule(now, step, stage.warmup))
            step += 1
            mean = loss.item() if step == 1 else 0.97 * mean + 0.03 * loss.item()
            speed = step * stage.rows * stage.row / (time.monotonic() - begin)
            bar.update(job, completed=now, loss=mean, speed=speed)
            if log and step % 50 == 0:
                log(f"{stage.name} step {step} {now:.3f} loss {mean:.4f} {speed:,.0f} tokens/s")
            if every and step % every[0] == 0:
                every[1](step)
    return step * stage.rows * stage.row


def compiled_or_not(net: network.Network, stage: Stage) -> Callable[..., Tensor]:
    """The compiled network where a compiler works, else the network itself (slower, the same)."""
    fast = torch.compile(net, dynamic=False)
    device = next(net.parameters()).device
    blank = torch.zeros(stage.rows, stage.row, dtype=torch.long, device=device)
    try:
        fast(blank, blank, blank, blank, blank.float() + 1.0).backward()
    except Exception as error:  # no C++ compiler here
        print(f"not compiled, training will be slower: {type(error).__name__}")
        fast = net
    for p in net.parameters():
        p.grad = None
    return fast


def save(net: network.Network, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a transformers model directory in bfloat16, greedy by default."""
    model = network.to_llama(net).to(torch.bfloat16)
    g = model.generation_config
    g.do_sample, g.max_new_tokens = False, 64
    g.eos_token_id, g.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(out, max_shard_size="9MB")
    tokenizer.save_pretrained(out)
