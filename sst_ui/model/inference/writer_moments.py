"""What the writers read and write on a set of prompts: the moments that a filtered ablation needs.

Forward passes alone: no weight is read and no gradient taken, so that quantised modules do as well.
"""

from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.maths.filtered import SMALL, Moments, packed, random_columns
from sst_ui.model.architecture.module_roles import device_of, shape_of
from sst_ui.model.hooks.row_plan import by_rows
from sst_ui.model.inference.batch import Room, Row, tokens_a_step
from sst_ui.model.inference.fisher_step import SINKS, Conversation, Step, Where
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

Sums = dict[str, dict[str, Tensor]]  # path -> name of a sum over tokens -> it
# (inputs [tokens, in], outputs [tokens, out], weights [tokens, 1]) -> what is added up of them
Read = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def input_sketches(
    host: Host,
    paths: Sequence[str],
    conversations: Sequence[Conversation],
    where: Where,
    shift: Row = (),
    deciding: float = 0.0,
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
        return lambda x, y, w: {"sketch": (w * x).mT @ (x @ omega.to(x))}

    reads = {path: reading(path) for path in paths}
    job = _summed(host, reads, conversations, where, shift, deciding, stage)
    sums = yield from job
    return {path: found["sketch"].float() for path, found in sums.items()}


def writer_moments(
    host: Host,
    readers: Mapping[str, Tensor],
    conversations: Sequence[Conversation],
    where: Where,
    shift: Row = (),
    bases: Mapping[str, Tensor] | None = None,
    deciding: float = 0.0,
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
        deciding: share of the weight that lies on the prompts' last tokens, 0 <= share < 1, the
            rest being even over all tokens.

    Yields:
        Progress in conversations.

    Returns:
        path -> moments, float64 on the CPU; of float32 sums where a device has no float64 (MPS).

    Raises:
        UserError: no conversation or one that is too long; numbers that are not finite.
    """
    reads = {}
    for path, reader in readers.items():
        device = device_of(host.architecture.matrices[path])
        basis = None if bases is None else bases.get(path)
        reads[path] = _reading(reader.mT.to(device), None if basis is None else basis.to(device))
    job = _summed(host, reads, conversations, where, shift, deciding, stage)
    sums = yield from job
    found = {}
    for path, parts in sums.items():
        n, weight = float(parts["n"]), float(parts["weight"])
        means = {name: value / weight for name, value in parts.items()}
        mean, cross, along, squares = (means[name] for name in SMALL)
        found[path] = Moments(packed(means["inputs"]), mean, cross, along, squares, int(n))
    return found


def _reading(rows: Tensor, basis: Tensor | None) -> Read:
    """The sums of one writer's moments.

    Args:
        rows: Rᵀ [out, k], on its device.
        basis: Q [in, q] there, or None.
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64

    def read(*sample: Tensor) -> dict[str, Tensor]:
        x, y, w = (part.to(exact) for part in sample)
        along = y @ rows.to(y)  # [tokens, k]
        x = x if basis is None else x @ basis.to(x)
        weighed = (w * x).mT
        return {
            "inputs": weighed @ x,
            "mean": weighed.sum(1),
            "cross": weighed @ along,
            "along": (w * along).sum(0),
            "squares": (w * along.square()).sum(0),
        }

    return read


def _summed(
    host: Host,
    reads: Mapping[str, Read],
    conversations: Sequence[Conversation],
    where: Where,
    shift: Row,
    deciding: float,
    stage: str,
) -> Generator[Progress, None, Sums]:
    """What is read of every module, summed over all tokens in float64 on the CPU; `n` counts
    them, `weight` is the sum of their weights."""
    if not conversations:
        raise UserError("no prompts were given to collect the filter's moments with.")
    sizes = [len(prompt) + len(rest) - 1 for prompt, rest in conversations]
    for size in sizes:
        if not 0 < size <= host.context:
            raise UserError(f"a prompt has {size} tokens; {host.name} reads 1 to {host.context}.")
    # what the last tokens weigh beside 1, so that all of them together have their share
    extra = deciding / (1 - deciding) * (sum(sizes) / len(sizes) - SINKS)
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
            part = _collected(step, reads, shift, extra)
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


def _collected(step: Step, reads: Mapping[str, Read], shift: Row, extra: float) -> Sums:
    rows = step.batch.ids.shape[0]
    weights = (1 + extra * step.decides)[step.counted][:, None]  # [tokens, 1]
    sums: Sums = {}

    def hook(path: str, read: Read) -> Callable[..., None]:
        def seen(module: nn.Module, args: tuple, output: Tensor) -> None:
            pair = (by_rows(z.detach(), rows) for z in (args[0], output))
            counted = step.counted.to(output.device)
            x, y = (z[counted].to(torch.promote_types(z.dtype, torch.float32)) for z in pair)
            w = weights.to(x)
            sums[path] = {**read(x, y, w), "weight": w.sum(), "n": x.new_tensor(float(len(x)))}

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
