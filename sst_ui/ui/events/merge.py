"""From a merge's controls to its point on the curve, live; and what an applied merge really costs.

A slider ends in maths: nothing here runs a model, except for the measured cost, which follows an
Apply in its own time.
"""

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.maths.merge.registry import METHODS
from sst_ui.ui.events import draw_draft, draw_merge
from sst_ui.ui.events.draw_draft import Draft, draw_rest
from sst_ui.ui.events.edit import LIVE, checker
from sst_ui.ui.panels.merge import dialled, places
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message
from sst_ui.ui.state.form import split
from sst_ui.ui.state.merge_form import number, own

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def connect(studio, engine: Engine, changed: Sequence) -> None:
    """Wire the merge's controls.

    Args:
        changed: events after whose success another variant is current; its cost is then measured.
    """
    panel, session, figures = studio.merge, studio.session, studio.figures
    controls, sliders = panel.controls, list(panel.decades.values())
    drawn = draw_draft.outputs(studio)
    check = checker(engine)

    @guarded
    def turn(*values):
        draft = Draft.of(*values)
        return {**draw_rest(studio, engine, draft), **places(panel, draft.form)}

    @guarded
    def switch(*values):
        draft = Draft.of(*values)
        tab = gr.update(selected="merge" if draft.form.merge_on else "curve")
        return {**draw_rest(studio, engine, draft), figures.tabs: tab}

    @guarded
    def choose(*values):
        """Another method: its own parameters at their defaults."""
        draft = Draft.of(*values)
        method = METHODS[draft.form.method]
        fresh = {f"p_{name}": row.default for name, row in own(method.name).items()}
        form = draft.form._replace(**fresh)
        draft = replace(draft, form=form)
        written = {controls[name]: value for name, value in fresh.items()}
        return {**draw_rest(studio, engine, draft), **written, **places(panel, form)}

    special = (controls["merge_on"], controls["method"])
    others = [c for c in controls.values() if c not in special]
    gr.on(
        [c.input for c in others],
        turn,
        studio.draft,
        [*drawn, *sliders],
        validator=check,
        **LIVE,
    )
    controls["merge_on"].input(
        switch, studio.draft, [*drawn, figures.tabs], validator=check, **LIVE
    )
    controls["method"].input(
        choose, studio.draft, [*drawn, *sliders, *_dials(controls)], validator=check, **LIVE
    )
    for name, slider in panel.decades.items():
        slider.input(
            _slid(studio, engine, name),
            [session.language, slider, *studio.draft[1:]],
            [*drawn, controls[name]],
            validator=_dialable(engine, name, slider),
            **LIVE,
        )

    @guarded
    def look(*values):
        draft = Draft.of(*values)
        return draw_merge.draw(studio, engine, draft, draft.recipe())[figures.merge]

    figures.merge_view.input(look, studio.draft, figures.merge, validator=check, **LIVE)

    @guarded
    def measure(*values):
        """The applied merge's real cost, laid over the prediction."""
        draft = Draft.of(*values)
        merge = split(draft.variants.now.recipe)[0] if draft.variants.now else None
        if merge is None:
            return
        if engine.merges.cost(draft.loaded.key, merge) is None:
            with closing(engine.merges.measure(draft.loaded.key, merge)) as job:
                for _ in job:
                    pass
        with suppress(UserError):  # a control that is wrong by now has been said
            recipe = draft.recipe()
            yield {figures.merge: draw_merge.draw(studio, engine, draft, recipe)[figures.merge]}

    for event in changed:
        event.success(
            measure,
            studio.draft,
            [figures.merge],
            concurrency_id="metrics",
            concurrency_limit=4,
            **PRIVATE,
        )


def _slid(studio, engine: Engine, name: str):
    """A handler of one slider of decades: the number follows it, and the point on the curve."""

    @guarded
    def slide(lang, place, *values):
        draft, number = Draft.of(lang, *values), dialled(name, float(place))
        draft = replace(draft, form=draft.form._replace(**{name: number}))
        control = studio.merge.controls[name]
        return {**draw_rest(studio, engine, draft), control: number}

    return slide


def _dialable(engine: Engine, name: str, slider):
    """A validator of one slider of decades: it stands somewhere, and the form is sound with it."""
    check = checker(engine)

    def sound(lang, place, *values):
        try:
            number(f"log10 {name}", place)
            if not slider.minimum <= place <= slider.maximum:
                low, high = (f"{end:g}" for end in (slider.minimum, slider.maximum))
                raise UserError(f"log10 {name} is {place:.12g}; it must be {low} to {high}.")
        except UserError as error:
            told = [gr.validate(True, "")] * (len(values) + 2)
            told[1] = gr.validate(False, message(error, lang))
            return told
        draft = Draft.of(lang, *values)
        form = draft.form._replace(**{name: dialled(name, float(place))})
        first, *rest = check(lang, *values[: len(values) - len(form)], *form)
        return [first, gr.validate(True, ""), *rest]

    return sound


def _dials(controls) -> list:
    return [c for name, c in controls.items() if name.startswith("p_")]
