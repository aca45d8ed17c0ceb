"""Training that can be killed: a loop with checkpoints that goes on where it was.

What a step is trained on depends on its number alone, so a run that was killed and started again
ends with the weights of one that was not.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from sst_ui import disk


@dataclass(frozen=True)
class Schedule:
    """AdamW and its learning rate: linear warm-up, flat, then linear to zero over the last half.

    Attributes:
        steps: length of the training.
        lr: the learning rate at its highest.
        warmup: steps until it is reached.
    """

    steps: int
    lr: float
    warmup: int = 10
    decay: float = 0.01
    clip: float = 1.0

    def factor(self, step: int) -> float:
        """Share of `lr` at a step, counted from 0."""
        return min(1.0, (step + 1) / self.warmup) * min(1.0, 2 * (1 - step / self.steps))


@dataclass(frozen=True)
class Checkpoints:
    """Where the state of a training is kept, and for which one.

    Attributes:
        path: the file; gone when the training is through.
        key: digest of everything that the training depends on; a file with another is not used.
        every: steps between two checkpoints.
    """

    path: Path
    key: str
    every: int = 20


def fit(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    name: str,
    checkpoints: Checkpoints | None = None,
) -> float:
    """Train what requires a gradient, in place.

    Args:
        loss: step -> the loss of that step's batch, which depends on the step alone.
        name: for the line that says how far it is.
        checkpoints: go on from there if they are of this training, and keep them meanwhile.

    Returns:
        The mean loss of the last steps; nan if nothing was left to do.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=schedule.lr, betas=(0.9, 0.98), weight_decay=schedule.decay
    )
    begin, mean = _resume(trained, optimiser, checkpoints)
    model.train()
    with Console(stderr=True).status(name) as status:
        for step in range(begin, schedule.steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule.lr * schedule.factor(step)
            optimiser.zero_grad()
            value = loss(step)
            value.backward()
            nn.utils.clip_grad_norm_(trained, schedule.clip)
            optimiser.step()
            mean = value.item() if math.isnan(mean) else 0.95 * mean + 0.05 * value.item()
            done = step + 1
            status.update(f"{name}: step {done} of {schedule.steps}, loss {mean:.3f}")
            if checkpoints and done % checkpoints.every == 0 and done < schedule.steps:
                _keep(trained, optimiser, checkpoints, done, mean)
                status.console.print(f"{name}: step {done} of {schedule.steps}, loss {mean:.3f}")
    model.eval()
    return mean


def step_random(seed: int, step: int) -> random.Random:
    """The generator of one step's batch: the same after a restart."""
    return random.Random(f"{seed} {step}")


def _keep(
    trained: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    step: int,
    mean: float,
) -> None:
    state = {
        "key": checkpoints.key,
        "step": step,
        "mean": mean,
        "weights": [p.detach() for p in trained],
        "optimiser": optimiser.state_dict(),
    }
    with disk.written(checkpoints.path) as part:
        torch.save(state, part)


def _resume(
    trained: Sequence[Tensor], optimiser: torch.optim.Optimizer, checkpoints: Checkpoints | None
) -> tuple[int, float]:
    """The step to go on with and the mean loss so far; 0 and nan for a new training."""
    if checkpoints is None or not checkpoints.path.is_file():
        return 0, math.nan
    state = torch.load(checkpoints.path, weights_only=True)
    if state["key"] != checkpoints.key:
        return 0, math.nan
    with torch.no_grad():
        for parameter, kept in zip(trained, state["weights"], strict=True):
            parameter.copy_(kept)
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["mean"]
