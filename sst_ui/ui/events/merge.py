"""From a merge's controls to its point on the curve, live; and what an applied merge really costs.

A slider ends in maths: nothing here runs a model, except for the measured cost, which follows an
Apply in its own time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.maths.merge.registry import METHODS
from sst_ui.recipe import Recipe
from sst_ui.ui.events import draw_merge
from sst_ui.ui.events.binding import MANY, PRIVATE, call
from sst_ui.ui.events.draw_draft import Draft, Drawing, Editor, draw_rest
from sst_ui.ui.events.edit import LIVE, checker
from sst_ui.ui.panels.figures import FiguresPanel
from sst_ui.ui.panels.merge import dialled, places
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.form import split
from sst_ui.ui.state.merge_form import number, own


def connect(editor: Editor, figures: FiguresPanel, changed: Sequence, engine: Engine) -> None:
    """Wire the merge's controls.

    Args:
        changed: events after whose success another variant is current; its cost is then measured.
    """
    drawing, draft = editor.drawing, editor.draft
    check = checker(engine, editor.controls.form)
    _connect_controls(editor, figures, engine)
    for name, slider in editor.controls.merge.decades.items():
        slider.input(
            **call(
                partial(slide, editor, name, engine),
                draft,
                slider,
                check=partial(dialable, check, name, slider),
            ),
            outputs=[*drawing.outputs, editor.controls.merge.controls[name]],
            **LIVE,
        )
    figures.merge_view.input(
        **call(partial(look, drawing, engine), draft, check=check),
        outputs=drawing.merge_figure,
        **LIVE,
    )
    for event in changed:
        event.success(
            **call(partial(measure, drawing, engine), draft, may="measure"),
            outputs=[drawing.merge_figure],
            concurrency_id="metrics",
            concurrency_limit=MANY,
            **PRIVATE,
        )


def _connect_controls(editor: Editor, figures: FiguresPanel, engine: Engine) -> None:
    panel, drawn, draft = editor.controls.merge, editor.drawing.outputs, editor.draft
    controls, sliders = panel.controls, list(panel.decades.values())
    check = checker(engine, editor.controls.form)
    special = (controls["merge_on"], controls["method"])
    gr.on(
        [c.input for c in controls.values() if c not in special],
        **call(partial(turn, editor, engine), draft, check=check),
        outputs=[*drawn, *sliders],
        **LIVE,
    )
    controls["merge_on"].input(
        **call(partial(switch, editor, figures.tabs, engine), draft, check=check),
        outputs=[*drawn, figures.tabs],
        **LIVE,
    )
    controls["method"].input(
        **call(partial(choose, editor, engine), draft, check=check),
        outputs=[*drawn, *sliders, *(c for n, c in controls.items() if n.startswith("p_"))],
        **LIVE,
    )


def turn(editor: Editor, engine: Engine, draft: Draft) -> dict:
    """Draw what the controls say now."""
    drawn = draw_rest(editor.drawing, engine, draft)
    return {**drawn, **places(editor.controls.merge, draft.form)}


def switch(editor: Editor, tabs: gr.Tabs, engine: Engine, draft: Draft) -> dict:
    """The merge on or off: its figure, or the ablation's."""
    tab = gr.update(selected="merge" if draft.form.merge_on else "curve")
    return {**draw_rest(editor.drawing, engine, draft), tabs: tab}


def choose(editor: Editor, engine: Engine, draft: Draft) -> dict:
    """Another method: its own parameters at their defaults."""
    panel = editor.controls.merge
    method = METHODS[draft.form.method]
    fresh = {f"p_{name}": row.default for name, row in own(method.name).items()}
    draft = replace(draft, form=draft.form._replace(**fresh))
    written = {panel.controls[name]: value for name, value in fresh.items()}
    return {
        **draw_rest(editor.drawing, engine, draft),
        **written,
        **places(panel, draft.form),
    }


def slide(editor: Editor, name: str, engine: Engine, draft: Draft, place: float) -> dict:
    """A slider of decades: the number follows it, and the point on the curve."""
    number = dialled(name, float(place))
    draft = replace(draft, form=draft.form._replace(**{name: number}))
    control = editor.controls.merge.controls[name]
    return {**draw_rest(editor.drawing, engine, draft), control: number}


def dialable(check: Callable[..., dict], name: str, slider: Any, draft: Draft, place: Any) -> dict:
    """A slider of decades stands somewhere, and the form is sound with it."""
    try:
        number(f"log10 {name}", place)
        if not slider.minimum <= place <= slider.maximum:
            low, high = (f"{end:g}" for end in (slider.minimum, slider.maximum))
            raise UserError(f"log10 {name} is {place:.12g}; it must be {low} to {high}.")
    except UserError as error:
        return {slider: message(error, draft.language)}
    return check(replace(draft, form=draft.form._replace(**{name: dialled(name, float(place))})))


def look(drawing: Drawing, engine: Engine, draft: Draft) -> Any:
    """Another view of the merge."""
    return _figure(drawing, engine, draft, draft.recipe())


def measure(drawing: Drawing, engine: Engine, draft: Draft) -> Iterator[dict]:
    """The applied merge's real cost, laid over the prediction."""
    merge = split(draft.variants.now.recipe)[0] if draft.variants.now else None
    if merge is None:
        return
    if engine.merges.cost(draft.loaded.key, merge) is None:
        with closing(engine.merges.measure(draft.loaded.key, merge)) as job:
            for _ in job:
                pass
    with suppress(UserError):  # a control that is wrong by now has been said
        recipe = draft.recipe()
        yield {drawing.merge_figure: _figure(drawing, engine, draft, recipe)}


def _figure(drawing: Drawing, engine: Engine, draft: Draft, recipe: Recipe) -> Any:
    figure = drawing.merge_figure
    return draw_merge.draw(drawing.merge, figure, engine, draft, recipe)[figure]
