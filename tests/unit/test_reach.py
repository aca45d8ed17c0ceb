"""A studio that others use reads nothing of its machine for them, whatever names it."""

import json
import os
from dataclasses import replace

import pytest

from sst_ui import reach
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import measure
from sst_ui.jobs.evaluate.evaluate import evaluate
from sst_ui.jobs.merge.merge import merge
from sst_ui.maths.directions import random
from sst_ui.metrics import corrections
from sst_ui.model.load.chat_template import read_template
from sst_ui.model.runtime.host import inspect
from sst_ui.paths import ASSETS, DEMO, PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import DirectionSpec, Evaluation, Merge, ModelSpec

OUT = "this studio is shared"


@pytest.fixture
def secret(tmp_path):
    """A folder of the owner's: prompts, directions, a model, a template, labels."""
    folder = tmp_path / "owner"
    folder.mkdir()
    rows = [{"prompt": f"secret {n}", "answer": "a", "label": "refused"} for n in range(4)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    random(12, 128, 1).save(folder / "d.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def uploads(tmp_path):
    """Where visitors' files go, while the studio is shared."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    reach.limit((ASSETS, PRESETS, folder))
    yield folder
    reach.limit(None)


def readers(folder, host):
    """Everything that a recipe, a control, a link or a call can name, by a path in the folder."""
    rows = str(folder / "rows.jsonl")
    adapter = str(folder)
    return {
        "prompts": lambda: prompt_sets.load(rows),
        "a folder of prompts": lambda: prompt_sets.load(str(folder)),
        "a preview": lambda: prompt_sets.preview(rows),
        "measuring prompts": lambda: finish(measure(host, DirectionSpec(harmful=rows))),
        "a metric's prompts": lambda: finish(
            evaluate(host, (), Evaluation(metrics=(f"refusal_rate@{rows}",)))
        ),
        "directions": lambda: finish(
            measure(host, DirectionSpec(file=str(folder / "d.safetensors")))
        ),
        "a model": lambda: inspect(ModelSpec(id=str(folder))),
        "an adapter": lambda: finish(merge(host, Merge(adapter, adapter))),
        "a judge": lambda: finish(
            evaluate(host, (), Evaluation(metrics=("refusal_rate",), judge=adapter, samples=2))
        ),
        "a template": lambda: read_template(str(folder / "t.jinja")),
        "labels": lambda: corrections.read(folder / "rows.jsonl"),
    }


def refused(read) -> bool:
    try:
        read()
    except UserError as error:
        return OUT in str(error)
    return False


def test_nothing_outside_is_read_whatever_names_it(secret, uploads, host):
    assert all(map(refused, readers(secret, host).values()))


def test_what_is_not_there_is_refused_in_the_same_words(uploads, host, tmp_path):
    assert all(map(refused, readers(tmp_path / "nowhere", host).values()))


def test_a_link_counts_as_what_it_leads_to(secret, uploads):
    os.symlink(secret / "rows.jsonl", uploads / "mine.jsonl")
    for name in (uploads / "mine.jsonl", f"{uploads}/../owner/rows.jsonl"):
        with pytest.raises(UserError, match=OUT):
            prompt_sets.load(str(name))


def test_what_came_with_it_and_what_was_uploaded_is_read(secret, uploads, host):
    mine = uploads / "mine.jsonl"
    mine.write_text((secret / "rows.jsonl").read_text())
    assert len(prompt_sets.load(str(mine)).prompts) == 4
    assert len(prompt_sets.load("demo/harmful", 3).prompts) == 3
    assert read_template("chatml")
    assert inspect(ModelSpec()).fits
    pair = Merge(*(str(DEMO / "adapters" / name) for name in ("utility", "safety")))
    finish(merge(host, replace(pair, method="linear")))


def test_whoever_started_it_reads_what_they_like(secret, host):
    assert not reach.limited()
    assert len(prompt_sets.load(str(secret / "rows.jsonl")).prompts) == 4
    assert finish(measure(host, DirectionSpec(file=str(secret / "d.safetensors")))).control
