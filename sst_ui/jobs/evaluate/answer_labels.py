"""Labels answers: people's corrections first, then a judge, then the rules of `metrics.text`."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sst_ui.lru import Memory
from sst_ui.metrics import corrections
from sst_ui.metrics.results import Shown
from sst_ui.metrics.text.answer import Answer
from sst_ui.metrics.text.labels import Label
from sst_ui.progress import Progress
from sst_ui.recipe import Evaluation

if TYPE_CHECKING:
    from sst_ui.metrics.judge import Judge

_judges: "Memory[Judge]" = Memory(1)  # the last judge: loading it takes longer than asking it
AT_ONCE = 16  # answers that are labelled between two steps
_said: Memory[Label] = Memory(20_000)  # (judge, prompt, answer) -> label


@dataclass(frozen=True)
class Labeller:
    """How the answers of one evaluation are labelled.

    Attributes:
        judge: a classifier of refusals, or None for the phrase lists.
        corrected: labels given by people; see `metrics.corrections`.
    """

    judge: "Judge | None" = None
    corrected: Mapping[str, Label] | None = None

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Labeller":
        """The labeller that an evaluation asks for.

        Raises:
            UserError: a judge or a file of labels that cannot be read.
        """
        corrected = corrections.read(Path(evaluation.labels)) if evaluation.labels else None
        name, judge = evaluation.judge, None
        if name:
            judge = _judges.get(name)
            if judge is None:
                from sst_ui.metrics.judge import load_judge  # few ask for one

                judge = load_judge(name)
                _judges.put(name, judge)
        return cls(judge, corrected)

    @property
    def note(self) -> str:
        """What a reader should know about the labels."""
        return f"labelled by {self.judge.name}" if self.judge else ""

    def label(
        self, prompts: Sequence[str], seen: Sequence[Shown]
    ) -> Generator[Progress, None, list[Shown]]:
        """The same answers, with labels given by people or a judge, where there are any."""
        pairs = [(p, Answer(s.observation)) for p, s in zip(prompts, seen, strict=True)]
        given: dict[tuple[str, str], Label] = {}
        if self.judge:
            given = yield from _judged(self.judge, pairs)
        for prompt, answer in pairs:
            key = corrections.key(prompt, answer)
            if self.corrected and key in self.corrected:
                given[prompt, answer] = self.corrected[key]
        for number, pair in enumerate(pairs):  # remembered: metrics ask for them all at once
            if number % AT_ONCE == 0:
                yield Progress("labels", number, len(pairs))
            if pair not in given:
                _ = pair[1].label
        return [
            replace(shown, observation=Answer(shown.observation, given[pair]))
            if pair in given
            else shown
            for pair, shown in zip(pairs, seen, strict=True)
        ]


def _judged(
    judge: "Judge", pairs: Sequence[tuple[str, str]]
) -> Generator[Progress, None, dict[tuple[str, str], Label]]:
    said = {pair: _said.get((judge.digest, *pair)) for pair in pairs}
    known: dict[tuple[str, str], Label] = {p: label for p, label in said.items() if label}
    new = [pair for pair in said if pair not in known]
    if new:
        for pair, label in zip(new, (yield from judge.labels(new)), strict=True):
            known[pair] = label
            _said.put((judge.digest, *pair), label)
    return known
