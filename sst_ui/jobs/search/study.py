"""The memory of a search: an Optuna study that survives a kill and may be shared.

SQLite in the user's data folder unless another of Optuna's URLs is given.

A trial is waiting, running, complete, pruned or failed. What a process had asked for when it died
is queued again by the next one: at once on the same machine, where its process can be looked for,
and after Optuna's heartbeat has been silent elsewhere.
"""

import math
import os
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import optuna
import psutil
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from sst_ui.errors import UserError
from sst_ui.jobs.search.objectives import presets
from sst_ui.jobs.search.space import Choice, Params, Span
from sst_ui.jobs.search.storage import BEAT, Way, open_study

optuna.logging.set_verbosity(optuna.logging.ERROR)
_asking: set[str] = set()  # searches of this process that are not over
CLAIM = "claim: "  # begins an attribute of a trial: who was about to measure it
FIRST = "sst:first"  # attribute of a study: how many of its first settings were put in the queue
TESTS = "sst:tests"  # attribute of a study: what its finalists came to on the test prompts


@dataclass(frozen=True)
class Asked:
    """A trial that is to be measured: its number in the study, its settings."""

    number: int
    params: Params


class Study:
    """One search's trials. Safe for several processes at once, as far as the storage is."""

    def __init__(
        self,
        name: str,
        lower: Sequence[bool],
        rows: Mapping[str, Span | Choice],
        storage: str | None = None,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
        startup: int | None = None,
    ) -> None:
        """Open the study of this name, or make it.

        Args:
            lower: for each objective whether less is better.
            rows: the settings of a trial; each draw falls in its range.
            storage: one of Optuna's URLs, `memory` for none at all, or None for the default file.
            about: kept with a study that is made.
            startup: how many are drawn evenly before draws follow what did well.

        Raises:
            UserError: the storage cannot be used, or holds another search of this name.
        """
        self.name, self.seed = name, seed
        self._startup = presets()["startup"] if startup is None else startup
        self._distributions = {key: _distribution(row) for key, row in rows.items()}
        self._directions: list[Way] = ["minimize" if low else "maximize" for low in lower]
        self._search = uuid4().hex[:8]
        process = f"{socket.gethostname()} {os.getpid()} {_born(os.getpid())}"
        self._owner = f"{process} {self._search}"
        self._trials: dict[int, optuna.Trial] = {}
        self._beaten = -math.inf
        self._storage, self._study = open_study(storage, name, self._directions)
        if [d.name.lower() for d in self._study.directions] != self._directions:
            raise UserError(f"the search {name!r} has other objectives; give another name.")
        said = self._study.user_attrs
        missing = {key: value for key, value in (about or {}).items() if key not in said}
        # Another process that made it a moment ago may have said a part of it so far.
        if missing and not self._study.get_trials(deepcopy=False):
            for key, value in missing.items():
                self._study.set_user_attr(key, value)

    @property
    def about(self) -> dict[str, Any]:
        """What was kept with the study when it was made."""
        return dict(self._study.user_attrs)

    def trials(self) -> list[FrozenTrial]:
        """All that count, by number: those given back to the queue are left out."""
        return [
            trial
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state != TrialState.FAIL or "error" in trial.user_attrs
        ]

    def tests(self) -> dict[int, Mapping[str, Any]]:
        """What was kept of the test: a trial's number -> its data."""
        numbers = self._study.user_attrs.get(TESTS, {}).get("numbers", {})
        return {int(number): data for number, data in numbers.items()}

    def looks(self) -> int:
        """How many times the test prompts were looked at."""
        return self._study.user_attrs.get(TESTS, {}).get("looks", 0)

    def forget_tests(self, of: str) -> None:
        """Leave the tests out that were made in another way than `of`; the looks are kept."""
        kept = self._study.user_attrs.get(TESTS)
        if kept and kept["of"] != of:
            self._study.set_user_attr(TESTS, {"of": of, "looks": kept["looks"], "numbers": {}})

    def keep_tests(self, of: str, numbers: Mapping[int, Mapping[str, Any]]) -> None:
        """Keep one look at the test prompts: a trial's number -> JSON data."""
        known = {str(n): data for n, data in {**self.tests(), **numbers}.items()}
        kept = {"of": of, "looks": self.looks() + 1, "numbers": known}
        self._study.set_user_attr(TESTS, kept)

    def enqueue(self, params: Sequence[Params]) -> None:
        """Put the first settings in the queue, those of them that are not there yet.

        A list that has grown since the last time has its new end put there: what is to be measured
        later does not get in the way of what is given back before.
        """
        known = self._study.user_attrs.get(FIRST, 0)
        if known >= len(params):
            return
        for each in params[known:]:
            self._study.enqueue_trial(each, skip_if_exists=True)
        # Said last: a process that began at the same moment would else find an empty queue and end.
        # What both have put there is measured once (`ask`).
        self._study.set_user_attr(FIRST, len(params))

    def reclaim(self) -> int:
        """Put back in the queue what dead processes were measuring; returns how many.

        Optuna's heartbeat alone would let a search that was killed and started again wait for
        `SILENT` seconds: of a process that was on this machine it is known at once that it is gone.
        """
        with suppress(NotImplementedError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna.storages.fail_stale_trials(self._study)
        lost = [
            trial
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            if _lost(trial)
        ]
        for trial in lost:
            self._give_back(trial.number, trial.params)
        return len(lost)

    def ask(self, count: int, draw: bool) -> list[Asked]:
        """Up to `count` trials to measure, from the queue first.

        Args:
            draw: whether to draw new ones where the queue is empty. Draws go by the seed and by how
                many trials are finished, so that a search that was interrupted draws the same.
        """
        if draw:
            finished = [trial for trial in self.trials() if trial.state.is_finished()]
            self._study.sampler = _sampler(self.seed + 1000 * len(finished), self._startup)
        asked: list[Asked] = []
        _asking.add(self._search)
        while len(asked) < count:
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not (waiting or draw):
                break
            self._claim(waiting)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # heartbeats are ours to give
                trial = self._study.ask(fixed_distributions=self._distributions)
            fixed = trial.storage.get_trial(trial._trial_id).system_attrs.get("fixed_params")
            if fixed is None and not draw:  # another process was faster
                self._study.tell(trial, state=TrialState.FAIL)
                break
            if fixed and self._twin(trial):
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            self._trials[trial.number] = trial
            trial.set_user_attr("owner", self._owner)
            asked.append(Asked(trial.number, dict(trial.params)))
        self._beaten = -math.inf  # without its first beat a trial never counts as lost
        self.beat()
        return asked

    def tell(
        self,
        number: int,
        objectives: Sequence[float] | None,
        kept: Mapping[str, Any],
        violations: Sequence[float] = (),
        error: str = "",
        gate: Sequence[float] = (),
    ) -> None:
        """Note a finished trial; nothing where another process has given it up meanwhile.

        That one goes by the clock of the storage, which may have been set forward, or this one was
        silent for long; either way the settings wait in the queue again.

        Args:
            objectives: None for a pruned or failed one.
            kept: JSON data to keep with it.
            violations: by how much each constraint is broken; 0 or less where it holds.
            error: why it failed; '' with no objectives for a pruned one.
            gate: by how much it misses what a candidate has to move; a constraint of the sampler
                that is not one of the user's.
        """
        trial = self._trials.pop(number)
        state = TrialState.COMPLETE
        if objectives is None:
            state = TrialState.FAIL if error else TrialState.PRUNED
        with suppress(UpdateFinishedTrialError):
            for key, value in kept.items():
                trial.set_user_attr(key, value)
            for place, violation in enumerate([*violations, *gate]):
                trial.set_constraint(str(place), min(violation, 1e9))
            trial.set_user_attr("violations", [float(min(v, 1e9)) for v in violations])
            if error:
                trial.set_user_attr("error", error)
            self._study.tell(trial, objectives, state=state, skip_if_finished=True)

    def give_back(self) -> None:
        """Put back in the queue whatever was asked for and not told; the search is over."""
        _asking.discard(self._search)
        for number, trial in list(self._trials.items()):
            self._trials.pop(number)
            with suppress(Exception):  # the storage may be what failed
                self._give_back(number, trial.params)

    def beat(self) -> None:
        """Say that the trials asked for are being worked on; cheap enough for every step.

        Optuna's own thread beats inside `Study.optimize` only, one trial at a time, and would go on
        beating for a measurement that hangs.
        """
        if time.monotonic() - self._beaten < BEAT / 2:
            return
        self._beaten = time.monotonic()
        record = getattr(self._storage, "record_heartbeat", None)
        for trial in self._trials.values():
            if record is not None:
                record(trial._trial_id)

    def importance(self, objective: int = 0) -> dict[str, float]:
        """Share of each setting in what the objective did, most first; {} for too few trials."""
        done = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        if len(done) < 8 or len(self._distributions) < 2:
            return {}
        values = {t.values[objective] for t in done}
        if len(values) < 2:
            return {}
        # PED-ANOVA asks what made values low
        sign = 1 if self._directions[objective] == "minimize" else -1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.importance.get_param_importances(
                self._study, target=lambda trial: sign * trial.values[objective],
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            )  # fmt: skip

    def _twin(self, mine: optuna.Trial) -> bool:
        """Whether an earlier trial has these settings: two processes may have put them there."""
        return any(
            trial.number < mine.number
            and mine.params == (trial.params or trial.system_attrs.get("fixed_params"))
            for trial in self.trials()
        )

    def _claim(self, waiting: Sequence[FrozenTrial]) -> None:
        """Write on the trial that is asked for next who is about to, before it runs.

        Else a kill right after would leave a running trial that nobody can know to be lost. Another
        process may be faster, and write that it owns it.
        """
        claim = CLAIM + self._owner
        if not waiting:
            self._study.enqueue_trial({}, user_attrs={claim: self._owner})
            return
        with suppress(UpdateFinishedTrialError):  # much faster
            self._storage.set_trial_user_attr(waiting[0]._trial_id, claim, self._owner)

    def _give_back(self, number: int, params: Params) -> None:
        self._study.enqueue_trial(params)
        self._study.tell(number, state=TrialState.FAIL)


def _sampler(seed: int, startup: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup
        )


def _distribution(row: Span | Choice) -> BaseDistribution:
    if isinstance(row, Choice):
        return CategoricalDistribution(list(row.options))
    if row.whole:
        return IntDistribution(int(row.low), int(row.high), log=row.log)
    return FloatDistribution(row.low, row.high, log=row.log)


def _born(pid: int) -> int:
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0


def _lost(trial: FrozenTrial) -> bool:
    """Whether the process that runs it is gone; where none says so, all that were about to."""
    attrs = trial.user_attrs
    claims = [owner for key, owner in attrs.items() if key.startswith(CLAIM)]
    owners = [attrs["owner"]] if "owner" in attrs else claims
    return bool(owners) and all(map(_dead, owners))


def _dead(owner: str) -> bool:
    """Whether the process of this name was on this machine and is gone, or is this one, whose
    search is over: a storage that failed did not let it give its trials back."""
    host, *words = owner.split(" ")
    if len(words) not in (2, 3) or host != socket.gethostname():
        return False
    pid, born, *search = words
    if _born(int(pid)) != int(born):
        return True
    return int(pid) == os.getpid() and not _asking.issuperset(search)
