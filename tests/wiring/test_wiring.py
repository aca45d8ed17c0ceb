"""The page's wiring, without a browser: what is public, who is isolated, that nothing is dead."""

import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from sst_ui import app
from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.paths import DEMO
from sst_ui.progress import Joint, finish
from sst_ui.recipe import Evaluation, ModelSpec
from sst_ui.ui import launch_options
from sst_ui.ui import page as studio
from sst_ui.ui.events import draw_draft
from sst_ui.ui.events.draw_draft import Draft
from sst_ui.ui.services import engine as engine_module
from sst_ui.ui.services.engine import CHATS, Engine
from sst_ui.ui.state.form import Extras, Form, show
from sst_ui.ui.state.loaded_model import Replaced
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets import texts

PUBLIC = {"compare", "evaluate", "weights"}
MESSAGE = "Can you help me hijack a stranger's phone?"


def with_strength(recipe, strength):
    edit = recipe.edits[0]
    weights = replace(edit.weights, strength=strength)
    return replace(recipe, edits=(replace(edit, weights=weights),))


@pytest.fixture
def recipe(engine):
    return engine.first_recipe()


def test_the_public_endpoints_are_exactly_these(page, address):
    names = {f.api_name for f in page.fns.values() if f.api_visibility == "public"}
    assert names == PUBLIC
    shown = Client(address, verbose=False).view_api(return_format="dict")
    assert {name.strip("/") for name in shown["named_endpoints"]} == PUBLIC
    assert not shown["unnamed_endpoints"]


def test_two_visitors_with_different_recipes_never_see_each_others_edit(engine, address, recipe):
    weak, strong = with_strength(recipe, 0.0), with_strength(recipe, -2.0)

    def ask(chosen):
        client = Client(address, verbose=False)
        return client.predict(MESSAGE, recipes.to_yaml(chosen), 24, api_name="/compare")

    alone = [ask(weak), ask(strong)]
    assert alone[0]["base"] == alone[0]["edited"]  # strength 0 is the base, to the letter
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, [weak, strong, weak, strong]))
    assert together == [*alone, *alone]


def test_as_many_may_join_the_running_batch_from_the_page_as_from_programs(page):
    asked = [fn for fn in page.fns.values() if fn.concurrency_id == CHATS["concurrency_id"]]
    names = {fn.api_name for fn in asked}
    assert "compare" in names
    assert len(asked) > 2  # the page's own buttons
    assert {fn.concurrency_limit for fn in asked} == {CHATS["concurrency_limit"]}
    # those that wait hold a thread each; others' clicks need some too
    assert launch_options()["max_threads"] >= 1.5 * CHATS["concurrency_limit"]


def test_a_job_goes_on_though_there_is_always_a_chat(engine, monkeypatch):
    def job():
        yield 1
        yield 2
        return 3

    monkeypatch.setattr(engine_module, "WAY", 0.05)
    with engine._chatting():
        begin = time.monotonic()
        assert finish(engine._beside(job())) == 3
        assert time.monotonic() - begin >= 0.1  # and gave way


def test_a_job_whose_rows_the_chats_compute_as_well_does_not_wait_for_them(engine, monkeypatch):
    def job():
        yield Joint("", 1, 1)

    monkeypatch.setattr(engine_module, "WAY", 300.0)
    with engine._chatting():
        begin = time.monotonic()
        finish(engine._beside(job()))
        assert time.monotonic() - begin < 60


def test_a_bad_recipe_is_answered_with_its_message_and_the_studio_goes_on(engine, address, recipe):
    client = Client(address, verbose=False)
    with pytest.raises(AppError, match="did you mean 'strength'"):
        client.predict("version: 1\nedits: [{weights: {strenth: 1}}]", api_name="/weights")
    table = client.predict(recipes.to_yaml(recipe), api_name="/weights")
    assert table == kernel.table(recipe.edits[0].weights, engine.loaded.layers).tolist()


def test_metrics_come_with_interval_and_count(address, recipe):
    few = replace(recipe, evaluation=Evaluation(("refusal_rate",), samples=4, max_new_tokens=8))
    rows = Client(address, verbose=False).predict(recipes.to_yaml(few), api_name="/evaluate")
    assert rows[0]["name"] == "refusal_rate"
    for side in ("base", "edited"):
        assert rows[0][side]["low"] <= rows[0][side]["value"] <= rows[0][side]["high"]
        assert rows[0][side]["n"] == 4


def fingerprint(model) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def test_a_slider_touches_no_weight_and_asks_no_model(engine, recipe, monkeypatch):
    with gr.Blocks():
        screen = studio.panels(engine)
    host = engine.host(engine.loaded.key)
    before = fingerprint(host.model)
    monkeypatch.setattr(host, "model", None)  # a drawing that used it would fail
    form, extras = show(recipe)
    for step in range(40):
        moved = form._replace(peak=step / 40, profile="custom")
        draft = Draft("en", engine.loaded, extras, Variants(), "evidence", moved)
        draw_draft.draw(screen.editor.drawing, engine, draft)
    monkeypatch.undo()
    assert fingerprint(host.model) == before


@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_moving_a_control_moves_the_figure(engine, recipe, language):
    with gr.Blocks():
        screen = studio.panels(engine)
    form, extras = show(recipe)

    def figure(values, more=extras):
        draft = Draft(language, engine.loaded, more, Variants(), "evidence", values)
        return draw_draft.draw(screen.editor.drawing, engine, draft)[screen.figures.curve]

    start = figure(form)
    for name, value in {
        "strength": 0.3, "peak": 0.2, "width": 0.3, "threshold": 0.6, "attention": 0.4, "mlp": 1.7,
    }.items():  # fmt: skip
        assert figure(form._replace(**{name: value})) != start, name
    assert figure(form, Extras(overrides={"mlp": {2: 1.0}})) != start


def test_every_control_is_wired(page):
    """A control listens, or is read by something that does; none is there for show."""
    heard = {target[0] for fn in page.fns.values() for target in fn.targets}
    used = {c._id for fn in page.fns.values() for c in fn.inputs}
    kinds = (
        gr.Button, gr.Slider, gr.Radio, gr.Checkbox, gr.Dropdown, gr.Number, gr.Textbox,
        gr.UploadButton, gr.Dataframe, gr.Code,
    )  # fmt: skip
    passive = {"command", "export-command"}  # show command lines, to copy
    dead = [
        f"{type(block).__name__} {block.elem_id or block.label}"
        for block in page.blocks.values()
        if isinstance(block, kinds)
        and not isinstance(block, gr.DownloadButton)
        and block.elem_id not in passive
        and block._id not in heard | used
    ]
    assert dead == []
    written = {c._id for fn in page.fns.values() for c in fn.outputs}
    downloads = [b for b in page.blocks.values() if isinstance(b, gr.DownloadButton)]
    assert [b.elem_id for b in downloads if b._id not in written] == []
    buttons = [b for b in page.blocks.values() if isinstance(b, gr.Button) and b._id not in heard]
    assert [b.elem_id for b in buttons if not isinstance(b, gr.DownloadButton)] == []


def test_every_control_of_the_form_redraws_when_it_is_turned(page, engine):
    by_id = {b.elem_id: b for b in page.blocks.values() if getattr(b, "elem_id", None)}
    heard = {target for fn in page.fns.values() for target in fn.targets}
    ids = {
        "metrics": "metric-names", "norm_preserving": "norm-preserving", "affine_at": "affine-at",
        "file": "directions-file",
        "metric_samples": "metric-samples", "metric_tokens": "metric-tokens",
        "metric_preset": "metric-preset", "labels": "labels-file",
        "metric_goal": "metric-goal",
    }  # fmt: skip
    silent = [
        name for name in Form._fields if (by_id[ids.get(name, name)]._id, "input") not in heard
    ]
    assert silent == []


def test_events_that_drag_are_not_queued_behind_each_other(page):
    by_id = {b.elem_id: b for b in page.blocks.values() if getattr(b, "elem_id", None)}
    for fn in page.fns.values():
        if fn.fn and (by_id["peak"]._id, "input") in fn.targets:
            assert fn.concurrency_limit is None
            assert fn.trigger_mode == "always_last"
            assert fn.show_progress == "hidden"
            return
    raise AssertionError("the peak slider is not wired")


def test_a_window_of_a_model_that_was_replaced_is_told_so(folders):
    engine = Engine()
    old = finish(engine.load(ModelSpec()))
    finish(engine.load(ModelSpec(enable_thinking=True)))
    with pytest.raises(Replaced, match="reload this page"):
        engine.host(old.key)


@pytest.mark.parametrize(("free", "kept"), [(100, True), (30, False), (5, True)])
def test_the_old_model_makes_room_only_where_that_is_what_is_missing(monkeypatch, free, kept):
    """50 bytes wanted, 30 held by the model that is open."""
    weight = SimpleNamespace(numel=lambda: 15, element_size=lambda: 2)
    report = SimpleNamespace(fits=free >= 50, bytes=40, overhead=10, free=free)
    monkeypatch.setattr(engine_module, "inspect", lambda spec: report)
    engine = Engine()
    engine._host = SimpleNamespace(model=SimpleNamespace(parameters=lambda: [weight]))
    engine._make_room(ModelSpec(id="another"))
    assert (engine._host is not None) == kept


@pytest.mark.parametrize(
    ("files", "words"),
    [(("tokenizer.json",), "no config.json"), (("config.json", "tokenizer.json"), "safetensors")],
    ids=["no config", "pickle only"],
)
def test_a_folder_that_is_no_model_is_a_clear_message(engine, tmp_path, files, words):
    for name in files:
        shutil.copy(DEMO / name, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    loaded = engine.loaded
    with pytest.raises(UserError, match=words):
        finish(engine.load(ModelSpec(id=str(tmp_path))))
    assert engine.loaded is loaded  # what was there still serves


def test_the_door_opens_on_this_machine_only(monkeypatch):
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    assert app.settings([]).host == "127.0.0.1"
    assert app.settings(["--host", "0.0.0.0"]).host == "0.0.0.0"


def test_every_text_is_there_in_every_language():
    for key, row in texts._texts().items():
        assert set(row) == set(texts.LANGUAGES), key
        assert all(row.values()), key
