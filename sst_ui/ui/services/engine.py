"""The one resident model behind every window, and what was computed for it.

A window holds a key; a key that is not the loaded model's any more is answered with a clear
message. The only mutable thing of the screen: visitors' recipes are never kept here, only results
that follow from them and may be computed again. The history is the user's own, and there is none on
a Space.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.chat import chat
from sst_ui.jobs.directions.filtering import Forecast, filters, refuse
from sst_ui.jobs.directions.measure import measure, named, resolve
from sst_ui.jobs.directions.residual_cache import probe
from sst_ui.jobs.directions.residual_map import ResidualMap, residual_map
from sst_ui.jobs.directions.rounds import Rounds, rounds
from sst_ui.jobs.evaluate import speed
from sst_ui.jobs.evaluate.evaluate import evaluate, limits
from sst_ui.jobs.evaluate.stages import Stage, may_grow, plan, works
from sst_ui.jobs.export.export import Export, export
from sst_ui.jobs.history.store import History
from sst_ui.jobs.purpose import goal_for
from sst_ui.jobs.search.candidates import Candidate
from sst_ui.jobs.search.objectives import SearchSpec
from sst_ui.jobs.search.search import Opened, search
from sst_ui.jobs.search.trials import Local, Numbers
from sst_ui.jobs.token_view import TokenView, token_view
from sst_ui.lru import Memory
from sst_ui.maths import directions as maths_directions
from sst_ui.maths.directions import Directions, Doubt
from sst_ui.maths.merge.registry import METHODS
from sst_ui.metrics.results import MetricResult
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.hooks.self_check import EditReport
from sst_ui.model.inference.running_batch import running
from sst_ui.model.load.fingerprint import state
from sst_ui.model.load.memory import Report
from sst_ui.model.runtime.host import Host, inspect, load
from sst_ui.options import Format, RoundsOptions
from sst_ui.paths import PRESETS, directions_dir
from sst_ui.progress import Joint, Progress, finish
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Evaluation,
    Merge,
    ModelSpec,
    Recipe,
    WeightTable,
)
from sst_ui.ui.services import quotas, zero_gpu
from sst_ui.ui.services.first_look import FirstLook
from sst_ui.ui.services.job_queue import JobQueue
from sst_ui.ui.services.merge_forecasts import Merges
from sst_ui.ui.services.roles import Actor, Role, acting, ask_model, asks, may
from sst_ui.ui.services.searches import Searches
from sst_ui.ui.services.zero_gpu import on_gpu
from sst_ui.ui.state.loaded_model import Loaded, Replaced

log = logging.getLogger(__name__)
Step = TypeVar("Step")
Result = TypeVar("Result")
KEPT = 64  # of each kind in memory; edits and directions come back from the disk cache


FILTERS = 4  # sets of filters in memory: 1.5 GB each for 8 billion parameters
# For Gradio: answers on their way at a time, the page's and the programs' together. With two
# columns each, half of them fill the running batch; the others hold a thread too.
CHATS: dict[str, Any] = {"concurrency_id": "chat", "concurrency_limit": 32}
WAY = 2.0  # seconds that a job gives way to chats between two steps: there may always be some
PATIENCE = 10.0  # seconds to wait for the step of an answer that was told to end


@dataclass
class Answering:
    """An answer on its way, and what it was told meanwhile."""

    stopped: bool = False  # to end with what it has
    replaced: bool = False  # to end without another word
    over: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Holder of the model host. Every method may be called from any thread.

    What needs the model to compute is marked with the seconds that it may take on a GPU which is
    lent (see `zero_gpu`); such methods take and give data that can be pickled.
    """

    LEARNT = ("_edits", "_directions", "_filters")  # memories that come home from there

    def __init__(self, spec: ModelSpec | None = None) -> None:
        self.spec = spec or ModelSpec()
        self.opening = Progress("inspect", 0, 1)  # what the start-up thread is doing
        self.failure: str | None = None
        self._host: Host | None = None
        self._loaded = Loaded(spec=self.spec)
        self._arrived, self._opened = threading.Event(), threading.Event()
        self._swap = threading.Lock()  # one load at a time
        # edits with the warnings that measuring them gave
        self._edits: Memory[tuple[tuple[Edit, ...], tuple[str, ...]]] = Memory(KEPT)
        self._directions: Memory[Directions] = Memory(KEPT)
        self._filters: Memory[Any] = Memory(FILTERS)
        self._chats = 0
        self._measured: Memory[list[MetricResult]] = Memory(KEPT)
        self._stopped: Memory[bool] = Memory(KEPT)  # job -> whether it was told to stop
        self._going: set[str] = set()  # jobs of windows that have not ended, by their names
        self._answers: Memory[Answering] = Memory(KEPT)  # window -> its `Answering`
        self.merges = Merges(self)
        self.searches = Searches(self)
        self.queue = JobQueue()
        self.first = FirstLook(self)
        # None: every browser keeps its own
        self.history = History() if may("keep runs in the program") else None
        zero_gpu.serve(self)

    # --- opening and swapping the model -------------------------------------------------------

    def open(self) -> None:
        """Load the first model and measure the default recipe in a thread; returns at once."""
        threading.Thread(target=self._open, name="open-model", daemon=True).start()

    def _open(self) -> None:
        try:
            with acting(Actor(Role.OWNER)), zero_gpu.at_home():
                finish(self.load(self.spec), self._note)
        except UserError as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("opening %s failed", self.spec.id)
            self.failure = f"{self.spec.id} could not be opened ({type(error).__name__})."
        else:
            self.first.begin()
            self._arrived.set()
            self.first.join()
        finally:
            self._arrived.set()
            self._opened.set()

    def _note(self, progress: object) -> None:
        if isinstance(progress, Progress):
            self.opening = progress

    def arrived(self) -> Generator[Progress, None, Loaded]:
        """Progress of the start-up thread (see `open`), until the model is there or failed."""
        while not self._arrived.wait(0.1):
            yield self.opening
        return self._loaded

    def wait(self) -> Generator[Progress, None, Loaded]:
        """The same until the model is measured, too (see `first`)."""
        yield from self.arrived()
        while not self._opened.wait(0.1):
            yield self.first.progress
        return self._loaded

    @property
    def loaded(self) -> Loaded:
        """The model of now; its key is empty while there is none."""
        return self._loaded

    def first_recipe(self) -> Recipe:
        """What a fresh window shows and applies on the loaded model.

        That is the default recipe on the demo, for which it was chosen, and the wide one on a model
        that nobody has prepared; of a mixture's experts, which no filter reads, without its MLPs.
        """
        spec, host = self._loaded.spec, self._host
        name = "default" if spec.id == ModelSpec.id else "wide"
        recipe = replace(recipes.load(PRESETS / "recipes" / f"{name}.yaml"), model=spec)
        if host is None or not any(w.form == "experts" for w in host.architecture.writers):
            return recipe
        (edit,) = recipe.edits
        weights = replace(edit.weights, modules={**edit.weights.modules, "mlp": 0.0})
        return replace(recipe, edits=(replace(edit, weights=weights),))

    def inspect(self, spec: ModelSpec) -> Report:
        """What loading would need, before anything is fetched (see `model.load.memory.Report`)."""
        ask_model(spec)
        return inspect(_placed(spec))

    def load(self, spec: ModelSpec) -> Generator[Progress, None, Loaded]:
        """Swap the resident model. Windows that worked with the old one are told to reload."""
        ask_model(spec)
        if not self._swap.acquire(blocking=False):
            raise UserError("a model is already being loaded; wait for it, or cancel it.")
        try:
            self._make_room(_placed(spec))
            host = yield from load(_placed(spec))
            dtype = str(next(host.model.parameters()).dtype).removeprefix("torch.")
            key = f"{host.digest}:{recipes.digest(recipes.to_dict(spec))}"
            if key != self._loaded.key:  # the same model again: windows and results stay good
                self._edits.clear()
                self._directions.clear()
                self._filters.clear()
            self._host = host
            self._loaded = Loaded(
                key=key,
                name=host.name,
                spec=spec,
                layers=host.layers,
                parameters=host.parameters,
                dtype=dtype,
                device=str(host.device),
                context=host.context,
                warnings=host.warnings,
            )
            return self._loaded
        finally:
            self._swap.release()

    def _make_room(self, spec: ModelSpec) -> None:
        """Let go of the open model first where both together would not fit, but the new one would.

        Otherwise it stays until the new one is there, so that a failed load costs nothing.
        """
        if self._host is None:
            return
        report = inspect(spec)
        held = sum(p.numel() * p.element_size() for p in self._host.model.parameters())
        if not report.fits and report.bytes + report.overhead <= report.free + held:
            self._host, self._loaded = None, Loaded(spec=self._loaded.spec)
            self._edits.clear()
            self._directions.clear()
            self._filters.clear()

    def arrive(self) -> None:
        """This process is a fork, with a GPU if there is one."""
        if self._host is not None:
            self._host.forked()

    def host(self, key: str) -> Host:
        """The model, if `key` is still its key.

        Raises:
            UserError: nothing is loaded yet, or (`Replaced`) another window loaded another model.
        """
        if self._host is None:
            raise UserError(self.failure or "no model is loaded yet; load one under Model.")
        if key != self._loaded.key:
            raise Replaced(self._loaded.name)
        return self._host

    # --- directions and edits -----------------------------------------------------------------

    @asks("measure")
    @on_gpu(60)
    def measure(self, key: str, spec: DirectionSpec) -> Generator[Progress, None, Directions]:
        """Measure (or find in the cache) the directions of these settings."""
        host = self.host(key)
        yield from self.first.waiting(key, spec)
        directions = yield from measure(host, spec)
        self._directions.put(_name(key, spec), directions)
        return directions

    @asks("measure")
    @on_gpu(60)
    def measure_edit(
        self,
        key: str,
        before: tuple[Ablation | Merge, ...],
        edit: Ablation,
        again: bool = False,
    ) -> Generator[Progress, None, None]:
        """Measure an edit's directions and, if it filters, what its filters are made of.

        Args:
            before: the edits in front of it.
            again: look at the prompts again though both are known.
        """
        filtered = edit if edit.operation == "filter" else None
        yield from self.first.waiting(key, edit.directions, filtered)
        directions = None if again else self.directions(key, edit.directions)
        if directions is None:
            directions = yield from self.measure(key, edit.directions)
        known = self._filters.get(_filtered(key, before, edit)) is not None
        if edit.operation != "filter" or (known and not again):
            return
        refuse(self.host(key), edit)
        earlier = yield from self.resolve(key, Recipe(model=self._loaded.spec, edits=before))
        job = filters(self.host(key), edit, directions, earlier, named(before))
        self._filters.put(_filtered(key, before, edit), (yield from job))

    def forecast(
        self, key: str, before: tuple[Ablation | Merge, ...], edit: Ablation
    ) -> Forecast | None:
        """What a filtered ablation is predicted to do; None before `measure_edit`. Maths alone.

        Raises:
            UserError: a budget that no filter keeps.
        """
        found = self._filters.get(_filtered(key, before, edit))
        if found is None:
            few = replace(edit, directions=self.first.stand_in(key, edit.directions))
            found = self._filters.get(_filtered(key, before, few))
        return None if found is None else found.forecast(edit)

    @asks("measure")
    def next_decision(
        self, key: str, before: tuple[Ablation | Merge, ...], edit: Ablation
    ) -> Generator[Any, None, tuple[Rounds, Path]]:
        """Look for one more direction than the edit has, and save all of them.

        Args:
            before: the edits in front of it.

        Returns:
            What was found, and the file.

        Raises:
            UserError: as `jobs.directions.rounds.rounds`; the file cannot be written.
        """
        return (yield from self.queue.turn(self._decide(key, before, edit)))

    @on_gpu(120)
    def _decide(
        self, key: str, before: tuple[Ablation | Merge, ...], edit: Ablation
    ) -> Generator[Any, None, tuple[Rounds, Path]]:
        host, spec, begin = self.host(key), edit.directions, None
        if spec.file is not None:
            begin = yield from measure(host, spec)
        earlier = yield from self.resolve(key, Recipe(model=self._loaded.spec, edits=before))
        options = RoundsOptions(rounds=(spec.k if begin is None else begin.k) + 1)
        found = yield from rounds(host, edit, options, begin, earlier, named(before))
        path = directions_dir() / f"{found.directions.digest()}.safetensors"
        return found, found.directions.save(path)

    def directions(self, key: str, spec: DirectionSpec) -> Directions | None:
        """Measured directions of these settings, or None."""
        return self._directions.get(_name(key, spec))

    def signals(self, key: str, spec: DirectionSpec) -> Mapping[str, np.ndarray]:
        """Statistic -> [layers] values of these settings; empty when not measured. A random control
        has no `evidence`."""
        found = self.directions(key, self.first.stand_in(key, spec))
        if found is None:
            return {}
        stats = {name: values.numpy() for name, values in found.stats.items()}
        if not found.control:
            stats["evidence"] = maths_directions.signal(found)
        return {name: values for name, values in stats.items() if np.isfinite(values).any()}

    def suggestion(self, key: str, spec: DirectionSpec) -> np.ndarray | None:
        """[layers] the signal a kernel is fitted to; None when not measured, not reliable or a
        random control."""
        found = self.directions(key, self.first.stand_in(key, spec))
        if found is None or found.control or found.doubt("evidence"):
            return None
        return maths_directions.signal(found)

    def interval(self, key: str, spec: DirectionSpec, name: str) -> np.ndarray | None:
        """[layers, 2] 95 % intervals of a statistic of `signals`; None when not known."""
        found = self.directions(key, self.first.stand_in(key, spec))
        known = None if found is None else found.intervals.get(name)
        return None if known is None else known.numpy()

    def doubt(self, key: str, spec: DirectionSpec, name: str) -> Doubt:
        """Why a statistic of `signals` is not reliable; '' when it is, or that is not known."""
        found = self.directions(key, self.first.stand_in(key, spec))
        return "" if found is None else found.doubt(name)

    def resolve(self, key: str, recipe: Recipe) -> Generator[Progress, None, tuple[Edit, ...]]:
        """The recipe's edits on the loaded model, measured where needed."""
        self.host(key)
        known = self._edits.get(_edited(key, recipe))
        if known is None:
            known = yield from self._resolve(key, recipe)
        edits, warnings = known
        for warning in warnings:
            yield Progress("resolve", 1, 1, warning=warning)
        return edits

    def quietly(self, key: str, recipe: Recipe) -> Generator[Progress, None, None]:
        """The same behind the page: chats go first, and it ends when the model is replaced."""
        with closing(self._beside(self.resolve(key, recipe))) as job:
            for step in job:
                yield step
                self.host(key)

    @on_gpu(60)
    def _resolve(
        self, key: str, recipe: Recipe
    ) -> Generator[Progress, None, tuple[tuple[Edit, ...], tuple[str, ...]]]:
        host = self.host(key)
        for number, edit in enumerate(recipe.edits):
            if isinstance(edit, Ablation):
                yield from self.measure_edit(key, recipe.edits[:number], edit)
            if isinstance(edit, Merge) and "moments" in METHODS[edit.method].needs:
                yield from self.merges.prepare(key, edit)
        heard: list[str] = []
        edits = yield from _listened(resolve(host, recipe), heard)
        known = (edits, tuple(heard))
        self._edits.put(_edited(key, recipe), known)
        return known

    @on_gpu(60)
    def checked(self, key: str, recipe: Recipe) -> Generator[Progress, None, EditReport]:
        """Resolve a recipe, and the numerical self-check of its edits."""
        return self.check(key, (yield from self.resolve(key, recipe)))

    def knows(self, key: str, recipe: Recipe) -> bool:
        """Whether the recipe's edits are at hand, so that a window may open with them applied."""
        return self._edits.get(_edited(key, recipe)) is not None

    def check(self, key: str, edits: tuple) -> EditReport:
        """The numerical self-check of an edit (see `model.hooks.live_edits.EditReport`)."""
        host = self.host(key)
        with host.step():  # the check runs modules of the model
            return host.live.check(edits)

    # --- using it -----------------------------------------------------------------------------

    @asks("chat")
    def chat(
        self,
        key: str,
        rows: Sequence[Recipe | None],
        histories: list[list[dict[str, str]]],
        max_new_tokens: int,
        temperature: float,
        seed: int = 0,
        notify: Callable[[list[int]], None] | None = None,
    ) -> Generator[list[str], None, None]:
        """Cumulative answers, one per row, in one batch; a row without a recipe is the base.

        Args:
            notify: told how many old turns each row does not see, if any (see `jobs.chat.chat`).
        """
        self.host(key)
        limits = (max_new_tokens, temperature, seed)
        with self.queue.chatting(), self._chatting():
            quotas.answer(self.queue, max_new_tokens, len(rows))
            yield from self._chat(key, rows, histories, limits, notify)

    @on_gpu(60)
    def _chat(
        self,
        key: str,
        rows: Sequence[Recipe | None],
        histories: list[list[dict[str, str]]],
        limits: tuple[int, float, int],
        notify: Callable[[list[int]], None] | None,
    ) -> Generator[list[str], None, None]:
        edits = [finish(self.resolve(key, r)) if r is not None else () for r in rows]
        yield from chat(self.host(key), edits, histories, *limits, notify=notify)

    def answering(self, window: str | None) -> "Answering":
        """An answer of this window begins; one that still runs there falls silent first."""
        self.hush(window)
        mine = Answering()
        self._answers.put(window, mine)
        return mine

    def hush(self, window: str | None) -> None:
        """End the window's running answer without another word from it, and wait for that.

        What a handler writes after this is not overwritten by what the answer had on its way.
        """
        if (running := self._answers.get(window)) is not None:
            running.replaced = True
            running.over.wait(PATIENCE)

    def cut_short(self, window: str | None) -> bool:
        """Tell the window's answer to end with what it has; False where none is on its way."""
        running = self._answers.get(window)
        if running is None or running.over.is_set():
            return False
        running.stopped = True
        return True

    def short(self, key: str) -> int:
        """How often memory was too short for all the answers on their way, which then go on a few
        at a time."""
        return running(self.host(key)).short

    def tokens(self, key: str, texts: Sequence[str]) -> int:
        """How many tokens these texts have together."""
        host = self.host(key)
        return sum(len(host.tokens(text)) for text in texts)

    @asks("measure")
    @on_gpu(20)
    def probes(
        self, key: str, rows: Sequence[Recipe | None], messages: list[dict[str, str]]
    ) -> list[np.ndarray]:
        """[layers] position of a conversation on the refusal direction, for each recipe; None is
        the base.

        The direction is that of the first ablation there is, else the default one of the base.
        """
        host, directions = self.host(key), finish(self._main(key, rows))
        edits = [finish(self.resolve(key, row)) if row else () for row in rows]
        return [probe(host, messages, directions, each) for each in edits]

    def _main(
        self, key: str, rows: Sequence[Recipe | None]
    ) -> Generator[Progress, None, Directions]:
        """Directions of the first ablation there is, else the default ones of the base."""
        used = [edit for row in (*rows, self.first_recipe()) if row for edit in row.edits]
        spec = next(edit.directions for edit in used if isinstance(edit, Ablation))
        directions = self.directions(key, spec)
        if directions is None:
            directions = yield from self.measure(key, spec)
        return directions

    @asks("measure")
    def token_view(
        self, key: str, recipe: Recipe, messages: list[dict[str, str]]
    ) -> Generator[Progress | TokenView, None, None]:
        """A conversation token by token, base and edited (see `jobs.token_view`), on the direction
        that `probes` takes; the last step is the whole view. Chats go first between two steps."""
        self.host(key)
        yield from self._beside(self._token_view(key, recipe, messages))

    @on_gpu(30)
    def _token_view(
        self, key: str, recipe: Recipe, messages: list[dict[str, str]]
    ) -> Generator[Progress | TokenView, None, None]:
        directions = yield from self._main(key, [recipe])
        edits = yield from self.resolve(key, recipe)
        yield (yield from token_view(self.host(key), messages, directions, edits))

    @asks("measure")
    def residual_map(self, key: str, spec: DirectionSpec) -> Generator[Progress, None, ResidualMap]:
        """The residuals that a direction was measured from, as points (see
        `jobs.directions.residual_map`). Measured first where they are not yet."""
        self.host(key)
        return (yield from self._beside(self._residual_map(key, spec)))

    @on_gpu(60)
    def _residual_map(
        self, key: str, spec: DirectionSpec
    ) -> Generator[Progress, None, ResidualMap]:
        directions = self.directions(key, spec)
        if directions is None:
            directions = yield from self.measure(key, spec)
        return (yield from residual_map(self.host(key), spec, directions))

    @asks("measure")
    def evaluate(
        self, key: str, recipe: Recipe, evaluation: Evaluation
    ) -> Generator[Progress | MetricResult, None, list[MetricResult]]:
        """Metrics of base and edited; lets a running chat go first between two steps.

        Those that every fresh window asks for are measured once for all of them.
        """
        host, asked = self.host(key), self._shared(key, recipe, evaluation)
        if (known := self._measured.get(asked)) is not None:
            yield from known
            return known
        tokens = quotas.evaluation(evaluation, host.spec.id)
        job = self._evaluate(key, recipe, evaluation)
        results = yield from self.queue.turn(self._beside(job), tokens)
        if asked and all(result.base.n for result in results):  # prompts may be there next time
            self._measured.put(asked, results)
        return results

    @asks("measure")
    def stages(
        self, key: str, recipe: Recipe, evaluation: Evaluation
    ) -> Generator[Progress, None, tuple[Stage, ...]]:
        """In which evaluations to take a long one, so that its first numbers come soon.

        The last one is what was asked for, and the only one where that is short or known already.
        """
        host, model = self.host(key), self._loaded.spec.id
        whole = (Stage(evaluation, *limits(evaluation, model)),)
        known = self._measured.get(self._shared(key, recipe, evaluation)) is not None
        if known or zero_gpu.lent() or not may_grow(model):
            return whole
        try:
            found = yield from self._beside(speed.measure(host))
            work = works(host, evaluation)
        except UserError:  # the evaluation says what is wrong
            return whole
        goal, sides = goal_for(recipe, evaluation.goal), 2 if recipe.edits else 1
        return plan(evaluation, model, goal, found, work, sides)

    def _shared(self, key: str, recipe: Recipe, evaluation: Evaluation) -> str:
        """Names an evaluation that every window may ask for; '' with files in it, which may change,
        or for a recipe of one's own."""
        files = evaluation.labels or any("@" in name for name in evaluation.metrics)
        if files or recipe.digest() != self.first_recipe().digest():
            return ""
        return f"{key}:{recipe.digest()}:{recipes.digest(recipes.to_dict(evaluation))}"

    @on_gpu(120)
    def _evaluate(
        self, key: str, recipe: Recipe, evaluation: Evaluation
    ) -> Generator[Progress | MetricResult, None, list[MetricResult]]:
        edits = yield from self.resolve(key, recipe)
        return (yield from evaluate(self.host(key), edits, evaluation))

    @asks("search")
    def search(
        self, key: str, recipe: Recipe, spec: SearchSpec, storage: str | None
    ) -> Generator[Opened | Progress | Candidate, None, None]:
        """A search (see `jobs.search.search.search`); ends with `Replaced` when the model is."""
        tokens = quotas.search(recipe, spec)
        job = self._beside(self._search(key, recipe, spec, storage))
        with closing(self.queue.turn(job, tokens)) as job:
            for part in job:
                yield part
                self.host(key)

    @on_gpu(300)
    def _search(
        self, key: str, recipe: Recipe, spec: SearchSpec, storage: str | None
    ) -> Generator[Opened | Progress | Candidate, None, None]:
        yield from search(recipe, spec, Local(self.host(key)), storage)

    @asks("search")
    def held_out(
        self, key: str, recipe: Recipe, evaluation: Evaluation
    ) -> Generator[Progress, None, Numbers]:
        """The numbers of one recipe, as a search measures them but on prompts of your choice."""
        tokens = quotas.evaluation(evaluation, self.host(key).spec.id)
        job = self._beside(self._held_out(key, recipe, evaluation))
        return (yield from self.queue.turn(job, tokens))

    @on_gpu(60)
    def _held_out(
        self, key: str, recipe: Recipe, evaluation: Evaluation
    ) -> Generator[Progress, None, Numbers]:
        return (yield from Local(self.host(key)).batch([recipe], evaluation))[0]

    def _beside(self, job: Generator[Step, None, Result]) -> Generator[Step, None, Result]:
        """Drive a job, running chats going first for a while between two steps."""
        with closing(job):
            while True:
                try:
                    part = next(job)
                except StopIteration as end:
                    return end.value
                yield part
                if isinstance(part, Joint):
                    continue
                until = time.monotonic() + WAY
                while self._chats and time.monotonic() < until:
                    time.sleep(0.02)

    @asks("export")
    def export(
        self, key: str, recipe: Recipe, out: Path, format: Format, **more: Any
    ) -> Generator[Progress, None, Export]:
        """The recipe's model as files (`jobs.export.export.export`); the live model stays."""
        quotas.export(self.host(key), format, out)
        return (yield from self.queue.turn(self._export(key, recipe, out, format, **more)))

    @on_gpu(120)
    def _export(
        self, key: str, recipe: Recipe, out: Path, format: Format, **more: Any
    ) -> Generator[Progress, None, Export]:
        return (yield from export(self.host(key), recipe, out, format, **more))

    @contextmanager
    def going(self, job: str) -> Iterator[None]:
        """A job goes on meanwhile, by the name it gave itself (see `goes`)."""
        self._going.add(job)
        try:
            yield
        finally:
            self._going.discard(job)

    def goes(self, job: str) -> bool:
        """Whether a job goes on, and was not told to stop."""
        return job in self._going and not self.stopped(job)

    def stop(self, job: str) -> None:
        """Tell a job of some window, by the name it gave itself, that nobody waits for it now.

        Gradio closes a cancelled generator only between two steps, and sends on what it yields
        until then; a job that asks `stopped` is quiet at once.
        """
        if job:
            self._stopped.put(job, True)

    def begin(self, job: str) -> Callable[[], bool]:
        """A job of this name begins; the answer tells whether it was told to stop since."""
        self._stopped.put(job, False)
        return lambda: self.stopped(job)

    def stopped(self, job: str) -> bool:
        """Whether a job was told to stop."""
        return bool(self._stopped.get(job))

    @contextmanager
    def _chatting(self) -> Iterator[None]:
        self._chats += 1
        try:
            yield
        finally:
            self._chats -= 1


def _listened(
    job: Generator[Step, None, Result], warnings: list[str]
) -> Generator[Step, None, Result]:
    """Drive a job and note its warnings."""
    with closing(job):
        while True:
            try:
                step = next(job)
            except StopIteration as end:
                return end.value
            if isinstance(step, Progress) and step.warning:
                warnings.append(step.warning)
            yield step


def _placed(spec: ModelSpec) -> ModelSpec:
    """Where the model is opened: a GPU that is lent comes to forks alone, which take it there."""
    return replace(spec, device="cpu") if zero_gpu.lent() else spec


def _name(key: str, spec: DirectionSpec) -> str:
    return f"{key}:{recipes.digest([recipes.to_dict(spec), state(spec.file)])}"


def _filtered(key: str, before: tuple[Ablation | Merge, ...], edit: Ablation) -> str:
    """Names the filters of an edit: whatever its weights, price and budget."""
    plain = replace(
        edit, weights=WeightTable(), filter=replace(edit.filter, mu=1.0, budget=None, kl=None)
    )
    return f"{key}:{named((*before, plain))}"


def _edited(key: str, recipe: Recipe) -> str:
    """Names the recipe's edits on a model: also the state of the files that it names."""
    files = [
        state(e.utility, e.safety, e.unaligned)
        if isinstance(e, Merge)
        else state(e.directions.file)
        for e in recipe.edits
    ]
    return f"{key}:{recipe.digest()}:{recipes.digest(files)}"
