"""Rows of different length in one batch: padding, positions and the forward call."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.model.hooks.live_edits import Edit, Plan
from sst_ui.model.runtime.host import Host

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

log = logging.getLogger(__name__)
Row = tuple[Edit, ...]  # the edits of one row; empty: the base model

# Nobody waits long for a turn: floating point operations of about a second on a small machine and
# on an accelerator, to be divided by the parameters, and bounds on the tokens that come out.
WORK = {"cpu": 1e11, "other": 1e14}
TOKENS = (64, 8192)


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts: `ids` and `mask` are [rows, length] int64, mask 1 at real tokens."""

    ids: Tensor
    mask: Tensor

    @property
    def positions(self) -> Tensor:
        """[rows, length] position of each token within its own row; padding counts as 0."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)


def left_padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> Batch:
    """Put prompts into one batch so that they all end in the last column."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, length - len(prompt) :] = 1
    return Batch(ids.to(device), mask.to(device))


def below(first: Batch, second: Batch, pad: int) -> Batch:
    """The rows of both, those of the shorter one padded on the left."""
    length = max(first.ids.shape[1], second.ids.shape[1])

    def wide(x: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(x, (length - x.shape[1], 0), value=value)

    return Batch(
        torch.cat([wide(first.ids, pad), wide(second.ids, pad)]),
        torch.cat([wide(first.mask, 0), wide(second.mask, 0)]),
    )


def rows_for(prompts: Sequence[Sequence[int]], rows: Sequence[Row] | None) -> list[Row]:
    """One row of edits per prompt; None means the base model throughout."""
    if rows is None:
        return [()] * len(prompts)
    if len(rows) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many rows of edits, not {len(rows)}")
    return list(rows)


def forward(
    host: Host,
    batch: Batch,
    plan: Plan | None,
    keep: int,
    cache: "Cache | None" = None,
    new: int | None = None,
) -> Tensor:
    """One forward pass, in turn with everyone else.

    Args:
        batch: all tokens so far; with a cache only the last `new` columns are computed.
        plan: the compiled edits of these rows.
        keep: number of last positions to return logits for.

    Returns:
        [rows, keep, vocabulary] logits in the model's dtype.

    Raises:
        UserError: a row is longer than the context.
    """
    inputs = arguments(host, batch, keep, new)
    with host.step(plan), torch.inference_mode():
        logits = host.model(**inputs, past_key_values=cache, use_cache=cache is not None).logits
    return logits[:, -keep:]


def arguments(host: Host, batch: Batch, keep: int, new: int | None = None) -> dict[str, Any]:
    """What the model is called with, see `forward`.

    Raises:
        UserError: a row is longer than the context.
    """
    if batch.ids.shape[1] > host.context and int(batch.mask.sum(-1).max()) > host.context:
        raise UserError(
            f"{int(batch.mask.sum(-1).max())} tokens do not fit the {host.context} of {host.name}."
        )
    columns = slice(-new if new else None, None)
    inputs: dict[str, Tensor | int] = {
        "input_ids": batch.ids[:, columns],
        "attention_mask": batch.mask,
    }
    accepted = _accepted(host.model.__class__)
    if "position_ids" in accepted:  # otherwise the model derives them from the mask
        inputs["position_ids"] = batch.positions[:, columns]
    if "logits_to_keep" in accepted:  # saves [rows, length, vocabulary] floats in the prefill
        inputs["logits_to_keep"] = keep
    return inputs


def tokens_a_step(host: Host, most: int = TOKENS[1]) -> int:
    """Padded tokens to compute in one turn: by the model's size, not by timing, so that results of
    a job do not depend on what else the machine does."""
    work = WORK["cpu" if host.device.type == "cpu" else "other"]
    return int(min(max(work / max(host.parameters, 1), TOKENS[0]), most))


def out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; MPS and the CPU allocator only a message."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error).lower() for word in words
    )


def too_little_memory(tokens: int) -> UserError:
    """The error where not even one prompt of so many tokens fits."""
    return UserError(
        f"a prompt of {tokens} tokens does not fit the memory; use a shorter one, or load the "
        "model quantised."
    )


def smaller(rows: int, now: int) -> str:
    """What is said where `rows` did not fit the memory and `now` are tried at a time."""
    return (
        f"{rows} texts at a time do not fit the memory; going on with {now} at a time, which takes "
        "longer."
    )


class Room:
    """How many rows fit the memory: a step that does not is given up, and the next takes half.

    Attributes:
        size: most rows to try at a time.
        failed: whether the last attempt did not fit. Ask only behind the `with`, where the failed
            step's tensors are free.
        said: what to tell about that.
    """

    def __init__(self, size: int) -> None:
        self.size, self.failed, self.said = size, False, ""

    @contextmanager
    def attempt(self, rows: int, tokens: int) -> Iterator[None]:
        """One step over `rows` rows of up to `tokens` tokens.

        Raises:
            UserError: not even one row fits.
        """
        self.failed = False
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if rows == 1:
                raise too_little_memory(tokens) from error
            self.failed, self.size = True, (rows + 1) // 2
            self.said = smaller(rows, self.size)
            log.info("%s", self.said)
        if self.failed and torch.cuda.is_available():
            torch.cuda.empty_cache()


@lru_cache
def _accepted(model: type["PreTrainedModel"]) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)
