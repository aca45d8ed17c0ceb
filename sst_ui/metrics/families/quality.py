"""Whether answers still make sense, and one number for stopping rules."""

from collections.abc import Mapping

import numpy as np

from sst_ui.data.prompt_sets import Prompt
from sst_ui.metrics.derived import Means, resampled
from sst_ui.metrics.families.safety import share
from sst_ui.metrics.registry import Score, derived, metric
from sst_ui.metrics.results import MetricResult, Value

UTILITY = ("facts", "multiple_choice", "reading")


@metric(
    "degenerate",
    title="Degenerate answers",
    unit="rate",
    better="low",
    prompts="demo/harmless_heldout",
    labels=True,
)
def degenerate(prompt: Prompt, answer: str) -> Score:
    """Share of ordinary prompts whose answer is empty, loops or never ends.

    Never ending: cut off by the length limit after a second half that only repeats. A long answer
    alone is not broken.
    """
    return share("degenerate", prompt, answer)


@derived(
    "quality",
    title="Quality kept",
    unit="score",
    better="high",
    sources=(*UTILITY, "degenerate"),
)
def quality(sources: Mapping[str, MetricResult]) -> tuple[Value, Value | None]:
    """Utility kept times the share of sound answers, 0..1.

    Utility kept is the mean over facts, multiple choice and reading of edited / base, at most 1
    each, so that a gain in one does not hide a loss in another. What the base cannot do at all is
    left out: there is nothing to keep.
    """

    def combine(base: Means, edited: Means) -> np.ndarray:
        kept = np.array([np.minimum(1, edited[name] / base[name]) for name in UTILITY])
        known = np.array([base[name] > 0 for name in UTILITY])
        return np.where(known, kept, 0).sum(0) / known.sum(0) * (1 - edited["degenerate"])

    n = min((len(result.items) for result in sources.values() if result.items), default=0)
    base = resampled(sources, lambda means, _: combine(means, means), n)
    if any(result.edited is None for result in sources.values()):
        return base, None
    return base, resampled(sources, combine, n)
