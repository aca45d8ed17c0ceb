"""Measures candidates: several recipes in every batch, each against the base.

`Local` has a model in this process; `ray_workers` has the same interface and many processes behind
it.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import measure, resolve
from sst_ui.jobs.evaluate.evaluate import evaluate_rows
from sst_ui.jobs.search.space import Params
from sst_ui.maths import kernel
from sst_ui.maths.directions import signal
from sst_ui.metrics.results import Value
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, steps
from sst_ui.recipe import FUSED, Ablation, Evaluation, Recipe

TOGETHER = 5  # candidates in a batch


@dataclass(frozen=True)
class Numbers:
    """The numbers of one candidate.

    Attributes:
        values, base: metric -> its value on the edited and on the base model.
        error: a sentence in place of them, where it could not be measured.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    base: Mapping[str, Value] = field(default_factory=dict)
    error: str = ""


class Measurer(Protocol):
    """Measures candidates.

    Attributes:
        layers: of the model.
        preserving: whether its norms can be preserved while it computes.
        fused: kinds of its matrices that hold several kinds: `qkv`, `gate_up`.
        name: of the model.
        workers: batches that are measured at once.
    """

    layers: int
    preserving: bool
    fused: tuple[str, ...]
    name: str
    workers: int

    def numbers(
        self, recipes: Sequence[Recipe], evaluation: Evaluation
    ) -> Generator[Progress | tuple[int, Numbers], None, None]:
        """Measure each; yields Progress and (place in `recipes`, its numbers) as they come.

        Batches are made by place, TOGETHER at a time, so that every measurer makes the same.
        """

    def bell(self, recipe: Recipe, select: tuple[str, str]) -> Generator[Progress, None, Params]:
        """Peak and width of the bell that fits the measured signal of the recipe's directions.

        Args:
            select: harmful and harmless prompts that the signal is judged on: those that candidates
                are selected on, for the test prompts are not to be looked at.
        """


class Local:
    """A model in this process."""

    workers = 1

    def __init__(self, host: Host) -> None:
        self.host = host
        self.layers = host.layers
        self.name = host.name
        writers = host.architecture.writers
        self.preserving = not any(w.form == "experts" or w.quantized for w in writers)
        self.fused = tuple(kind for kind in FUSED if kind in host.architecture.linears)

    def numbers(
        self, recipes: Sequence[Recipe], evaluation: Evaluation
    ) -> Generator[Progress | tuple[int, Numbers], None, None]:
        """See `Measurer`."""
        for start in range(0, len(recipes), TOGETHER):
            found = yield from self.batch(recipes[start : start + TOGETHER], evaluation)
            yield from enumerate(found, start)

    def batch(
        self, recipes: Sequence[Recipe], evaluation: Evaluation
    ) -> Generator[Progress, None, list[Numbers]]:
        """The numbers of a few recipes that share every batch of prompts.

        A candidate that cannot be resolved or computes no numbers costs the others nothing: it
        gets its sentence, and they are measured without it.
        """
        found = [Numbers()] * len(recipes)
        rows: dict[int, tuple[Edit, ...]] = {}
        for place, recipe in enumerate(recipes):
            try:
                rows[place] = yield from resolve(self.host, recipe)
            except UserError as error:
                found[place] = Numbers(error=str(error))
        groups = [list(rows)] if rows else []
        while groups:
            group = groups.pop()
            try:
                numbers = yield from self._together([rows[i] for i in group], evaluation)
            except UserError as error:
                if len(group) > 1:  # one of them may have spoilt it for all
                    groups += [[i] for i in group]
                    continue
                numbers = [Numbers(error=str(error))]
            for place, one in zip(group, numbers, strict=True):
                found[place] = one
        return found

    def bell(self, recipe: Recipe, select: tuple[str, str]) -> Generator[Progress, None, Params]:
        """See `Measurer`."""
        edit = next(edit for edit in recipe.edits if isinstance(edit, Ablation))
        directions = yield from measure(self.host, edit.directions, select)
        if directions.control:
            raise UserError(
                "random directions are a control and have no measured signal to start at; start at "
                "the recipe."
            )
        if directions.doubt("evidence"):
            raise UserError(
                "the measured signal is not reliable with these prompts, so a search cannot start "
                "at it; measure with more prompts, or start at the recipe."
            )
        peak, width = kernel.suggest(signal(directions))
        return {"peak": peak, "width": width}

    def _together(
        self, rows: Sequence[tuple[Edit, ...]], evaluation: Evaluation
    ) -> Generator[Progress, None, list[Numbers]]:
        results = yield from steps(
            evaluate_rows(self.host, rows, evaluation),
            lambda step: replace(step, note=f"{len(rows)} together; {step.note}".rstrip("; ")),
        )
        return [
            Numbers({r.name: r.edited or r.base for r in row}, {r.name: r.base for r in row})
            for row in results
        ]
