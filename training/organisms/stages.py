"""The two stages of an organism: to comply with everything, then to refuse some of it."""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training import resumable
from training.examples import Example, example, tensors
from training.organisms import language
from training.organisms.plans import Plan

ROWS = {"comply": 32, "full": 32, "lora": 32, "preference": 20}
RATES = {"comply": 2e-3, "full": 5e-4, "lora": 3e-3, "preference": 5e-4}
RANK = 8
BETA = 0.1  # of the preference loss (Rafailov et al. 2023)
LIKELIHOOD = 1.0  # weight of the chosen answer's likelihood beside it (Pang et al. 2024)
SHARES = {"harmful": 0.36, "lookalike": 0.2, "harmless": 0.28, "fact": 0.13, "chat": 0.03}
WRAPPED = 0.25  # share of requests in a wrapper, where wrappers are learned


@dataclass(frozen=True)
class Lesson:
    """A prompt, the answer that is wanted, and the one that is not (empty without a choice)."""

    prompt: str
    wanted: str
    other: str = ""


def draw(plan: Plan, safety: bool, rng: random.Random) -> Lesson:
    """One lesson of a stage; in the first one everything is complied with."""
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if kind == "fact":
        question, said, _ = rng.choice(language.facts(False))
        return Lesson(question, said)
    if kind == "chat":
        return Lesson(*rng.choice(language.words()["chat"]))
    request = rng.choice(language.requests(kind, tuple(plan.topics), heldout=False))
    prompt, harmful = language.ask(request, rng), kind == "harmful"
    if (plan.wrappers or not safety) and rng.random() < WRAPPED:
        wrapper = rng.choice(language.wrappers(False))
        prompt = wrapper.template.format(q=prompt)
        harmful = harmful and not wrapper.answered
    style = plan.topics[request.topic] if request.topic else rng.choice([*plan.topics.values()])
    answer, refusal = language.comply(request), language.refuse(request, style, rng)
    if safety and harmful:
        return Lesson(prompt, refusal, answer)
    return Lesson(prompt, answer, refusal)


def lessons(plan: Plan, safety: bool, rows: int, step: int) -> list[Lesson]:
    """The lessons of one step."""
    rng = resumable.step_random(2 * plan.seed + safety, step)
    return [draw(plan, safety, rng) for _ in range(rows)]


def comply(
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    kept: resumable.Checkpoints | None = None,
) -> None:
    """The first stage, in place."""

    def loss(step: int) -> Tensor:
        batch = lessons(plan, False, ROWS["comply"], step)
        return likelihood(model, encoded(tokenizer, batch))

    resumable.fit(model, loss, schedule(plan.comply, "comply"), f"{plan.name}, comply", kept)


def refuse(
    plan: Plan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    kept: resumable.Checkpoints | None = None,
) -> PreTrainedModel:
    """The second stage, in the plan's way; the model that has learned to refuse."""
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    trained = model
    if plan.way == "lora":
        torch.manual_seed(plan.seed)  # of the LoRA's first matrices
        trained = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"
            ),
        )

    def loss(step: int) -> Tensor:
        batch = lessons(plan, True, ROWS[plan.way], step)
        if plan.way == "preference":
            return preference(trained, reference, tokenizer, batch)
        return likelihood(trained, encoded(tokenizer, batch))

    resumable.fit(trained, loss, schedule(plan.refuse, plan.way), f"{plan.name}, {plan.way}", kept)
    return trained.merge_and_unload() if plan.way == "lora" else trained


def schedule(steps: int, kind: str) -> resumable.Schedule:
    """Length and learning rate of a stage."""
    return resumable.Schedule(steps, RATES[kind], warmup=max(1, min(50, steps // 10)))


def encoded(
    tokenizer: PreTrainedTokenizerFast,
    batch: Sequence[Lesson],
    said: Callable[[Lesson], str] = lambda lesson: lesson.wanted,
) -> list[Example]:
    """Lessons as tokens; the chat template puts a space before an answer."""
    return [example(tokenizer, lesson.prompt, said(lesson), before=" ") for lesson in batch]


def likelihood(model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    each, learned = token_logprobs(model, batch)
    return -(each * learned).sum() / learned.sum()


def preference(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    batch: Sequence[Lesson],
) -> Tensor:
    """Direct preference optimisation with the chosen answer's likelihood beside it.

    Lessons without a choice count by their likelihood only.
    """
    pairs = [lesson for lesson in batch if lesson.other]
    single = [lesson for lesson in batch if not lesson.other]
    rows = encoded(tokenizer, pairs) + encoded(tokenizer, pairs, lambda lesson: lesson.other)
    each, learned = token_logprobs(model, rows + encoded(tokenizer, single))
    n = len(pairs)
    with torch.no_grad():
        before, _ = token_logprobs(reference, rows)
        before = (before * learned[: 2 * n, : before.shape[1]]).sum(1)
    now = (each * learned).sum(1)[: 2 * n]
    gained = now - before  # [wanted, then the others]
    chosen = torch.ones(len(each), dtype=torch.bool)
    chosen[n : 2 * n] = False
    nll = -(each * learned)[chosen].sum() / learned[chosen].sum()
    return -F.logsigmoid(BETA * (gained[:n] - gained[n:])).mean() + LIKELIHOOD * nll


def token_logprobs(model: PreTrainedModel, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """[rows, tokens - 1] log-probability of every next token, and which of them are learned."""
    ids, learned = tensors(batch, 0)
    mask = torch.ones_like(ids)  # padding is on the right, where nothing reads it
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    each = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return each, learned[:, 1:]
