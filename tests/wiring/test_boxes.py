"""Whatever is typed into a number box or a slider: said at the control or taken as it is."""

from inspect import isgenerator, signature
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.helpers import special_args

from sst_ui.__main__ import build_parser
from sst_ui.errors import UserError
from sst_ui.recipe import Ablation, Recipe
from sst_ui.ui.api import Api
from sst_ui.ui.events import chat as chat_events
from sst_ui.ui.events import edit
from sst_ui.ui.panels import search as search_panel
from sst_ui.ui.state import form, merge_form
from sst_ui.ui.state.form import Form, read, show
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.window import Conversation, Turn, Variants

TYPED = (None, -5, 0, 99, 1e9, 2.5, 1e300, "abc", "")
IN_USE = {"box": "Hello", "merge_on": True, "scope": "single", "shape": "bell"}  # so all is read
ODD = "SST Studio has no such thing"


def nothing(*values, **more):
    """A job that ends at once."""
    return ()
    yield


@pytest.fixture
def idle(engine, monkeypatch):
    """An engine whose jobs end at once: what is tested is what the page does with a number."""
    report = SimpleNamespace(
        matched=1, expected=1, clamped=0, max_error=0.0, messages=(), changed=(), untouched=()
    )
    for name in ("resolve", "measure", "chat", "evaluate", "search", "held_out", "export"):
        monkeypatch.setattr(engine, name, nothing)
    monkeypatch.setattr(engine, "check", lambda *_: report)
    for name in ("prepare", "compare", "measure"):
        monkeypatch.setattr(engine.merges, name, nothing)
    return engine


def boxes(page):
    """Every number box and slider of the page, and the text boxes that hold a number."""
    texts = {"search-target", "search-trials", "search-minutes", "chat-seed"}
    return [
        b for b in page.blocks.values()
        if isinstance(b, gr.Number | gr.Slider) or getattr(b, "elem_id", None) in texts
    ]  # fmt: skip


def defaults(page, engine):
    """Block id -> the value that an untouched page sends."""
    known = Variants().add(engine.first_recipe())
    talk = Conversation((Turn("Hello"),))
    states = {Loaded: engine.loaded, Variants: known, Conversation: talk}
    values = {}
    for block in page.blocks.values():
        if hasattr(block, "value"):
            values[block._id] = states.get(type(block.value), block.value)
        if (name := getattr(block, "elem_id", None)) in IN_USE:
            values[block._id] = IN_USE[name]
    return values


def outcome(fn, values, place):
    """What an event does with values: `said` at that place, `done`, or what is wrong with it."""
    told = fn.validator(*values) if fn.validator else []
    wrong = {i: check["message"] for i, check in enumerate(told) if not check["is_valid"]}
    if wrong:
        if not all(wrong.values()) or any("<class" in text for text in wrong.values()):
            return f"a message without words: {wrong}"
        return "said" if place in wrong else f"said elsewhere: {wrong}"
    request = SimpleNamespace(session_hash="w", headers={}, query_params={})
    event = gr.EventData(
        None, {"pick": "", "run": 0, "item": 0, "side": "base", "label": "degenerate"}
    )
    given, *_ = special_args(fn.fn, list(values), request, event)
    try:
        found = fn.fn(*given)
        for _ in found if isgenerator(found) else ():
            pass
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def turned(page, box):
    """The events of a control's own, else those of the buttons that read it."""
    reads = [f for f in page.fns.values() if f.fn and box in f.inputs]
    own = [f for f in reads if any(target[0] == box._id for target in f.targets)]
    return own or [f for f in reads if any(target[1] == "click" for target in f.targets)]


@pytest.mark.parametrize("typed", TYPED, ids=str)
def test_a_number_is_said_at_its_control_or_taken_as_it_is(page, idle, typed):
    start = defaults(page, idle)
    faults = []
    for box in boxes(page):
        sent = box.preprocess(typed)
        if isinstance(box, gr.Number | gr.Slider):
            assert sent == typed, "no rounding and no range before our own check"
        for fn in turned(page, box):
            values = [start.get(c._id) for c in fn.inputs]
            place = fn.inputs.index(box)
            values[place] = sent
            found = outcome(fn, values, place)
            if found not in ("said", "done"):
                faults.append((box.elem_id, fn.fn.__qualname__, found))
    assert faults == []


@pytest.mark.parametrize("typed", [None, "abc"], ids=str)
def test_no_event_of_the_page_breaks_at_a_broken_box_elsewhere(page, idle, typed):
    """Every event that reads the form, with its width broken: none is called a defect of ours."""
    start = defaults(page, idle)
    width = next(b for b in page.blocks.values() if getattr(b, "elem_id", None) == "width")
    faults = []
    for fn in page.fns.values():
        if fn.fn is None or width not in fn.inputs:
            continue
        values = [start.get(c._id) for c in fn.inputs]
        values[fn.inputs.index(width)] = typed
        found = outcome(fn, values, fn.inputs.index(width))
        if found not in ("said", "done"):  # no toast either
            faults.append((fn.fn.__qualname__, found))
    assert faults == []


@pytest.mark.parametrize("name", Form._fields)
def test_a_number_that_the_form_takes_is_in_the_recipe(engine, name):
    """Nothing is clamped or rounded on the way: what reads back is what was typed."""
    model, (values, extras) = engine.loaded.spec, show(engine.first_recipe())
    if not isinstance(getattr(values, name), int | float) or isinstance(
        getattr(values, name), bool
    ):
        pytest.skip("not a number")
    values = values._replace(merge_on=name in merge_form.FIELDS)
    taken = []
    for typed in (-5, 0, 0.3, 1, 2, 99):
        changed = values._replace(**{name: typed})
        try:
            recipe = read(changed, extras, model)
        except UserError:
            continue
        back = getattr(show(recipe, changed, extras)[0], name)
        taken.append((recipe.digest(), recipe.evaluation, typed, back))
    assert taken
    unused = len({row[:2] for row in taken}) == 1
    assert unused or [row[3] for row in taken] == [row[2] for row in taken]


def test_all_that_is_wrong_is_said_at_once(engine):
    values, extras = show(engine.first_recipe())
    broken = values._replace(peak=None, width="abc", samples=2.5, seed=1e300)
    found = form.wrong(broken, extras, engine.loaded.spec, values)
    assert set(found) == {"peak", "width", "samples", "seed"}
    assert "whole number" in found["samples"]
    assert all(len(text) < 100 for text in found.values())


def test_a_layer_beyond_the_model_is_said_at_its_box(engine):
    values, extras = show(engine.first_recipe())
    check = edit.checker(engine, Form(*Form._fields))  # names stand for the controls
    for layer, sound in ((engine.loaded.layers - 1, True), (99, False), (None, False)):
        changed = values._replace(scope="single", layer=layer)
        draft = edit.Draft("en", engine.loaded, extras, Variants(), "evidence", changed)
        assert list(check(draft)) == ([] if sound else ["layer"])


def test_protected_concepts_that_cannot_be_read_are_said_at_their_box(engine):
    values, extras = show(engine.first_recipe())
    check = edit.checker(engine, Form(*Form._fields), with_prompts=True)
    for concepts, sound in (("", True), ("demo/lookalike", True), ("demo/lokalike", False)):
        changed = values._replace(estimator="surgical", concepts=concepts)
        draft = edit.Draft("en", engine.loaded, extras, Variants(), "evidence", changed)
        assert list(check(draft)) == ([] if sound else ["concepts"])


def test_ways_that_exclude_one_another_are_disabled_and_refused(engine):
    values, extras = show(Recipe(edits=(Ablation(),)))
    assert all(form.free(values).values())
    for chosen in ({"operation": "add"}, {"affine": True}, {"norm_preserving": True}):
        one = values._replace(**chosen)
        able = form.free(one)
        assert [name for name, free in able.items() if free] == list(chosen)
        for name in able.keys() - chosen.keys():
            both = one._replace(**{name: "add" if name == "operation" else True})
            assert set(form.wrong(both, extras, engine.loaded.spec, values)) & set(form.WAYS)


def test_nothing_covers_the_chat_while_an_event_runs_or_fails(page):
    """Gradio lays a spinner, and after an error the word Error, over what an event writes to."""
    shown = [f.fn.__qualname__ for f in page.fns.values() if f.fn and f.show_progress != "hidden"]
    public = {f.fn.__qualname__ for f in page.fns.values() if f.api_visibility == "public"}
    assert set(shown) - public == set()


def test_no_component_judges_a_value_in_words_of_its_own(page):
    kinds = (gr.Dropdown, gr.Radio, gr.Number, gr.Slider)
    for block in page.blocks.values():
        if isinstance(block, kinds):
            assert block.preprocess(ODD) == ODD, block.elem_id


def test_the_page_and_the_command_line_begin_with_the_same_settings(page):
    begins = {getattr(b, "elem_id", None): getattr(b, "value", None) for b in page.blocks.values()}
    chat = build_parser().parse_args(["chat"])
    search = build_parser().parse_args(["search", "recipe.yaml"])
    assert begins["tokens"] == chat.max_new_tokens
    assert begins["temperature"] == chat.temperature
    for name in ("strategy", "samples", "tokens", "seed", "start"):
        said = getattr(search, name)
        assert begins[f"search-{name}"] == (0 if said is None else said), name  # 0: as it comes
    assert begins["search-prune"] == (not search.no_prune)
    told = signature(Api.compare).parameters["max_new_tokens"].default
    assert told == chat.max_new_tokens


def test_the_numbers_of_chat_and_search_are_checked_at_their_own_boxes():
    assert list(chat_events.problems((1.5, 99, "x"))) == [0, 1, 2]
    assert chat_events.problems((64, 0.7, "")) == {}
    wrong = {**search_panel.SOUND, "strategy": "tpe", "seed": 1.5}
    assert list(search_panel.problems("en", *wrong.values())) == ["seed"]
    assert search_panel.problems("en", *search_panel.SOUND.values()) == {}


def test_where_an_edit_acts_is_asked_of_a_plain_affine_edit_alone():
    values, _ = show(Recipe(edits=(Ablation(),)))
    names = [getattr(values, name) for name in form.WAYS]

    def asked(**chosen):
        ways = dict(zip(form.WAYS, names, strict=True)) | chosen
        return edit.settle(values, "en", *ways.values())[-1]["visible"]

    assert not asked()
    assert asked(affine=True)
    assert not asked(affine=True, operation="filter")
