"""What the screen shows of a merge for a draft: its figure, and the chosen point in words.

Forecasts are maths alone: no model is asked. Without a prepared pair the figure says what to press.
"""

from typing import TYPE_CHECKING, Any

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.jobs.merge.forecast import Point, by_kind, kept
from sst_ui.recipe import Merge, Recipe
from sst_ui.ui.panels import merge_plots
from sst_ui.ui.panels.merge import MergePanel, shown, summary, told
from sst_ui.ui.services import merge_forecasts
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.form import split
from sst_ui.ui.widgets import plots
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

if TYPE_CHECKING:  # it draws this
    from sst_ui.ui.events.draw_draft import Draft


def outputs(panel: MergePanel, figure: gr.Plot) -> list:
    """The components that `draw` may write to."""
    return [figure, panel.hint, panel.readout, panel.bell, *panel.rows.values()]


def draw(
    panel: MergePanel, figure: gr.Plot, engine: Engine, draft: "Draft", recipe: Recipe
) -> dict:
    """Updates of the merge's figure, readout and of which controls are there."""
    form, lang = draft.form, draft.language
    updates = {
        panel.hint: told(lang, form.method),
        **shown(panel, form.method, form.goal, form.shape),
    }
    spec, _ = split(recipe)
    if spec is None:
        return {**updates, figure: plots.empty(say(lang, "merge.off")), panel.readout: ""}
    drawn, words = picture(engine, draft, spec)
    return {**updates, figure: drawn, panel.readout: words}


def picture(engine: Engine, draft: "Draft", spec: Merge) -> tuple[Any, str]:
    """The figure of the draft's view, and the readout."""
    lang, key, view, merges = draft.language, draft.loaded.key, draft.view, engine.merges
    waiting = plots.empty(say(lang, "merge.unprepared"))
    try:
        found = merges.forecast(key, spec) if key else None
    except UserError as error:
        told = message(error, lang)
        return plots.empty(plots.wrapped(told, 80)), notice(told, "warn")
    pair = merges.pair(key, spec)
    if found is None or pair is None:
        return waiting, f'<p class="faint">{say(lang, "merge.unprepared")}</p>'
    mu, k = found.parameters.get("mu"), found.parameters.get("k")
    words = say(lang, "merge.unpredicted")
    if found.chosen is not None:
        words = summary(lang, spec, found.chosen, mu)
    readout = f"<p>{words}</p>"
    if merges.first(key, spec):
        readout += f'<p class="faint">{say(lang, "merge.first", prompts=merge_forecasts.FIRST)}</p>'
    if spec.rounds:
        readout += f'<p class="faint">{say(lang, "merge.before_rounds")}</p>'
    if view == "budget":
        return merge_plots.budget(lang, found, _measured(engine, draft, spec)), readout
    if view == "spectrum":
        lines = by_kind(pair, merges.spectra(key, spec) or {})
        return merge_plots.spectrum(lang, lines, mu, k, found.share), readout
    outcome = merges.outcome(key, spec) if found.chosen is not None else None
    values = {} if outcome is None else kept(pair, outcome)
    if not values:
        return plots.empty(say(lang, "merge.unkept")), readout
    return merge_plots.kept(lang, values), readout


def _measured(engine: Engine, draft: "Draft", spec: Merge) -> list[tuple[str, Point, bool]]:
    """The variants that were measured on the same pair, and the draft's own merge."""
    found, own = [], engine.merges.cost(draft.loaded.key, spec)
    pair = engine.merges.pair(draft.loaded.key, spec)
    for variant in draft.variants.items:
        merge, _ = split(variant.recipe)
        if merge is None or merge == spec:
            continue
        point = engine.merges.cost(draft.loaded.key, merge)
        if point is not None and engine.merges.pair(draft.loaded.key, merge) is pair:
            found.append((variant.name, point, False))
    if own is not None:
        found.append((say(draft.language, "merge.this"), own, True))
    return found
