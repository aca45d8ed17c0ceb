"""Runs and exports on the screen, without a browser: what is kept, for whom, what is written."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from sst_ui import reach
from sst_ui.errors import UserError
from sst_ui.jobs.export.export import Export
from sst_ui.jobs.export.push import Pushed
from sst_ui.jobs.history.store import History
from sst_ui.metrics.result_files import stem
from sst_ui.paths import output_dir
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation, ModelSpec
from sst_ui.ui import Engine, build
from sst_ui.ui.events import export as export_events
from sst_ui.ui.events import load_model
from sst_ui.ui.events import runs as runs_events
from sst_ui.ui.panels import export as export_panel
from sst_ui.ui.panels import runs
from sst_ui.ui.panels.export import Done, Wanted
from sst_ui.ui.panels.runs import View
from sst_ui.ui.services import visitors
from sst_ui.ui.state.run_store import KEPT, Shelf
from sst_ui.ui.state.window import Variants
from tests.wiring.test_results import handler, measured
from tests.wiring.test_wiring import with_strength


@pytest.fixture(autouse=True)
def history(engine, tmp_path, monkeypatch):
    """A history of each test's own."""
    monkeypatch.setattr(engine, "history", History(tmp_path / "history.sqlite"))
    return engine.history


@pytest.fixture
def recipe(engine):
    return engine.first_recipe()


def text(update, page, name):
    """The value that a handler's dictionary has for the component of that elem_id."""
    return next(v for k, v in update.items() if getattr(k, "elem_id", None) == name)


# --- runs -------------------------------------------------------------------------------------


def test_an_applied_recipe_is_kept_and_gets_its_numbers_when_they_are_there(
    page, engine, history, recipe
):
    known = Variants().add(recipe)
    seen = ("en", [], View(), "", known, engine.loaded)
    shown = handler(page, runs_events, "keep_applied")(*seen)
    assert recipe.digest() in text(shown, page, "runs")
    (first,) = history.list()
    assert (first.model, first.recipe, first.metrics) == ("demo", known.now.recipe, ())
    results, digest = measured(6), recipe.digest()
    keep = handler(page, runs_events, "keep_measured")
    keep(*seen, {digest: results})  # stopped on the way: no mark that they are complete
    assert history.list() == [first]
    keep(*seen, {digest: results, f"done:{digest}": recipe.evaluation})
    (run,) = history.list()
    assert run.id == first.id
    assert run.metrics[0]["edited"]["value"] == results[0].edited.value
    keep(*seen, {digest: results, f"done:{digest}": recipe.evaluation})
    assert history.list() == [run], "the same numbers again are no news"
    keep(*seen, {digest: results, f"done:{digest}": Evaluation(preset="quick")})
    assert {r.recipe.evaluation.preset for r in history.list()} == {"standard", "quick"}


def test_a_history_that_is_broken_is_told_and_stops_nothing(page, engine, history, recipe):
    history.path.write_bytes(b"no database at all " * 100)
    seen = ("en", [], View(), "", Variants().add(recipe), engine.loaded)
    shown = handler(page, runs_events, "keep_applied")(*seen)
    assert "it is kept as" in text(shown, page, "runs-status")
    assert [r.digest for r in history.list()] == [recipe.digest()], "the run begins a new one"


def test_runs_are_chosen_compared_deleted_and_brought_back(page, engine, history, recipe):
    ids = [
        history.add(with_strength(recipe, s), "demo", measured(left))
        for s, left in ((0.5, 12), (1.0, 0))
    ]
    known, state = Variants(), View()

    def do(name, *first, search=""):
        nonlocal state
        shown = handler(page, runs_events, name)("en", *first, [], state, search, known)
        state = next(v for v in shown.values() if isinstance(v, View))
        return text(shown, page, "runs")

    for run in ids:
        table = do("choose", type("Event", (), {"run": run}))
    assert table.count('aria-checked="true"') == 2
    table = do("side_by_side")
    assert "ablation.weights.strength" in table
    assert "<td>0.5</td><td>1</td>" in table
    assert "50 %" in table
    do("back")
    assert "run heads" not in do("delete")
    assert history.list() == []
    assert do("undo").count('role="checkbox"') == 2
    assert [r.id for r in history.list()] == ids[::-1]
    assert do("look", search="strength: 0.5").count('role="checkbox"') == 1
    assert "No run" in do("look", search="nothing of the kind")


def test_what_a_recipe_is_called_reaches_the_page_as_text_only(history, recipe):
    nasty = replace(recipe, name="<img src=x onerror=alert(1)>")
    history.add(nasty, '"><script>', measured(3))
    history.add(with_strength(nasty, 0.5), "demo")
    records = history.list()
    for html in (runs.listed("en", records, View(), ""), runs.compared("ja", records)):
        assert "<img" not in html
        assert "<script" not in html


@pytest.mark.parametrize(("host", "others"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_a_program_that_others_can_reach_keeps_its_owners_runs_and_token_to_itself(
    monkeypatch, host, others
):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv("GRADIO_SERVER_NAME", host)
    monkeypatch.setenv("HF_TOKEN", "hf_the_owners_own")
    assert (Engine().history is None) == others
    assert export_panel.access() == ("" if others else "token")


@pytest.fixture
def space(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    monkeypatch.setenv("HF_TOKEN", "hf_the_owners_own")
    monkeypatch.delenv("OAUTH_CLIENT_ID", raising=False)


@pytest.mark.parametrize(
    "how",
    [
        ("GRADIO_SERVER_NAME", "0.0.0.0"),
        ("GRADIO_SHARE", "True"),
        ("SPACE_ID", "a/b"),
        ("SST_SHARED", "1"),
    ],
    ids=["address", "link", "space", "proxy"],
)
def test_a_shared_studio_changes_its_model_for_nobody_and_reads_no_files(
    engine, monkeypatch, tmp_path, how
):
    monkeypatch.setenv(*how)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    asked = f"refusal_rate@{tmp_path / 'rows.jsonl'}"
    assert visitors.admit("demo")
    try:
        said = load_model.look(engine, "en", lambda: ModelSpec(id=str(tmp_path)))
        assert "This studio is shared" in said
        with pytest.raises(gr.Error, match="owner's choice"):
            list(load_model.swap(engine, "en", engine.loaded, ModelSpec, gr.Request()))
        job = engine.evaluate(
            engine.loaded.key, engine.first_recipe(), Evaluation(metrics=(asked,))
        )
        with pytest.raises(UserError, match="shared"):
            finish(job)
        finish(engine.resolve(engine.loaded.key, engine.first_recipe()))
    finally:
        reach.limit(None)
    monkeypatch.delenv(how[0])
    assert not visitors.admit("demo")
    assert not reach.limited()


def test_on_a_space_every_browser_keeps_its_own_runs_and_the_program_none(space, recipe):
    assert Engine().history is None
    mine = Shelf.of(None, []).add(recipe, "demo", measured(3))
    yours = Shelf.of(None, []).add(with_strength(recipe, 0.5), "demo")
    assert [r.digest for r in mine.list()] == [recipe.digest()]
    assert len(yours.list()) == 1
    again = Shelf.of(None, mine.rows).add(with_strength(recipe, 0.25), "demo")
    assert [r.id for r in again.list()] == [2, 1]
    fewer, gone = again.delete([1, 7])
    assert [r.id for r in fewer.list()] == [2]
    assert [r.id for r in fewer.restore(gone).list()] == [2, 1]
    assert again.list("strength: 0.25")[0].id == 2
    assert Shelf.of(None, ["nonsense", {"id": 1}, *again.rows]).list() == again.list()
    for i in range(KEPT + 5):
        mine = mine.add(with_strength(recipe, i / 100), "demo")
    assert len(mine.rows) == KEPT


# --- export -----------------------------------------------------------------------------------


@pytest.fixture
def asked(engine, monkeypatch):
    """What the engine was asked to export; a folder with one file is made."""
    got = []

    def export(key, recipe, out, format, **more):
        got.append({"recipe": recipe, "out": out, "format": format, **more})
        yield Progress("write", 1, 2)
        out.mkdir(parents=True)
        (out / "weights.safetensors").write_bytes(b"w" * 50)
        return Export(out, format, ("weights.safetensors",), 50, 0.1, None, ("a note",))

    monkeypatch.setattr(engine, "export", export)
    return got


WINDOW = SimpleNamespace(session_hash="one window")  # of Gradio's request, all that is looked at


def test_a_cancelled_export_ends_at_the_next_step_and_has_the_last_word(
    page, engine, recipe, monkeypatch, tmp_path
):
    monkeypatch.setenv("SST_OUTPUTS", str(tmp_path))
    closed = []

    def export(*values, **more):
        try:
            for step in range(100):
                yield Progress("write", step, 100)
        finally:
            closed.append(True)

    monkeypatch.setattr(engine, "export", export)
    board = (Variants().add(recipe), {}, [], "", "all", "any", "")
    settings = ("adapter", "nearest", 0, 0, "")
    values = ("en", WINDOW, *board, engine.loaded, [], Done(), *settings)
    steps = handler(page, export_events, "export")(*values)
    next(steps)  # the buttons
    assert "0/100" in text(next(steps), page, "export-status")
    other = SimpleNamespace(session_hash="another window")
    stop = handler(page, export_events, "stop")
    stop("en", other)
    stop("en", WINDOW)
    (last,) = steps  # nothing but the last word
    assert "Stopped" in text(last, page, "export-status")
    enabled = {getattr(c, "elem_id", None): u for c, u in last.items() if isinstance(u, dict)}
    assert enabled["run-export"]["interactive"] is True
    assert enabled["cancel-export"]["visible"] == "hidden"
    assert closed == [True]


def press(page, engine, recipe, settings, results=None, done=None):
    """The updates of the Export button."""
    known = Variants().add(recipe) if recipe else Variants()
    board = (known, results or {}, [], "", "all", "any", "")
    values = ("en", WINDOW, *board, engine.loaded, [], done or Done(), *settings)
    return list(handler(page, export_events, "export")(*values))


def test_every_setting_of_the_export_reaches_the_lab(
    page, engine, recipe, asked, monkeypatch, tmp_path
):
    monkeypatch.setenv("SST_OUTPUTS", str(tmp_path))
    results = measured(3)
    *_, last = press(
        page, engine, recipe, ("model", "stochastic", 0, 5, "mine/first"),
        {recipe.digest(): results},
    )  # fmt: skip
    now = Variants().add(recipe).now.recipe
    assert asked == [
        {"recipe": now, "out": tmp_path / "mine" / "first", "format": "model", "verify": 5,
         "rounding": "stochastic", "rank": None, "results": results},
    ]  # fmt: skip
    told = text(last, page, "export-status")
    assert recipe.digest() in told
    line = re.sub("<p>.*?</p>", "", told)  # what is to be seen without opening anything
    assert str(tmp_path / "mine" / "first") in line
    assert re.search(r"[\d,.]+ MB", line)
    done = next(v for v in last.values() if isinstance(v, Done))
    assert zipfile.ZipFile(done.archive).namelist() == ["first/weights.safetensors"]
    press(page, engine, recipe, ("adapter", "stochastic", 4, 0, "second"), done=done)
    assert (asked[1]["rank"], asked[1]["rounding"]) == (4, "nearest")
    assert not done.archive.exists(), "an earlier archive is gone"
    assert (tmp_path / "mine" / "first").is_dir(), "what the user exported stays"


def test_numbers_of_an_earlier_run_go_into_the_card(page, engine, recipe, history, asked):
    history.add(recipe, "demo", measured(3))
    press(page, engine, recipe, ("adapter", "nearest", 0, 0, "card"))
    assert [r.edited.value for r in asked[0]["results"]] == [r.edited.value for r in measured(3)]


def test_nothing_applied_is_nothing_exported(page, engine, asked):
    (only,) = press(page, engine, None, ("adapter", "nearest", 0, 0, ""))
    assert "Apply a recipe first" in text(only, page, "export-status")
    assert asked == []


def test_an_export_that_fails_says_why_and_frees_the_buttons(page, engine, recipe, monkeypatch):
    def refuse(*values, **more):
        yield Progress("write", 0, 1)
        raise UserError("the disk is full.")

    monkeypatch.setattr(engine, "export", refuse)
    *_, last = press(page, engine, recipe, ("adapter", "nearest", 0, 0, "full"))
    assert "The disk is full." in text(last, page, "export-status")
    assert text(last, page, "run-export") == gr.update(interactive=True)


@pytest.mark.parametrize("folder", ["../up", "a/../../up", "/tmp/else", ".hidden", "a/.b", "."])
def test_an_export_stays_below_the_outputs(folder, recipe):
    wanted = Wanted(folder=folder)
    with pytest.raises(UserError, match="folder"):
        wanted.place(recipe)
    settings = ("adapter", "nearest", 0, 0, folder)
    assert set(export_panel.problems(settings, recipe)) == {"folder"}
    assert export_panel.command(recipe, wanted) == ""


def test_what_is_wrong_is_said_at_its_control(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SST_OUTPUTS", str(tmp_path))
    (tmp_path / "taken").mkdir()
    assert export_panel.problems(("adapter", "nearest", 0, 0, "taken"), recipe) == {}
    (tmp_path / "taken" / "file").write_text("")
    found = export_panel.problems(("adapter", "nearest", -1, -2, "taken"), recipe)
    assert set(found) == {"folder", "rank", "verify"}


def test_the_command_says_everything_that_is_not_usual(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SST_OUTPUTS")
    plain = export_panel.command(recipe, Wanted())
    assert plain == (
        f"python -m sst_ui export recipe.yaml --format adapter --out outputs/{stem(recipe)}-adapter"
    )
    whole = export_panel.command(recipe, Wanted("model", "stochastic", None, 8, "my model"))
    assert whole.endswith("--out 'outputs/my model' --rounding stochastic --verify 8")
    from sst_ui.__main__ import build_parser

    given = build_parser().parse_args(["export", "r.yaml", "--out", "x", "--rank", "3"])
    assert (given.rank, given.rounding, given.verify) == (3, "nearest", 0)


def test_a_space_pushes_with_the_visitors_token_or_not_at_all(space, engine, monkeypatch):
    assert export_panel.access() == "", "the owner's token is not the visitors'"
    monkeypatch.setenv("OAUTH_CLIENT_ID", "an id")
    monkeypatch.setattr(export_panel, "_can_sign_in", lambda: False)
    assert export_panel.access() == ""
    monkeypatch.setattr(export_panel, "_can_sign_in", lambda: True)
    assert export_panel.access() == "oauth"
    monkeypatch.setattr(gr, "LoginButton", lambda **more: gr.Button("Sign in", **more))
    sent = []

    def publish(folder, repo, private, token):
        sent.append((folder, repo, private, token))
        yield Progress("upload", 1, 2)
        return Pushed(f"https://hub/{repo}", "c0", private, 1, 50)

    monkeypatch.setattr(export_events, "publish", publish)
    page = build(engine)
    push = handler(page, export_events, "push")
    (only,) = push("en", WINDOW, None, Done(Path("x"), "d"), "me/mine", True)
    assert "Sign in" in text(only, page, "export-status")
    assert sent == []
    signed_in = gr.OAuthToken("the_visitors", "manage-repos", 0)
    *_, last = push("en", WINDOW, signed_in, Done(Path("x"), "d"), "me/mine", True)
    assert sent == [(Path("x"), "me/mine", True, "the_visitors")]
    assert "https://hub/me/mine" in text(last, page, "export-status")


def test_a_shared_program_without_signing_in_offers_no_push_and_refuses_one(
    space, engine, monkeypatch
):
    sent = []
    monkeypatch.setattr(export_events, "publish", lambda *a, **k: sent.append(k) or iter(()))
    page = build(engine)
    (hub,) = [b for b in page.blocks.values() if getattr(b, "elem_id", None) == "hub"]
    assert not hub.visible
    push = handler(page, export_events, "push")
    *_, last = push("en", WINDOW, None, Done(Path("x"), "d"), "me/mine", True)
    assert sent == [], "the owner's token is not a visitor's"
    assert "for visitors who sign in" in text(last, page, "export-status")


def test_without_a_token_there_is_nothing_to_push_with(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setattr(export_panel, "get_token", lambda: None)
    assert export_panel.access() == ""
    monkeypatch.setattr(export_panel, "get_token", lambda: "hf_mine")
    assert export_panel.access() == "token"


def test_a_space_writes_no_visitors_folder_below_the_outputs(space, page, engine, recipe, asked):
    *_, last = press(page, engine, recipe, ("adapter", "nearest", 0, 0, ""))
    assert output_dir() not in asked[0]["out"].parents
    done = next(v for v in last.values() if isinstance(v, Done))
    assert str(done.folder) not in text(last, page, "export-status")
    done.remove()
    assert not done.folder.exists()
    assert not done.archive.exists()
