"""What is known of merges on the loaded model: prepared pairs, forecasts, measured costs.

Like the engine it keeps only results that follow from a recipe and may be computed again.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sst_ui import recipe as recipes
from sst_ui.jobs.merge import forecast as lab
from sst_ui.jobs.merge.compare_methods import compare, contenders
from sst_ui.jobs.merge.merge import Outcome, Pair, combine, prepare
from sst_ui.lru import Memory
from sst_ui.maths.merge.registry import METHODS
from sst_ui.maths.merge.subspace import Curve
from sst_ui.metrics.results import Value
from sst_ui.model.load.fingerprint import state
from sst_ui.progress import Progress
from sst_ui.recipe import Evaluation, Merge
from sst_ui.ui.services import quotas, zero_gpu
from sst_ui.ui.services.roles import asks
from sst_ui.ui.services.zero_gpu import on_gpu

if TYPE_CHECKING:  # it holds this
    from sst_ui.ui.services.engine import Engine


@dataclass(frozen=True)
class Line:
    """A row of the methods' table: small frozen data for a window to keep."""

    name: str
    title: str
    spec: Merge | None
    predicted: float | None
    values: tuple[tuple[str, Value], ...]
    tokens: int | None = None


class Merges:
    """Merges on the engine's model. Every method may be called from any thread."""

    LEARNT = ("_pairs", "_costs")  # memories that come home from a lent GPU

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._pairs: Memory[Pair] = Memory(4)
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

    def pair(self, key: str, spec: Merge) -> Pair | None:
        """The prepared pair of these settings, or None."""
        return self._pairs.get(_name(key, lab.basis(spec)))

    def forecast(self, key: str, spec: Merge) -> lab.Forecast | None:
        """The predicted trade-off; None before `prepare`. Maths alone: no model is asked.

        Raises:
            UserError: as `jobs.merge.forecast.forecast`.
        """
        pair = self.pair(key, spec)
        if pair is None:
            return None
        host = self._engine.host(key)
        seen = (_name(key, lab.basis(spec)), lab.aim(spec))
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
        stack = self._stacks.get((_name(key, lab.basis(spec)), lab.aim(spec)))
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
        host = self._engine.host(key)
        rows = yield from contenders(host, spec, methods)
        with closing(compare(host, rows, evaluation)) as job:
            for part in job:
                if isinstance(part, Progress):
                    yield part
                    continue
                who = part.contender
                shown = tuple(part.values.items())
                yield Line(who.name, who.title, who.spec, part.predicted_kl, shown, part.tokens)


def _name(key: str, spec: Merge) -> str:
    files = state(spec.utility, spec.safety, spec.unaligned)
    return f"{key}:{recipes.digest([recipes.to_dict(spec), files])}"
