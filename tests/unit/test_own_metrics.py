"""A metric of one's own: a file with one function and a decorator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sst_ui.errors import UserError
from sst_ui.metrics import plugins
from sst_ui.metrics.registry import METRICS, derived, metric

ROOT = Path(__file__).resolve().parents[2]
POLITE = '''
from sst_ui.metrics.registry import metric

@metric("polite", title="Says please", unit="rate", better="high", prompts="demo/facts")
def polite(prompt, answer):
    """Share of answers that say please."""
    return "please" in answer.lower()
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))
    monkeypatch.setattr(plugins, "PROBLEMS", [])
    return tmp_path


def listed(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [sys.executable, "-m", "sst_ui", "metrics", *arguments],
        cwd=ROOT,
        env={**os.environ, "SST_METRICS": str(folder)},
        capture_output=True,
        text=True,
    )


def test_a_file_dropped_into_the_folder_is_a_metric_like_any_other(folder):
    (folder / "polite.py").write_text(POLITE)
    (folder / "broken.py").write_text("def broken(:\n")
    found = listed(folder, "--json")
    assert found.returncode == 0
    rows = {row["name"]: row for row in json.loads(found.stdout)}
    assert rows["polite"]["what"] == "Share of answers that say please."
    assert rows["refusal_rate"]["prompts"] == "demo/harmful_heldout"
    assert rows["removal"]["sources"] == ["refusal_rate"]
    # the broken one is said, with its line, and does not take the others along
    assert "broken.py, line 1: SyntaxError" in found.stderr


def test_the_list_of_metrics_says_what_each_is(folder):
    text = listed(folder).stdout
    assert "jailbreak_resistance" in text
    assert "(perplexity)" in text  # only when named


def test_the_error_of_a_file_says_where(folder):
    (folder / "late.py").write_text("x = 1\nraise RuntimeError('no data')\n")
    (folder / "silent.py").write_text("x = 1\n")
    (folder / "taken.py").write_text(POLITE.replace('"polite"', '"refusal_rate"'))
    shipped = METRICS["refusal_rate"]
    plugins.load(folder)
    late, silent, taken = plugins.PROBLEMS
    assert "taken.py, line 4: UserError: there is a metric 'refusal_rate' already" in taken
    assert METRICS["refusal_rate"] is shipped
    assert "late.py, line 2: RuntimeError: no data" in late
    assert "silent.py adds no new metric" in silent


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"unit": "percent"}, "unit of metric 'x' 'percent' is unknown"),
        ({"better": "higher"}, "did you mean 'high'"),
        ({"reads": "answers"}, "did you mean 'answer'"),
    ],
)
def test_a_decorator_with_a_wrong_word_says_which(folder, setting, message):
    right = {"title": "X", "unit": "rate", "better": "high", "prompts": "demo/facts"}
    with pytest.raises(UserError, match=message):
        metric("x", **(right | setting))


def test_a_number_made_of_derived_numbers_is_refused_by_name(folder, host):
    from sst_ui.jobs.evaluate.evaluate import evaluate
    from sst_ui.progress import finish
    from sst_ui.recipe import Evaluation

    derived("twice", title="Twice", unit="rate", better="high", sources=("removal",))(lambda _: _)
    with pytest.raises(UserError, match=r"Twice \(twice\) is made of removal, which is itself"):
        finish(evaluate(host, (), Evaluation(("twice",), samples=8)))


def test_it_is_computed_like_any_other(folder, host):
    from sst_ui.jobs.evaluate.evaluate import evaluate
    from sst_ui.progress import finish
    from sst_ui.recipe import Evaluation

    (folder / "short.py").write_text(
        POLITE.replace('"please" in answer.lower()', 'answer.startswith("Paris")')
    )
    plugins.load(folder)
    (result,) = finish(evaluate(host, (), Evaluation(("polite",), samples=8, max_new_tokens=8)))
    assert result.base.n == 8
    assert result.title == "Says please"
