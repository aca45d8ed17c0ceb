"""Find the next decision, without a browser: from the button to the draft and the figure."""

from contextlib import closing
from pathlib import Path

import gradio as gr
import pytest

from sst_ui.jobs.directions import filter_moments
from sst_ui.maths import directions as maths_directions
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Filter, ModelSpec, Recipe, WeightTable
from sst_ui.ui import Engine
from sst_ui.ui import page as studio
from sst_ui.ui.events import apply as apply_events
from sst_ui.ui.events import rounds as rounds_events
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.state.form import show
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.texts import LANGUAGES

ORGANISM = Path(__file__).resolve().parents[1] / "organisms" / "tiny-llama"
PROMPTS = {
    name: str(ORGANISM / "prompts" / f"{name}_measure.jsonl") for name in ("harmful", "harmless")
}
WIDE = WeightTable(profile="custom", peak=0.7, width=0.4, threshold=0.0, strength=1.5)
EDIT = Ablation(DirectionSpec(**PROMPTS), WIDE, "filter", filter=Filter(mu=0.1))


class Request:
    session_hash = "rounds"


@pytest.fixture(scope="module")
def organism():
    engine = Engine()
    finish(engine.load(ModelSpec(id=str(ORGANISM / "model"))))
    return engine


@pytest.fixture(scope="module")
def screen(organism):
    with gr.Blocks():
        return studio.panels(organism)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def draft(engine, edit=EDIT, language="en") -> Draft:
    form, extras = show(Recipe(edits=(edit,)))
    return Draft(language, engine.loaded, extras, Variants(), "evidence", form)


def find(screen, engine, now):
    jobs = apply_events.Screen(
        screen.left.apply, screen.editor, screen.applied, screen.figures.tabs
    )
    return rounds_events.find(jobs, screen.figures, engine, now, Request())


def test_the_button_adds_a_direction_to_the_draft_and_shows_where_it_lies(screen, organism, home):
    bar, form = screen.left.apply, screen.editor.controls.form
    *_, last = find(screen, organism, draft(organism))
    path = last[form.file]
    saved = maths_directions.load(path)
    assert saved.k == 2
    assert Path(path).is_relative_to(home)
    assert "direction 2" in last[bar.status]
    marks = last[screen.figures.decisions].data[-1]
    assert list(marks.x) == [each.position for each in saved.decisions]
    assert list(marks.y) == [each.layer for each in saved.decisions]
    assert last[bar.cancel]["visible"] == "hidden"
    now = draft(organism)
    now = Draft(now.language, now.loaded, now.extras, now.variants, now.signal,
                now.form._replace(file=path))  # fmt: skip
    assert path in last[screen.editor.drawing.text]
    seen = rounds_events.look(screen.figures, organism, now)[screen.figures.decisions]
    assert list(seen.data[-1].x) == list(marks.x)
    *_, again = find(screen, organism, now)
    assert maths_directions.load(again[form.file]).k == 3


@pytest.mark.parametrize("language", LANGUAGES)
def test_before_any_round_the_figure_says_what_to_press(screen, organism, language):
    updates = rounds_events.look(screen.figures, organism, draft(organism, language=language))
    figure = updates[screen.figures.decisions]
    assert not figure.data
    assert figure.layout.annotations[0].text


def test_cancel_ends_it_at_the_next_step_and_leaves_the_draft_and_no_file(screen, organism, home):
    filter_moments._recent.clear()
    bar, form = screen.left.apply, screen.editor.controls.form
    with closing(find(screen, organism, draft(organism))) as steps:
        assert next(steps)[bar.cancel]["visible"]
        apply_events.stop(organism, "en", Request())
        *_, last = steps
    assert form.file not in last
    assert last[bar.cancel]["visible"] == "hidden"
    assert not [*home.rglob("*")]


def test_directions_of_a_file_that_says_no_decisions_are_refused_in_a_sentence(
    screen, organism, tmp_path
):
    host = organism.host(organism.loaded.key)
    path = maths_directions.random(host.layers, host.hidden).save(tmp_path / "plain.safetensors")
    edit = Ablation(DirectionSpec(**PROMPTS, file=str(path)), WIDE)
    *_, last = find(screen, organism, draft(organism, edit))
    assert "do not say where they were measured" in last[screen.left.apply.status]
