"""What the results say at one moment: of which variant, with which labels corrected.

Every panel that shows results is drawn from a `Board`, so that all of them agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sst_ui.metrics import corrections
from sst_ui.metrics.corrections import Correction
from sst_ui.metrics.results import MetricResult
from sst_ui.metrics.text.labels import Label
from sst_ui.recipe import Recipe
from sst_ui.ui.state.window import Variants


@dataclass(frozen=True)
class First:
    """The first numbers of a variant, while those that were asked for are not all there.

    Attributes:
        names: the metrics that still show one.
        prompts, tokens: of each set at most, and of an answer, in the latest stage.
        whole, length: the same of what was asked for; None for all prompts.
    """

    names: frozenset[str]
    prompts: int
    tokens: int
    whole: int | None
    length: int


@dataclass(frozen=True)
class Board:
    """Everything that a panel of results needs, as the page's `Screen.board` reads it.

    Attributes:
        results: recipe digest -> its metrics as measured; `done:` and the digest -> what was
            asked for, once all of it is there; `first:` and the digest -> `First` until then.
        kept: the corrections as the browser keeps them.
        opened: the metric whose prompts are shown; empty for none.
        only, label, search: the filter of those prompts.
    """

    language: str
    variants: Variants
    results: Mapping[str, Any]
    kept: tuple[Correction, ...] = ()
    opened: str = ""
    only: str = "all"
    label: str = "any"
    search: str = ""

    @classmethod
    def of(
        cls, language: str, variants: Variants, results: Mapping[str, Any], rows: Any, *more: str
    ) -> "Board":
        """From the values of `Screen.board`."""
        return cls(language, variants, results, corrections.from_rows(rows), *more)

    @cached_property
    def labels(self) -> dict[str, Label]:
        """Corrected label by key of the answer."""
        return corrections.labels(self.kept)

    def metrics(self, recipe: Recipe) -> tuple[MetricResult, ...]:
        """A recipe's metrics, corrected; empty while there are none."""
        return corrections.apply(self.results.get(recipe.digest(), ()), self.labels)

    @cached_property
    def now(self) -> tuple[MetricResult, ...]:
        """The current variant's metrics, corrected."""
        return self.metrics(self.variants.now.recipe) if self.variants.now else ()

    @cached_property
    def first(self) -> First | None:
        """What the current variant's numbers are as long as they are first ones."""
        now = self.variants.now
        return self.results.get(f"first:{now.recipe.digest()}") if now else None

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many corrected answers each of the current metrics reads."""
        return corrections.counts(self.now, self.labels) if self.labels else {}

    @cached_property
    def measured(self) -> list[tuple[str, dict[str, MetricResult]]]:
        """Variants with at least one metric, oldest first, and their metrics by name."""
        found = ((v.name, self.metrics(v.recipe)) for v in self.variants.items)
        return [(name, {r.name: r for r in rows}) for name, rows in found if rows]

    def find(self, name: str) -> MetricResult | None:
        """A metric of the current variant, if it was measured."""
        return next((r for r in self.now if r.name == name), None)
