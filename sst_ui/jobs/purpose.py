"""What an edit is for: to remove refusal, to reinforce it, or to merge adapters.

One rule for the card, for the verdicts of metrics, for searches and for advice: ablations reinforce
refusal where their weights are below 0 on the whole, and adapters are merged for safety.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sst_ui.maths import kernel
from sst_ui.metrics.results import Goal
from sst_ui.model.hooks.live_edits import Edit, RowEdit, RowFilter
from sst_ui.recipe import LAYERS, Ablation, Aim, Merge, Recipe, WeightTable

Purpose = Literal["plain", "abliterated", "reinforced", "merged", "both"]
USUAL = 32  # layers


def purpose(recipe: Recipe, layers: int | None = None) -> Purpose:
    """What a recipe makes of a model.

    Args:
        layers: of the model; None where it is not known yet.
    """
    tables = [
        kernel.table(edit.weights, layers or _layers(edit.weights))
        for edit in recipe.edits
        if isinstance(edit, Ablation)
    ]
    return _purpose(tables, any(isinstance(edit, Merge) for edit in recipe.edits))


def goal(edits: Sequence[Edit], said: Aim = "auto") -> Goal:
    """Which way the metrics of resolved edits are good; as an evaluation says, where it does."""
    if said != "auto":
        return said
    tables = [edit.alpha for edit in edits if isinstance(edit, RowEdit | RowFilter)]
    return goal_of(_purpose(tables, len(tables) < len(edits)))


def goal_for(recipe: Recipe, said: Aim = "auto") -> Goal:
    """The same of a recipe's edits."""
    return goal_of(purpose(recipe)) if said == "auto" else said


def goal_of(what: Purpose) -> Goal:
    """Which way metrics are good for a purpose."""
    return "reinforce" if what in ("reinforced", "merged") else "remove"


def _purpose(tables: Sequence[np.ndarray], merges: bool) -> Purpose:
    """Of ablations with these weights [layers, kinds], and of a merge where there is one.

    A merge that is followed by ablations which reinforce remains a merge for safety.
    """
    if not tables:
        return "merged" if merges else "plain"
    reinforces = sum(float(table.mean()) for table in tables) < 0
    if merges:
        return "merged" if reinforces else "both"
    return "reinforced" if reinforces else "abliterated"


def _layers(weights: WeightTable) -> int:
    """A number of layers to read a table's sign with, while the model's own is not known.

    A bell has one sign, and enough layers meet the narrowest; single cells weigh as in a usual
    model.
    """
    if weights.curve is not None:
        return len(weights.curve)
    named = [layer for cells in weights.overrides.values() for layer in cells]
    return max(USUAL, max(named) + 1) if named else LAYERS
