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
from sst_ui.ui.events.draw_draft import Draft, Drawing, Editor, draw
from sst_ui.ui.panels.weights import ApplyBar
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.form import WAYS, Form, asks_where, free, show, split, wrong
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.merge_form import FACTORS
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

LIVE: dict[str, Any] = {  # a dragged slider: only the newest position counts, nothing spins
    "trigger_mode": "always_last",
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
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
        for name in read:
            try:
                prompt_sets.load(getattr(values, name))
            except UserError as error:
                found[name] = str(error)
    return {
        getattr(form, name): message(UserError(text), draft.language)
        for name, text in found.items()
    }


def connect(editor: Editor, apply: ApplyBar, language: gr.State, engine: Engine) -> None:
    """Wire the ablation's controls, and all others but the merge's, to the drawing."""
    controls, drawing, draft = editor.controls, editor.drawing, editor.draft
    form, drawn = controls.form, drawing.outputs
    check = checker(engine, form)
    sound, _ = show(engine.first_recipe())
    shapes = [getattr(form, name) for name in recipes.SHAPE]
    gr.on(
        [c.input for c in shapes],
        **call(partial(reshape, editor, engine), draft, check=check),
        outputs=[*drawn, form.profile, controls.extras],
        **LIVE,
    )
    # A named profile's numbers are written where the page is, at once: Apply may be pressed before
    # the answer to this click is here, and must not send the name with the last one's numbers.
    form.profile.input(
        None,
        [form.profile, *shapes],
        shapes,
        js=f"(name, ...now) => ({_numbers()})[name] ?? now",
        **PRIVATE,
    )
    form.profile.input(
        **call(partial(pick_profile, editor, sound, engine), draft),
        outputs=[*drawn, form.profile, *shapes, controls.extras],
        **LIVE | {"trigger_mode": "multiple"},  # each as it was picked: the answer writes it back
    )
    apply.unsound.click(
        **call(partial(unsound, editor, sound), draft),
        outputs=[drawing.apply, form.profile],
        **LIVE,
    )
    ways = [getattr(form, name) for name in WAYS]
    gr.on(
        [c.input for c in ways],
        **call(partial(settle, sound), language, *ways),
        outputs=[*ways, form.affine_at],
        **LIVE,
    )


def connect_others(editor: Editor, signal: gr.Dropdown, engine: Engine) -> None:
    """Wire the controls that only have to be drawn: neither shapes nor the merge's, nor those that
    a slider of decades stands beside."""
    form, merge = editor.controls.form, editor.controls.merge
    beside = editor.controls.filter.decades
    special = [getattr(form, name) for name in ("profile", *recipes.SHAPE, *beside)]
    mine = [*special, *merge.controls.values()]
    gr.on(
        [*[c.input for c in form if c not in mine], signal.input],
        **call(partial(redraw, editor.drawing, engine), editor.draft, check=checker(engine, form)),
        outputs=editor.drawing.outputs,
        **LIVE,
    )


def redraw(drawing: Drawing, engine: Engine, draft: Draft) -> dict:
    """Draw what the controls say now."""
    return draw(drawing, engine, draft)


def reshape(editor: Editor, engine: Engine, draft: Draft) -> dict:
    """Peak, width or threshold by hand: the profile is custom now, a pasted curve and the bells of
    single kinds of module are gone."""
    extras = draft.extras.one_bell()
    draft = replace(draft, form=draft.form._replace(profile="custom"), extras=extras)
    return {
        **draw(editor.drawing, engine, draft),
        editor.controls.form.profile: "custom",
        editor.controls.extras: extras,
    }


def pick_profile(editor: Editor, sound: Form, engine: Engine, draft: Draft) -> dict:
    """Its own peak, width and threshold, whatever stood there: this also repairs a broken form.

    Another control that is wrong keeps the figure as it is, not the profile's numbers.
    """
    drawing, form = editor.drawing, editor.controls.form
    if draft.form.profile != "custom":
        numbers = {name: getattr(sound, name) for name in recipes.SHAPE}
        extras = draft.extras.one_bell()
        draft = replace(draft, form=draft.form._replace(**numbers), extras=extras)
    try:
        chosen, extras = draw_draft.with_profile(engine, draft)
    except UserError as error:  # nothing is measured yet, or a direction's number is wrong
        return {drawing.notes: notice(message(error, draft.language), "bad")}
    draft = replace(draft, form=chosen, extras=extras)
    written = {
        form.profile: chosen.profile,  # written back: a page still opening may have reset it
        form.peak: chosen.peak,
        form.width: chosen.width,
        form.threshold: chosen.threshold,
        editor.controls.extras: extras,
    }
    try:
        return {**draw(drawing, engine, draft), **written}
    except UserError:  # the validator of the next event says where
        return {**written, **draw_draft.dirty(drawing, draft.language)}


def unsound(editor: Editor, sound: Form, draft: Draft) -> dict:
    """A control was refused: what it shows is not what is applied, nor what a profile says."""
    found = wrong(draft.form, draft.extras, draft.loaded.spec, sound)
    if not found:  # mended meanwhile: the event of the newer value draws it
        return {}
    profile = {editor.controls.form.profile: "custom"} if {*recipes.SHAPE} & {*found} else {}
    return {**draw_draft.dirty(editor.drawing, draft.language), **profile}


def settle(sound: Form, language: str, *chosen: object) -> list:
    """Switch off the ways that exclude what is chosen, and ask where an affine edit acts."""
    values = sound._replace(**dict(zip(WAYS, chosen, strict=True)))
    able = [gr.update(interactive=able) for able in free(values).values()]
    return [*able, gr.update(visible=asks_where(values))]


def _numbers() -> str:
    """The named profiles' peak, width and threshold, as the page writes them: JSON."""
    named = kernel.profiles().items()
    return json.dumps({name: [numbers[key] for key in recipes.SHAPE] for name, numbers in named})


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
