"""Concepts that a surgical direction protects: which prompts stand for which.

A concept is a topic. Its direction, the mean of its prompts' residuals minus the harmless mean, is
taken out of the refusal direction (`maths/direction_estimators.py`).
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass

from torch import Tensor

from sst_ui.data import prompt_sets
from sst_ui.data.prompt_sets import PromptSet
from sst_ui.errors import UserError
from sst_ui.jobs.directions.residual_cache import captured, encode
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import DirectionSpec

FEW = 2  # prompts that a concept is made of at least: of one alone the mean is that prompt


@dataclass(frozen=True)
class Concepts:
    """Protected concepts.

    Attributes:
        prompts: what they are measured on.
        topics: name -> places of its prompts, '' for prompts that name no topic.
    """

    prompts: PromptSet
    topics: Mapping[str, tuple[int, ...]]

    @property
    def told(self) -> str:
        """Their names, for meta data."""
        return ", ".join(name or "(no topic)" for name in self.topics)


def concepts(spec: DirectionSpec, harmful: PromptSet, harmless: PromptSet) -> Concepts | None:
    """The concepts that a spec protects; None for estimators that protect none.

    They are the topics (or else subjects) of the prompts in `directions.concepts`; where it names
    none, of the harmless prompts, as far as they have at least two.

    Raises:
        UserError: there are none, or some of their prompts are harmful ones.
    """
    if spec.estimator != "surgical":
        return None
    given = spec.concepts is not None
    prompts = prompt_sets.load(spec.concepts, spec.samples) if spec.concepts else harmless
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts.prompts):
        places.setdefault(prompt.topic or prompt.subject, []).append(place)
    topics = {name: tuple(each) for name, each in places.items() if len(each) >= FEW}
    if not given and len(topics) < 2:  # the mean of all is no concept beside itself
        raise UserError(
            f"the harmless prompts {spec.harmless!r} do not name two topics of at least {FEW} "
            "prompts, so they tell of no concept to protect; name a prompt set in "
            "directions.concepts, for example of look-alikes."
        )
    if not topics:
        raise UserError(
            f"the prompts {spec.concepts!r} of directions.concepts hold no topic of at least {FEW} "
            "prompts; give more of them."
        )
    keys = {prompt.key for prompt in harmful.prompts}
    if shared := sum(prompt.key in keys for prompt in prompts.prompts):
        raise UserError(
            f"{shared} prompts of directions.concepts {spec.concepts!r} are harmful ones too; what "
            "is protected cannot be what is removed."
        )
    return Concepts(prompts, topics)


def residuals(
    host: Host, spec: DirectionSpec, found: Concepts | None
) -> Generator[Progress, None, list[Tensor]]:
    """Residuals [n, L, d] of every concept, as `estimate` takes them.

    Yields, raises: as `captured` and `encode`.
    """
    if found is None:
        return []
    (whole,) = yield from captured(host, [encode(host, found.prompts, spec.position)])
    return [whole[list(places)] for places in found.topics.values()]
