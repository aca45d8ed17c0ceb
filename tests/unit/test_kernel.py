"""The weight kernel does what its formula and its profiles say."""

import math

import numpy as np
import pytest

from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.recipe import WeightTable


def test_the_default_kernel_has_the_values_of_the_formula_at_32_layers():
    got = kernel.gaussian(32, 0.6, 0.15)
    for layer, value in ((0, 0.0003), (5, 0.0139), (10, 0.1808), (15, 0.7410), (19, 0.9963)):
        assert got[layer] == pytest.approx(value, abs=5e-5)
    for layer, value in ((20, 0.9557), (25, 0.3878), (30, 0.0495), (31, 0.0286)):
        assert got[layer] == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("default", 9, 28),
        ("early_focus", 3, 22),
        ("late_focus", 14, 31),
        ("narrow", 14, 23),
        ("broad", 0, 31),
    ],
)
def test_each_profile_edits_the_layers_its_formula_puts_above_the_threshold(name, first, last):
    active = np.flatnonzero(kernel.kernel(kernel.profile(name), 32))
    assert (active[0], active[-1]) == (first, last)
    assert len(active) == last - first + 1


def test_a_cell_is_strength_times_kernel_times_module_factor_unless_overridden():
    weights = WeightTable(
        strength=1.5, modules={"attention": 1.0, "mlp": 0.5}, overrides={"mlp": {6: -0.25}}
    )
    alpha = kernel.table(weights, 12)
    bell = math.exp(-((7 / 11 - 0.6) ** 2) / (2 * 0.15**2))
    assert alpha[7] == pytest.approx([1.5 * bell, 0.75 * bell])
    assert alpha[6, 1] == -0.25
    assert not alpha[0].any()


def test_a_custom_curve_replaces_the_gaussian():
    weights = WeightTable(profile="custom", curve=(0.0, 0.05, -0.5, 1.0), strength=2.0)
    assert kernel.table(weights, 4)[:, 0] == pytest.approx([0, 0, -1.0, 2.0])


def test_a_curve_of_the_wrong_length_names_both_lengths():
    with pytest.raises(UserError, match=r"3 values.*12 layers"):
        kernel.kernel(WeightTable(curve=(1.0, 1.0, 1.0)), 12)


def test_an_override_outside_the_model_is_an_error_not_a_silent_skip():
    with pytest.raises(UserError, match="layer 12"):
        kernel.table(WeightTable(overrides={"mlp": {12: 1.0}}), 12)


def test_a_misspelt_profile_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'narrow'"):
        kernel.profile("narow")


@pytest.mark.parametrize(("peak", "width"), [(0.6, 0.15), (0.35, 0.25), (0.8, 0.2)])
def test_suggest_finds_the_gaussian_that_made_the_signal(peak, width):
    noise = np.random.default_rng(0).normal(0, 0.02, 24)
    got = kernel.suggest(7.0 * kernel.gaussian(24, peak, width) + noise)
    assert got == pytest.approx((peak, width), abs=0.04)


def test_a_sharp_signal_still_gets_a_bell_that_reaches_its_neighbours():
    assert kernel.suggest(kernel.gaussian(24, 0.7, 0.03)) == pytest.approx((0.7, 0.15), abs=0.02)


def test_suggest_refuses_a_signal_without_evidence():
    with pytest.raises(UserError, match="measure"):
        kernel.suggest([0.0, float("nan"), 0.0])


def test_broad_warns_that_it_touches_the_first_quarter_and_default_does_not():
    assert "early" in dict(kernel.warnings(kernel.profile("broad"), 32))
    assert "early" not in dict(kernel.warnings(kernel.profile("default"), 32))
    assert "early" not in dict(kernel.warnings(kernel.profile("wide"), 32, filtered=True))
    strong = WeightTable(strength=2.0)
    assert "reflects" in dict(kernel.warnings(strong, 32))
    assert "reflects" not in dict(kernel.warnings(strong, 32, filtered=True))
    assert "empty" in dict(kernel.warnings(WeightTable(strength=0.0), 32))


@pytest.mark.parametrize(
    ("model", "billions", "expected"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5, (0.60, 0.15)),
        ("Qwen/Qwen2.5-7B-Instruct", 7.6, (0.55, 0.16)),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8, (0.55, 0.15)),
        ("meta-llama/Llama-3.1-8B-Instruct", 8, (0.55, 0.15)),
        ("mistralai/Mistral-7B-Instruct-v0.3", 7, (0.55, 0.15)),
        ("someone/tiny", 1.0, (0.575, 0.135)),
        ("someone/huge", 70, (0.55, 0.20)),
    ],
)
def test_a_model_gets_its_measured_kernel_or_the_one_for_its_size(model, billions, expected):
    assert kernel.recommended(model, int(billions * 1e9))[1:] == expected


def test_the_search_grid_has_25_points():
    assert len(set(kernel.grid())) == 25
