"""Every job runs without a screen, and bad input is one line and exit code 2."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from sst_ui.__main__ import main
from sst_ui.maths.kernel import gaussian
from sst_ui.paths import PRESETS, ROOT

SMALL = {
    "version": 1,
    "edits": [{"directions": {"samples": 8}, "weights": {"strength": 1.0}}],
    "evaluation": {"metrics": ["refusal_rate", "facts"], "samples": 4, "max_new_tokens": 8},
}


@pytest.fixture
def recipe(tmp_path):
    """A recipe that is quick to carry out."""
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_kernel_prints_the_thresholded_gaussian_as_json(capsys):
    assert main(["kernel", "--profile", "default", "--layers", "32", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    bell = gaussian(32, 0.6, 0.15)
    assert list(got) == ["layers", "peak", "width", "threshold", "weights"]
    assert (got["layers"], got["peak"], got["width"], got["threshold"]) == (32, 0.6, 0.15, 0.1)
    assert got["weights"] == pytest.approx(np.where(bell >= 0.1, bell, 0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["kernel", "--profile", "narow"], "did you mean 'narrow'"),
        (["kernel", "--width", "0"], "width"),
        (["kernel", "--layers", "many"], "--layers"),
        (["kernel", "--peak", "nan"], "peak"),
        (["ablate"], "invalid choice"),
        (["run", "none.yaml", "--out", "x"], "cannot read"),
        (["measure", "--estimator", "median", "--out", "d.safetensors"], "estimator"),
        (["measure", "--out", "no/such/folder/d.safetensors"], "existing folder"),
        (["measure", "--model", "./no-such-model", "--out", "d.safetensors"], "no-such-model"),
        (["measure", "--harmful", "demo/harmfull", "--out", "d.safetensors"], "did you mean"),
        (["chat", "--model", "./no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


def test_the_process_leaves_with_code_2_and_without_a_traceback(tmp_path):
    (tmp_path / "bad.yaml").write_text("version: 1\nedit: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "sst_ui", "run", str(tmp_path / "bad.yaml"), "--out", "x"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'edits'" in done.stderr


def test_a_recipe_writes_itself_its_metrics_and_its_directions(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(out), "--json"]) == 0
    assert sorted(f.name for f in out.iterdir()) == [
        ".sst-studio.json", "directions.safetensors", "metrics.json", "recipe.yaml",
    ]  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == json.loads(capsys.readouterr().out)
    assert [m["name"] for m in metrics] == ["refusal_rate", "facts"]
    for metric in metrics:
        assert {"name", "unit", "better", "base", "edited"} <= set(metric)
        for side in (metric["base"], metric["edited"]):
            assert side["low"] <= side["value"] <= side["high"]
            assert side["n"] == 4
    with safe_open(out / "directions.safetensors", "pt") as file:
        vectors = file.get_tensor("vectors")
    assert np.allclose(vectors.norm(dim=-1), 1, atol=1e-5)


def test_a_folder_with_another_recipes_results_is_not_overwritten(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text("version: 1\n")
    assert main(["run", str(recipe), "--out", str(out)]) == 2
    assert "another recipe" in capsys.readouterr().err
    assert (out / "recipe.yaml").read_text() == "version: 1\n"


def test_a_failed_run_leaves_no_folder(recipe, tmp_path, capsys):
    recipe.write_text(recipe.read_text().replace("refusal_rate", "refusal_rat"))
    assert main(["run", str(recipe), "--out", str(tmp_path / "run")]) == 2
    assert "did you mean 'refusal_rate'" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["small.yaml"]


def test_measure_tells_the_trade_off_of_a_filter(tmp_path, capsys):
    out = tmp_path / "directions.safetensors"
    assert main(["measure", "--samples", "8", "--out", str(out), "--json", "--filter"]) == 0
    rows = json.loads(capsys.readouterr().out)["filter"]
    assert [row["mu"] for row in rows] == sorted(row["mu"] for row in rows)
    for name in ("removed", "moved"):  # a dearer filter removes less and moves less
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1] > 0


def test_measure_saves_directions_and_prints_the_layer_analysis(tmp_path, capsys):
    out = tmp_path / "d.safetensors"
    assert main(["measure", "--samples", "8", "--out", str(out), "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert out.is_file()
    for name in ("snr", "cosine", "purity", "quality", "auroc", "cohens_d"):
        assert len(got[name]) == got["layers"]
        assert len(got["intervals"][name]) == got["layers"]
    assert got["reliability"]["evidence"]["holds"] is False  # eight prompts are too few
    assert got["reliability"]["cohens_d"]["holds"] is True


def test_chat_answers_with_both_models(monkeypatch, capsys, recipe):
    lines = iter(["What is the capital of France?", "/clear", "/exit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["chat", str(recipe), "--max-new-tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert "base: " in out
    assert "edited: " in out


def talk(monkeypatch, capsys, recipe, lines, *options):
    """What the chat prints for these lines."""
    said = iter([*lines, "/exit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(said))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["chat", str(recipe), "--max-new-tokens", "8", *options]) == 0
    return capsys.readouterr().out


def test_every_drawn_answer_has_a_seed_of_its_own_that_gives_it_again(monkeypatch, capsys, recipe):
    asked = ["Tell me a story.", "/clear", "Tell me a story.", "/clear", "Tell me a story."]
    out = talk(monkeypatch, capsys, recipe, asked, "--temperature", "1.5")
    seeds = re.findall(r"^seed (\d+)$", out, re.MULTILINE)
    answers = re.findall(r"^base: .*$", out, re.MULTILINE)
    assert len(seeds) == len(set(seeds)) == len(answers) == 3
    assert len(set(answers)) > 1
    for seed, answer in zip(seeds[:2], answers[:2], strict=True):
        more = ("--temperature", "1.5", "--seed", seed)
        again = talk(monkeypatch, capsys, recipe, ["Tell me a story."], *more)
        assert answer in again
    assert "seed" not in talk(monkeypatch, capsys, recipe, ["Hello"])  # greedy


def test_a_seed_that_cannot_be_is_refused(capsys, recipe):
    assert main(["chat", str(recipe), "--seed", "-1"]) == 2
    assert "--seed: '-1' is out of range; it must be 0 to 4294967295" in capsys.readouterr().err


def test_turns_that_an_answer_does_not_see_are_counted_aloud(monkeypatch, capsys, recipe, host):
    long = "why " * int(host.context * 0.4)
    out = talk(monkeypatch, capsys, recipe, [long, long, long])
    assert out.count("note: ") == 2 + 2  # both columns, from the second message on
    for name in ("base", "edited"):
        assert f"note: {name} does not see the oldest turn any more" in out
        assert f"note: {name} does not see the oldest 2 turns any more" in out


@pytest.mark.parametrize(
    "name", ["default", "early_focus", "late_focus", "broad", "narrow", "wide"]
)
def test_there_is_a_working_recipe_for_each_profile(name):
    from sst_ui.maths.kernel import profile
    from sst_ui.recipe import load

    weights = load(PRESETS / "recipes" / f"{name}.yaml").edits[0].weights
    expected = profile(name)
    assert weights.profile == name
    assert (weights.peak, weights.width, weights.threshold) == (
        expected.peak, expected.width, expected.threshold,
    )  # fmt: skip
