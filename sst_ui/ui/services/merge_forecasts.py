"""What is known of merges on the loaded model: prepared pairs, forecasts, measured costs.

Like the engine it keeps only results that follow from a recipe and may be computed again.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sst_ui import recipe as recipes
from sst_ui.data import prompt_sets
from sst_ui.jobs.evaluate.evaluate import limits
from sst_ui.jobs.merge import forecast as lab
from sst_ui.jobs.merge.compare_methods import TOGETHER, compare, contenders
from sst_ui.jobs.merge.fisher_moments import sets
from sst_ui.jobs.merge.merge import Outcome, Pair, combine, prepare
from sst_ui.lru import Memory
from sst_ui.maths.merge.registry import METHODS
from sst_ui.maths.merge.subspace import Curve
from sst_ui.metrics.results import Value
from sst_ui.model.load.fingerprint import state
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, part
from sst_ui.recipe import Evaluation, Merge
from sst_ui.ui.services import quotas, zero_gpu
from sst_ui.ui.services.roles import asks
from sst_ui.ui.services.zero_gpu import on_gpu

if TYPE_CHECKING:  # it holds this
    from sst_ui.ui.services.engine import Engine


FIRST = 48  # conversations of each set that a first forecast is made of
SAMPLES, TOKENS = 12, 48  # prompts of each set, and tokens of an answer, of a table's first numbers
QUICK, MAKING = 0.12, 0.15  # shares of the time: of those numbers, and of making what is measured


@dataclass(frozen=True)
class First:
    """There is a first forecast (see `Merges.predict`)."""


@dataclass(frozen=True)
class Line:
    """A row of the methods' table: small frozen data for a window to keep."""

    name: str
    title: str
    spec: Merge | None
    predicted: float | None
    values: tuple[tuple[str, Value], ...]
    tokens: int | None = None
    first: bool = False  # numbers of a few prompts; those of all of them follow


class Merges:
    """Merges on the engine's model. Every method may be called from any thread."""

    LEARNT = ("_pairs", "_costs")  # memories that come home from a lent GPU

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._pairs: Memory[Pair] = Memory(6)
        self._stacks: Memory[lab.Stack] = Memory(8)
        self._curves: Memory[Curve] = Memory(32)
        self._costs: Memory[lab.Point] = Memory(256)
        zero_gpu.serve(self)

    @asks("measure")
    def arrive(self) -> None:
        """This process is a fork; the model is the engine's."""

    @on_gpu(120)
    def prepare(self, key: str, spec: Merge) -> Generator[Progress, None, Pair]:
        """Both adapters with their Fisher statistics; remembered."""
        host, plain = self._engine.host(key), lab.basis(spec)
        name = _name(key, plain)
        pair = self._pairs.get(name)
        if pair is None:
            pair = yield from prepare(host, plain)
            self._pairs.put(name, pair)
        return pair

    @asks("measure")
    @on_gpu(120)
    def predict(self, key: str, spec: Merge) -> Generator["Progress | First", None, Pair]:
        """The same; where it takes long, a `First` tells when there is a first forecast, from a few
        conversations of each set."""
        before, asked = 0.0, False
        with closing(self.prepare(key, spec)) as job:
            while True:
                try:
                    step = next(job)
                except StopIteration as end:
                    return end.value
                if not asked and step.stage != "adapters":  # it is not in the cache
                    asked = True
                    if self.pair(key, spec) is None and _many(spec):
                        before = FIRST / (FIRST + max(_sizes(spec)))
                        yield from part(self._begin(key, spec), 0.0, before)
                        yield First()
                if step.overall is not None:
                    step = replace(step, overall=before + (1 - before) * step.overall)
                yield step

    def _begin(self, key: str, spec: Merge) -> Generator[Progress, None, None]:
        plain = _few(lab.basis(spec))
        pair = yield from prepare(self._engine.host(key), plain)
        self._pairs.put(_name(key, plain), pair)

    def pair(self, key: str, spec: Merge) -> Pair | None:
        """The prepared pair of these settings, until then that of a few conversations, or None."""
        return self._pairs.get(self._basis(key, spec))

    def first(self, key: str, spec: Merge) -> bool:
        """Whether what is known is of the first conversations only."""
        return self.pair(key, spec) is not None and self._basis(key, spec) != _name(
            key, lab.basis(spec)
        )

    def _basis(self, key: str, spec: Merge) -> str:
        """The name of the pair that these settings have."""
        whole, few = (_name(key, each) for each in (lab.basis(spec), _few(lab.basis(spec))))
        return whole if self._pairs.get(whole) or not self._pairs.get(few) else few

    def forecast(self, key: str, spec: Merge) -> lab.Forecast | None:
        """The predicted trade-off; None before `prepare`. Maths alone: no model is asked.

        Raises:
            UserError: as `jobs.merge.forecast.forecast`.
        """
        pair = self.pair(key, spec)
        if pair is None:
            return None
        host = self._engine.host(key)
        seen = (self._basis(key, spec), lab.aim(spec))
        stack = self._stacks.get(seen)
        if stack is None:
            stack = lab.stack(pair, spec)
            self._stacks.put(seen, stack)
        weighed = (*seen, recipes.digest(recipes.to_dict(spec.weights)), lab.bend(spec))
        found = lab.forecast(host, pair, spec, stack, self._curves.get(weighed))
        self._curves.put(weighed, found.curve)
        return found

    def spectra(self, key: str, spec: Merge) -> dict | None:
        """Module -> spectrum, after a `forecast` of the same settings."""
        stack = self._stacks.get((self._basis(key, spec), lab.aim(spec)))
        return None if stack is None else stack.spectra

    def outcome(self, key: str, spec: Merge) -> Outcome | None:
        """The merge carried out, if it is prepared and needs nothing that is not."""
        pair = self.pair(key, spec)
        if pair is None or spec.rounds or "unaligned" in METHODS[spec.method].needs:
            return None
        return combine(self._engine.host(key), pair, spec)

    @asks("measure")
    @on_gpu(60)
    def measure(self, key: str, spec: Merge) -> Generator[Progress, None, lab.Point | None]:
        """What the merge really costs and leaves undone; None for a pair without statistics."""
        name = _name(key, spec)
        found, pair = self._costs.get(name), self.pair(key, spec)
        if found is None and pair is not None and (merged := self.outcome(key, spec)):
            found = yield from lab.measured(self._engine.host(key), pair, merged, spec)
            self._costs.put(name, found)
        return found

    def cost(self, key: str, spec: Merge) -> lab.Point | None:
        """What `measure` found, or None."""
        return self._costs.get(_name(key, spec))

    @asks("measure")
    def compare(
        self,
        key: str,
        spec: Merge,
        evaluation: Evaluation,
        methods: Sequence[str] | None = None,
    ) -> Generator[Progress | Line, None, None]:
        """Every method (or those named) on the same prompts, a line each as they are finished."""
        host, queue = self._engine.host(key), self._engine.queue
        tokens = quotas.evaluation(evaluation, host.spec.id) * len(list(methods or METHODS))
        yield from queue.turn(self._compare(key, spec, evaluation, methods), tokens)

    @on_gpu(300)
    def _compare(
        self, key: str, spec: Merge, evaluation: Evaluation, methods: Sequence[str] | None
    ) -> Generator[Progress | Line, None, None]:
        host, names = self._engine.host(key), list(methods or METHODS.names())
        early = [name for name in names if "losses" not in METHODS[name].needs]
        samples, tokens = limits(evaluation, host.spec.id)
        begun = 0.0
        if early and (samples is None or samples >= 3 * SAMPLES):
            begun = QUICK
            few = replace(evaluation, samples=SAMPLES, max_new_tokens=min(tokens, TOKENS))
            known = self.pair(key, spec) is not None and not self.first(key, spec)
            plain = spec if known else _few(spec)
            job = _measured(host, plain, few, early, methods is None, len(early) + 1)
            for step in part(job, 0.0, begun):
                own = isinstance(step, Line) and step.spec is not None
                yield replace(step, spec=replace(step.spec, samples=spec.samples)) if own else step
        yield from part(_measured(host, spec, evaluation, names, methods is None), begun, 1.0)


def _measured(
    host: Host,
    spec: Merge,
    evaluation: Evaluation,
    names: Sequence[str],
    optional: bool,
    together: int | None = None,
) -> Generator[Progress | Line, None, None]:
    """The table's lines.

    Args:
        optional: leave out methods that cannot be carried out here.
        together: contenders in a batch, for first numbers of all of them.
    """  # fmt: skip
    making = part(contenders(host, spec, names, optional), 0.0, MAKING)
    rows = yield from making
    measuring = compare(host, rows, evaluation, together or TOGETHER)
    for step in part(measuring, MAKING, 1.0):
        if isinstance(step, Progress):
            yield step
            continue
        who, shown = step.contender, tuple(step.values.items())
        first = together is not None
        yield Line(who.name, who.title, who.spec, step.predicted_kl, shown, step.tokens, first)


def _few(plain: Merge) -> Merge:
    """A basis on the first conversations of each set."""
    return replace(plain, samples=min(FIRST, plain.samples or FIRST))


def _many(spec: Merge) -> bool:
    """Whether the sets have so many more conversations that it is worth to look at a few first."""
    return max(_sizes(spec)) >= 3 * FIRST


def _sizes(spec: Merge) -> list[int]:
    """How many conversations each set has."""
    return [len(prompt_sets.load(name, spec.samples).prompts) for name in sets(spec)]


def _name(key: str, spec: Merge) -> str:
    files = state(spec.utility, spec.safety, spec.unaligned)
    return f"{key}:{recipes.digest([recipes.to_dict(spec), files])}"
