"""The results table: the rows that belong in it, and what is written down."""

import numpy as np
import pytest

from sst_ui.jobs.results_table import (
    COLUMNS,
    NEGATIVE,
    STRENGTHS,
    Row,
    markdown,
    settings,
    sweep,
)
from sst_ui.maths import kernel
from sst_ui.metrics.registry import METRICS
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation, from_yaml, to_yaml


@pytest.fixture(scope="module")
def rows(host) -> list[Row]:
    few = [s for s in settings() if s.name in ("base", "default, 1", "ablate, default, −2")]
    return finish(sweep(host, few, Evaluation(samples=2, max_new_tokens=4)))


def test_every_profile_stands_in_the_table_at_every_strength():
    names = {setting.name for setting in settings()}
    own = set(kernel.profiles()) - {"wide"}  # that of models nobody has prepared
    for before in ("", "plain, "):
        assert {f"{before}{p}, {s:g}" for p in own for s in STRENGTHS} <= names
    assert len(names) == len(settings()) == 1 + 2 * 20 + 3 * len(NEGATIVE) + 2


def test_every_row_is_a_recipe_one_can_run():
    for setting in settings():
        assert from_yaml(to_yaml(setting.recipe)) == setting.recipe


def test_rows_of_negative_strength_reinforce_refusal():
    for setting in settings():
        if setting.group != "base":
            alpha = kernel.table(setting.recipe.edits[0].weights, 12)
            assert np.all(alpha <= 0 if setting.group == "negative" else alpha >= 0)


def test_the_control_differs_from_its_row_in_nothing_but_the_direction():
    table = {setting.name: setting.recipe for setting in settings()}
    edit, control = (table[n].edits[0] for n in ("default, 1", "random directions, default, 1"))
    assert control.weights == edit.weights
    assert control.operation == edit.operation
    assert (control.directions.estimator, edit.directions.estimator) == (
        "random",
        "mean_difference",
    )


def test_every_column_is_a_metric():
    assert set(COLUMNS) <= set(METRICS.names())


def test_the_base_does_not_differ_from_itself_and_an_edit_does(rows):
    base, *edited = rows
    assert base.values["kl_16"].value == 0
    assert all(row.values["kl_16"].value > 0 for row in edited)


def test_every_cell_has_its_number_of_prompts(rows):
    assert all(row.values[name].n in (1, 2) for row in rows for name in COLUMNS)


def test_the_written_table_has_a_line_a_row_and_a_cell_a_metric(rows):
    lines = markdown(rows).splitlines()
    *lines, empty, length = lines
    assert (empty, length) == ("", "Answers of at most 4 tokens.")
    assert len(lines) == 3 + len(rows)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert "[" in lines[3]


def test_a_sweep_tells_how_far_it_is_and_can_be_left(host):
    job = sweep(host, settings()[:2], Evaluation(samples=2, max_new_tokens=2))
    assert next(job) == Progress("table", 0, 2, "base")
    job.close()
