"""A setting is described once: every one has its words, and values are held to its range."""

from datetime import date

import pytest
import yaml

from sst_ui import options, schema
from sst_ui.errors import UserError
from sst_ui.paths import PRESETS
from sst_ui.recipe import DirectionSpec, Merge, WeightTable

EVERY = [row for kind in schema.parts().values() for row in schema.settings(kind).values()]


def test_every_setting_has_help_in_both_languages_and_nothing_else_has():
    words = yaml.safe_load((PRESETS / "settings.yaml").read_text(encoding="utf-8"))
    assert words.keys() == {row.name for row in EVERY}
    assert all(row.help("en") and row.help("ja") for row in EVERY)


@pytest.mark.parametrize("row", [r for r in EVERY if r.limits.slider], ids=lambda row: row.name)
def test_a_slider_stays_within_what_its_setting_takes(row):
    limits, slider = row.limits, row.slider
    assert slider.low >= (limits.low if limits.above is None else limits.above)
    assert slider.high <= (limits.high if limits.high is not None else slider.high)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WeightTable(peak=5), r"weights.peak is 5; it must be 0 to 1\."),
        (lambda: WeightTable(width=0), r"above 0 \(up to 1e\+06\), for example 0.15"),
        (lambda: WeightTable(modules={"mlp": 99.0}), r"weights.modules.mlp is 99.0; .* -32 to 32"),
        (lambda: WeightTable(curve=(0.0, 9.0)), r"weights.curve\[1\] is 9.0; it must be -4 to 4"),
        (lambda: WeightTable(overrides={"mlp": {3: 9.0}}), r"weights.overrides.mlp.3 is 9.0"),
        (lambda: WeightTable(overrides={"mlp": {-1: 0.0}}), r"a key of .*mlp is -1; .* 0 to 10000"),
        (lambda: DirectionSpec(k=1.5), r"directions.k is 1.5; it must be a whole number"),
        (lambda: DirectionSpec(samples=1), r"directions.samples is 1; it must be 2 or more"),
        (lambda: DirectionSpec(estimator="projekted"), r"did you mean 'projected'"),
        (lambda: Merge("a", "b", budget=float("inf")), r"budget is inf; .* above 0 nats/token"),
        (lambda: options.ChatOptions(temperature=float("nan")), r"temperature is nan; .* 0 to 2"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_can(make, words):
    with pytest.raises(UserError, match=words):
        make()


STRANGE = {  # what Python or pydantic would take for a value of the type
    bool: [1, "yes", 0.0],
    str: [1, b"text", "a\0b", "\ud800", date(2024, 12, 24)],
    int: [True, b"1", 1.5, "1.5", 10**400, float("inf"), float("nan"), date(2024, 12, 24)],
    float: [True, b"1", "one", 10**400, "1e999", float("nan"), date(2024, 12, 24)],
}


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.name)
def test_no_setting_takes_for_its_own_what_only_looks_alike(row):
    for value in [{1}, {"refusal_rate"}] if row.several else STRANGE[row.limits.kind]:
        with pytest.raises(UserError, match=f"^{row.name} "):
            row.check(value)
