"""Nothing is lost: what may be replaced, what a kill leaves, how large the caches may become."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sst_ui import cache, disk
from sst_ui.__main__ import main
from sst_ui.errors import UserError
from sst_ui.jobs.directions import measure as measuring
from sst_ui.jobs.directions import residual_cache
from sst_ui.jobs.export import protected_paths
from sst_ui.jobs.export.export import export
from sst_ui.jobs.history.store import History
from sst_ui.jobs.merge import fisher_moments
from sst_ui.jobs.run_recipe import run
from sst_ui.maths.directions import load as load_directions
from sst_ui.maths.directions import random
from sst_ui.model.weights.staged_folder import MANIFEST, staged
from sst_ui.paths import DEMO, ROOT
from sst_ui.progress import finish
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Evaluation,
    Filter,
    Merge,
    ModelSpec,
    Recipe,
    WeightTable,
    to_yaml,
)

QUICK = Evaluation(metrics=("refusal_rate",), samples=2, max_new_tokens=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def base(stored_host):
    """A tiny model in a folder, and the recipe of a random direction on it."""
    host = stored_host("llama")
    file = Path(host.spec.id).parent / "given.safetensors"
    random(host.layers, host.hidden).save(file)
    spec = DirectionSpec(file=str(file))
    return host, Recipe(model=host.spec, edits=(Ablation(spec),), evaluation=QUICK)


def two(recipe: Recipe, strength=0.5) -> Recipe:
    """Another recipe, with two edits."""
    weights = WeightTable(strength=strength)
    more = tuple(Ablation(edit.directions, weights) for edit in recipe.edits)
    return Recipe(model=recipe.model, edits=(*recipe.edits, *more), evaluation=QUICK)


# --- what may be replaced ---------------------------------------------------------------------


def forbidden(base: Path, tmp_path: Path) -> dict[str, Path]:
    links = {}
    for name, goal in (("base", base), ("parent", base.parent), ("inside", base / "new")):
        links[name] = goal
        links[f"link to {name}"] = tmp_path / f"link-{name}"
        links[f"link to {name}"].symlink_to(goal)
    return {**links, "root": Path("/"), "home": Path.home(), "here": Path("."), "above": Path("..")}


@pytest.mark.parametrize("force", [True, False])
def test_neither_the_base_nor_what_holds_it_nor_a_place_in_it_becomes_an_export(
    base, tmp_path, monkeypatch, force
):
    host, recipe = base
    folder = Path(host.spec.id)
    before = contents(folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, out in forbidden(folder, tmp_path).items():
        for job in (
            lambda out=out: export(host, recipe, out, "model", force=force),
            lambda out=out: run(recipe, out, host, force=force),
        ):
            with pytest.raises(UserError) as told:
                finish(job())
            assert "\n" not in str(told.value), name
    assert contents(folder) == before
    assert os.listdir(tmp_path / "here") == []
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


def test_a_model_may_not_take_the_place_of_the_export_that_it_was_loaded_from(base, tmp_path):
    host, recipe = base
    made = finish(export(host, recipe, tmp_path / "made", "model"))
    again = Recipe(model=ModelSpec(id=str(made.folder)), edits=recipe.edits)
    before = contents(made.folder)
    with pytest.raises(UserError, match="base model"):
        finish(export(host, again, made.folder, "model", force=True))
    assert contents(made.folder) == before


def test_everything_that_a_recipe_reads_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("model", "jinja", "dirs", "bad", "good", "shots", "u", "s", "un", "up", "sp", "j",
             "lab", "own", "alike", "topics")  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    at = {name: tmp_path / name / "f.jsonl" for name in names}
    for path in at.values():
        path.write_text("{}")
    recipe = Recipe(
        model=ModelSpec(id=str(tmp_path / "model"), chat_template=str(at["jinja"])),
        edits=(
            Ablation(DirectionSpec(
                file=str(at["dirs"]), harmful=f"{at['bad']}?prompt=x",
                harmless=f"{at['good']}?shots=1&shots_file={at['shots']}",
                concepts=str(at["topics"]),
            ), filter=Filter(lookalikes=str(at["alike"]))),
            Merge(
                utility=str(tmp_path / "u"), safety="./s", unaligned=str(tmp_path / "un"),
                utility_prompts=str(at["up"]), safety_prompts=f"public/mmlu?file={at['sp']}",
            ),
        ),
        evaluation=Evaluation(
            metrics=(f"refusal_rate@{at['own']}",), judge=str(tmp_path / "j"),
            labels=str(at["lab"]),
        ),
    )  # fmt: skip
    for name in names:
        with pytest.raises(UserError, match="is or holds"):
            protected_paths.check(tmp_path / name, recipe)
    for name in ("model", "u", "s", "un", "j"):
        with pytest.raises(UserError, match="lies in"):
            protected_paths.check(tmp_path / name / "deep" / "er", recipe)
    protected_paths.check(tmp_path / "free", recipe)
    protected_paths.check(tmp_path / "good" / "results", recipe)  # beside a file that is read


def test_force_replaces_an_earlier_export_and_nothing_else(base, tmp_path):
    host, recipe = base
    out = tmp_path / "out"
    finish(export(host, recipe, out))
    finish(export(host, two(recipe), out, "model", force=True))
    assert "adapter_model.safetensors" not in contents(out)
    with pytest.raises(UserError, match="not empty"):
        finish(export(host, recipe, out))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match=r"not written by this studio \(thesis.txt\)"):
        finish(export(host, recipe, mine, force=True))
    assert contents(mine) == {"thesis.txt": b"years"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda out: (out / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda out: (out / "README.md").write_text("mine"), "README.md"),
        (lambda out: (out / "deep").mkdir() or (out / "deep" / "a").write_text("b"), "deep/a"),
        (lambda out: (out / "link").symlink_to(out.parent), "link"),
        (lambda out: (out / MANIFEST).write_text("{}"), "not written by"),
        (lambda out: (out / MANIFEST).unlink(), "not written by"),
    ],
)
def test_what_was_added_or_changed_since_is_named_and_stays(base, tmp_path, change, named):
    host, recipe = base
    out = tmp_path / "out"
    finish(export(host, recipe, out))
    change(out)
    before = contents(out)
    with pytest.raises(UserError, match=named):
        finish(export(host, recipe, out, force=True))
    assert contents(out) == before


def test_what_was_added_while_the_export_was_under_way_stays(tmp_path):
    out = tmp_path / "out"
    with staged(out) as folder:
        (folder / "a").write_text("one")

    def again():
        with staged(out, force=True) as folder:
            (folder / "a").write_text("two")
            (out / "late").write_text("mine")

    with pytest.raises(UserError, match=r"added or changed.*late"):
        again()
    assert (contents(out)["a"], contents(out)["late"]) == (b"one", b"mine")
    assert os.listdir(tmp_path) == ["out"]


def test_an_export_does_not_take_the_place_of_a_run_nor_a_run_that_of_an_export(base, tmp_path):
    host, recipe = base
    finish(run(recipe, tmp_path / "run", host))
    finish(export(host, recipe, tmp_path / "export"))
    with pytest.raises(UserError, match="results of a run, not an export"):
        finish(export(host, recipe, tmp_path / "run", force=True))
    with pytest.raises(UserError, match="an export, not the results of a run"):
        finish(run(recipe, tmp_path / "export", host, force=True))


def test_a_run_by_force_leaves_no_file_of_the_earlier_recipe(base, tmp_path):
    host, recipe = base
    out = tmp_path / "run"
    finish(run(two(recipe), out, host))
    assert "directions_2.safetensors" in contents(out)
    with pytest.raises(UserError, match="another recipe"):
        finish(run(recipe, out, host))
    finish(run(recipe, out, host, force=True))
    assert set(contents(out)) == {
        MANIFEST, "directions.safetensors", "metrics.json", "recipe.yaml",
    }  # fmt: skip
    finish(run(recipe, out, host))  # the same recipe again needs no force
    (out / "notes.txt").write_text("mine")
    for force in (True, False):
        with pytest.raises(UserError, match=r"notes\.txt"):
            finish(run(recipe, out, host, force=force))
    assert contents(out)["notes.txt"] == b"mine"
    assert os.listdir(tmp_path / "run") != []


def test_results_of_a_run_are_not_mixed_with_files_that_were_there(base, tmp_path):
    host, recipe = base
    out = tmp_path / "mine"
    out.mkdir()
    (out / "metrics.json").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        finish(run(recipe, out, host))
    with pytest.raises(UserError, match="not written by this studio"):
        finish(run(recipe, out, host, force=True))
    assert contents(out) == {"metrics.json": b"mine"}


def test_measure_replaces_directions_and_no_other_file(tmp_path, capsys):
    other = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, other)
    before = other.read_bytes()
    assert main(["measure", "--out", str(other)]) == 2
    assert "holds no directions" in capsys.readouterr().err
    link = tmp_path / "link.safetensors"
    link.symlink_to(DEMO / "model.safetensors")
    assert main(["measure", "--out", str(link)]) == 2
    assert main(["measure", "--out", str(DEMO / "d.safetensors")]) == 2
    assert other.read_bytes() == before
    assert set(os.listdir(tmp_path)) == {"model.safetensors", "link.safetensors"}


@pytest.mark.parametrize("command", ["merge", "search", "export", "run"])
def test_the_terminal_refuses_the_base_before_it_loads_anything(
    command, base, tmp_path, monkeypatch, capsys
):
    def load(spec):
        raise AssertionError("loaded")
        yield

    for place in ("sst_ui.model.runtime.host.load", "sst_ui.jobs.run_recipe.load"):
        monkeypatch.setattr(place, load)
    host, recipe = base
    file = tmp_path / "r.yaml"
    file.write_text(to_yaml(recipe))
    inside = Path(host.spec.id) / "new"
    before = contents(Path(host.spec.id))
    given = {
        "merge": ["--model", host.spec.id, "--utility", str(DEMO / "adapters" / "utility"),
                  "--safety", str(DEMO / "adapters" / "safety"), "--out", str(inside)],
        "search": [str(file), "--out", str(inside)],
        "export": [str(file), "--out", host.spec.id, "--force"],
        "run": [str(file), "--out", host.spec.id, "--force"],
    }[command]  # fmt: skip
    assert main([command, *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "base model" in error
    assert contents(Path(host.spec.id)) == before


# --- what a kill leaves -----------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from sst_ui import disk
from sst_ui.model.weights.staged_folder import staged
out = Path(sys.argv[1])
with staged(out / "r", kind="run") as folder, disk.written(out / "d.safetensors") as part:
    (folder / "half").write_text("half")
    part.write_text("half")
    print(sorted(os.listdir(out)), flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_and_a_living_one_is_left_alone(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    at_work = yaml.safe_load(process.stdout.readline())
    assert len(at_work) == 2
    with disk.written(tmp_path / "other") as part:  # while the other one is at work
        part.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([*at_work, "other"])
    process.communicate("x")
    assert process.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == sorted([*at_work, "other"])
    with disk.written(tmp_path / "other") as part:
        part.write_text("again")
    assert os.listdir(tmp_path) == ["other"]


def test_folders_of_the_users_own_that_look_alike_stay(tmp_path):
    names = [".r-abc123", ".r.partial-", ".r.partial-mine", ".partial-0123abcd"]
    names += ["r.partial-0123abcd", ".r.partial-0123ABCD", ".r.partial-0123abcde"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".file.partial-0123abcd").write_text("a file")
    (tmp_path / ".link.partial-0123abcd").symlink_to(tmp_path / ".r-abc123")
    with disk.written(tmp_path / "r") as part:
        part.write_text("whole")
    assert set(names) < set(os.listdir(tmp_path))
    assert (tmp_path / ".file.partial-0123abcd").is_file()
    assert (tmp_path / ".link.partial-0123abcd").is_symlink()


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "deep" / "file"

    def fails():
        with disk.written(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert os.listdir(tmp_path) == []
    with disk.written(path) as part:
        part.write_text("whole")
    path.chmod(0o640)
    with pytest.raises(KeyError):
        fails()
    assert path.read_text() == "whole"
    with disk.written(path) as part:
        part.write_text("new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)
    assert os.listdir(path.parent) == ["file"]


def test_new_files_have_the_rights_that_any_new_file_gets(tmp_path):
    before = os.umask(0o027)
    try:
        random(2, 4).save(tmp_path / "d.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "d.safetensors").stat().st_mode & 0o777 == 0o640


WRITER = """
import sys
from sst_ui.jobs.history.store import History
from sst_ui.recipe import Ablation, Recipe, WeightTable
for i in range(1000):
    weights = WeightTable(strength=i / 1000)
    History(sys.argv[1]).add(Recipe(edits=(Ablation(weights=weights),)), "demo")
    print(i, flush=True)
"""


@pytest.mark.slow
def test_a_history_whose_writer_is_killed_has_all_that_it_had_said_to_have(tmp_path):
    path = tmp_path / "history.sqlite"
    for turn in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        said = [process.stdout.readline() for _ in range(5 + turn)]
        process.kill()
        said += process.stdout.read().split()
        process.wait()
        assert len(History(path).list(limit=None)) >= len(said)
    assert not list(tmp_path.glob("*damaged*"))


# --- the cache --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_told", set())
    return tmp_path / "cache"


def entry(number: int, kind="directions") -> Path:
    return cache.place(kind, f"{number:012x}.safetensors")


def put(number: int, size: int, kind="directions", used=None) -> Path:
    path = entry(number, kind)
    cache.keep(path, lambda part: part.write_bytes(b"\0" * size))
    if used is not None and path.exists():
        os.utime(path, (used, used))
    return path


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_not_used_for_longest_makes_room(folder, monkeypatch):
    monkeypatch.setenv(cache.SETTING, "1e-5")  # 10,000 bytes
    kinds = ("directions", "moments", "residuals", "moments")
    paths = [put(i, 3000, kind, used=1000 + i) for i, kind in enumerate(kinds[:3])]
    with cache.used(paths[0]) as there:  # the oldest is asked for
        assert there
    paths.append(put(3, 3000, kinds[3]))
    assert [path.exists() for path in paths] == [True, False, True, True]
    assert sizes(folder) <= 10_000
    assert not put(4, 20_000).exists(), "an entry larger than all of it is not kept"
    assert [path.exists() for path in paths] == [True, False, True, True]


def test_an_entry_of_before_the_clock_was_set_back_ages_like_the_others(folder, monkeypatch):
    monkeypatch.setenv(cache.SETTING, "1e-5")
    future = put(0, 4000, used=time.time() + 3600)
    second = put(1, 4000)
    assert future.stat().st_mtime <= time.time()
    os.utime(future, (1e9, 1e9))
    third = put(2, 4000)
    assert [path.exists() for path in (future, second, third)] == [False, True, True]


@pytest.mark.parametrize(("hours", "goes"), [(1, False), (-1, False), (-25, True)])
def test_without_locks_a_folder_goes_by_its_age_and_one_from_the_future_is_of_now(
    tmp_path, monkeypatch, hours, goes
):
    monkeypatch.setattr(disk, "lock_of", lambda path: None)
    (left := tmp_path / ".r.partial-0123abcd").mkdir()
    when = time.time() + 3600 * hours
    os.utime(left, (when, when))
    disk.sweep(tmp_path)
    assert left.exists() != goes
    if hours > 0:
        assert left.stat().st_mtime <= time.time()


def test_an_entry_in_use_does_not_make_room(folder, monkeypatch):
    monkeypatch.setenv(cache.SETTING, "1e-5")
    first, second = (put(i, 4000, used=1000 + i) for i in range(2))
    with cache.used(first) as there:
        assert there
        os.utime(first, (1, 1))
        third = put(2, 4000)
        assert [path.exists() for path in (first, second, third)] == [True, False, True]


def test_only_entries_are_removed_wherever_the_cache_is_said_to_be(folder, monkeypatch):
    (folder / "directions").mkdir(parents=True)
    mine = [folder / "thesis.txt", folder / "directions" / "mine.safetensors"]
    for path in mine:
        path.write_bytes(b"\0" * 50_000)
    monkeypatch.setenv(cache.SETTING, "1e-5")
    assert put(1, 100).exists()
    assert all(path.exists() for path in mine)
    with pytest.raises(ValueError, match="never be removed"):
        cache.place("directions", "mine.safetensors")


@pytest.mark.parametrize("text", ["abc", "-1", "nan", "4 GB"])
def test_a_limit_that_cannot_be_is_said_and_the_usual_one_holds(folder, monkeypatch, caplog, text):
    monkeypatch.setenv(cache.SETTING, text)
    assert put(1, 100).exists()
    assert put(2, 100).exists()
    assert caplog.text.count("SST_CACHE_GB") == 1
    assert cache.limit() == cache.LIMIT * 1e9


def test_a_limit_of_nothing_keeps_nothing(folder, monkeypatch):
    monkeypatch.setenv(cache.SETTING, "0")
    assert not put(1, 100).exists()
    assert not folder.exists()


def test_two_writers_of_one_entry_leave_one_whole_entry(folder):
    """Both are in the middle of it at the same time; the shared name of before lost one of them."""
    path, both = entry(1, "moments"), threading.Barrier(2)
    values = [{"a": torch.full((1000,), float(i))} for i in range(2)]

    def write(tensors):
        def half(part):
            part.write_bytes(b"half")
            both.wait(60)
            save_file(tensors, part)
            both.wait(60)

        cache.keep(path, half)

    threads = [threading.Thread(target=write, args=(each,)) for each in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_file(path)["a"].unique().tolist() in ([0.0], [1.0])
    assert os.listdir(path.parent) == [path.name]


def race(path: str, number: int, start) -> None:
    start.wait(60)
    for _ in range(20):
        fisher_moments._write(Path(path), {"a": torch.full((2000,), float(number))}, {"n": "{}"})
        tensors, _ = fisher_moments._read(Path(path))
        assert len(tensors["a"].unique()) == 1


@pytest.mark.slow
def test_processes_that_write_and_read_one_entry_never_see_half_of_it(folder):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["sst_ui.jobs.merge.fisher_moments", "tests.unit.test_nothing_lost"]
    )
    path, start = entry(7, "moments"), context.Event()
    processes = [context.Process(target=race, args=(str(path), i, start)) for i in range(3)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert os.listdir(path.parent) == [path.name]


def test_measuring_fills_the_cache_under_its_limit_and_reads_it_again(
    folder, tiny_host, tmp_path, monkeypatch
):
    host = tiny_host("llama")
    rows = {"bad": ["kill it", "burn it", "break it"], "good": ["feed it", "read it", "make it"]}
    for name, prompts in rows.items():
        text = "\n".join(json.dumps({"prompt": each}) for each in prompts)
        (tmp_path / f"{name}.jsonl").write_text(text)
    spec = DirectionSpec(harmful=str(tmp_path / "bad.jsonl"), harmless=str(tmp_path / "good.jsonl"))
    first = finish(measuring.measure(host, spec, None))
    kinds = {path.parent.name for path in folder.rglob("*.safetensors")}
    assert kinds == {"directions", "residuals"}
    measuring._recent.clear()
    monkeypatch.setattr(residual_cache, "residuals", None)  # no pass of the model
    assert finish(measuring.measure(host, spec, None)).digest() == first.digest()
    (kept,) = (folder / "directions").iterdir()
    assert load_directions(kept).digest() == first.digest()
