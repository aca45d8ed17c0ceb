"""The filter's price and budget: sliders of decades, each beside the number that the form holds.

Both end in maths: once the filter is measured, a slider is answered in milliseconds.
"""

from dataclasses import replace
from functools import partial

from sst_ui.ui.events.binding import call
from sst_ui.ui.events.draw_draft import Draft, Editor, draw
from sst_ui.ui.events.edit import LIVE, checker
from sst_ui.ui.events.merge import dialable
from sst_ui.ui.panels.merge import dialled, places
from sst_ui.ui.services.engine import Engine


def connect(editor: Editor, engine: Engine) -> None:
    """Wire the sliders and their numbers."""
    drawn, draft = editor.drawing.outputs, editor.draft
    check = checker(engine, editor.controls.form)
    for name, slider in editor.controls.filter.decades.items():
        control = getattr(editor.controls.form, name)
        slider.input(
            **call(
                partial(slide, editor, name, engine),
                draft,
                slider,
                check=partial(dialable, check, name, slider),
            ),
            outputs=[*drawn, control],
            **LIVE,
        )
        control.input(
            **call(partial(turn, editor, engine), draft, check=check),
            outputs=[*drawn, *editor.controls.filter.decades.values()],
            **LIVE,
        )


def turn(editor: Editor, engine: Engine, draft: Draft) -> dict:
    """A number was typed: draw, and move its slider there."""
    drawn = draw(editor.drawing, engine, draft)
    return {**drawn, **places(editor.controls.filter, draft.form)}


def slide(editor: Editor, name: str, engine: Engine, draft: Draft, place: float) -> dict:
    """A slider was moved: the number follows it, and what is predicted."""
    number = dialled(name, float(place))
    draft = replace(draft, form=draft.form._replace(**{name: number}))
    return {**draw(editor.drawing, engine, draft), getattr(editor.controls.form, name): number}
