"""Where a module's inputs lie: an orthonormal basis of the directions of most energy.

A module that reads no more numbers than there shall be directions gets the identity, and costs
nothing; for the others the range of XᵀΩ is found as data stream by (Halko et al. 2011), [in, m]
numbers per module.
"""

from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sst_ui.model.architecture.module_roles import shape_of
from sst_ui.model.hooks.row_plan import by_rows
from sst_ui.model.inference.batch import Room, Row, tokens_a_step
from sst_ui.model.inference.fisher_step import Conversation, Step
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress


def input_directions(
    host: Host,
    paths: Sequence[str],
    conversations: Sequence[Conversation],
    shift: Row,
    count: int,
    seed: int = 0,
    stage: str = "inputs",
) -> Generator[Progress, None, dict[str, Tensor]]:
    """Directions of each module's input in which it has most energy on these conversations.

    Args:
        shift: edits under which the model computes.
        count: directions of a module at most.

    Returns:
        path -> [in, m] orthonormal float32 on the CPU, m = min(count, in).
    """
    sizes = {path: shape_of(host.architecture.matrices[path])[1] for path in paths}
    found = {path: torch.eye(size) for path, size in sizes.items() if size <= count}
    wanted = [path for path in paths if path not in found]
    if not wanted or not count:
        return {path: found.get(path, torch.zeros(sizes[path], 0)) for path in paths}
    sketches: dict[str, Tensor] = {}
    die = torch.Generator().manual_seed(seed)
    waiting = sorted(range(len(conversations)), key=lambda i: -len(conversations[i][0]))
    room, done = Room(len(waiting)), 0
    while waiting:
        longest = sum(map(len, conversations[waiting[0]])) - 1
        chunk = waiting[: min(room.size, max(1, tokens_a_step(host) // longest))]
        with room.attempt(len(chunk), longest):
            step = Step(host, [conversations[i] for i in chunk], "all")
            part = _sketched(host, step, shift, wanted, count, die)
        if room.failed:
            continue
        for path, sketch in part.items():
            sketches[path] = sketches[path] + sketch if path in sketches else sketch
        waiting, done = waiting[len(chunk) :], done + len(chunk)
        yield Progress(stage, done, len(conversations))
    for path, sketch in sketches.items():
        found[path] = torch.linalg.qr(sketch.cpu().double())[0].float()
    return found


def _sketched(
    host: Host, step: Step, shift: Row, paths: Sequence[str], count: int, die: torch.Generator
) -> Mapping[str, Tensor]:
    """XᵀΩ [in, count] of a batch for each module; one Ω for all, fresh for every batch."""
    rows, length = step.batch.ids.shape
    omega = torch.randn(rows, length, count, generator=die).to(host.device)
    sums: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple, output: Tensor) -> None:
            x = by_rows(args[0].detach(), rows)
            width = x.shape[1]  # the head sees the last columns alone
            chosen = step.counted[:, -width:].to(x.device)
            noise = omega[:, -width:].to(x.device)[chosen]
            sums[path] = x[chosen].float().mT @ noise

        return read

    step.watch(shift, {path: hook(path) for path in paths})
    return sums
