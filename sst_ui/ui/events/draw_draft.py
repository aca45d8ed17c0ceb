"""What the screen shows for a draft: figure, table, warnings, the apply button, the recipe text.

No model is touched: a slider ends here.
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.jobs.directions.filtering import Forecast
from sst_ui.maths import kernel
from sst_ui.recipe import Ablation, DirectionSpec, Merge, Recipe, WeightTable
from sst_ui.ui.events import draw_merge
from sst_ui.ui.events.binding import Reads
from sst_ui.ui.panels import edit_pair
from sst_ui.ui.panels import export as export_panel
from sst_ui.ui.panels import merge as merge_panel
from sst_ui.ui.panels import recipe_text as recipe_panel
from sst_ui.ui.panels import weights as weights_panel
from sst_ui.ui.panels.metrics import told_limits
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state import merge_form
from sst_ui.ui.state.form import (
    WAYS,
    Extras,
    Form,
    ablation,
    asks_where,
    free,
    read,
    show,
    tabled,
)
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets import curve
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say


@dataclass(frozen=True)
class Draft:
    """Everything a drawing needs, as handlers read it (see `Editor.draft`)."""

    language: str
    loaded: Loaded
    extras: Extras
    variants: Variants
    signal: str
    form: Form
    view: str = "budget"
    drawn: tuple | None = None

    @classmethod
    def of(
        cls,
        language: str,
        loaded: Loaded,
        extras: Extras,
        drawn: tuple | None,
        variants: Variants,
        signal: str,
        view: str,
        *form: Any,
    ) -> "Draft":
        values, before = Form(*form), drawn[0] if drawn else None
        extras = tabled(values, extras, before, loaded.layers)
        return cls(language, loaded, extras, variants, signal, values, view, drawn)

    def recipe(self) -> Recipe:
        """The recipe that the controls say (`UserError` for a bad value)."""
        return read(self.form, self.extras, self.loaded.spec)

    def ablation(self) -> Ablation:
        """The ablation that the controls say, switched on or not."""
        return ablation(self.form, self.extras)

    def before(self) -> tuple[Merge, ...]:
        """What comes in front of the ablation: the merge, if it is switched on."""
        return (merge_form.read(self.form, self.extras.merge),) if self.form.merge_on else ()


@dataclass(frozen=True)
class Drawing:
    """The components that follow from a draft."""

    curve: gr.HTML
    notes: gr.HTML
    apply: gr.Button
    pair: gr.HTML
    text: gr.Code
    command: gr.Textbox
    digest: gr.HTML
    exported: gr.HTML
    limits: gr.HTML
    merge_figure: gr.Plot
    merge: merge_panel.MergePanel
    filter: weights_panel.FilterPanel
    drawn: gr.State

    @property
    def outputs(self) -> list:
        """The components that `draw` may write to."""
        return [
            self.curve,
            self.notes,
            self.apply,
            self.pair,
            self.text,
            self.command,
            self.digest,
            self.exported,
            self.limits,
            *draw_merge.outputs(self.merge, self.merge_figure),
            *self.filter.rows.values(),
            self.filter.readout,
            self.drawn,
        ]


@dataclass(frozen=True)
class Controls:
    """Every control of the recipe, and what is kept beside them."""

    form: Form
    merge: merge_panel.MergePanel
    filter: weights_panel.FilterPanel
    extras: gr.State

    @property
    def outputs(self) -> list:
        """The components that `fill` may write to."""
        decades = {**self.merge.decades, **self.filter.decades}
        return [*self.form, *decades.values(), self.extras]


@dataclass(frozen=True)
class Editor:
    """The recipe's controls, the draft that is read from them, and what is drawn of it."""

    controls: Controls
    drawing: Drawing
    draft: Reads

    @property
    def outputs(self) -> list:
        """The components that `fill` and `draw` may write to."""
        return [*self.drawing.outputs, *self.controls.outputs]


def shape(form: Form) -> tuple:
    """The profile and its numbers."""
    return (form.profile, *(getattr(form, name) for name in recipes.SHAPE))


def draw(drawing: Drawing, engine: Engine, draft: Draft) -> dict:
    """Updates of everything that follows from the draft."""
    edit = draft.ablation()
    weights = edit.weights
    lang, layers = draft.language, draft.loaded.layers
    signals = engine.signals(draft.loaded.key, edit.directions)
    found = kernel.warnings(weights, layers, edit.operation == "filter")
    notes = [notice(_warning(lang, key, values), "warn") for key, values in found]
    if draft.loaded.key and not signals:
        notes.append(notice(say(lang, "warn.unmeasured"), "info"))
    if edit.directions.estimator == "random":
        notes.append(notice(say(lang, "warn.control"), "info"))
    if not all(free(draft.form).values()):
        notes.append(notice(say(lang, "weights.exclude"), "info"))
    if weights.profile == "table":
        notes.append(notice(say(lang, "weights.table"), "info"))
    if weights.own_bells:
        kinds = ", ".join(say(lang, f"kind.{kind}") for kind in sorted(weights.own_bells))
        notes.append(notice(say(lang, "weights.bells", kinds=kinds), "info"))
    name = say(lang, f"signal.{draft.signal}")
    doubt = engine.doubt(draft.loaded.key, edit.directions, draft.signal)
    if doubt:
        notes.append(notice(say(lang, f"signal.doubt.{doubt}", name=name), "warn"))
    told, readout = _forecast(engine, draft, edit)
    behind = curve.Behind(
        say(lang, "signal.doubtful", name=name) if doubt else name,
        signals.get(draft.signal),
        None if told is None else told.removed,
        None if told is None else told.moved,
        edit.operation == "filter",
        engine.interval(draft.loaded.key, edit.directions, draft.signal),
        bool(doubt),
    )
    return {
        drawing.curve: curve.value(lang, weights, layers, behind),
        drawing.notes: "".join(notes),
        **weights_panel.shown(drawing.filter, edit.operation, draft.form.filter_goal),
        drawing.filter.readout: gr.update(value=readout, visible=edit.operation == "filter"),
        drawing.drawn: shape(draft.form),
        **draw_rest(drawing, engine, draft),
    }


def _forecast(engine: Engine, draft: Draft, edit: Ablation) -> tuple[Forecast | None, str]:
    """What a filtered ablation is predicted to do, and the same in words; (None, words) where it
    is not measured yet or cannot be."""
    lang = draft.language
    if edit.operation != "filter":
        return None, ""
    try:
        told = engine.forecast(draft.loaded.key, draft.before(), edit)
    except UserError as error:
        return None, notice(message(error, lang), "warn")
    if told is None:
        return None, notice(say(lang, "filter.unmeasured"), "info")
    key = "filter.forecast" if told.total_removed >= 0 else "filter.reinforces"
    words = say(
        lang,
        key,
        mu=f"{told.mu:.3g}",
        removed=f"{abs(told.total_removed):.1%}",
        moved=f"{told.total_moved:.2%}",
    )
    return told, f"<p>{words}</p>"


def draw_rest(drawing: Drawing, engine: Engine, draft: Draft) -> dict:
    """Everything but the ablation's own figure and table: all that a merge's control changes."""
    recipe, lang, now = draft.recipe(), draft.language, draft.variants.now
    clean = now is not None and now.recipe.digest() == recipe.digest()
    return {
        **draw_merge.draw(drawing.merge, drawing.merge_figure, engine, draft, recipe),
        **(_clean(drawing, lang) if clean else dirty(drawing, lang)),
        drawing.pair: edit_pair.told(lang, recipe, draft.loaded.layers),
        drawing.text: recipes.to_yaml(recipe),
        drawing.command: recipe_panel.command(recipe),
        drawing.digest: recipe_panel.hashed(lang, recipe, clean),
        drawing.exported: export_panel.told(lang, now.recipe if now else None, recipe),
        drawing.limits: told_limits(lang, recipe),
    }


def dirty(drawing: Drawing, language: str) -> dict:
    """The Apply button while the controls say something else than what is applied."""
    return {drawing.apply: gr.Button(say(language, "apply.dirty"), elem_classes=["dirty"])}


def _clean(drawing: Drawing, language: str) -> dict:
    return {drawing.apply: gr.Button(say(language, "apply.clean"), elem_classes=["clean"])}


def _warning(language: str, key: str, values: dict) -> str:
    one = key == "early" and values["first"] == values["last"]
    return say(language, "warn.early_one" if one else f"warn.{key}", **values)


def fill(controls: Controls, recipe: Recipe, now: Draft | None = None) -> tuple[dict, Form, Extras]:
    """Updates that put a recipe's settings into the controls, with the values they then have.

    Args:
        now: what the controls hold; an edit that the recipe lacks stays there, switched off.
    """
    form, extras = show(recipe, now.form, now.extras) if now else show(recipe)
    updates: dict[Any, Any] = {}
    able = free(form)
    for name in Form._fields:
        component, value = getattr(controls.form, name), getattr(form, name)
        if name in WAYS:
            updates[component] = gr.update(value=value, interactive=able[name])
        elif name == "affine_at":
            updates[component] = gr.update(value=value, visible=asks_where(form))
        elif isinstance(component, gr.Slider):  # files may go further than the dial
            low, high = min(component.minimum, value), max(component.maximum, value)
            updates[component] = gr.Slider(minimum=low, maximum=high, value=value)
        else:
            updates[component] = value
    updates |= merge_panel.places(controls.merge, form)
    updates |= merge_panel.places(controls.filter, form)
    updates[controls.extras] = extras
    return updates, form, extras


def _why_nothing(engine: Engine, draft: Draft, spec: DirectionSpec) -> str:
    """Why there is nothing to fit a kernel to."""
    if spec.estimator == "random":
        return say(draft.language, "warn.control")
    if doubt := engine.doubt(draft.loaded.key, spec, "evidence"):
        name = say(draft.language, "signal.evidence")
        return say(draft.language, f"signal.doubt.{doubt}", name=name)
    return say(draft.language, "warn.unmeasured")


def with_profile(engine: Engine, draft: Draft) -> tuple[Form, Extras]:
    """The form after a profile was picked: its peak, width and threshold, without a pasted curve.

    Raises:
        UserError: the measured profile was asked for before anything was measured, for a signal
            that is not reliable, or for a random control.
    """
    form, name = draft.form, draft.form.profile
    if name in ("custom", "table"):  # numbers of its own, which are there
        return form, draft.extras
    if name == "model":
        _, peak, width = kernel.recommended(draft.loaded.spec.id, draft.loaded.parameters)
        chosen = WeightTable(peak=peak, width=width)
    elif name == "measured":
        spec = draft.ablation().directions
        signal = engine.suggestion(draft.loaded.key, spec)
        if signal is None:
            raise UserError(_why_nothing(engine, draft, spec))
        peak, width = kernel.suggest(signal)
        chosen = WeightTable(peak=peak, width=width)
    else:
        chosen = kernel.profile(name)
    form = form._replace(peak=chosen.peak, width=chosen.width, threshold=chosen.threshold)
    return form, draft.extras.one_bell()
