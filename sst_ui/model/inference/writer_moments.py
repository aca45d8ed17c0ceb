"""What the writers read and write on a set of prompts: the moments that a filtered ablation needs.

Forward passes alone: no weight is read and no gradient taken, so that quantised modules do as well.
"""

from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.maths.filtered import SMALL, Moments, random_columns
from sst_ui.model.architecture.module_roles import device_of, shape_of
from sst_ui.model.hooks.row_plan import by_rows
from sst_ui.model.inference.batch import Room, Row, tokens_a_step
from sst_ui.model.inference.fisher_step import Conversation, Step, Where
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

Sums = dict[str, dict[str, Tensor]]  # path -> name of a sum over tokens -> it
# (inputs [tokens, in], outputs [tokens, out]) of one module -> what is added up of them
Read = Callable[[Tensor, Tensor], dict[str, Tensor]]


def input_sketches(
    host: Host,
    paths: Sequence[str],
    conversations: Sequence[Conversation],
    where: Where,
    shift: Row = (),
    stage: str = "inputs",
) -> Generator[Progress, None, dict[str, Tensor]]:
    """XᵀXΩ [in, m] float32 of each module, for `maths.filtered.subspace`.

    Args, raises: as of `writer_moments`.
    """
    modules = host.architecture.matrices
    widths = {path: shape_of(modules[path])[1] for path in paths}
    omegas = {width: random_columns(width) for width in set(widths.values())}

    def reading(path: str) -> Read:
        omega = omegas[widths[path]].to(device_of(modules[path]))
        return lambda x, y: {"sketch": x.mT @ (x @ omega.to(x))}

    readers = {path: reading(path) for path in paths}
    sums = yield from _summed(host, readers, conversations, where, shift, stage)
    return {path: found["sketch"].float() for path, found in sums.items()}


def writer_moments(
    host: Host,
    readers: Mapping[str, Tensor],
    conversations: Sequence[Conversation],
    where: Where,
    shift: Row = (),
    bases: Mapping[str, Tensor] | None = None,
    stage: str = "moments",
) -> Generator[Progress, None, dict[str, Moments]]:
    """Moments of each writer's inputs, and of what it writes along some directions.

    Other sessions' steps may come between ours.

    Args:
        readers: path of a linear module -> R [k, out], what is read of its output.
        conversations: prompts with the chat template, and what follows; of it all but the last
            token is read.
        where: `response`: tokens whose output predicts what follows; of a prompt followed by one
            token that is its last. `all`: every token but padding and the first.
        shift: edits under which the model computes; a module's output is taken behind them.
        bases: path -> Q [in, q], the subspace of inputs of those modules that have one.

    Yields:
        Progress in conversations.

    Returns:
        path -> moments, float32 on the CPU.

    Raises:
        UserError: no conversation or one that is too long; numbers that are not finite.
    """
    modules = host.architecture.matrices

    def reading(path: str, reader: Tensor) -> Read:
        rows = reader.mT.to(device_of(modules[path]))
        basis = None if bases is None else bases.get(path)
        basis = None if basis is None else basis.to(rows.device)

        def read(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            along = y @ rows.to(y)  # [tokens, k]
            x = x if basis is None else x @ basis.to(x)
            return {
                "inputs": x.mT @ x,
                "mean": x.sum(0),
                "cross": x.mT @ along,
                "along": along.sum(0),
                "squares": along.square().sum(0),
            }

        return read

    reads = {path: reading(path, reader) for path, reader in readers.items()}
    sums = yield from _summed(host, reads, conversations, where, shift, stage)
    found = {}
    for path, parts in sums.items():
        n = float(parts["n"])
        means = {name: (value / n).float() for name, value in parts.items()}
        mean, cross, along, squares = (means[name] for name in SMALL)
        found[path] = Moments(means["inputs"], mean, cross, along, squares, int(n))
    return found


def _summed(
    host: Host,
    reads: Mapping[str, Read],
    conversations: Sequence[Conversation],
    where: Where,
    shift: Row,
    stage: str,
) -> Generator[Progress, None, Sums]:
    """What is read of every module, summed over all tokens in float64 on the CPU; `n` counts
    them."""
    if not conversations:
        raise UserError("no prompts were given to collect the filter's moments with.")
    sizes = [len(prompt) + len(rest) - 1 for prompt, rest in conversations]
    for size in sizes:
        if not 0 < size <= host.context:
            raise UserError(f"a prompt has {size} tokens; {host.name} reads 1 to {host.context}.")
    sums: Sums = {}
    # Longest first: what does not fit the memory shows at once, and padding stays small.
    waiting = sorted(range(len(conversations)), key=lambda i: -sizes[i])
    room, done = Room(len(waiting)), 0
    yield Progress(stage, 0, len(conversations))
    while waiting:
        longest = sizes[waiting[0]]
        chunk = waiting[: min(room.size, max(1, tokens_a_step(host) // longest))]
        with room.attempt(len(chunk), longest):
            step = Step(host, [conversations[i] for i in chunk], where)
            part = _collected(step, reads, shift)
        if room.failed:
            continue
        for path, found in part.items():
            there = sums.setdefault(path, {})
            for name, value in found.items():
                value = value.to("cpu").double()
                there[name] = there[name] + value if name in there else value
        waiting, done = waiting[len(chunk) :], done + len(chunk)
        yield Progress(stage, done, len(conversations))
    _check(host, reads, sums)
    return sums


def _collected(step: Step, reads: Mapping[str, Read], shift: Row) -> Sums:
    rows = step.batch.ids.shape[0]
    sums: Sums = {}

    def hook(path: str, read: Read) -> Callable[..., None]:
        def seen(module: nn.Module, args: tuple, output: Tensor) -> None:
            pair = (by_rows(z.detach(), rows) for z in (args[0], output))
            counted = step.counted.to(output.device)
            x, y = (z[counted].to(torch.promote_types(z.dtype, torch.float32)) for z in pair)
            sums[path] = {**read(x, y), "n": x.new_tensor(float(len(x)))}

        return seen

    step.watch(shift, {path: hook(path, read) for path, read in reads.items()}, edited=True)
    return sums


def _check(host: Host, reads: Mapping[str, Read], sums: Sums) -> None:
    for path in reads:
        if not sums.get(path) or not float(sums[path]["n"]):
            raise UserError(f"no token of the prompts reached {path}.")
        if not all(bool(value.isfinite().all()) for value in sums[path].values()):
            raise UserError(
                f"the activations at {path} of {host.name} are not finite; load it in bfloat16 or "
                "float32."
            )
