"""From a control of the ablation to the figure: sliders, profiles, ways that exclude one another.

Nothing here loads, measures or computes with a model.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.ui.events import draw_draft
from sst_ui.ui.events.binding import PRIVATE, call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw
from sst_ui.ui.panels import edit_pair
from sst_ui.ui.panels.weights import ApplyBar
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.form import WAYS, Form, asks_where, free, show, split, wrong
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.merge_form import FACTORS
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say, t

LIVE: dict[str, Any] = {  # a dragged slider: only the newest position counts
    **PRIVATE,
    "trigger_mode": "always_last",
    "concurrency_limit": None,
}
# The profiles whose numbers only the server has.
MEASURED = ("measured", "model")
ABLATED, MERGED = ("harmful", "harmless"), ("utility_set", "safety_set")  # prompts that are read


def checker(engine: Engine, form: Form, with_prompts: bool = False) -> Callable[..., dict]:
    """A check for handlers that take the draft first: control of `form` -> what is wrong there.

    Args:
        with_prompts: read the prompts too.
    """
    sound, _ = show(engine.first_recipe())
    return partial(_wrong, form, sound, with_prompts)


def _wrong(form: Form, sound: Form, with_prompts: bool, draft: Draft, *more: object) -> dict:
    values, last = draft.form, draft.loaded.layers - 1
    found = wrong(values, draft.extras, draft.loaded.spec, sound)
    if "layer" not in found and values.scope == "single" and values.layer > last:
        layer = f"directions.layer is {values.layer:.12g}"
        found["layer"] = f"{layer}, but the model's layers are 0 to {last}."
    if with_prompts and not found:
        measured = values.ablation_on and not (values.file or "").strip()
        read = (*(ABLATED if measured else ()), *(MERGED if values.merge_on else ()))
        if measured and values.estimator == "surgical" and (values.concepts or "").strip():
            read = (*read, "concepts")
        if values.merge_on and (values.m_lookalikes or "").strip():
            read = (*read, "m_lookalikes")
        for name in read:
            try:
                prompt_sets.load(getattr(values, name))
            except UserError as error:
                found[name] = str(error)
    return {
        getattr(form, name): message(UserError(text), draft.language)
        for name, text in found.items()
    }


def connect(
    editor: Editor, apply: ApplyBar, signal: gr.Dropdown, language: gr.State, engine: Engine
) -> None:
    """Wire every control that has to be drawn, but the merge's and the filter's sliders.

    What profile it is and what a named one's numbers are is written where the page is, at once:
    Apply may be pressed before an answer is here, and must not send a name with other numbers; and
    a name that still looks selected could not be picked. One event draws for all of the controls:
    it asks again after each answer if anything was moved meanwhile, so that no late answer stays.

    Gradio begins an event of a control when the one before it is answered, and asking again begins
    all of that control's anew: what is written in the page must then be nothing new.
    """
    controls, drawing = editor.controls, editor.drawing
    form, check = controls.form, checker(engine, controls.form)
    shapes = [getattr(form, name) for name in recipes.SHAPE]
    mine = [
        *[getattr(form, name) for name in controls.filter.decades],
        *controls.merge.controls.values(),
    ]
    ways = [getattr(form, name) for name in WAYS]
    apply.pair.click(
        **call(partial(leave_out, editor, engine), editor.draft, check=check),
        outputs=[*drawing.outputs, form.ablation_on, form.merge_on],
        **LIVE,
    )
    apply.by_hand.click(None, None, form.profile, js="() => 'custom'", **PRIVATE)
    form.profile.input(
        None,
        form.profile,
        shapes,
        js=f"name => curve.shaped(({_numbers()})[name] ?? [])",  # nothing for what is not said
        **PRIVATE,
    )
    # A control was refused: what it shows is not what is applied.
    apply.unsound.click(None, None, drawing.apply, js=f"() => ({_dirty()})", **PRIVATE)
    gr.on(
        [c.input for c in ways],
        **call(partial(settle, show(engine.first_recipe())[0]), language, *ways),
        outputs=[*ways, form.affine_at],
        **LIVE,
    )
    gr.on(
        [*[c.input for c in form if c not in mine], signal.input],
        **call(partial(redraw, editor, engine), editor.draft, check=check),
        outputs=[*drawing.outputs, form.profile, *shapes, controls.extras],
        **LIVE,
    )


def leave_out(editor: Editor, engine: Engine, draft: Draft, event: gr.EventData) -> dict:
    """One edit of a pair off (see `panels.edit_pair`)."""
    if (name := event.pick) not in edit_pair.SWITCHES:
        return {}
    draft = replace(draft, form=draft.form._replace(**{name: False}))
    return {**draw(editor.drawing, engine, draft), getattr(editor.controls.form, name): False}


def redraw(editor: Editor, engine: Engine, draft: Draft) -> dict:
    """Draw what the controls say now.

    With peak, width or threshold moved by hand the profile is a custom one, and a pasted curve and
    the bells of single kinds of module are gone. A profile that was picked brings its own numbers,
    whatever stood there.
    """
    form, extras = draft.form, draft.extras
    written: dict[Any, Any] = {}
    controls, before, now = editor.controls, draft.drawn, draw_draft.shape(draft.form)
    shapes = {name: getattr(controls.form, name) for name in recipes.SHAPE}
    if before is not None and form.profile not in (before[0], "custom"):
        try:
            form, extras = draw_draft.with_profile(engine, draft)
        except UserError as error:  # nothing is measured yet, or a direction's number is wrong
            told = {editor.drawing.notes: notice(message(error, draft.language), "bad")}
            return told | dict(zip((controls.form.profile, *shapes.values()), before, strict=True))
        if form.profile in MEASURED:  # a named one's are written where the page is
            written = {box: getattr(form, name) for name, box in shapes.items()}
    elif before is not None and now[1:] != before[1:]:
        extras, form = extras.one_bell(), form._replace(profile="custom")
    # not for every slider: a cell that is pinned meanwhile would be lost
    if extras != draft.extras or before is None or form.profile != before[0]:
        written[controls.extras] = extras
    draft = replace(draft, form=form, extras=extras)
    return {**draw(editor.drawing, engine, draft), **written}


def settle(sound: Form, language: str, *chosen: object) -> list:
    """Switch off the ways that exclude what is chosen, and ask where an affine edit acts."""
    values = sound._replace(**dict(zip(WAYS, chosen, strict=True)))
    able = [gr.update(interactive=able) for able in free(values).values()]
    return [*able, gr.update(visible=asks_where(values))]


def _dirty() -> str:
    """The update of `draw_draft.dirty`, as the page makes it: JSON, its text still to translate."""
    update = {"__type__": "update", "value": str(t("apply.dirty")), "elem_classes": ["dirty"]}
    return json.dumps(update)


def _numbers() -> str:
    """The named profiles' peak, width and threshold, as the page writes them: JSON.

    Sound ones for those that only the server has, until it answers: what is broken is repaired.
    """
    named = kernel.profiles()
    sound = dict.fromkeys(MEASURED, named["default"])
    return json.dumps(
        {name: [row[key] for key in recipes.SHAPE] for name, row in (sound | named).items()}
    )


def usable(lang: str, loaded: Loaded, recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe, if a window can show it: this model and its layers, edits as in `split`."""
    if not recipe.model.is_of(loaded.spec):
        raise UserError(
            say(lang, "recipe.other_model", model=str(recipe.model), loaded=str(loaded.spec))
        )
    merge, ablation = split(recipe)
    if ablation is not None:
        kernel.table(ablation.weights, loaded.layers)
    if merge is not None:
        kernel.table(merge.weights, loaded.layers, FACTORS)
    return _named(recipe, loaded)


def _named(recipe: recipes.Recipe, loaded: Loaded) -> recipes.Recipe:
    """The recipe, `custom` where it claims the loaded model's own profile and has other numbers."""
    own = kernel.recommended(loaded.spec.id, loaded.parameters)[1:]

    def told(edit: recipes.Ablation | recipes.Merge) -> recipes.Ablation | recipes.Merge:
        weights = edit.weights
        if weights.profile != "model" or own == (weights.peak, weights.width):
            return edit
        return replace(edit, weights=replace(weights, profile="custom"))

    return replace(recipe, edits=tuple(map(told, recipe.edits)))
