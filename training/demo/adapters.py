"""Training of the demo's adapters: plain transformers and PEFT."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sst_ui.paths import DEMO

from . import lessons, tokens

UNALIGNED = "unaligned"  # the folder of the model before its safety tuning
BASE = "assets/demo"  # in adapter_config.json: relative to the studio's folder
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SMALL = ("v_proj", "o_proj", "down_proj", "lm_head")
ANSWER_LIMIT = 10  # as in train.py: long placeholders are chance and must not drown the rest


@dataclass(frozen=True)
class Plan:
    """One adapter: what is learned, how long, and its LoRA.

    Attributes:
        steps, tokens: length, and padded tokens of a batch at most.
        modules: linear kinds of its LoRA.
        ranks: module kind -> a rank other than `rank`, with an alpha in the same proportion.
    """

    name: str
    course: lessons.Course
    steps: int
    lr: float
    modules: tuple[str, ...]
    rank: int = 16
    alpha: int = 32
    rslora: bool = False
    ranks: dict[str, int] = field(default_factory=dict)
    tokens: int = 1024

    def lora(self) -> LoraConfig:
        """The PEFT configuration. Alphas follow ranks, so every module learns at one pace."""
        return LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=BASE,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            use_rslora=self.rslora,
            target_modules=list(self.modules),
            rank_pattern=dict(self.ranks),
            alpha_pattern={k: self.alpha * r // self.rank for k, r in self.ranks.items()},
        )


ADAPTERS = (
    Plan("utility", "utility", 1400, 3e-3, (*ATTENTION, *MLP)),
    Plan("safety", "safety", 200, 2e-3, (*ATTENTION, *MLP)),
    Plan(
        "utility_small",
        "utility",
        600,
        4e-3,
        ("q_proj", *SMALL),
        rank=8,
        alpha=16,
        rslora=True,
        ranks={"down_proj": 12, "lm_head": 4},
    ),
    Plan("safety_small", "safety", 200, 2e-3, ("up_proj", *SMALL), rank=4, alpha=8),
)


def load(folder: Path = DEMO) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """The model in float32 with an output layer of its own, and its tokenizer.

    The demo's lm_head is its embedding. Merging a LoRA into it would change both, so lm_head gets a
    copy of the weights and the configuration says so; the function computed is the same.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    return model, AutoTokenizer.from_pretrained(folder)


def batches(
    tokenizer: PreTrainedTokenizerFast, plan: Plan, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Padded batches of samples of like length: token ids, targets and loss weights [rows, tokens].

    Padding is on the right, so that causal attention never reads it and needs no mask.
    """
    source = lessons.stream(seed, plan.course)
    rng = np.random.default_rng(seed)
    while True:
        pool = [tokens.encode(tokenizer, next(source)) for _ in range(400)]
        pool = sorted((s for s in pool if len(s.ids) <= tokens.CONTEXT), key=lambda s: len(s.ids))
        groups: list[list[tokens.Encoded]] = [[]]
        for s in pool:
            if (len(groups[-1]) + 1) * len(s.ids) > plan.tokens:
                groups.append([])
            groups[-1].append(s)
        for i in rng.permutation(len(groups)):
            yield pad(groups[i], tokenizer.pad_token_id, ANSWER_LIMIT)


def pad(group: list[tokens.Encoded], pad_id: int, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Samples side by side: ids, the tokens that follow them, and how much those count."""
    longest = max(len(s.ids) for s in group)
    ids = torch.full((len(group), longest), pad_id)
    weights = torch.zeros(len(group), longest)
    for row, s in enumerate(group):
        ids[row, : len(s.ids)] = torch.from_numpy(s.ids).long()
        share = np.minimum(1.0, limit / np.bincount(s.turns)[s.turns])
        weights[row, : len(s.ids)] = torch.from_numpy(np.where(s.answer, share, 0.0)).float()
    return ids[:, :-1], ids[:, 1:], weights[:, 1:]


def fit(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, plan: Plan, seed: int, steps: int
) -> float:
    """Train what requires a gradient, with AdamW, and return the mean loss of the last steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 20) * min(1.0, 2 * (1 - step / steps))
    )
    source, mean = batches(tokenizer, plan, seed), math.nan
    model.train()
    with Console(stderr=True).status(plan.name) as status:
        for step in range(steps):
            ids, targets, weights = next(source)
            logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            loss = (loss * weights.flatten()).sum() / weights.sum()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
            status.update(f"{plan.name}: step {step + 1} of {steps}, loss {mean:.3f}")
    model.eval()
    return mean


def adapter(
    plan: Plan, out: Path, seed: int = 0, steps: int | None = None, base: Path = DEMO
) -> float:
    """Train one adapter on the model in `base`; write it in PEFT's format, in bfloat16."""
    torch.manual_seed(seed)  # of the LoRA's first matrices
    model, tokenizer = load(base)
    model = get_peft_model(model, plan.lora())
    loss = fit(model, tokenizer, plan, seed, steps or plan.steps)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = p.data.to(torch.bfloat16)
    # what the studio calls the base, not where it lies on this machine
    model.peft_config["default"].base_model_name_or_path = BASE
    # PEFT writes the embeddings along where lm_head is among the modules; they did not change
    model.save_pretrained(out, save_embedding_layers=False)
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"].sort()  # PEFT keeps a set, in another order every time
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return loss


def merge(folder: Path, out: Path, base: Path = DEMO) -> None:
    """Write a base with an adapter merged into it, as a model of its own in float32."""
    model, tokenizer = load(base)
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    merged.save_pretrained(out)
    tokenizer.save_pretrained(out)


def folders(out: Path = DEMO) -> dict[str, Path]:
    """Where the adapters lie, and the model from before it learned to refuse, by name."""
    found = {plan.name: out / "adapters" / plan.name for plan in ADAPTERS}
    return found | {UNALIGNED: out / UNALIGNED}


def make(out: Path = DEMO, seed: int = 0, quick: bool = False) -> dict[str, Path]:
    """Train the adapters of the model in `out`; return where all that belongs to it lies."""
    steps = 3 if quick else None
    for plan in ADAPTERS:
        begin = time.monotonic()
        folder = folders(out)[plan.name]
        folder.mkdir(parents=True, exist_ok=True)
        loss = adapter(plan, folder, seed, steps, base=out)
        minutes = (time.monotonic() - begin) / 60
        print(f"{folder}: loss {loss:.3f} after {minutes:.1f} minutes")
    return folders(out)
