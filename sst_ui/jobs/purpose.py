"""What a recipe, an edit or a search is for: to remove refusal, to reinforce it, or to merge."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from sst_ui.maths import kernel
from sst_ui.metrics.results import Goal
from sst_ui.model.hooks.live_edits import Edit, RowEdit, RowFilter
from sst_ui.recipe import Ablation, Merge, Recipe

Purpose = Literal["plain", "abliterated", "reinforced", "merged", "both"]


def purpose(recipe: Recipe, layers: int) -> Purpose:
    """What a recipe makes of a model, as its card says it."""
    ablations = [edit for edit in recipe.edits if isinstance(edit, Ablation)]
    if any(isinstance(edit, Merge) for edit in recipe.edits):
        return "both" if ablations else "merged"
    if not ablations:
        return "plain"
    tables = (kernel.table(edit.weights, layers) for edit in ablations)
    return "reinforced" if _reinforces(tables) else "abliterated"


def goal(edits: tuple[Edit, ...]) -> Goal:
    """Which way the metrics of resolved edits are good.

    Adapters are merged for safety, so that a merge alone reinforces.
    """
    tables = [edit.alpha for edit in edits if isinstance(edit, RowEdit | RowFilter)]
    return "reinforce" if _reinforces(tables) or (edits and not tables) else "remove"


def searched_for(edit: Ablation | Merge) -> Literal["ablation", "reinforce", "merge"]:
    """What a search of this edit aims at: a key of `aims` in presets/search.yaml.

    The sign of the strength decides: it stays while everything else of the weights is varied.
    """
    if isinstance(edit, Merge):
        return "merge"
    return "reinforce" if edit.weights.strength < 0 else "ablation"


def _reinforces(tables: Iterable[np.ndarray]) -> bool:
    """Whether weights [layers, kinds] of ablations are below 0 on the whole."""
    return sum(float(table.mean()) for table in tables) < 0
