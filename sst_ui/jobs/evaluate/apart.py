"""Evaluations on prompts that are kept apart from others: parts of sets, and none of other sets."""

from collections.abc import Iterable
from dataclasses import dataclass

from sst_ui.data import prompt_sets
from sst_ui.data.prompt_sets import PromptSet
from sst_ui.errors import UserError, shown
from sst_ui.recipe import Evaluation


@dataclass(frozen=True)
class Apart(Evaluation):
    """An evaluation that leaves prompts to others.

    Attributes:
        part: of every set, unless its name says a part of its own: `1/2` or `2/2`; None for all.
        whole: sets that are used as a whole in spite of `part`.
        without: sets whose prompts are left out of every other one, compared by their text.
    """

    part: str | None = None
    whole: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def prompts(name: str, samples: int | None, evaluation: Evaluation) -> PromptSet:
    """A metric's prompts in an evaluation.

    Args:
        samples: how many, evenly spread; None for all.

    Raises:
        UserError: as `prompt_sets.load`; or nothing is left of the set.
    """
    if not isinstance(evaluation, Apart):
        return prompt_sets.load(name, samples)
    if evaluation.part and name not in evaluation.whole and not prompt_sets.part_of(name):
        name = prompt_sets.in_part(name, evaluation.part)
    others = evaluation.without
    if not others:
        return prompt_sets.load(name, samples)
    found = prompt_sets.load(name).without(keys(others))
    if not found.prompts:
        raise UserError(
            f"every prompt of {shown(name)} is also in {', '.join(map(shown, others))}; it needs "
            "prompts of its own."
        )
    return found.take(samples)


def keys(names: Iterable[str]) -> set[str]:
    """The prompts of these sets, as `Prompt.key` has them."""
    return {prompt.key for name in names for prompt in prompt_sets.load(name).prompts}
