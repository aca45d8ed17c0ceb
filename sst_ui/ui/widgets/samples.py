"""Numbers side by side that rest on unequal samples: what they rest on, and the mark that says so.

A rate of 40 prompts beside one of 320, or of answers cut off at 24 tokens beside 48, may differ for
that alone. The sparklines and figures draw such points hollow, hence the sign.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sst_ui.metrics.results import MetricResult
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.texts import say


@dataclass(frozen=True)
class Sample:
    """How many prompts a number rests on, and the length of their answers in tokens, at most; None
    where there are none or nobody knows."""

    n: int
    tokens: int | None = None

    @classmethod
    def of(cls, result: MetricResult) -> "Sample":
        """Of a result: of its edited value where it has one."""
        return cls((result.edited or result.base).n, result.tokens)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Sample":
        """Of a remembered result (see `jobs.history.records.plain`)."""
        return cls(int((row["edited"] or row["base"])["n"]), row.get("tokens"))

    def equals(self, other: "Sample | None") -> bool:
        """Whether the two can stand side by side; what is not known stands in nobody's way."""
        if other is None:
            return True
        unknown = self.tokens is None or other.tokens is None
        return self.n == other.n and (unknown or self.tokens == other.tokens)


def usual(samples: Iterable[Sample]) -> Sample | None:
    """What most of several numbers rest on; of equally many, the largest. None for none."""
    counts = Counter(samples)
    return max(counts, key=lambda each: (counts[each], each.n, each.tokens or 0), default=None)


def mark(language: str, mine: Sample, others: Sample | None) -> str:
    """The sign behind a number, with both samples as its tip; empty where they are equal."""
    if others is None or mine.equals(others):
        return ""
    tip = safe(say(language, "samples.unequal", mine=told(language, mine),
                   others=told(language, others)))  # fmt: skip
    return _sign("○", tip)


def first(language: str) -> str:
    """The sign behind a first number, which more prompts or longer answers will replace."""
    return _sign("◔", safe(say(language, "samples.first")))


def _sign(sign: str, tip: str) -> str:
    return f'<abbr class="unequal" title="{tip}" role="img" aria-label="{tip}">{sign}</abbr>'


def told(language: str, sample: Sample) -> str:
    """A sample in words."""
    length = f" · {say(language, 'metrics.length', tokens=sample.tokens)}" if sample.tokens else ""
    return f"n {sample.n}{length}"
