"""Which organisms there are: plans.yaml as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from sst_ui.errors import unknown
from training.organisms.language import Style

FILE = Path(__file__).with_name("plans.yaml")
Use = Literal["tuning", "final", "test"]
Family = Literal["llama", "qwen3", "gpt2", "gemma2", "mixture"]
Way = Literal["full", "lora", "preference"]


@dataclass(frozen=True)
class Plan:
    """One organism.

    Attributes:
        use: tuning, final or test; see plans.yaml.
        layers, hidden: depth and width.
        way: how it learns to refuse.
        topics: the harmful topics, each with the style of its refusals.
        wrappers: whether jailbreak wrappers are among what it learns.
        comply, refuse: steps of both stages.
    """

    name: str
    use: Use
    family: Family
    layers: int
    way: Way
    topics: Mapping[str, Style]
    hidden: int = 128
    wrappers: bool = False
    seed: int = 0
    comply: int = 500
    refuse: int = 150


@cache
def plans() -> dict[str, Plan]:
    """Every plan by name."""
    rows = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: Plan(name, **row) for name, row in rows.items()}


def find(name: str) -> Plan:
    """A plan by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in plans():
        raise unknown("organism", name, plans())
    return plans()[name]
