"""A disk that is full, read-only or forbidden: one line, nothing half written, the job goes on."""

import errno
import os
import sqlite3
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sst_ui import cache, disk
from sst_ui.__main__ import main
from sst_ui.errors import UserError
from sst_ui.jobs.export.export import export
from sst_ui.jobs.history import store as keeping
from sst_ui.jobs.history.store import History, known_results, remember
from sst_ui.jobs.run_recipe import run
from sst_ui.jobs.search import storage
from sst_ui.maths.directions import random
from sst_ui.paths import cache_dir, data_dir
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Evaluation, Recipe, to_yaml
from sst_ui.ui.services.errors import message
from tests.unit.test_history import recipe as made
from tests.unit.test_history import result

QUICK = Evaluation(metrics=("refusal_rate",), samples=2, max_new_tokens=1)
REFUSALS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Caches and data of each test for itself; the base of the demo is loaded once."""
    for name in ("CACHE", "HOME", "OUTPUTS"):
        monkeypatch.setenv(f"SST_{name}", str(tmp_path / name.lower()))
    monkeypatch.setattr(cache, "_told", set())


@pytest.fixture
def small(tiny_host, tmp_path):
    """A host, and a recipe along given directions."""
    host = tiny_host("llama")
    path = random(host.layers, host.hidden).save(tmp_path / "given.safetensors")
    return host, Recipe(edits=(Ablation(DirectionSpec(file=str(path))),), evaluation=QUICK)


@contextmanager
def mounted(folder: Path, size: int, full: bool = False, read_only: bool = False):
    """A real file system in memory; skips where this user may not make one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    try:
        if full:
            with suppress(OSError), (folder / "filling").open("wb", buffering=0) as file:
                while True:
                    file.write(b"\0" * 4096)
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def refuse(monkeypatch, code: int, below: Path) -> None:
    """The system refuses everything that would write below a folder."""
    real = {name: getattr(os, name) for name in ("mkdir", "open", "replace", "rename")}

    def refusing(name):
        def call(path, *args, **kwargs):
            flags = args[0] if args else kwargs.get("flags", 0)
            writes = name != "open" or flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            where = Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else None
            if writes and where is not None and below in (where, *where.parents):
                raise OSError(code, os.strerror(code), os.fsdecode(path))
            return real[name](path, *args, **kwargs)

        return call

    for name in real:
        monkeypatch.setattr(os, name, refusing(name))


def one_line(error: UserError) -> str:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 700
    return text


# --- what the system says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (PermissionError(errno.EACCES, "no", "/x"), errno.EACCES),
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (sqlite3.OperationalError("database or disk is full"), errno.ENOSPC),
        (sqlite3.OperationalError("attempt to write a readonly database"), errno.EROFS),
        (sqlite3.OperationalError("no such table: runs"), None),
        (BrokenPipeError(errno.EPIPE, "pipe"), None),
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), None),
        (OSError("no number at all"), None),
        (UserError("x (os error 28)"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_a_refusal_of_the_system_is_told_from_other_errors(error, code):
    assert disk.refusal(error) == code


@pytest.mark.parametrize(
    ("language", "why"), [("en", "No space left on device"), ("ja", "ディスクの空きがありません")]
)
def test_the_page_says_what_the_system_refused(language, why):
    said = message(OSError(errno.ENOSPC, "full", "/somewhere/x"), language)
    assert why in said
    assert "/somewhere/x" in said


# --- monkeypatched: any user, any system --------------------------------------------------------


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("job", ["run", "export", "directions", "probe", "made folders"])
def test_a_place_that_is_refused_is_one_line_and_nothing_is_left(
    small, tmp_path, monkeypatch, code, job
):
    host, recipe = small
    (place := tmp_path / "place").mkdir()
    refuse(monkeypatch, code, place)
    jobs = {
        "run": lambda: finish(run(recipe, place / "r", host)),
        "export": lambda: finish(export(host, recipe, place / "e")),
        "directions": lambda: random(2, 4).save(place / "d.safetensors"),
        "probe": lambda: disk.probe(place / "d"),
        "made folders": lambda: finish(run(recipe, place / "a" / "b" / "r", host)),
    }
    with pytest.raises(UserError, match=os.strerror(code)) as told:
        jobs[job]()
    assert str(place) in one_line(told.value)
    assert os.listdir(place) == []


@pytest.mark.parametrize("code", REFUSALS)
def test_a_disk_that_refuses_at_the_end_keeps_what_was_there(small, tmp_path, monkeypatch, code):
    host, recipe = small
    out = tmp_path / "place" / "r"
    finish(run(recipe, out, host))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_):
        raise OSError(code, os.strerror(code), None)

    monkeypatch.setattr("sst_ui.model.weights.staged_folder.sync", full)
    with pytest.raises(UserError, match=os.strerror(code)) as told:
        finish(run(recipe, out, host))
    one_line(told.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert os.listdir(out.parent) == ["r"]


def test_a_refusal_about_another_file_does_not_accuse_the_results(tmp_path):
    def reads():
        with disk.written(tmp_path / "x"):
            open(tmp_path / "none" / "y").close()

    with pytest.raises(FileNotFoundError):
        reads()


@pytest.mark.parametrize("code", REFUSALS)
def test_a_cache_that_cannot_be_written_is_said_once_and_stops_nothing(
    small, tmp_path, monkeypatch, caplog, code
):
    refuse(monkeypatch, code, tmp_path / "cache")
    for number in range(3):
        path = cache.place("residuals", f"{number:012x}.safetensors")
        cache.keep(path, lambda part: save_file({"a": torch.zeros(3)}, part))
        with cache.used(path) as there:
            assert not there
    assert caplog.text.count("cannot be written") == 1
    assert os.strerror(code) in caplog.text
    assert "SST_CACHE" in caplog.text


@pytest.mark.parametrize("what", ["run", "search", "history"])
def test_a_data_folder_that_is_a_file_is_one_line_and_named(what, tmp_path, monkeypatch):
    (tmp_path / "home").write_text("a file")
    if what == "search":
        with pytest.raises(UserError, match=r"searches\.sqlite cannot be used: .*SST_HOME"):
            storage.open_study(None, "a", ["minimize"])
    elif what == "history":
        assert History().list() == []
        with pytest.raises(UserError, match="runs are not kept"):
            History().add(made(), "demo")
    else:
        assert "SST_HOME" in remember(made(), "demo", [result()])
        assert known_results(made()) == ()
    assert (tmp_path / "home").read_text() == "a file"


def test_a_user_without_a_home_is_told_which_setting_to_make(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SST_CACHE")
    monkeypatch.delenv("SST_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_dir().is_absolute()
    with pytest.raises(UserError, match="SST_HOME"):
        data_dir()
    assert "SST_HOME" in remember(made(), "demo")
    with pytest.raises(UserError, match="SST_HOME"):
        History().list()


# --- histories and storages that cannot be used -----------------------------------------------


def test_a_history_that_another_process_holds_is_one_line(monkeypatch):
    monkeypatch.setattr(keeping, "WAIT", 0.05)
    history = History()
    run = history.add(made(), "demo")
    with sqlite3.connect(history.path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="cannot be used now: database is locked"):
            history.add(made(0.5), "demo")
        assert [r.id for r in history.list()] == [run]
        other.execute("ROLLBACK")
    other.close()
    assert not list(history.path.parent.glob("*damaged*"))


def test_a_cut_off_history_is_kept_aside_with_what_lies_beside_it(caplog):
    history = History()
    for number in range(20):
        history.add(made(number / 20), "demo", [result()])
    whole = history.path.read_bytes()
    history.path.write_bytes(whole[: len(whole) // 2])
    run = history.add(made(), "demo")
    assert [r.id for r in history.list()] == [run]
    (kept,) = history.path.parent.glob("history.damaged-*.sqlite")
    assert kept.read_bytes() == whole[: len(whole) // 2]
    assert kept.name in caplog.text


def test_a_good_history_is_not_set_aside_for_anothers_error():
    history = History()
    history.add(made(), "demo")
    assert disk.set_database_aside(history.path) is None
    assert len(history.list()) == 1


def test_a_damaged_file_of_searches_is_kept_aside_and_the_next_search_begins_anew(tmp_path):
    path = tmp_path / "home" / "searches.sqlite"
    path.parent.mkdir()
    path.write_bytes(b"no database " * 500)
    with pytest.raises(UserError, match=r"kept as .*searches\.damaged-.*again|anew") as told:
        storage.open_study(None, "a", ["minimize"])
    one_line(told.value)
    (kept,) = path.parent.glob("searches.damaged-*")
    assert kept.read_bytes() == b"no database " * 500
    assert storage.open_study(None, "a", ["minimize"])[1].study_name == "a"


@pytest.mark.parametrize(
    "url", ["sqlite:///{}/text", "sqlite:///{}/none/x.db", "sqlite:///{}", "mysql://none/x", "what"]
)
def test_a_storage_of_the_users_that_is_none_is_one_line_and_stays(url, tmp_path):
    (tmp_path / "text").write_text("my text")
    with pytest.raises(UserError, match="cannot be used") as told:
        storage.open_study(url.format(tmp_path), "a", ["minimize"])
    one_line(told.value)
    assert (tmp_path / "text").read_text() == "my text"
    assert not list(tmp_path.glob("*damaged*"))


def test_a_storage_that_fails_in_the_middle_is_one_line():
    from sqlalchemy.exc import OperationalError

    def fails():
        with storage.told_of("sqlite:///x"):
            raise OperationalError("x", {}, sqlite3.OperationalError("database or disk is full"))

    with pytest.raises(UserError, match="database or disk is full") as told:
        fails()
    one_line(told.value)


# --- real small disks ---------------------------------------------------------------------------


@pytest.fixture
def commands(stored_host, tmp_path, monkeypatch):
    """`commands(out)`: arguments of every command that writes, on a tiny model."""
    host = stored_host("llama")
    given = random(host.layers, host.hidden).save(tmp_path / "given.safetensors")
    edits = (Ablation(DirectionSpec(file=str(given))),)
    recipe = Recipe(model=host.spec, edits=edits, evaluation=QUICK)

    def load(spec):
        return host
        yield

    def merge(given, spec):
        yield from ()
        deltas = {f"model.layers.{n}.mlp.down_proj": delta(host) for n in range(2)}
        return type("Outcome", (), {"deltas": deltas, "records": {}, "parameters": {}})()

    for place in ("sst_ui.model.runtime.host.load", "sst_ui.jobs.run_recipe.load"):
        monkeypatch.setattr(place, load)
    monkeypatch.setattr("sst_ui.jobs.merge.merge.merge", merge)
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    file = str(tmp_path / "r.yaml")
    rows = ('{"prompt": "kill it"}\n{"prompt": "burn it"}', '{"prompt": "a"}\n{"prompt": "b c"}')
    for name, text in zip(("bad", "good"), rows, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(text)
    pair = ["--harmful", str(tmp_path / "bad.jsonl"), "--harmless", str(tmp_path / "good.jsonl")]
    quick = [
        "--strategy",
        "grid",
        "--trials",
        "1",
        "--samples",
        "2",
        "--tokens",
        "1",
        "--objective",
        "kl_16",
    ]  # fmt: skip  (no target: a random model refuses nothing)
    return lambda out: {
        "run": ["run", file, "--out", str(out / "r")],
        "measure": ["measure", *pair, "--out", str(out / "d.safetensors")],
        "export": ["export", file, "--unmeasured", "--format", "adapter", "--out", str(out / "e")],
        "merge": ["merge", "--utility", "a/u", "--safety", "a/s", "--method", "linear",
                  "--out", str(out / "m")],
        "search": ["search", file, *quick, "--storage", "memory", "--out", str(out / "s.yaml")],
    }  # fmt: skip


def delta(host):
    from sst_ui.maths.merge.low_rank import Delta

    out, inp = host.model.get_submodule("model.layers.0.mlp.down_proj").weight.shape
    return Delta(torch.ones(out, 1), torch.ones(1, inp))


WRITERS = ("run", "measure", "export", "merge", "search")


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("kind", ["full", "read_only"])
def test_every_writer_on_a_disk_that_takes_nothing_is_one_line_and_code_2(
    command, kind, commands, tmp_path, capsys
):
    with mounted(tmp_path / "disk", 100_000, **{kind: True}) as place:
        before = os.listdir(place)
        code = main(commands(place)[command])
        said = capsys.readouterr()
        assert code == 2, said.err
        (line,) = said.err.splitlines()
        assert line.startswith("error: ")
        words = "No space left" if kind == "full" else "Read-only file system"
        assert words in line
        assert os.listdir(place) == before
    assert main(commands(tmp_path)[command]) == 0, "the same command elsewhere works"


@pytest.mark.parametrize("kind", ["full", "read_only"])
def test_with_a_home_and_a_cache_that_take_nothing_everything_works_with_a_warning(
    kind, commands, tmp_path, capsys, monkeypatch
):
    with mounted(tmp_path / "disk", 100_000, **{kind: True}) as place:
        monkeypatch.setenv("SST_CACHE", str(place / "cache"))
        monkeypatch.setenv("SST_HOME", str(place / "home"))
        for command in WRITERS:
            assert main(commands(tmp_path)[command]) == 0
        lines = capsys.readouterr().err.splitlines()
        warnings = [line for line in lines if line.startswith("warning: ")]
        assert sum("the cache" in line for line in warnings) == 1, "once"
        assert sum("runs are not kept" in line for line in warnings) == 1
        assert main(["history"]) == 0
        given = commands(tmp_path)["search"]
        assert main([a for a in given if a not in ("--storage", "memory")][:-2]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "SST_HOME" in line


def test_a_history_on_a_read_only_disk_can_be_read_and_says_that_it_cannot_be_kept(
    tmp_path, monkeypatch, capsys
):
    with mounted(tmp_path / "disk", 1_000_000) as place:
        monkeypatch.setenv("SST_HOME", str(place))
        History().add(made(0.5, "half"), "demo", [result()])
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert [r.name for r in History().list()] == ["half"]
        with pytest.raises(UserError, match="runs are not kept"):
            History().add(made(), "demo")
        assert main(["history", "delete", "1", "--yes"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be written" in line


def test_a_history_on_a_full_disk_keeps_what_it_had(tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", 200_000) as place:
        monkeypatch.setenv("SST_HOME", str(place))
        kept = 0
        with pytest.raises(UserError, match=r"full|No space"):  # noqa: PT012
            for number in range(1000):
                History().add(made(number / 1000), "demo", [result()] * 20)
                kept += 1
        assert kept
        assert len(History().list(limit=None)) == kept
