"""Residuals of whole prompt sets, kept on disk, and the probe of one conversation.

Another estimator, k, layer or quantile over the same prompts costs no forward pass.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sst_ui import cache
from sst_ui.data.prompt_sets import PromptSet
from sst_ui.errors import UserError
from sst_ui.maths.directions import Directions
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.inference.residuals import instruction_end, residuals
from sst_ui.model.load.chat_template import Message
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Position, digest

LARGEST = 256 << 20  # bytes of one prompt set's residuals that are worth keeping


@dataclass(frozen=True)
class Encoded:
    """A prompt set as the model reads it: tokens, and the position wanted in each (None: last)."""

    prompts: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...] | None


def encode(host: Host, prompts: PromptSet, position: Position) -> Encoded:
    """Prompts through the chat template.

    Raises:
        UserError: a prompt is empty or too long, or the position cannot be found in it.
    """
    conversations = [prompt.messages() for prompt in prompts.prompts]
    for number, prompt in enumerate(prompts.prompts, 1):
        if not prompt.user.strip():
            raise UserError(f"prompt {number} of {prompts.name!r} has no request to measure.")
    tokens = tuple(tuple(host.encode(messages)) for messages in conversations)
    if position == "template":
        return Encoded(tokens, None)
    return Encoded(tokens, tuple(instruction_end(host, m) for m in conversations))


def captured(host: Host, sets: Sequence[Encoded]) -> Generator[Progress, None, list[Tensor]]:
    """Residuals of each set, [n, L, d] float32, from the cache or from the model.

    Yields:
        Progress in prompts over all sets that are not in the cache.
    """
    kept = (_read(host, each) for each in sets)
    found = {i: tensor for i, tensor in enumerate(kept) if tensor is not None}
    missing = [i for i in range(len(sets)) if i not in found]
    total = sum(len(sets[i].prompts) for i in missing)
    before = 0
    for i in missing:
        # One set at a time: whom a prompt shares a batch with moves the last bits of its residual,
        # and a set must give the same numbers whatever else is measured with it.
        job = residuals(host, sets[i].prompts, sets[i].positions)
        tensor = yield from _shifted(job, before, total)
        _write(host, sets[i], tensor)
        found[i] = tensor
        before += len(sets[i].prompts)
    return [found[i] for i in range(len(sets))]


def probe(
    host: Host,
    messages: Sequence[Message],
    directions: Directions,
    edits: Sequence[Edit] = (),
) -> np.ndarray:
    """Where a conversation stands along the main direction, per layer, as the edited model sees it.

    Args:
        messages: a conversation that ends with the user's message.
        edits: the row's edits; none for the base model.

    Returns:
        [L] float64: 0 at the mean of the harmless prompts, 1 at the mean of the harmful ones.

    Raises:
        UserError: directions of another model, or a conversation that is too long.
    """
    check_fits(host, directions, "the directions")
    job = residuals(host, [host.encode(messages)], rows=[tuple(edits)])
    residual = finish(job)[0].double()  # [L, d]
    along = (residual * directions.vectors[:, 0].double()).sum(-1)  # [L]
    distance = directions.norms.double().clamp(min=1e-12)
    return ((along - directions.neutral[:, 0].double()) / distance).numpy()


def check_fits(host: Host, directions: Directions, what: str) -> None:
    """Raise a `UserError` unless the directions have this model's layers and width."""
    if (directions.layers, directions.hidden) != (host.layers, host.hidden):
        raise UserError(
            f"{what} have {directions.layers} layers of {directions.hidden}, but {host.name} has "
            f"{host.layers} layers of {host.hidden}; measure them on this model."
        )


def _shifted(
    job: Generator[Progress, None, Tensor], before: int, total: int
) -> Generator[Progress, None, Tensor]:
    """The same job as one part of a longer one."""
    while True:
        try:
            step = next(job)
        except StopIteration as end:
            return end.value
        yield Progress(step.stage, before + step.done, total, step.note)


def _path(host: Host, encoded: Encoded) -> Path | None:
    """The cache file; None for a model without identity."""
    if not host.digest:
        return None
    key = digest([host.digest, encoded.prompts, encoded.positions])
    return cache.place("residuals", f"{key}.safetensors")


def _read(host: Host, encoded: Encoded) -> Tensor | None:
    path = _path(host, encoded)
    with cache.used(path) as there:
        if path is None or not there:
            return None
        try:
            tensor = load_file(path)["residuals"]
        except (OSError, SafetensorError, KeyError):
            return None  # damaged: measured anew
    shape = (len(encoded.prompts), host.layers, host.hidden)
    return tensor if tensor.shape == shape and tensor.dtype == torch.float32 else None


def _write(host: Host, encoded: Encoded, tensor: Tensor) -> None:
    path = _path(host, encoded)
    if tensor.nbytes <= LARGEST:
        cache.keep(path, lambda part: save_file({"residuals": tensor}, part))
