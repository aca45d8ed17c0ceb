"""Measures candidates on a Ray cluster: one process per GPU, or per share of the processors.

Lost workers are replaced and their batches measured again. Optuna's heartbeat does not see them:
the process that asks for trials is alive, and a batch belongs to several trials.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from sst_ui.errors import UserError
from sst_ui.jobs.search.ray_cluster import Shares, connect, library, shares
from sst_ui.jobs.search.ray_worker import Worker
from sst_ui.jobs.search.space import Params
from sst_ui.jobs.search.trials import TOGETHER, Numbers
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation, ModelSpec, Recipe

LOSSES = 3  # of workers on the same batch, after which it is given up
PATIENCE = 180.0  # seconds for the first worker to start; a busy machine imports torch in a minute
LOOK = 0.4  # seconds to wait for workers between two steps, in which a search can be cancelled
LOST = object()

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Hired:
    """One worker: its name on the screen, and what it was asked for last.

    Attributes:
        answer: Ray's reference to what it is doing; None while it has nothing to do.
        place: of the call it works on; None while it loads its model.
        serial: of that piece of work among all.
    """

    number: int
    actor: Any
    answer: Any
    place: int | None = None
    serial: int = 0


class Cluster:
    """A `trials.Measurer` with many processes behind it; a context manager.

    Numbers are those of `trials.Local`, to the bit where machines and threads are alike: batches
    are made by place, whoever measures them. A model, prompt sets and labels that a recipe names by
    their paths are read by the workers, so that they must lie on their machines too; the studio
    itself, with its presets and the demo, is brought there.

    Attributes:
        layers, preserving, fused, name: see `trials.Measurer`; known once it is open.
        workers: how many there are; known once it is open.
    """

    def __init__(self, spec: ModelSpec, address: str, workers: int | None = None) -> None:
        """Describe a cluster; entering it connects and loads the models.

        Args:
            spec: the model. Where the cluster has GPUs each worker has one, unless `device` is
                `cpu`.
            address: `auto` for the cluster that this machine is part of, `local` for one on this
                machine that ends with it, `HOST:PORT`, or `ray://HOST:PORT`.
            workers: None for one per GPU, else one per 2 processors, 8 at most.

        Raises:
            UserError: no number of workers.
        """
        if workers is not None and workers < 1:
            raise UserError(f"workers is {workers}; it must be 1 or more.")
        self.spec, self.address = spec, address
        self.workers, self._wanted = workers or 0, workers
        self._team: list[_Hired] = []
        self._mine = False  # whether the connection to Ray ends with this
        self._unloaded = self._serial = self._hired = 0

    def __enter__(self) -> "Cluster":
        """Connect, and wait for the first worker."""
        try:
            finish(self.open())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> Generator[Progress, None, None]:
        """Connect, start the workers and wait until one of them has its model.

        Raises:
            UserError: no Ray, no such cluster, no room on it, or a model that cannot be loaded.
        """
        yield Progress("workers", 0, 1, f"connecting to {self.address}")
        self._ray = library()
        self._mine = connect(self._ray, self.address, self._wanted)
        self._shares: Shares = shares(self._ray, self.spec, self._wanted)
        self.workers = self._shares.count
        self._actor = self._ray.remote(Worker)
        self._team = [self._hire() for _ in range(self.workers)]
        deadline = time.monotonic() + PATIENCE
        placed = [worker.actor.here.remote() for worker in self._team]
        while not hasattr(self, "layers"):
            for _ in self._answers():
                pass  # only models are being loaded
            if not self._ray.wait(placed, timeout=0)[0] and time.monotonic() > deadline:
                raise UserError(
                    f"no worker started on the cluster within {PATIENCE:.0f} seconds. Each "
                    f"needs {self._shares}; wait until they are free, or change --workers."
                )
            yield Progress("workers", 0, self.workers, self._told())
        yield Progress("workers", self.workers, self.workers)

    def close(self) -> None:
        """End the workers, and the cluster if it is this one's own."""
        for worker in self._team:
            self._kill(worker)
        self._team = []
        if self._mine:
            self._mine = False
            self._ray.shutdown()

    def numbers(
        self, recipes: Sequence[Recipe], evaluation: Evaluation
    ) -> Generator[Progress | tuple[int, Numbers], None, None]:
        """See `trials.Measurer`. Closing it stops the workers and keeps them."""
        starts = range(0, len(recipes), TOGETHER)
        batches = [tuple(recipes[start : start + TOGETHER]) for start in starts]
        calls = [("batch", batch, evaluation) for batch in batches]
        with closing(self._spread(calls)) as steps:
            for step in steps:
                if isinstance(step, Progress):
                    yield step
                    continue
                place, found = step
                if found is LOST:
                    found = [Numbers(error=_lost("measured this batch"))] * len(batches[place])
                yield from enumerate(found, starts[place])

    def bell(self, recipe: Recipe, select: tuple[str, str]) -> Generator[Progress, None, Params]:
        """See `trials.Measurer`."""
        with closing(self._spread([("bell", recipe, select)])) as steps:
            for step in steps:
                if isinstance(step, Progress):
                    yield step
                else:
                    found = step[1]
        if found is LOST:
            raise UserError(_lost("measured the signal"))
        return found

    def _spread(self, calls: Sequence[tuple]) -> Generator[Progress | tuple[int, Any], None, None]:
        """Every call's result, or LOST, by its place, in whatever order they come."""
        waiting, done = deque(range(len(calls))), 0
        lost: Counter[int] = Counter()
        try:
            while done < len(calls):
                for worker in self._team:
                    if worker.answer is None and waiting:
                        self._give(worker, waiting.popleft(), calls)
                yield Progress("batches", done, len(calls), self._told())
                for place, result in self._answers():
                    lost[place] += result is LOST
                    if result is LOST and lost[place] < LOSSES:
                        waiting.appendleft(place)
                        continue
                    done += 1
                    yield place, result
        finally:
            self._stop()

    def _answers(self) -> Generator[tuple[int, Any], None, None]:
        """What has come within `LOOK` seconds: results by place, LOST for those of a lost worker.

        Lost workers are replaced; workers whose model is loaded can be given work.
        """
        asked = {worker.answer: worker for worker in self._team if worker.answer is not None}
        for answer in self._ray.wait(list(asked), timeout=LOOK)[0]:
            worker = asked[answer]
            place, worker.place, worker.answer = worker.place, None, None
            try:
                result = self._get(answer)
            except self._gone as error:
                log.info("worker %d was lost: %s", worker.number, error)
                self._succeed(worker)
                if place is not None:
                    yield place, LOST
                    continue
                self._unloaded += 1
                if self._unloaded >= LOSSES:
                    raise UserError(
                        f"{_lost(f'loaded {self.spec.id}')} With fewer workers each has more room."
                    ) from None
                continue
            if place is not None:
                yield place, result
                continue
            self._unloaded = 0
            self.layers, self.preserving = result.layers, result.preserving
            self.fused, self.name = result.fused, result.name

    def _hire(self) -> _Hired:
        self._hired += 1
        actor = self._actor.options(**self._shares.options()).remote(
            self._shares.threads, os.getcwd()
        )
        return _Hired(self._hired, actor, actor.load.remote(self.spec))

    def _succeed(self, worker: _Hired) -> None:
        self._kill(worker)
        self._team[self._team.index(worker)] = self._hire()

    def _kill(self, worker: _Hired) -> None:
        with suppress(Exception):  # it may be gone, and Ray with it
            self._ray.kill(worker.actor)

    def _give(self, worker: _Hired, place: int, calls: Sequence[tuple]) -> None:
        self._serial += 1
        worker.place, worker.serial = place, self._serial
        worker.answer = worker.actor.work.remote(self._serial, *calls[place])

    def _stop(self) -> None:
        """Stop all workers; those that do not stop in time are replaced."""
        busy = [worker for worker in self._team if worker.place is not None]
        asked = {worker.actor.stop.remote(worker.serial): worker for worker in busy}
        if not asked:
            return
        gone: tuple[type[Exception], ...] = (*self._gone, TimeoutError)
        answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=10.0)
        for answer, worker in asked.items():
            worker.answer = worker.place = None
            try:
                if answer not in answered:
                    raise TimeoutError
                self._ray.get(answer)
            except gone:
                self._succeed(worker)

    def _get(self, answer: Any) -> Any:
        """An answer; an error of the worker's as if it had happened here."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except errors.RuntimeEnvSetupError as error:
            raise UserError(f"the studio could not be sent to a worker: {error}") from None
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

    @property
    def _gone(self) -> tuple[type[Exception], ...]:
        errors = self._ray.exceptions
        return (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError,
                errors.ObjectLostError)  # fmt: skip

    def _told(self) -> str:
        """What each worker is doing, in words."""
        asked = {w.number: w.actor.now.remote() for w in self._team if w.answer is not None}
        answers = list(asked.values())
        come: list[Any] = []
        if asked:
            come, _ = self._ray.wait(answers, num_returns=len(answers), timeout=LOOK)
        words = []
        for number, answer in asked.items():
            doing = "busy"  # too busy to say so itself, or lost
            if answer in come:
                with suppress(*self._gone):
                    step = self._ray.get(answer)
                    doing = step.note or step.stage
            words.append(f"worker {number}: {doing}")
        return " · ".join(words)


def _lost(what: str) -> str:
    return f"{LOSSES} workers were lost while they {what}; their machines may be short of memory."
