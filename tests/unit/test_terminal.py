"""History, evaluation, export and completion in the terminal: what scripts and shells get."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from sst_ui.__main__ import main
from sst_ui.cli import completion
from sst_ui.errors import UserError
from sst_ui.jobs.export.export import FORMATS, Export
from sst_ui.jobs.export.push import Pushed
from sst_ui.jobs.export.verify import Verification
from sst_ui.jobs.history.store import History
from sst_ui.paths import PRESETS, ROOT
from sst_ui.progress import Progress
from sst_ui.recipe import load
from sst_ui.schema import setting
from tests.unit.test_history import recipe as made
from tests.unit.test_history import result

SMALL = {
    "version": 1,
    "name": "small",
    "edits": [{"directions": {"samples": 8}, "weights": {"strength": 1.0}}],
    "evaluation": {"metrics": ["refusal_rate"], "samples": 4, "max_new_tokens": 8},
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_HOME", str(tmp_path / "home"))
    return History()


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture
def two(home):
    """A history of two runs."""
    runs = [home.add(made(0.5, "half"), "demo", [result(edited=0.4)])]
    return [*runs, home.add(made(1.0, "whole"), "demo", [result(edited=0.1), result("facts")])]


def told(capsys):
    return json.loads(capsys.readouterr().out)


# --- history ----------------------------------------------------------------------------------


def test_an_empty_history_says_so(home, capsys):
    assert main(["history"]) == 0
    assert "no runs yet" in capsys.readouterr().out
    assert main(["history", "--json"]) == 0
    assert told(capsys) == []


def test_the_list_is_newest_first_and_searched(two, capsys):
    assert main(["history", "list", "--json"]) == 0
    assert [row["name"] for row in told(capsys)] == ["whole", "half"]
    assert main(["history", "list", "--search", "half", "--json"]) == 0
    assert [row["id"] for row in told(capsys)] == [two[0]]
    assert main(["history", "list"]) == 0
    text = capsys.readouterr().out
    assert text.index("whole") < text.index("half")
    assert made(0.5).digest() in text
    assert "0.400" in text


def test_a_run_shows_its_numbers_and_gives_its_recipe_back(two, home, capsys, tmp_path):
    assert main(["history", "show", str(two[0]), "--recipe"]) == 0
    path = tmp_path / "again.yaml"
    path.write_text(capsys.readouterr().out)
    assert load(path) == made(0.5, "half")
    assert main(["history", "show", made(0.5).digest()]) == 0
    text = capsys.readouterr().out
    assert "0.400 [0.350, 0.450]" in text
    assert "strength: 0.5" in text


def test_a_comparison_has_numbers_and_differences(two, capsys):
    names = [str(run) for run in two]
    assert main(["history", "compare", *names, "--json"]) == 0
    found = told(capsys)
    assert found["differences"] == {"ablation.weights.strength": ["0.5", "1"]}
    assert [row["edited"]["value"] for row in found["metrics"]["refusal_rate"]] == [0.4, 0.1]
    assert found["metrics"]["facts"][0] is None
    assert main(["history", "compare", *names]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["refusal_rate"] == ["0.900", "0.400", "0.100"]
    assert lines["facts"] == ["0.900", "–", "0.100"]
    assert lines["ablation.weights.strength"] == ["0.5", "1"]


def test_deleting_asks_and_a_script_says_yes(two, home, capsys, monkeypatch):
    assert main(["history", "delete", str(two[0])]) == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: "n")
    assert main(["history", "delete", str(two[0])]) == 0
    assert len(home.list()) == 2
    assert main(["history", "delete", str(two[0]), "--yes"]) == 0
    assert [r.id for r in home.list()] == [two[1]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["history", "show", "99"], "no run '99'"),
        (["history", "compare", "1"], "two runs"),
        (["history", "delete", "99", "--yes"], "no run"),
        (["history", "list", "--limit", "0"], "--limit"),
        (["history", "forget"], "invalid choice"),
        (["completion", "tcsh"], "bash"),
        (["evaluate", "none.yaml"], "cannot read"),
        (["evaluate", "SMALL", "--metrics", "refusal_rat"], "did you mean 'refusal_rate'"),
        (["evaluate", "SMALL", "--samples", "0"], "samples"),
        (["evaluate", "SMALL", "--preset", "quik"], "quick"),
        (["export", "none.yaml", "--out", "x"], "cannot read"),
        (["export", "SMALL", "--out", "x", "--format", "onnx"], "mergekit"),
        (["export", "SMALL", "--out", "x", "--rank", "0"], "--rank"),
        (["export", "SMALL", "--out", "x", "--verify", "-1"], "--verify"),
        (["export", "SMALL", "--out", "x", "--public"], "--push"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(two, arguments, says, small, capsys):
    assert main([str(small) if a == "SMALL" else a for a in arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert says in error[0]


# --- evaluate and run -------------------------------------------------------------------------


def test_evaluate_measures_what_was_asked_and_is_remembered(home, small, capsys):
    assert main(["evaluate", str(small), "--metrics", "facts", "--samples", "3", "--json"]) == 0
    found = told(capsys)
    (row,) = found["metrics"]
    assert (row["name"], row["base"]["n"]) == ("facts", 3)
    (kept,) = home.list()
    assert found["recipe"] == kept.digest == load(small).digest()
    assert kept.metrics[0]["edited"] == row["edited"]
    assert kept.recipe.evaluation.samples == 3


def test_evaluate_and_run_get_the_same_numbers(home, small, capsys, tmp_path):
    assert main(["run", str(small), "--out", str(tmp_path / "out"), "--json"]) == 0
    (run,) = told(capsys)
    assert main(["evaluate", str(small), "--json"]) == 0
    (row,) = told(capsys)["metrics"]
    assert (row["base"], row["edited"]) == (run["base"], run["edited"])
    assert len(home.list()) == 1, "the same recipe under the same evaluation is one run"


def test_a_broken_history_does_not_cost_the_results(home, small, capsys):
    home.path.parent.mkdir()
    home.path.write_bytes(b"not a database " * 100)
    assert main(["evaluate", str(small), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["metrics"]
    assert "warning: the run history" in said.err


# --- export -----------------------------------------------------------------------------------


def written(folder, format, verify):
    """What an export says; 13 prompts are bad luck."""
    answers = verify - (verify == 13)
    checked = Verification(
        verify, answers, 0, 1e-3, 1e-2, 1e-7, 1e-5, "w", 14, "a reader", ok=answers == verify
    )
    return Export(folder, format, ("a",), 12, 0.5, checked if verify else None, ("a note",))


@pytest.fixture
def lab(monkeypatch):
    """A stand-in for the lab's export and push that tells what it was asked."""
    asked = []

    def export(host, recipe, out, format="adapter", **more):
        asked.append({"digest": recipe.digest(), "out": out, "format": format, **more})
        yield Progress("export", 1, 1)
        return written(out, format, more["verify"])

    def push(folder, repo, private=True, token=None):
        asked.append({"folder": folder, "repo": repo, "private": private})
        yield Progress("upload", 1, 1)
        return Pushed(f"hub/{repo}", "c0ffee", private, 1, 12)

    def no_model(spec):
        yield Progress("load", 1, 1)

    monkeypatch.setattr("sst_ui.jobs.export.export.export", export)
    monkeypatch.setattr("sst_ui.jobs.export.push.push", push)
    monkeypatch.setattr("sst_ui.model.runtime.host.load", no_model)
    return asked


def test_every_option_of_export_reaches_the_lab(home, lab, small, tmp_path, capsys):
    home.add(load(small), "demo", [result()])
    out = tmp_path / "out"
    options = ["--format", "model", "--rounding", "stochastic", "--rank", "8", "--verify", "4"]
    assert main(["export", str(small), "--out", str(out), *options, "--force", "--json"]) == 0
    digest = load(small).digest()
    assert lab == [
        {"digest": digest, "out": out, "format": "model", "rounding": "stochastic", "rank": 8,
         "verify": 4, "results": (result(),), "force": True},
    ]  # fmt: skip
    found = told(capsys)
    assert (found["folder"], found["recipe"]) == (str(out), digest)
    assert found["verification"]["same_answers"] == 4


def test_a_push_is_private_unless_said_and_only_of_what_verifies(home, lab, small, capsys):
    push = ["export", str(small), "--out", "x", "--push", "me/mine", "--unmeasured"]
    assert main(push) == 0
    assert lab[-1] == {"folder": lab[0]["out"], "repo": "me/mine", "private": True}
    assert "pushed to hub/me/mine" in capsys.readouterr().out
    assert main([*push, "--public"]) == 0
    assert lab[-1]["private"] is False
    lab.clear()
    assert main([*push, "--verify", "13"]) == 1, "scripts see that it is not the same model"
    assert [row for row in lab if "repo" in row] == []
    assert "does NOT match the studio" in capsys.readouterr().out


def test_a_card_has_measured_refusals_although_nothing_was_run_before(home, tmp_path):
    out = tmp_path / "mine"
    assert main(["export", str(PRESETS / "recipes" / "default.yaml"), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    (refusals,) = [line for line in card.splitlines() if line.startswith("| Refusal rate")]
    before, after = re.findall(r"([\d.]+)% \[", refusals)
    assert float(before) > 90
    assert float(after) < 10
    assert "Over-refusal on look-alikes" in card


def test_every_format_that_is_offered_can_be_written():
    assert list(setting("export.format").choices) == list(FORMATS)


# --- completion -------------------------------------------------------------------------------


def bash(words, folder):
    """What bash offers after these words; the last is the one being typed."""
    code = f"""{completion.script("bash")}
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9
_python_argcomplete sst_ui; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", code, "bash", *words], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


COMMANDS = {
    "kernel", "measure", "run", "search", "evaluate", "export", "merge", "metrics", "chat",
    "history", "completion", "compare",
}  # fmt: skip


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "offers"),
    [
        (["sst_ui", ""], COMMANDS | {"-h", "--help"}),
        (["sst_ui", "export", "r.yaml", "--ro"], {"--rounding"}),
        (["sst_ui", "export", "--format", ""], {"adapter", "model", "mergekit", "gguf"}),
        (["sst_ui", "export", "--format", "model", "--rou"], {"--rounding"}),
        (
            ["sst_ui", "history", ""],
            {"list", "show", "compare", "delete", "--json", "-h", "--help"},
        ),
        (["sst_ui", "history", "delete", "3", "--y"], {"--yes"}),
        (["sst_ui", "completion", "z"], {"zsh"}),
        (["sst_ui", "run", "r"], {"r.yaml"}),
    ],
)
def test_bash_completes_commands_options_values_and_files(line, offers, tmp_path):
    (tmp_path / "r.yaml").touch()
    assert set(bash(line, tmp_path)) == offers


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shells_script_is_sound_and_registers_the_program(shell):
    done = subprocess.run(
        [sys.executable, "-m", "sst_ui", "completion", shell],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "-m sst_ui" in done.stdout
    assert "argcomplete" in done.stdout.lower()
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=done.stdout, text=True, check=True)


def test_a_shell_that_asks_loads_nothing_heavy(tmp_path):
    line = "sst_ui export --format "
    told = tmp_path / "told"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sst_ui"], cwd=ROOT, check=True,
        env={**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(told)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert "mergekit" in told.read_text()
    assert "| argcomplete\n" in done.stderr
    for heavy in ("gradio", "torch", "transformers"):
        assert f"| {heavy}\n" not in done.stderr


def test_ctrl_c_is_130_and_bad_input_2(home, monkeypatch, capsys):
    monkeypatch.setattr(History, "list", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["history"]) == 130
    monkeypatch.setattr(History, "list", lambda *a: (_ for _ in ()).throw(UserError("no")))
    assert main(["history"]) == 2
