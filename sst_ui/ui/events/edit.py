"""From a control to the figure: sliders, profiles, the table, the recipe as text.

Nothing here loads, measures or computes with a model.
"""

import json
from dataclasses import replace

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.ui.events import draw_draft
from sst_ui.ui.events.draw_draft import Draft, draw, fill
from sst_ui.ui.panels import recipe_text as recipe_panel
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.state.form import WAYS, Extras, Form, free, show, split, wrong
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.merge_form import FACTORS
from sst_ui.ui.widgets import weight_table
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

LIVE = {  # a dragged slider: only the newest position counts, nothing spins
    "trigger_mode": "always_last",
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
SHAPES = ("peak", "width", "threshold")  # what a profile writes
ABLATED, MERGED = ("harmful", "harmless"), ("utility_set", "safety_set")  # prompts that are read


def checker(engine: Engine, with_prompts: bool = False):
    """A validator for handlers that take the draft: the message appears at the wrong control.

    Args:
        with_prompts: read the prompts too.
    """
    sound, _ = show(engine.first_recipe())

    def check(*values):
        draft = Draft.of(*values)
        found = wrong(draft.form, draft.extras, draft.loaded.spec, sound)
        last = draft.loaded.layers - 1
        if "layer" not in found and draft.form.scope == "single" and draft.form.layer > last:
            layer = f"directions.layer is {draft.form.layer:.12g}"
            found["layer"] = f"{layer}, but the model's layers are 0 to {last}."
        if with_prompts and not found:
            read = () if (draft.form.file or "").strip() or not draft.form.ablation_on else ABLATED
            read += MERGED if draft.form.merge_on else ()
            for name in read:
                try:
                    prompt_sets.load(getattr(draft.form, name))
                except UserError as error:
                    found[name] = str(error)
        before = len(values) - len(draft.form)
        said = {
            before + Form._fields.index(name): message(UserError(text), draft.language)
            for name, text in found.items()
        }
        return [gr.validate(i not in said, said.get(i, "")) for i in range(len(values))]

    return check


def connect(studio, engine: Engine) -> None:
    """Wire every control to the drawing."""
    form, session, panel = studio.form, studio.session, studio.figures
    drawn = draw_draft.outputs(studio)
    check = checker(engine)
    sound, _ = show(engine.first_recipe())

    @guarded
    def redraw(*values):
        return draw(studio, engine, Draft.of(*values))

    @guarded
    def reshape(*values):
        """Peak, width or threshold by hand: the profile is custom now, a pasted curve is gone."""
        draft = Draft.of(*values)
        extras = replace(draft.extras, curve=None)
        draft = replace(draft, form=draft.form._replace(profile="custom"), extras=extras)
        return {
            **draw(studio, engine, draft),
            form.profile: "custom",
            session.extras: extras,
        }

    @guarded
    def pick_profile(*values):
        """Its own peak, width and threshold, whatever stood there: this also repairs a broken form.

        Another control that is wrong keeps the figure as it is, not the profile's numbers.
        """
        draft = Draft.of(*values)
        if draft.form.profile != "custom":
            numbers = {name: getattr(sound, name) for name in SHAPES}
            extras = replace(draft.extras, curve=None)
            draft = replace(draft, form=draft.form._replace(**numbers), extras=extras)
        try:
            chosen, extras = draw_draft.with_profile(engine, draft)
        except UserError as error:  # nothing is measured yet, or a direction's number is wrong
            return {studio.weights.notes: notice(message(error, draft.language), "bad")}
        draft = replace(draft, form=chosen, extras=extras)
        written = {
            form.profile: chosen.profile,  # written back: a page still opening may have reset it
            form.peak: chosen.peak,
            form.width: chosen.width,
            form.threshold: chosen.threshold,
            session.extras: extras,
        }
        try:
            return {**draw(studio, engine, draft), **written}
        except UserError:  # the validator of the next event says where
            return {**written, **draw_draft.dirty(studio, draft.language)}

    @guarded
    def unsound(*values):
        """A control was refused: what it shows is not what is applied, nor what a profile says."""
        draft = Draft.of(*values)
        found = wrong(draft.form, draft.extras, draft.loaded.spec, sound)
        if not found:  # mended meanwhile: the event of the newer value draws it
            return {}
        profile = {form.profile: "custom"} if {*SHAPES} & {*found} else {}
        return {**draw_draft.dirty(studio, draft.language), **profile}

    @guarded
    def settle(lang, *chosen):
        values = sound._replace(**dict(zip(WAYS, chosen, strict=True)))
        return [gr.update(interactive=able) for able in free(values).values()]

    shapes = [getattr(form, name) for name in SHAPES]
    gr.on(
        [c.input for c in shapes],
        reshape,
        studio.draft,
        [*drawn, form.profile, session.extras],
        validator=check,
        **LIVE,
    )
    # A named profile's numbers are written where the page is, at once: Apply may be pressed before
    # the answer to this click is here, and must not send the name with the last one's numbers.
    form.profile.input(
        None,
        [form.profile, *shapes],
        shapes,
        js=f"(name, ...now) => ({_numbers()})[name] ?? now",
        api_visibility="private",
        show_progress="hidden",
    )
    form.profile.input(
        pick_profile,
        studio.draft,
        [*drawn, form.profile, *shapes, session.extras],
        **LIVE | {"trigger_mode": "multiple"},  # each as it was picked: the answer writes it back
    )
    studio.apply.unsound.click(unsound, studio.draft, [studio.apply.apply, form.profile], **LIVE)
    ways = [getattr(form, name) for name in WAYS]
    gr.on([c.input for c in ways], settle, [session.language, *ways], ways, **LIVE)
    mine = [*shapes, form.profile, *studio.merge.controls.values()]
    others = [c for c in form if c not in mine]
    gr.on(
        [*[c.input for c in others], panel.signal.input],
        redraw,
        studio.draft,
        drawn,
        validator=check,
        **LIVE,
    )

    # --- the table ----------------------------------------------------------------------------

    @guarded
    def type_cell(lang, cells, *values):
        draft = Draft.of(lang, *values)
        try:
            weights = draft.ablation().weights
            edited = weight_table.typed(draft.language, cells, weights, draft.loaded.layers)
            edited = replace(edited, extras=replace(edited.extras, merge=draft.extras.merge))
            draft = replace(draft, extras=edited.extras)
            updates = draw(studio, engine, draft)
        except UserError as error:
            return {panel.table_note: notice(message(error, draft.language), "bad")}
        return {
            **updates,
            session.extras: edited.extras,
            panel.table_note: notice(edited.complaint, "bad"),
        }

    @guarded
    def paste(lang, text, target, *values):
        draft = Draft.of(lang, *values)
        try:
            extras = weight_table.pasted(
                draft.language, text or "", target, draft.extras, draft.loaded.layers
            )
            form_now = draft.form
            if target == "curve":
                form_now = form_now._replace(profile="custom", threshold=0.0)
            draft = replace(draft, extras=extras, form=form_now)
            updates = draw(studio, engine, draft)
        except UserError as error:
            return {panel.table_note: notice(message(error, draft.language), "bad")}
        return {
            **updates,
            session.extras: extras,
            form.profile: draft.form.profile,
            form.threshold: draft.form.threshold,
            panel.table_note: "",
        }

    @guarded
    def reset(*values):
        draft = Draft.of(*values)
        draft = replace(draft, extras=Extras(merge=draft.extras.merge))
        try:
            updates = draw(studio, engine, draft)
        except UserError as error:
            return {panel.table_note: notice(message(error, draft.language), "bad")}
        return {
            **updates,
            session.extras: draft.extras,
            panel.table_note: "",
        }

    typed = [*drawn, session.extras, panel.table_note]
    private = {"api_visibility": "private", "show_progress": "hidden"}
    panel.table.input(
        type_cell,
        [session.language, panel.table, *studio.draft[1:]],
        typed,
        trigger_mode="multiple",  # a cell typed while another one is on its way counts too
        **private,
    )
    gr.on(
        [panel.use.click, panel.row.submit],
        paste,
        [session.language, panel.row, panel.target, *studio.draft[1:]],
        [*typed, form.profile, form.threshold],
        **private,
    )
    panel.reset.click(reset, studio.draft, typed, **private)

    # --- the recipe as text -------------------------------------------------------------------

    def load_text(draft: Draft, text: str) -> dict:
        try:
            recipe = usable(draft, recipes.from_yaml(text or ""))
            updates, values, extras = fill(studio, recipe, draft)
            draft = replace(draft, form=values, extras=extras)
            drawing_updates = draw(studio, engine, draft)
        except UserError as error:
            return {studio.recipe.status: notice(message(error, draft.language), "bad")}
        told = notice(say(draft.language, "recipe.used"), "good")
        return {**updates, **drawing_updates, studio.recipe.status: told}

    @guarded
    def use(lang, text, *values):
        return load_text(Draft.of(lang, *values), text)

    @guarded
    def upload(lang, path, *values):
        if not path:
            return {}
        try:
            text = recipes.read_text(path)
        except UserError as error:
            binary = isinstance(error.__cause__, UnicodeDecodeError)
            told = say(lang, "recipe.not_utf8") if binary else message(error, lang)
            return {studio.recipe.status: notice(told, "bad")}
        return load_text(Draft.of(lang, *values), text)

    def readable(lang, text):
        """A validator: what is saved as a recipe is one."""
        try:
            recipes.from_yaml(text or "")
        except UserError as error:
            return [gr.validate(True, ""), gr.validate(False, message(error, lang))]
        return [gr.validate(True, "")] * 2

    loaded_text = [
        *drawn,
        *form,
        *studio.merge.decades.values(),
        session.extras,
        studio.recipe.status,
    ]
    rest = studio.draft[1:]
    studio.recipe.use.click(
        use, [session.language, studio.recipe.text, *rest], loaded_text, **private
    )
    studio.recipe.upload.upload(
        upload, [session.language, studio.recipe.upload, *rest], loaded_text, **private
    )
    studio.recipe.link.click(None, studio.recipe.text, None, js=recipe_panel.LINK, **private)
    studio.recipe.download.click(
        lambda lang, text: "",
        [session.language, studio.recipe.text],
        studio.recipe.status,
        validator=readable,
        **private,
    ).success(None, studio.recipe.text, None, js=recipe_panel.SAVE, **private)


def _numbers() -> str:
    """The named profiles' peak, width and threshold, as the page writes them: JSON."""
    named = kernel.profiles().items()
    return json.dumps({name: [numbers[key] for key in SHAPES] for name, numbers in named})


def usable(draft: Draft, recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe, if this window can show it: this model and its layers, edits as in `split`."""
    lang, loaded = draft.language, draft.loaded
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

    def told(edit):
        weights = edit.weights
        if weights.profile != "model" or own == (weights.peak, weights.width):
            return edit
        return replace(edit, weights=replace(weights, profile="custom"))

    return replace(recipe, edits=tuple(map(told, recipe.edits)))
