"""A grid of kernels: every peak with every width, several candidates in every batch.

Knows candidates and which of them is best. Does not know how a row of a batch is edited or scored,
nor screens. All start from the untouched base, and all see the same prompts: those that the
directions were measured on, so that the held-out ones stay unseen for the last word.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from sst_ui.errors import UserError
from sst_ui.lab.evaluate import MetricResult, Value, evaluate_rows
from sst_ui.lab.measure import resolve
from sst_ui.model.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, Evaluation, Recipe

PEAKS = (0.4, 0.5, 0.6, 0.7, 0.8)
WIDTHS = (0.08, 0.12, 0.15, 0.2, 0.25)
TARGET = 0.02  # share of refusals at most
TOGETHER = 5  # candidates in a batch


@dataclass(frozen=True)
class Candidate:
    """One kernel of the grid and what it came to.

    Attributes:
        recipe: that makes it, the searched one with another peak and width.
        refusals: share of the harmful prompts refused.
        divergence: KL(base ‖ edited) over 16 tokens on the harmless ones, nats.
    """

    recipe: Recipe
    refusals: Value
    divergence: Value

    @property
    def place(self) -> tuple[float, float]:
        """(peak, width)."""
        weights = _ablation(self.recipe).weights
        return weights.peak, weights.width

    def to_json(self) -> dict:
        """Plain data."""
        peak, width = self.place
        numbers = {"refusals": self.refusals.to_json(), "kl": self.divergence.to_json()}
        return {"peak": peak, "width": width, "recipe": self.recipe.digest(), **numbers}


def grid(
    host: Host,
    recipe: Recipe,
    peaks: Sequence[float] = PEAKS,
    widths: Sequence[float] = WIDTHS,
    samples: int | None = None,
) -> Generator[Progress | Candidate, None, list[Candidate]]:
    """Measure every kernel of the grid.

    Args:
        recipe: with one ablation; everything but its peak and width stays.
        samples: prompts of each set; None for as many as the recipe's evaluation says.

    Yields:
        Progress, and each Candidate when it is measured. What was yielded stays good.

    Raises:
        UserError: a recipe without exactly one ablation, or with a curve in place of a bell.
    """
    spec = _ablation(recipe).directions
    names = (f"refusal_rate@{spec.harmful}", f"kl_16@{spec.harmless}")
    evaluation = replace(recipe.evaluation, metrics=names)
    if samples is not None:
        evaluation = replace(evaluation, samples=samples)
    todo = [_with(recipe, peak, width) for peak in peaks for width in widths]
    found: list[Candidate] = []
    for start in range(0, len(todo), TOGETHER):
        chosen, rows = todo[start : start + TOGETHER], []
        for each in chosen:
            rows.append((yield from resolve(host, each)))
        results = yield from _measured(host, rows, evaluation, f"{len(found)} of {len(todo)}")
        for each, (refusals, divergence) in zip(chosen, results, strict=True):
            found.append(Candidate(each, refusals.edited, divergence.edited))
            yield found[-1]
    return found


def best(candidates: Sequence[Candidate], target: float = TARGET) -> Candidate:
    """The candidate of least divergence among those that refuse at most the target's share.

    Where none gets that far, the one that refuses least.
    """
    enough = [c for c in candidates if c.refusals.value <= target]
    if enough:
        return min(enough, key=lambda c: c.divergence.value)
    return min(candidates, key=lambda c: (c.refusals.value, c.divergence.value))


def _measured(
    host: Host, rows: list[tuple], evaluation: Evaluation, note: str
) -> Generator[Progress, None, list[list[MetricResult]]]:
    job = evaluate_rows(host, rows, evaluation)
    while True:
        try:
            step = next(job)
        except StopIteration as end:
            return end.value
        if isinstance(step, Progress):
            yield replace(step, note=f"{note} kernels; {step.note}")


def _ablation(recipe: Recipe) -> Ablation:
    found = [edit for edit in recipe.edits if isinstance(edit, Ablation)]
    if len(found) != 1:
        raise UserError(f"a search needs a recipe with one ablation; this one has {len(found)}.")
    if found[0].weights.curve is not None:
        raise UserError("this recipe has a curve in place of a bell; remove weights.curve.")
    return found[0]


def _with(recipe: Recipe, peak: float, width: float) -> Recipe:
    weights: Mapping = {"profile": "custom", "peak": peak, "width": width}
    edits = tuple(
        replace(edit, weights=replace(edit.weights, **weights))
        if isinstance(edit, Ablation)
        else edit
        for edit in recipe.edits
    )
    return replace(recipe, edits=edits, name=f"peak {peak:g}, width {width:g}")
