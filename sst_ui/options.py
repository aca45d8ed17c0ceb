"""What commands and pages are told beside a recipe: a search, an export, a chat. Described like the
recipe's own settings (see schema.py)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from sst_ui import schema
from sst_ui.checked import Flag, Number, Several, Text, Whole
from sst_ui.errors import UserError, shown
from sst_ui.recipe import Prompts, Rank, Seed, Share, Tokens
from sst_ui.schema import Slider, described

Strategy = Literal["grid", "staged", "sensitivity", "tpe"]
Start = Literal["recipe", "signal"]
Format = Literal["adapter", "model", "mergekit", "gguf"]
VERIFIED = 8  # prompts that the page begins with; a command verifies where it is told to
Rounding = Literal["nearest", "stochastic"]
Contrast = Literal["best", "harmless", "inside"]  # best: whichever of the others is


@described("search")
@dataclass(frozen=True)
class SearchOptions:
    """A search, as data."""

    strategy: Strategy = "grid"
    objectives: Several[Text] = ()
    constraints: Several[Text] = ()
    target: Number | None = None
    trials: Annotated[Whole, Field(ge=1, le=1_000_000)] | None = None
    minutes: Annotated[Number, Field(gt=0)] | None = None
    samples: Prompts | None = 64
    max_new_tokens: Tokens | None = None
    seed: Seed = 0
    start: Start = "recipe"
    prune: Flag = True
    round: Annotated[Whole, Field(ge=1)] = 10
    patience: Annotated[Whole, Field(ge=0)] = 30
    select: Several[Text] = ()
    test: Several[Text] = ()

    def __post_init__(self) -> None:
        schema.check(self)
        for name in ("select", "test"):
            if len(getattr(self, name)) not in (0, 2):
                raise UserError(
                    f"search.{name} is {shown(getattr(self, name))}; give two prompt sets: harmful "
                    "and harmless, or of a merge safety and utility."
                )


@described("export")
@dataclass(frozen=True)
class ExportOptions:
    """What becomes of the edited model."""

    format: Format = "adapter"
    rounding: Rounding = "nearest"
    rank: Rank | None = None
    verify: Annotated[Whole, Field(ge=0)] = 0  # on the page at first VERIFIED

    def __post_init__(self) -> None:
        schema.check(self)


@described("chat")
@dataclass(frozen=True)
class ChatOptions:
    """How an answer is drawn."""

    max_new_tokens: Tokens = 128
    temperature: Annotated[Number, Field(ge=0, le=2), Slider(0.1)] = 0.0
    seed: Seed | None = None

    def __post_init__(self) -> None:
        schema.check(self)


@described("rounds")
@dataclass(frozen=True)
class RoundsOptions:
    """How further decisions are looked for."""

    rounds: Annotated[Whole, Field(ge=1, le=16)] = 4
    goal: Share = 0.05
    select: Text | None = None
    max_new_tokens: Tokens | None = None
    contrast: Contrast = "best"

    def __post_init__(self) -> None:
        schema.check(self)
