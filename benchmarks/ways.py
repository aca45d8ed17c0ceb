"""Ways of editing, one row each: what the tables of effectiveness compare.

A way is settings of a recipe and nothing else, so that whatever it does can be applied, exported
and searched as well. Found in rounds it is the same recipe with the saved directions file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sst_ui import profiles
from sst_ui import recipe as recipes
from sst_ui.errors import UserError, unknown
from sst_ui.maths import directions as files
from sst_ui.recipe import DirectionSpec, Recipe, WeightTable

PROFILES = ("default",)
STRENGTHS = (1.0, 1.5)


@dataclass(frozen=True)
class Sets:
    """The prompt sets of a measurement.

    Attributes:
        harmful, harmless: what directions are measured on.
        truth: held-out harmful prompts, each with the answer from before refusing was learned
            where that is known.
        ordinary, lookalikes: held-out prompts that should be answered.
        concepts: measuring prompts whose topics `surgical` protects; None for the harmless ones'.
        select: prompts that rounds are chosen by; None for a part of the measuring ones.
        wrapped: held-out harmful prompts in jailbreak wrappers, where there are any.
    """

    harmful: str
    harmless: str
    truth: str
    ordinary: str
    lookalikes: str
    concepts: str | None = None
    select: str | None = None
    wrapped: str | None = None


@dataclass(frozen=True)
class Way:
    """One way of editing.

    Attributes:
        name: on the command line.
        title: in tables.
        source: where it comes from.
        edit: settings of an ablation beside its weights and prompts.
        directions: settings of its directions beside their prompts.
        weights: settings of its weights beside profile and strength.
    """

    name: str
    title: str
    source: str
    edit: Mapping[str, Any] = field(default_factory=dict)
    directions: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)

    @property
    def estimator(self) -> str:
        return self.directions.get("estimator", DirectionSpec.estimator)

    def recipe(
        self, model: str, sets: Sets, layers: int, profile: str, strength: float, file: str = ""
    ) -> Recipe:
        """The edit as a recipe.

        Args:
            layers: of the model; one layer's direction is taken at the peak of the bell.
            profile: its name, or peak and width as 0.7/0.4.
            file: directions saved before, such as those found in rounds; '' to measure.

        Raises:
            UserError: an unknown profile, or a strength out of range.
        """
        named = {"harmful": sets.harmful, "harmless": sets.harmless, "concepts": sets.concepts}
        directions = {**named, **self.directions}
        weights = {**self.weights, **kernel(profile), "strength": strength}
        if directions.get("scope") == "single":
            peak, _ = WeightTable(**kernel(profile)).bell
            directions["layer"] = float(round(peak * (layers - 1)))
        edit = {
            **self.edit,
            "directions": {**directions, **({"file": file} if file else {})},
            "weights": weights,
        }
        return recipes.from_data({"version": 1, "model": {"id": model}, "edits": [edit]})


def kernel(profile: str) -> dict[str, Any]:
    """The weights of a recipe by a profile's name, or of a bell that is written as 0.7/0.4.

    Raises:
        UserError: neither.
    """
    if profile in profiles.named():
        return {"profile": profile}
    try:
        peak, width = map(float, profile.split("/"))
    except ValueError:
        raise unknown("profile", profile, profiles.named()) from None
    return {"profile": "custom", "peak": peak, "width": width}


_WAYS = (
    Way("plain", "plain", "Arditi et al. 2024, arXiv 2406.11717"),
    Way("plain_4", "plain along 4", "docs/edits.md", directions={"k": 4}),
    Way("projected", "projected", "grimjim 2025", directions={"estimator": "projected"}),
    Way(
        "biprojected", "biprojected", "grimjim 2025",
        directions={"estimator": "biprojected", "scope": "single"},
    ),
    Way("norm_preserving", "norm preserving", "grimjim 2025", {"norm_preserving": True}),
    Way("added", "added vector", "Turner et al. 2023, arXiv 2308.10248", {"operation": "add"}),
    Way(
        "affine", "affine at the prompt's end", "ACE, arXiv 2411.09003",
        {"affine": True, "affine_at": "prompt_end"},
    ),
    Way(
        "affine_everywhere", "affine everywhere", "ACE, arXiv 2411.09003",
        {"affine": True, "affine_at": "everywhere"},
    ),
    Way(
        "surgical", "surgical (SRA)", "Cristofano 2026, arXiv 2601.08489",
        directions={"estimator": "surgical"},
    ),
    Way(
        "null_space", "null space .01", "AlphaSteer, arXiv 2506.07022",
        {"operation": "filter", "filter": {"mu": 0.0, "null_space": 0.01}},
    ),
    Way(
        "filtered_01", "filtered μ .1", "docs/edits.md",
        {"operation": "filter", "filter": {"mu": 0.1}},
    ),
    Way("filtered", "filtered μ 1", "docs/edits.md", {"operation": "filter"}),
    Way(
        "filtered_4", "filtered μ 1 along 4", "docs/edits.md", {"operation": "filter"},
        directions={"k": 4},
    ),
    Way(
        "filtered_10", "filtered μ 10", "docs/edits.md",
        {"operation": "filter", "filter": {"mu": 10.0}},
    ),
    Way(
        "filtered_attention", "filtered μ 1 of attention", "docs/edits.md",
        {"operation": "filter"}, weights={"modules": {"mlp": 0.0}},
    ),
    Way("random", "random direction", "a control", directions={"estimator": "random"}),
)  # fmt: skip
WAYS: Mapping[str, Way] = {way.name: way for way in _WAYS}


@dataclass(frozen=True)
class Choice:
    """Which rows a table has: every way with every profile at every strength.

    Attributes:
        saved: directions files. A way whose directions are estimated as a file's were has a row
            more along that file's.
        rounds: directions at most that each row looks for in rounds, for a row more; 0 for none.

    Raises:
        UserError: a name that is neither a way nor a profile.
    """

    ways: Sequence[str] = tuple(WAYS)
    profiles: Sequence[str] = PROFILES
    strengths: Sequence[float] = STRENGTHS
    saved: Sequence[str] = ()
    rounds: int = 0

    def __post_init__(self) -> None:
        for name in self.ways:
            if name not in WAYS:
                raise unknown("way of editing", name, WAYS)
        for name in self.profiles:
            kernel(name)


def rows(model: str, sets: Sets, layers: int, choice: Choice | None = None) -> dict[str, Recipe]:
    """The edits to compare, by name.

    Raises:
        UserError: as `Way.recipe`; a directions file that no chosen way can use.
    """
    choice = choice or Choice()
    ways = [WAYS[name] for name in dict.fromkeys(choice.ways)]
    along: list[tuple[Way, str, str]] = [(way, way.title, "") for way in ways]
    for file in choice.saved:
        found = files.load(file)
        made = found.meta.get("estimator", "")
        fitting = [way for way in ways if way.estimator == made]
        if not fitting:
            raise UserError(
                f"the directions in {file} were estimated as {made or 'nothing known'!r}, and no "
                f"way that was chosen estimates so: {', '.join(way.name for way in ways)}."
            )
        told = f"{found.k} direction{'s' if found.k > 1 else ''} of {Path(file).name}"
        along += [(way, f"{way.title}, {told}", file) for way in fitting]
    return {
        f"{title}, {profile}, {strength:g}": way.recipe(
            model, sets, layers, profile, strength, file
        )
        for way, title, file in along
        for profile in dict.fromkeys(choice.profiles)
        for strength in dict.fromkeys(choice.strengths)
    }
