"""What a merge and an ablation do together, above Apply: both tabs' edits are in the recipe, and
only one of them is in sight.

A button switches one of them off: its control's name reaches Python as `event.pick`.
"""

from sst_ui.jobs.purpose import goal_for
from sst_ui.maths import kernel
from sst_ui.recipe import Ablation, Recipe
from sst_ui.ui.state.form import split
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.texts import say

SWITCHES = ("ablation_on", "merge_on")


def told(language: str, recipe: Recipe, layers: int) -> str:
    """The pair in words, judged by the recipe's goal; empty unless the recipe has both edits."""
    merge, ablation = split(recipe)
    if merge is None or ablation is None:
        return ""
    does, said = _does(ablation, layers), recipe.evaluation.goal
    goal = goal_for(recipe, said)
    against = (does, goal) in (("removes", "reinforce"), ("reinforces", "remove"))
    strength = f"{ablation.weights.strength:.2f}".replace("-", "−")
    words = say(language, f"pair.{does}", strength=strength)
    words += " " + say(language, "pair.against" if against else f"pair.goal.{goal}")
    # the default is an ablation: one that removes may just have been left on
    tone = "warn" if against or (does == "removes" and said == "auto") else "info"
    buttons = " ".join(
        f'<button type="button" data-pick="{name}">{safe(say(language, f"pair.{name}"))}</button>'
        for name in SWITCHES
    )
    return f'<div class="notice {tone}" role="status">{safe(words)} {buttons}</div>'


def _does(ablation: Ablation, layers: int) -> str:
    """Whether an ablation removes refusal, reinforces it, or does nothing."""
    alpha = kernel.table(ablation.weights, layers)
    if not alpha.any():
        return "idle"
    return "reinforces" if alpha.mean() < 0 else "removes"
