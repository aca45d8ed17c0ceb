"""Training that is cut off goes on where it was, and ends with the same weights."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training import resumable

STEPS, EVERY = 12, 5
SCHEDULE = resumable.Schedule(STEPS, lr=0.1, warmup=3)


class Killed(Exception):
    pass


def run(folder: Path | None, stop_at: int | None = None, key: str = "one") -> torch.Tensor:
    """Fit a small network to noise that depends on the step; its weights."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3)

    def loss(step: int) -> torch.Tensor:
        if step == stop_at:
            raise Killed
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return (net(x) - x[:, :3]).pow(2).mean()

    kept = resumable.Checkpoints(folder / "run.pt", key, EVERY) if folder else None
    resumable.fit(net, loss, SCHEDULE, "test", kept)
    return net.weight.detach().clone()


def test_a_run_that_was_cut_off_ends_with_the_weights_of_one_that_was_not(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, stop_at=8)
    assert torch.equal(run(tmp_path), run(None))


def test_it_goes_on_from_the_last_checkpoint_and_does_not_begin_again(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, stop_at=8)
    with pytest.raises(Killed):
        run(tmp_path, stop_at=EVERY)  # the first step that is left
    run(tmp_path, stop_at=EVERY - 1)  # passed already


def test_the_checkpoint_of_another_training_is_not_used(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, stop_at=8)
    with pytest.raises(Killed):
        run(tmp_path, stop_at=0, key="another")


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    factors = [SCHEDULE.factor(step) for step in range(STEPS)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[3 : STEPS // 2 + 1] == [1.0] * (STEPS // 2 - 2)
    assert factors[-1] == pytest.approx(2 / STEPS)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process as POSIX does")
def test_a_killed_process_leaves_a_checkpoint_that_the_next_one_uses(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.unit import test_resumable as t\n"
        "try: t.run(Path(sys.argv[1]), stop_at=8)\n"
        "except t.Killed: os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(run(tmp_path), run(None))
