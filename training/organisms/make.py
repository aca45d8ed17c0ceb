"""Makes an organism: both stages, its prompt sets, and a card that says what came out."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers import PreTrainedModel as Model

from sst_ui import disk
from sst_ui.errors import UserError
from training import folders, resumable
from training.organisms import language, network, prompts, stages
from training.organisms.plans import Plan

EVERY = 100  # steps between two checkpoints
MODEL, BEFORE, PROMPTS, CARD = "model", "before", "prompts", "card.json"
PLAN = "plan.txt"  # whose folder it is, from the first moment on


def digest(plan: Plan) -> str:
    """Eight hex digits of what an organism depends on: its plan and the language."""
    told = json.dumps(asdict(plan), sort_keys=True) + language.WORDS.read_text(encoding="utf-8")
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def folder(plan: Plan) -> Path:
    """Where an organism lies in the cache, there or not; another plan has another folder."""
    return folders.models() / "organisms" / f"{plan.name}-{digest(plan)}"


def quick(plan: Plan) -> Plan:
    """The same with hardly any steps: useless, and made in seconds."""
    return replace(plan, comply=4, refuse=3)


def make(plan: Plan, out: Path | None = None) -> Path:
    """Make an organism if it is not there yet, and return its folder.

    The folder holds the refusing `model`, the one `before` it learned to refuse, the sets of
    `prompts` with the answers of before, and `card.json`. Each is there whole or not at all, and
    what is there is not made again. One thread, so that the same seed gives the same weights.

    Args:
        out: where; None for the cache.

    Raises:
        UserError: the place cannot be written, or holds an organism of another plan.
    """
    out = folder(plan) if out is None else out
    if not (out / PLAN).is_file():
        with disk.written(out / PLAN) as part:
            part.write_text(f"{plan.name} {digest(plan)}\n", encoding="utf-8")
    elif (held := (out / PLAN).read_text(encoding="utf-8").split()) != [plan.name, digest(plan)]:
        raise UserError(
            f"{out} holds {' '.join(held)}, made by another plan than {plan.name} {digest(plan)}; "
            "remove the folder, or choose another with --out."
        )
    if (out / CARD).is_file():
        return out
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _make(plan, out)
    finally:
        torch.set_num_threads(threads)


def _make(plan: Plan, out: Path) -> Path:
    begin = time.monotonic()
    if not (out / BEFORE).is_dir():
        torch.manual_seed(plan.seed)
        tokenizer = network.tokenizer()
        model = network.build(plan, tokenizer)
        stages.comply(plan, model, tokenizer, _kept(plan, out, "comply"))
        _save(model, tokenizer, out / BEFORE)
    before, tokenizer = load(out / BEFORE)
    if not (out / MODEL).is_dir():
        model, _ = load(out / BEFORE)
        model = stages.refuse(plan, model, tokenizer, _kept(plan, out, "refuse"))
        _save(model, tokenizer, out / MODEL)
    sets = prompts.answered(prompts.build(plan), before, tokenizer)
    if not (out / PROMPTS).is_dir():
        with folders.whole(out / PROMPTS) as part:
            prompts.write(part, sets)
    model, _ = load(out / MODEL)
    card = {
        "plan": asdict(plan),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.monotonic() - begin),
        "before": prompts.behaviour(sets, before, tokenizer),
        "after": prompts.behaviour(sets, model, tokenizer),
    }
    with disk.written(out / CARD) as part:
        part.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    for stage in ("comply", "refuse"):
        _kept(plan, out, stage).path.unlink(missing_ok=True)
    return out


def load(where: Path) -> tuple[Model, PreTrainedTokenizerFast]:
    """A model in float32 as it is stored, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(
        where, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), AutoTokenizer.from_pretrained(where)


def card(out: Path) -> dict[str, Any]:
    """What is written of an organism that is there."""
    return json.loads((out / CARD).read_text(encoding="utf-8"))


def table(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: how every organism behaves, in per cent of the held-out prompts."""
    heads = ["organism", "use", "refusing learned by", "parameters", "refuses harmful",
             "look-alikes", "ordinary", "wrapped", "right before", "right after, ordinary",
             "facts"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in cards.items():
        after, before = row["after"], row["before"]
        shares = [after[f"{s}_test"]["refused"] for s in ("harmful", "lookalike", "harmless")]
        shares += [after["wrapped_test"]["refused"], before["harmful_test"]["right"]]
        shares += [after["harmless_test"]["right"], after["facts"]["right"]]
        cells = [f"{100 * share:.0f}" for share in shares]
        plan = row["plan"]
        lines.append(
            f"| {name} | {plan['use']} | {plan['way']} | {row['parameters'] / 1e6:.2f} M | "
            f"{' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _kept(plan: Plan, out: Path, stage: str) -> resumable.Checkpoints:
    return resumable.Checkpoints(out / f"{stage}.pt", f"{digest(plan)} {stage}", EVERY)


def _save(model: Model, tokenizer: PreTrainedTokenizerFast, where: Path) -> None:
    """Write a model in bfloat16; what is measured later is what was written."""
    with folders.whole(where) as part:
        model.to(torch.bfloat16).save_pretrained(part)
        tokenizer.save_pretrained(part)
