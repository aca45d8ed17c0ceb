"""A search: which candidates are tried in which order, and when it ends.

Candidates are measured in `trials` and `ray_workers`, stored in `study` and ranked in `candidates`.
"""

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from sst_ui.errors import UserError
from sst_ui.jobs.evaluate.evaluate import limits
from sst_ui.jobs.search import objectives as goals
from sst_ui.jobs.search import prompts
from sst_ui.jobs.search.candidates import (
    Candidate,
    candidates,
    finalists,
    last_stage,
    shortfall,
    still,
)
from sst_ui.jobs.search.objectives import Aims, SearchSpec
from sst_ui.jobs.search.space import Choice, Params, Span, beginnings, candidate, space
from sst_ui.jobs.search.storage import told_of
from sst_ui.jobs.search.study import Study
from sst_ui.jobs.search.trials import TOGETHER, Measurer, Numbers
from sst_ui.maths import kernel
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import NOTHING, Value
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, Recipe, digest, to_dict, to_yaml

MOST = 200  # prompts that a set is taken to have, where all of them are measured
Steps = Generator[Progress | Candidate, None, None]


@dataclass(frozen=True)
class Opened:
    """A search that is about to go on.

    Attributes:
        recipe: what is varied, at the start that was asked for, measured on its own prompts.
        aim: objectives and constraints on the prompts that candidates are selected on.
        study: its trials; for the importance of settings.
        total: candidates that there will be at most.
        notes: what is left out so that no prompt is in two sets, in sentences.
    """

    recipe: Recipe
    aim: Aims
    study: Study
    total: int
    notes: tuple[str, ...] = ()


def search(
    recipe: Recipe,
    spec: SearchSpec,
    measurer: Measurer,
    storage: str | None = None,
    name: str | None = None,
) -> Generator[Opened | Progress | Candidate, None, list[Candidate]]:
    """Begin a search, or go on with it, until its strategy, its trials or its time are at an end.

    Closing the generator pauses it: what was measured stays, what was not goes back to the queue,
    and another call with the same arguments goes on from there. So does a call after a kill, and
    one in another process at the same time shares the work.

    Args:
        recipe: with one ablation, or one merge, that is varied; the rest of it stays.
        storage: one of Optuna's URLs, `memory`, or None for the file in the user's data folder.
        name: of the study; None for one made of the recipe and the settings.

    Yields:
        Opened once, Progress in trials, and each Candidate: those known before, then each new one
        as soon as it is measured, and in the end the finalists again, with their test.

    Returns:
        Everything that the study knows.

    Raises:
        UserError: nothing to search, unknown metrics or prompts, a storage that cannot be used, a
            study of this name that another search has made.
    """
    recipe = prompts.divided(recipe, goals.searched(recipe), spec)
    aim = goals.aims(recipe, spec)
    notes = prompts.notes(goals.searched(recipe), spec, goals.test_sets(aim))
    rows = rows_of(recipe, spec, measurer)
    if spec.start == "signal":
        if not isinstance(goals.searched(recipe), Ablation):
            raise UserError("a merge has no measured signal to start at; start at the recipe.")
        select = prompts.sets(goals.searched(recipe), spec).select
        bell = yield from measurer.bell(recipe, (select["harmful"], select["harmless"]))
        recipe = candidate(recipe, bell, measurer.layers)
    first = _first(recipe, spec, rows, measurer.layers)
    total = spec.trials or goals.presets()["trials"] if spec.strategy == "tpe" else len(first)
    total = min(total, spec.trials or total)
    about = {"recipe": to_yaml(recipe), "spec": to_dict(spec), "model": measurer.name,
             "objectives": list(aim.objectives), "lower": list(aim.lower),
             "space": sorted(rows)}  # fmt: skip
    name = name or f"{spec.strategy} {recipe.digest()} {spec.digest()}"
    study = Study(name, aim.lower, rows, storage, spec.seed, about, goals.startup(total))
    _check_same(study, about)
    opened = Opened(recipe, aim, study, total, notes)
    yield opened
    with told_of(storage):
        study.reclaim()
        study.enqueue(first[:total])
        known = candidates(study, recipe, measurer.layers)
        yield from known
        run = _Run(opened, spec, measurer)
        yield from run.go()
        if spec.strategy != "sensitivity":  # a scan has no finalists: what it finds is a bell
            yield from run.test()
        return candidates(study, recipe, measurer.layers)


def _check_same(study: Study, about: Mapping[str, Any]) -> None:
    """Raises UserError for a study of other objectives, prompts or settings: an earlier version's,
    or another search's of the same name."""
    if any(study.about.get(part) != about[part] for part in ("objectives", "space")):
        raise UserError(
            f"the search {study.name!r} was made with other objectives, prompts or settings, "
            "perhaps by an earlier version; its numbers do not compare with new ones. Give another "
            "name."
        )


def rows_of(recipe: Recipe, spec: SearchSpec, measurer: Measurer) -> dict[str, Span | Choice]:
    """The settings that this strategy varies, with their ranges.

    Raises:
        UserError: a strategy that the recipe's edit does not have.
    """
    if spec.strategy == "tpe":
        return space(recipe, measurer.preserving, measurer.fused)
    if spec.strategy != "staged" and not isinstance(goals.searched(recipe), Ablation):
        raise UserError(f"{spec.strategy} is for ablations; use tpe or staged for a merge.")
    tried = _first(recipe, spec, {}, measurer.layers)
    columns = {name: [each[name] for each in tried] for name in tried[0]}
    return {
        name: Span(min(column), max(column), whole=isinstance(column[0], int))
        for name, column in columns.items()
    }


def _first(
    recipe: Recipe, spec: SearchSpec, rows: Mapping[str, Span | Choice], layers: int
) -> list[Params]:
    """What is tried for certain: the whole of a fixed strategy, the start of a free one."""
    if spec.strategy == "grid":
        return [{"peak": peak, "width": width} for peak, width in kernel.grid()]
    if spec.strategy == "sensitivity":
        return [{"only": layer} for layer in range(layers)]
    if spec.strategy == "staged":
        stages = goals.presets()["stages"]
        count = round((stages["last"] - stages["first"]) / stages["step"]) + 1
        own = goals.searched(recipe).weights.strength or 1.0
        strengths = [stages["first"] + stages["step"] * number for number in range(count)]
        return [{"strength": math.copysign(round(each, 6), own)} for each in strengths]
    return beginnings(recipe, rows, layers)


class _Run:
    """The rounds of one call."""

    def __init__(self, opened: Opened, spec: SearchSpec, measurer: Measurer) -> None:
        self.recipe, self.aim, self.study = opened.recipe, opened.aim, opened.study
        self.spec, self.measurer, self.total = spec, measurer, opened.total
        self.done, self.share = 0, 0.0
        self.tests = 0.0 if spec.strategy == "sensitivity" else tests(opened, spec)
        minutes = math.inf if spec.minutes is None else spec.minutes
        self.deadline = time.monotonic() + 60 * minutes

    def go(self) -> Steps:
        """Rounds until there is nothing left to do."""
        free = self.spec.strategy == "tpe"
        try:
            while True:
                known = self.known()
                self.done = len(known)
                yield self.told()
                staged = self.spec.strategy == "staged"
                if self.done >= self.total or (staged and last_stage(known, self.aim)):
                    return
                if time.monotonic() > self.deadline or (free and self.stuck(known)):
                    return
                # Stages end where one is good enough; of a fixed list everybody gets a batch.
                batches = 1 if staged else self.measurer.workers
                count = self.spec.round if free else TOGETHER * batches
                count = min(count, self.total - self.done)
                asked = self.study.ask(count, draw=free)
                if asked:
                    made = {
                        each.number: candidate(self.recipe, each.params, self.measurer.layers)
                        for each in asked
                    }
                    yield from self.measured(made)
                elif any(trial.state == TrialState.RUNNING for trial in self.study.trials()):
                    time.sleep(0.5)  # another process measures the rest
                    self.study.reclaim()
                else:
                    return
        finally:
            self.study.give_back()

    def stuck(self, known: Sequence[Candidate]) -> bool:
        """Whether the front has not moved for long, start-up draws left out."""
        drawn = len(known) - goals.startup(self.spec.trials)
        return 0 < self.spec.patience <= min(drawn, still(known, self.aim))

    def test(self) -> Steps:
        """Measure the finalists on the test prompts; those that were measured there stay as they
        are, so that a search that goes on looks again only where it has found others."""
        how = goals.final(self.recipe, self.aim, self.spec)
        of = digest(to_dict(how))
        self.study.forget_tests(of)
        rows = {e.number: e.recipe for e in finalists(self.known(), self.aim, self.spec)
                if not e.test}  # fmt: skip
        found: dict[int, dict] = {}
        for step in self.measurer.numbers(list(rows.values()), how):
            if isinstance(step, Progress):
                note = f"finalists on the test prompts; {step.note}".rstrip("; ")
                yield self.told(note, self.tests * (step.overall or 0.0))
                continue
            place, numbers = step
            if numbers.error:
                raise UserError(f"the finalists cannot be tested: {numbers.error}")
            found[list(rows)[place]] = {
                part: {
                    name: _row(getattr(numbers, part).get(self.aim.tests[name], NOTHING))
                    for name in self.aim.metrics
                }
                for part in ("values", "base")
            }
        if found:
            self.study.keep_tests(of, found)
            yield from (each for each in self.known() if each.number in found)

    def known(self) -> list[Candidate]:
        return candidates(self.study, self.recipe, self.measurer.layers)

    def told(self, note: str = "", ahead: float = 0.0) -> Progress:
        """How far the search is.

        Args:
            ahead: candidates' worth of what is being measured now.
        """
        share = (self.done + ahead) / (self.total + self.tests) if self.total else 0.0
        self.share = max(self.share, min(share, 1.0))
        return Progress("search", self.done, self.total, note, overall=self.share)

    def measured(self, made: Mapping[int, Recipe]) -> Steps:
        """Measure a round: the scores that need no answers first, then what they leave over."""
        cheap = self.aim.cheap if self.spec.strategy == "tpe" else ()
        quick: dict[int, Numbers] = {}
        if cheap:
            for step in self.numbers(made, cheap):
                if isinstance(step, Progress):
                    yield self.told(f"scores without answers; {step.note}")
                else:
                    quick[step[0]] = step[1]
            out = self.ruled_out(quick)
            for number in (n for n in made if n in out or quick[n].error):
                yield self.tell(number, quick[number], pruned=number in out)
            made = {n: each for n, each in made.items() if n not in out and not quick[n].error}
        rest = tuple(name for name in self.aim.metrics if name not in cheap)
        if not rest:  # the scores that need no answers are all that is asked for
            for number in made:
                yield self.tell(number, quick[number])
            return
        for step in self.numbers(made, rest):
            if isinstance(step, Progress):
                yield self.told(step.note, min(TOGETHER, len(made)) * (step.overall or 0.0))
                continue
            number, numbers = step
            if number in quick:
                first = quick[number]
                both = {**first.values, **numbers.values}, {**first.base, **numbers.base}
                numbers = Numbers(*both, error=numbers.error)
            yield self.tell(number, numbers)  # those of one batch without a step in between
            if time.monotonic() > self.deadline:
                return

    def numbers(
        self, made: Mapping[int, Recipe], metrics: tuple[str, ...]
    ) -> Generator[Progress | tuple[int, Numbers], None, None]:
        order = list(made)
        asked = goals.evaluation(metrics, self.recipe, self.spec)
        for step in self.measurer.numbers([made[number] for number in order], asked):
            self.study.beat()
            yield step if isinstance(step, Progress) else (order[step[0]], step[1])

    def ruled_out(self, quick: Mapping[int, Numbers]) -> set[int]:
        """Those that several finished candidates beat by every cheap score: far from the front."""
        done = [each for each in self.known() if each.state == "done" and each.feasible]
        done = [each for each in done if all(name in each.values for name in self.aim.cheap)]
        rule = goals.presets()["prune"]
        if len(done) < rule["after"]:
            return set()

        def beaten(numbers: Numbers) -> bool:
            better = (
                all(each.value(name) < numbers.values[name].value for name in self.aim.cheap)
                for each in done
            )
            return sum(better) >= rule["beaten_by"]

        return {n for n, numbers in quick.items() if not numbers.error and beaten(numbers)}

    def tell(self, number: int, numbers: Numbers, pruned: bool = False) -> Candidate:
        """Keep a candidate's numbers."""
        kept = {
            part: {name: _row(value) for name, value in getattr(numbers, part).items()}
            for part in ("values", "base")
        }
        found = [numbers.values.get(name, NOTHING).value for name in self.aim.objectives]
        got = [_drawn(*each) for each in zip(self.aim.objectives, found, strict=True)]
        decides = numbers.values.get(self.aim.decides, NOTHING).value
        error = numbers.error
        if not (pruned or error) and not all(map(math.isfinite, [*got, decides])):
            error = "an objective has no value; other prompts, or more of them, may have one."
        broken: Sequence[float] = [
            limit.violation(numbers.values.get(limit.metric, NOTHING).value)
            for limit in self.aim.limits
        ]
        gate = [shortfall(numbers.values, numbers.base, self.aim)] if self.aim.gate else []
        failed = pruned or bool(error)
        if failed:
            broken, gate = [], []
        self.study.tell(number, None if failed else got, kept, broken, error, gate)
        self.done += 1
        return next(each for each in self.known() if each.number == number)


def tests(opened: Opened, spec: SearchSpec) -> float:
    """How many candidates the test of the finalists takes as long as, about."""
    how = goals.final(opened.recipe, opened.aim, spec)
    samples, length = limits(how, opened.recipe.model.id)
    one = (spec.samples or MOST) * goals.tokens(opened.recipe, spec)
    count = min(goals.presets()["finalists"], opened.total)
    return count * (samples or MOST) * length / one


def _drawn(name: str, value: float) -> float:
    """An objective as the sampler sees it: divergences by their order of magnitude, since a broken
    model has thousands of times the divergence that the best candidates differ by."""
    nats = find(name).unit == "nats/token"
    least = goals.presets()["least"]  # smaller ones are equal
    return math.log10(max(value, least)) if nats and math.isfinite(value) else value


def _row(value: Value) -> list[float]:
    return [value.value, value.low, value.high, value.n]
