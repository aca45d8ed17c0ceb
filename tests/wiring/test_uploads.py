"""A prompt file of one's own: seen, its columns named, and in the form as a string that loads."""

import gradio as gr
import pytest

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.metrics.registry import default_metrics, find
from sst_ui.ui.events import prompt_files
from sst_ui.ui.panels import metrics
from sst_ui.ui.panels.prompt_files import FIELDS, Opened
from sst_ui.ui.state.form import show
from sst_ui.ui.state.window import Variants

ROWS = 'Goal,Label,Notes\n"Do a, then b",fraud,<b>x</b>\nDo c,theft,\nDo d,fraud,\n'


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(ROWS, encoding="utf-8")
    return str(path)


def events(page, name):
    """The page's own handlers of that name, in the order of the panels."""
    return [
        f.fn
        for f in page.fns.values()
        if f.fn and (f.fn.__module__, f.fn.__name__) == (prompt_files.__name__, name)
    ]


def by_kind(out, kind):
    return [value for component, value in out.items() if isinstance(component, kind)]


def test_a_file_shows_its_first_rows_and_the_columns_as_guessed(page, path):
    out = events(page, "open_file")[0]("en", path)
    (html,) = by_kind(out, gr.HTML)
    assert "Do a, then b" in html
    assert "&lt;b&gt;" in html
    assert "3 rows" in html
    (opened,) = by_kind(out, gr.State)
    assert opened.path == path
    assert opened.guess == prompt_sets.preview(path).mapping
    menus = [m.value for m in by_kind(out, gr.Dropdown)]
    assert menus == [opened.guess.get(f, "") for f in FIELDS]


def test_a_file_that_cannot_be_read_is_said_in_its_panel(page, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"prompt": "caf\xe9"}\n')
    out = events(page, "open_file")[0]("en", str(bad))
    (html,) = by_kind(out, gr.HTML)
    assert "UTF-8" in html
    assert by_kind(out, gr.State) == [Opened()]


def test_another_column_is_read_as_the_prompt(path):
    chosen = dict.fromkeys(FIELDS, "") | {"prompt": "Label", "topic": "Goal"}
    opened = Opened(path, prompt_sets.preview(path).mapping)
    found = prompt_sets.load(opened.source([chosen[f] for f in FIELDS]))
    assert [p.prompt for p in found.prompts] == ["fraud", "theft", "fraud"]
    assert found.prompts[0].topic == "Do a, then b"


def test_a_column_that_was_guessed_can_be_left_out(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a", "topic": "x"}\n', encoding="utf-8")
    opened = Opened(str(path), prompt_sets.preview(path).mapping)
    assert opened.guess["topic"] == "topic"
    columns = ["prompt" if f == "prompt" else "" for f in FIELDS]
    assert prompt_sets.load(opened.source(columns)).prompts[0].topic == ""


@pytest.mark.parametrize(("place", "target"), [(0, "harmful"), (1, "harmless"), (2, "metrics")])
def test_a_used_set_is_in_the_form_under_a_string_that_loads(page, engine, path, place, target):
    form, extras = show(engine.first_recipe())
    opened = Opened(path, prompt_sets.preview(path).mapping)
    columns = ["Goal" if f == "prompt" else "Label" if f == "topic" else "" for f in FIELDS]
    more = ["over_refusal"] if target == "metrics" else []
    draft = ("en", engine.loaded, extras, None, Variants(), "evidence", "budget", *form)
    out = events(page, "use")[place](*draft, opened, *columns, *more)
    (value,) = [m["value"] for m in by_kind(out, gr.Dropdown)]
    if target == "metrics":
        assert value[:-1] == default_metrics()
        assert metrics.title("en", value[-1], "") == "Over-refusal, look-alikes (mine.csv)"
        value = find(value[-1]).prompts
    assert [p.topic for p in prompt_sets.load(value).prompts] == ["fraud", "theft", "fraud"]
    text = next(v for c, v in out.items() if c.elem_id == "recipe-text")
    assert "mine.csv" in text


def test_a_mapping_that_makes_no_prompts_changes_nothing(page, engine, path):
    form, extras = show(engine.first_recipe())
    draft = ("en", engine.loaded, extras, None, Variants(), "evidence", "budget", *form)
    columns = ["Missing" if f == "prompt" else "" for f in FIELDS]
    out = events(page, "use")[0](*draft, Opened(path), *columns)
    assert by_kind(out, gr.Dropdown) == []
    (html,) = by_kind(out, gr.HTML)
    assert "Missing" in html
    with pytest.raises(UserError):
        prompt_sets.load(Opened(path).source(columns))
