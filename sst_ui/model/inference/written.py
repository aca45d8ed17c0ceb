"""What the writers write on average over some texts: one forward pass, no weight is read."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.model.architecture.module_roles import Writer
from sst_ui.model.hooks.row_plan import by_rows, stream_of
from sst_ui.model.inference.batch import Batch, Room, arguments, left_padded, tokens_a_step
from sst_ui.model.inference.fisher_step import SINKS
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import KINDS


def written_means(
    host: Host, texts: Sequence[Sequence[int]], stage: str = "written"
) -> Generator[Progress, None, Tensor]:
    """The mean of what attention and MLP of each layer write, before any norm behind them.

    Every token counts alike, except the first of each text, at which every head looks whatever it
    says. Other sessions' steps may come between ours.

    Args:
        texts: token lists of prompts and what follows them.

    Yields:
        Progress in texts.

    Returns:
        [L, len(KINDS), d] float32 on the CPU, summed in float64.

    Raises:
        UserError: no text, or one that is too long; numbers that are not finite.
    """
    for text in texts:
        if not SINKS < len(text) <= host.context:
            raise UserError(
                f"a prompt has {len(text)} tokens with its answer; {host.name} reads "
                f"{SINKS + 1} to {host.context}."
            )
    total = torch.zeros(host.layers, len(KINDS), host.hidden, dtype=torch.float64)
    tokens = 0
    waiting = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    room = Room(max(1, len(texts)))
    yield Progress(stage, 0, len(texts))
    while waiting:
        longest = len(texts[waiting[0]])
        chunk = waiting[: min(room.size, max(1, tokens_a_step(host) // longest))]
        with room.attempt(len(chunk), longest):
            batch = left_padded([texts[i] for i in chunk], host.pad, host.device)
            part, count = _sums(host, batch)
        if room.failed:
            continue
        total, tokens = total + part, tokens + count
        waiting = waiting[len(chunk) :]
        yield Progress(stage, len(texts) - len(waiting), len(texts))
    if not tokens:
        raise UserError("no prompts were given to measure what the modules write.")
    if not bool(total.isfinite().all()):
        raise UserError(
            f"what the modules of {host.name} write is not finite; load the model as bfloat16 or "
            "float32."
        )
    return (total / tokens).float()


def _sums(host: Host, batch: Batch) -> tuple[Tensor, int]:
    """([L, kinds, d] float64 sums of what is written, tokens counted) of one forward pass."""
    counted = batch.mask.bool() & (batch.positions >= SINKS)  # [rows, length]
    sums = torch.zeros(host.layers, len(KINDS), host.hidden, dtype=torch.float64)

    def hook(writer: Writer) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            y = by_rows(stream_of(output).detach(), len(batch.ids))
            chosen = y[counted.to(y.device)].to("cpu", torch.float64)
            sums[writer.layer, KINDS.index(writer.role)] += chosen.sum(0)

        return keep

    # Our hooks exist in our own turn only: nobody else's forward pass can meet them.
    with host.step(), torch.inference_mode(), ExitStack() as stack:
        for writer in host.architecture.writers:
            stack.callback(writer.module.register_forward_hook(hook(writer)).remove)
        host.model(**arguments(host, batch, 1), use_cache=False)
    return sums, int(counted.sum())
