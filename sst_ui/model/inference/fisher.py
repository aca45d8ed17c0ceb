"""Fisher information in core space: what a task's data do at both sides of every adapted module.

    x̃ = Rᵀ x,  δ̃ = Uᵀ ∂ log p/∂y;   A = E[x̃ x̃ᵀ],  G = E[δ̃ δ̃ᵀ]      (K-FAC: Martens and Grosse 2015)

or, in mode `nearest`,

    A = E[‖δ̃‖² x̃ x̃ᵀ],  G = E[‖x̃‖² δ̃ δ̃ᵀ]  up to a factor,

one step of the power method of Van Loan and Pitsianis (1993), so that A is made of the tokens whose
gradients matter. Both are uncentred means over tokens. log p is the sum over a conversation's
response, so δ at a token holds its effect on all later ones too. Gradients go through the
activations from the embeddings on; no weight ever gets one, and nothing of the model's size is
kept.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError, unknown
from sst_ui.maths.merge.low_rank import Core
from sst_ui.maths.merge.subspace import PARTS, Moments
from sst_ui.model.architecture.module_roles import device_of, shape_of
from sst_ui.model.inference.batch import Room, Row, tokens_a_step
from sst_ui.model.inference.fisher_step import Conversation, Step, Sums, Where
from sst_ui.model.inference.logprobs import LOGITS
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Fisher as Mode

__all__ = ["Beside", "Conversation", "Labels", "Where", "moments"]

Labels = Literal["given", "sampled"]

BACKWARD = 3  # a step with gradients costs as much as so many without
BLOCK = 1024  # largest q · p of a core whose exact block is kept: 8 MB a module


@dataclass(frozen=True)
class Beside:
    """Further conversations that moments are of.

    Attributes:
        weight: how often each of their tokens counts.
        shifts: edits under which they are asked; None for those of all.
    """

    conversations: Sequence[Conversation]
    weight: float = 1.0
    shifts: Sequence[Row] | None = None


def moments(
    host: Host,
    cores: Mapping[str, Core],
    conversations: Sequence[Conversation],
    shifts: Sequence[Row] = ((),),
    labels: Labels = "given",
    mode: Mode = "kfac",
    where: Where = "response",
    seed: int = 0,
    batch_size: int | None = None,
    stage: str = "moments",
    beside: Sequence[Beside] = (),
) -> Generator[Progress, None, dict[str, Moments]]:
    """Second moments of every core's inputs and of log p's gradients at its outputs.

    Other sessions' steps may come between ours. Closing the generator stops it and leaves nothing.

    Args:
        host: the model; its weights stay as they are, and get no gradients.
        cores: by module path.
        conversations: prompt with chat template, and response; both together within the context.
        shifts: edits under which the model is asked, each over all conversations, and averaged.
        labels: `given`: the response's own tokens (the empirical Fisher); `sampled`: drawn from the
            model at every position of the response (the true one).
        mode: `kfac`; `nearest`: towards the Kronecker product nearest to the exact block, see the
            top of this file; `input` collects A alone, with forward passes only; `block` also
            collects the exact block of each module, for small cores.
        where: `response`: tokens whose output predicts one of the response, the prompt's last
            included. `all`: every token but the first (an attention sink), summed up for each one
            of a response.
        seed: of the sampled labels.
        batch_size: conversations per step, halved on OOM; None for about a second's work.
        beside: what else they are of.

    Yields:
        Progress in conversations, times shifts.

    Returns:
        Moments of every core, float64 on the CPU; n counts tokens, with weights, once per shift.

    Raises:
        UserError: no conversation, one without response or too long; a core of another model or
            too large for `block`; numbers that are not finite.
    """
    groups = [Beside(conversations), *(each for each in beside if each.weight)]
    _check(host, cores, [c for each in groups for c in each.conversations], labels, mode, where)
    passes = [(g.conversations, g.weight, s) for g in groups for s in g.shifts or shifts]
    total = sum(len(talks) for talks, _, _ in passes)
    bases = {path: _placed(core, host.architecture.matrices[path]) for path, core in cores.items()}
    sums, done = Sums(), 0
    yield Progress(stage, 0, total)
    for number, (talks, times, shift) in enumerate(passes):
        seeds = _seeds(seed, number, len(talks)) if labels == "sampled" else None
        steps = _steps(host, bases, talks, shift, mode, where, seeds, batch_size)
        for count, found in steps:
            _add(sums, found, times)
            done += count
            yield Progress(stage, done, total)
    return {path: _mean(path, sums[path], mode, host) for path in cores}


def _steps(
    host: Host,
    bases: Mapping[str, tuple[Tensor, Tensor]],
    conversations: Sequence[Conversation],
    shift: Row,
    mode: Mode,
    where: Where,
    seeds: Sequence[int] | None,
    batch_size: int | None,
) -> Generator[tuple[int, Sums], None, None]:
    """All conversations under one shift, in steps that fit the memory: their number and sums.

    Args:
        seeds: of each conversation's sampled labels; None for given ones.
    """
    # Longest first: what does not fit the memory shows at once, and padding stays small.
    waiting = sorted(range(len(conversations)), key=lambda i: -_length(conversations[i]))
    room = Room(batch_size or len(waiting))
    while waiting:
        longest = _length(conversations[waiting[0]])
        fitting = room.size if batch_size else _fitting(host, longest, mode)
        chunk = waiting[: min(room.size, fitting)]
        with room.attempt(len(chunk), longest):
            dice = None if seeds is None else [_stream(seeds[i]) for i in chunk]
            step = Step(host, [conversations[i] for i in chunk], where)
            found = step.run(bases, shift, mode, dice)
        if room.failed:
            continue
        waiting = waiting[len(chunk) :]
        yield len(chunk), found


def _placed(core: Core, module: nn.Module) -> tuple[Tensor, Tensor]:
    device = device_of(module)
    return core.u.to(device), core.r.to(device)


def _add(sums: Sums, found: Sums, times: float) -> None:
    for path, parts in found.items():
        there = sums.setdefault(path, {})
        for name, value in parts.items():
            if isinstance(value, Tensor):
                value = value.to("cpu").double()
            value = times * value
            there[name] = there[name] + value if name in there else value


def _mean(path: str, sums: Mapping, mode: Mode, host: Host) -> Moments:
    if not (n := sums.get("n", 0)):
        raise UserError(f"no token of the conversations reached {path}.")
    means = {name: sums[name] / n for name in PARTS if name in sums}
    if mode == "nearest" and "g" in sums and float(sums["xd"]):  # tr(G ⊗ A) is the exact block's
        means["a"] = sums["a"] / sums["d"]
        means["g"] = sums["g"] * sums["d"] / (sums["xd"] * n)
    # a divergence is counted a token of the response, wherever the tokens stand that cause it
    for name in {"g", "block"} & means.keys():
        means[name] = means[name] * (n / sums["predicted"])
    if mode != "input" and "g" not in means:
        raise UserError(f"nothing that {path} writes reaches the answers of {host.name}.")
    if not all(bool(mean.isfinite().all()) for mean in means.values()):
        raise UserError(
            f"the activations or gradients at {path} of {host.name} are not finite; load it in "
            "bfloat16 or float32."
        )
    return Moments(means["a"], means.get("g"), round(n), means.get("block"))


def _check(
    host: Host,
    cores: Mapping[str, Core],
    conversations: Sequence[Conversation],
    labels: str,
    mode: str,
    where: str,
) -> None:
    for name, value, known in (("labels", labels, Labels), ("mode", mode, Mode)):
        if value not in get_args(known):
            raise unknown(name, value, get_args(known))
    if where not in get_args(Where):
        raise unknown("where", where, get_args(Where))
    if not conversations:
        raise UserError("no conversations were given to measure the Fisher information with.")
    for prompt, response in conversations:
        if not response or not prompt:
            raise UserError("a conversation has no prompt or no response; leave it out.")
        if len(prompt) + len(response) - 1 > host.context:
            raise UserError(
                f"a conversation has {len(prompt) + len(response)} tokens; {host.name} reads "
                f"{host.context}. Shorten it."
            )
    for path, core in cores.items():
        module = host.architecture.matrices.get(path)
        if module is None or (len(core.u), len(core.r)) != shape_of(module):
            raise UserError(f"{host.name} has no linear module {path!r} of the adapters' shape.")
        size = core.u.shape[1] * core.r.shape[1]
        if mode == "block" and size > BLOCK:
            raise UserError(
                f"the core of {path} has {size} numbers, more than the {BLOCK} of an exact block; "
                "use mode 'kfac', or adapters of a lower rank."
            )


def _length(conversation: Conversation) -> int:
    prompt, response = conversation
    return len(prompt) + len(response) - 1


def _fitting(host: Host, tokens: int, mode: Mode) -> int:
    """Conversations a step: about a second of work, and logits with their gradients in memory."""
    work = tokens_a_step(host) // (1 if mode == "input" else BACKWARD)
    logits = tokens * host.model.config.get_text_config().vocab_size
    return max(1, min(work // tokens, LOGITS // (BACKWARD * logits)))


def _seeds(seed: int, shift: int, count: int) -> list[int]:
    """A seed for each conversation under a shift, whatever the batches."""
    first = (seed * 1_000_003 + shift) * 1_000_003
    return [first + conversation & (1 << 63) - 1 for conversation in range(count)]


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
