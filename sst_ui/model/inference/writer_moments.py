"""What the writers read and write on a set of prompts: the moments that a filtered ablation needs.

One forward pass; no weight is read and no gradient taken, so that quantised modules do as well. A
module with many inputs keeps a sketch of their second moment: [in, SKETCH] numbers.
"""

from collections.abc import Callable, Generator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.maths.filtered import EXACT, SMALL, Moments, Sketch, random_columns
from sst_ui.model.architecture.module_roles import device_of, shape_of
from sst_ui.model.hooks.row_plan import by_rows
from sst_ui.model.inference.batch import Room, Row, tokens_a_step
from sst_ui.model.inference.fisher_step import Conversation, Step, Where
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

Sums = dict[str, dict[str, Tensor]]  # path -> name of a moment -> sum over tokens


def writer_moments(
    host: Host,
    readers: Mapping[str, Tensor],
    conversations: Sequence[Conversation],
    where: Where,
    shift: Row = (),
    exact: int = EXACT,
    seed: int = 0,
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
        exact: inputs up to which the whole second moment is kept.
        seed: of the sketches' random columns.

    Yields:
        Progress in conversations.

    Returns:
        path -> moments, float32 on the CPU.

    Raises:
        UserError: no conversation or one that is too long; numbers that are not finite.
    """
    if not conversations:
        raise UserError("no prompts were given to collect the filter's moments with.")
    for prompt, rest in conversations:
        if not 0 < len(prompt) + len(rest) - 1 <= host.context:
            raise UserError(
                f"a prompt has {len(prompt) + len(rest) - 1} tokens; {host.name} reads 1 to "
                f"{host.context}."
            )
    widths = {shape_of(host.architecture.matrices[path])[1] for path in readers}
    omegas = {width: random_columns(width, seed) for width in sorted(widths) if width > exact}
    sums: Sums = {}
    # Longest first: what does not fit the memory shows at once, and padding stays small.
    sizes = [len(prompt) + len(rest) - 1 for prompt, rest in conversations]
    waiting = sorted(range(len(conversations)), key=lambda i: -sizes[i])
    room, done = Room(len(waiting)), 0
    yield Progress(stage, 0, len(conversations))
    while waiting:
        longest = sizes[waiting[0]]
        chunk = waiting[: min(room.size, max(1, tokens_a_step(host) // longest))]
        with room.attempt(len(chunk), longest):
            step = Step(host, [conversations[i] for i in chunk], where)
            part = _collected(host, step, shift, readers, omegas)
        if room.failed:
            continue
        _add(sums, part)
        waiting, done = waiting[len(chunk) :], done + len(chunk)
        yield Progress(stage, done, len(conversations))
    return {path: _mean(host, path, sums.get(path, {}), omegas) for path in readers}


def _collected(
    host: Host,
    step: Step,
    shift: Row,
    readers: Mapping[str, Tensor],
    omegas: Mapping[int, Tensor],
) -> Sums:
    rows = step.batch.ids.shape[0]
    sums: Sums = {}
    placed: dict[tuple[int, torch.device], Tensor] = {}

    def omega_on(width: int, device: torch.device) -> Tensor:
        if (width, device) not in placed:
            placed[width, device] = omegas[width].to(device)
        return placed[width, device]

    def hook(path: str, reader: Tensor) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple, output: Tensor) -> None:
            x, y = by_rows(args[0].detach(), rows), by_rows(output.detach(), rows)
            chosen = step.counted.to(x.device)
            x, y = (z[chosen].to(torch.promote_types(z.dtype, torch.float32)) for z in (x, y))
            along = y @ reader.to(y)  # [tokens, k]
            found = {
                "mean": x.sum(0),
                "cross": x.mT @ along,
                "along": along.sum(0),
                "squares": along.square().sum(0),
                "n": x.new_tensor(float(len(x))),
            }
            if x.shape[1] in omegas:
                found["product"] = x.mT @ (x @ omega_on(x.shape[1], x.device).to(x))
                found["trace"] = x.square().sum()
            else:
                found["inputs"] = x.mT @ x
            sums[path] = found

        return read

    modules = host.architecture.matrices
    hooks = {path: hook(path, r.mT.to(device_of(modules[path]))) for path, r in readers.items()}
    step.watch(shift, hooks, edited=True)
    return sums


def _add(sums: Sums, part: Sums) -> None:
    for path, found in part.items():
        there = sums.setdefault(path, {})
        for name, value in found.items():
            value = value.to("cpu").double()
            there[name] = there[name] + value if name in there else value


def _mean(host: Host, path: str, sums: Mapping[str, Tensor], omegas: Mapping) -> Moments:
    n = float(sums["n"]) if sums else 0.0
    if not n:
        raise UserError(f"no token of the prompts reached {path}.")
    means = {name: value / n for name, value in sums.items()}
    if not all(bool(mean.isfinite().all()) for mean in means.values()):
        raise UserError(
            f"the activations at {path} of {host.name} are not finite; load it in bfloat16 or "
            "float32."
        )
    inputs: Tensor | Sketch
    if "product" in means:
        product = means["product"].float()
        inputs = Sketch(product, omegas[len(product)], float(means["trace"]))
    else:
        inputs = means["inputs"].float()
    mean, cross, along, squares = (means[name].float() for name in SMALL)
    return Moments(inputs, mean, cross, along, squares, int(n))
