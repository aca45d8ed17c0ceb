"""A folder appears whole or not at all: after an error, on a full disk, killed at any moment."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest
import torch
from safetensors.torch import load_file

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.model.weights import staged_folder
from sst_ui.model.weights.staged_folder import room, staged
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from tests.talk import byte_tokenizer
from tests.tiny import HIDDEN, tiny
from tests.unit.test_live_edits import edit

LARGE = {"vocab_size": 100_000, "hidden_size": HIDDEN, "intermediate_size": 60_000}
KILLS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model of 65 MB in a few shards: large enough to be caught at work."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny("llama", **LARGE).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="10MB")
    byte_tokenizer().save_pretrained(folder)
    return folder


def export(base, out, force=False):
    with staged(out, force) as folder:
        finish(write_model(ModelSpec(id=str(base)), (edit(1.0, 2),), None, folder))


def child(base, out, started):
    torch.set_num_threads(1)
    started.set()
    export(base, out, force=True)


def contents(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != staged_folder.MANIFEST
    }


def test_a_folder_appears_when_all_of_it_is_there(tmp_path):
    out = tmp_path / "new" / "model"
    with staged(out) as folder:
        assert folder.parent == out.parent
        assert folder.name.startswith(".model.partial-")
        (folder / "a").write_text("one")
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_text("two")
        assert not out.exists()
    assert contents(out) == {"a": b"one", "deep/b": b"two"}
    assert os.listdir(out.parent) == ["model"]


def test_after_an_error_or_a_cancel_nothing_is_left(tmp_path):
    def job():
        with staged(tmp_path / "model") as folder:
            (folder / "a").write_text("one")
            yield

    for end in (lambda running: running.throw(KeyError("no")), lambda running: running.close()):
        running = job()
        next(running)
        assert os.listdir(tmp_path) != []
        with suppress(KeyError):
            end(running)
        assert os.listdir(tmp_path) == []


def test_a_folder_that_holds_something_is_replaced_only_by_force(tmp_path):
    out = tmp_path / "model"
    out.mkdir()
    with staged(out) as folder:  # an empty one is no loss
        (folder / "a").write_text("one")
    with pytest.raises(UserError, match=r"not empty.*--force"), staged(out):
        pass
    with pytest.raises(KeyError), staged(out, force=True):
        raise KeyError
    assert contents(out) == {"a": b"one"}
    with staged(out, force=True) as folder:
        (folder / "b").write_text("two")
    assert contents(out) == {"b": b"two"}
    assert os.listdir(tmp_path) == ["model"]
    with pytest.raises(UserError, match="is a file"), staged(out / "b"):
        pass


def test_what_dead_processes_left_is_removed_and_what_the_living_do_is_not(tmp_path):
    out = tmp_path / "mo[d]el"
    dead, other = tmp_path / ".mo[d]el.partial-0123abcd", tmp_path / ".model.partial-mine"
    for folder in (dead, other):
        folder.mkdir()
    with staged(out) as alive:
        assert not dead.exists()
        with staged(tmp_path / "elsewhere"):
            disk.sweep(tmp_path)
        assert alive.exists()
        (alive / "a").write_text("one")
    assert other.exists()
    # killed between the two renames of a replacement: the old folder comes back
    out.rename(tmp_path / ".mo[d]el.replaced-0123abcd")
    disk.sweep(tmp_path)
    assert contents(out) == {"a": b"one"}


def test_what_is_half_removed_never_comes_back(tmp_path, monkeypatch):
    """Killed while it removes what it replaced; then the owner removes the new folder too."""
    out = tmp_path / "model"
    for name in ("a", "b"):
        with staged(out, force=True) as folder:
            monkeypatch.setattr(disk.shutil, "rmtree", lambda *_, **__: None)  # killed here
            (folder / name).write_text(name)
        monkeypatch.undo()
    shutil.rmtree(out)
    disk.sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_where_there_are_no_locks_only_what_is_old_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "fcntl", None)
    fresh, old = tmp_path / ".model.partial-00000001", tmp_path / ".model.partial-00000002"
    for folder in (fresh, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    with staged(tmp_path / "model") as folder:
        (folder / "a").write_text("one")
    assert sorted(os.listdir(tmp_path)) == [".model.partial-00000001", "model"]


def test_too_little_room_is_said_with_both_numbers(tmp_path, base):
    room(tmp_path / "not" / "there", 1000)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match=r"[\d.]+ GB are needed in .*x and [\d.]+ GB are free"):
        room(tmp_path / "x", free * 2)


@contextmanager
def small_disk(folder, size):
    """A file system in memory of so many bytes; skips where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("mounting a small disk needs rights that this user lacks")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, base):
    with small_disk(tmp_path / "disk", 20_000_000) as disk:
        with pytest.raises(UserError, match=r"0\.\d+ GB are needed in .*disk and 0\.02"):
            export(base, disk / "model")
        assert os.listdir(disk) == []


def test_a_disk_that_fills_up_meanwhile_is_a_clear_error_and_nothing_is_left(
    tmp_path, base, monkeypatch
):
    monkeypatch.setattr("sst_ui.model.weights.streaming_writer.room", lambda *_: None)
    with small_disk(tmp_path / "disk", 20_000_000) as disk:
        with pytest.raises(UserError, match=r"No space left on device.*Make room"):
            export(base, disk / "model")
        assert os.listdir(disk) == []


def test_a_full_disk_is_told_when_the_safetensors_library_meets_it(tmp_path):
    from safetensors.torch import save_file

    with small_disk(tmp_path / "disk", 1_000_000) as disk:
        with pytest.raises(UserError, match="No space left"), staged(disk / "model") as folder:
            save_file({"a": torch.ones(1_000_000)}, folder / "model.safetensors")
        assert os.listdir(disk) == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no such signal")
def test_killed_at_any_moment_no_folder_looks_finished(tmp_path, base):
    """A dozen exports, each killed at a random moment; half of them replace an earlier one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sst_ui.model.weights.streaming_writer", "tests.unit.test_staging"]
    )
    out = tmp_path / "model"

    def start():
        started = context.Event()
        process = context.Process(target=child, args=(base, out, started))
        process.start()
        assert started.wait(60)
        return process

    process, begun = start(), time.monotonic()
    process.join()
    seconds = time.monotonic() - begun
    assert process.exitcode == 0
    whole = contents(out)
    chance = random.Random(0)
    killed = caught = turn = 0
    while killed < KILLS and turn < 5 * KILLS:
        turn += 1
        replaces = turn % 2
        if not replaces:
            shutil.rmtree(out, ignore_errors=True)
        process, begun = start(), time.monotonic()
        time.sleep(chance.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:  # done before the kill: the machine is faster now
            seconds = min(seconds, 0.8 * (time.monotonic() - begun))
        killed += process.exitcode == -signal.SIGKILL
        caught += any(name.startswith(".model.partial-") for name in os.listdir(tmp_path))
        visible = [name for name in os.listdir(tmp_path) if not name.startswith(".")]
        assert visible in ([], ["model"])
        if visible:
            assert contents(out) == whole
    assert killed == KILLS  # the other turns were done already
    assert caught  # and some left half a model behind
    export(base, out, force=True)
    assert os.listdir(tmp_path) == ["model"]
    assert contents(out) == whole
    assert load_file(next(out.glob("*.safetensors")))
