"""Weight profiles by name: the numbers of presets/profiles.yaml, before anything is computed."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from sst_ui.paths import PRESETS

WIDEST = 1e6  # a bell of that width is the same in every layer
FLAT = {"peak": 0.5, "width": WIDEST, "threshold": 0.0}  # 1 in every layer: where a merge starts
# Profiles whose numbers stand in the recipe: fitted to a measured signal, those of one model, one
# per layer and kind of module, or typed by hand.
OWN = ("measured", "model", "table", "custom")


@cache
def presets() -> Mapping[str, Any]:
    """presets/profiles.yaml."""
    return yaml.safe_load((PRESETS / "profiles.yaml").read_text(encoding="utf-8"))


@cache
def named() -> Mapping[str, Mapping[str, float]]:
    """Name -> peak, width, threshold of every profile that is the same for all models."""
    shipped = {
        name: {**values, "threshold": presets()["threshold"]}
        for name, values in presets()["profiles"].items()
    }
    return shipped | {"flat": FLAT}


def of_model(model_id: str) -> tuple[str, float, float] | None:
    """The kernel found for this very model: (its name, peak, width), or None."""
    for row in presets()["models"]:
        if re.search(row["match"], model_id.lower()):
            return row["name"], row["peak"], row["width"]
    return None


def of_size(parameters: int) -> tuple[str, float, float]:
    """The kernel for a model of this many parameters: (name of the class, peak, width)."""
    row = next(r for r in presets()["sizes"] if parameters / 1e9 < r["below"])
    return row["name"], row["peak"], row["width"]
