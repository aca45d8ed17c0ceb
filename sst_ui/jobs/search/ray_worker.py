"""The worker process behind `ray_workers`: one model, and the measuring of batches."""

import contextlib
import logging
import os
import threading
from dataclasses import dataclass, replace
from typing import Any

import torch

from sst_ui.jobs.search.trials import Local
from sst_ui.model.runtime.host import load
from sst_ui.progress import Progress, finish
from sst_ui.recipe import ModelSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What a measurer says about its model: see `trials.Measurer`."""

    layers: int
    preserving: bool
    fused: tuple[str, ...]
    name: str


class Worker:
    """A model and one piece of work at a time; `now` and `stop` are for other threads."""

    def __init__(self, threads: int, folder: str) -> None:
        """Begin without a model.

        Args:
            threads: of the processor.
            folder: where paths in a recipe begin, if it is there on this machine.
        """
        torch.set_num_threads(threads)
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._progress = Progress("load", 0, 1)
        self._stopped: set[int] = set()
        self._idle = threading.Event()
        self._idle.set()

    def here(self) -> int:
        """The number of this process; an answer means that there is one."""
        return os.getpid()

    def load(self, spec: ModelSpec) -> Facts:
        """Load the model, on the one GPU that this process may see where it has one.

        Raises:
            UserError: as `model.runtime.host.load`.
        """
        if spec.device.startswith("cuda") or (spec.device == "auto" and torch.cuda.is_available()):
            spec = replace(spec, device="cuda")
        self._local = Local(finish(load(spec), self._note))
        mine = self._local
        return Facts(mine.layers, mine.preserving, mine.fused, mine.name)

    def work(self, number: int, what: str, *given: Any) -> Any:
        """Do `Local.batch` or `Local.bell`; returns its result, None where it was stopped.

        Args:
            number: of this piece of work, for `stop`.
        """
        self._idle.clear()
        job = getattr(self._local, what)(*given)
        try:
            while number not in self._stopped:
                self._note(next(job))
        except StopIteration as end:
            return end.value
        finally:
            job.close()
            self._idle.set()
        return None

    def now(self) -> Progress:
        """How far it is."""
        return self._progress

    def stop(self, number: int) -> None:
        """Give up this piece of work at its next step; returns when nothing is being done."""
        self._stopped.add(number)
        self._idle.wait()

    def _note(self, step: Any) -> None:
        if isinstance(step, Progress):
            if step.warning:
                log.warning(step.warning)  # Ray brings it to the terminal of the search
            self._progress = step
