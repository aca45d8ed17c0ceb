"""The map of residuals against a plain singular value decomposition."""

import numpy as np
import pytest

from sst_ui.maths.residual_plane import plane


@pytest.fixture
def drawn():
    """Two clouds whose means lie along one axis, and which are widest along another."""
    draw = np.random.default_rng(4)
    spread = np.array([0.5, 3.0, 1.0, 0.2, 0.1])
    shift = np.array([4.0, 0.0, 0.0, 0.0, 0.0])
    return shift + spread * draw.normal(size=(40, 5)), spread * draw.normal(size=(30, 5)) + 7.0


def test_the_first_component_is_the_projection_on_the_direction(drawn):
    harmful, harmless = drawn
    direction = np.array([2.0, 0.0, 1.0, 0.0, 0.0])
    found = plane(harmful, harmless, direction)
    unit = direction / np.sqrt(5)
    assert np.allclose(found.harmful[:, 0], (harmful - harmless.mean(0)) @ unit)
    assert np.allclose(found.means[1], 0), "the harmless mean is the origin"
    assert np.allclose(found.means[0], found.harmful.mean(0))


def test_the_second_is_the_widest_axis_among_those_at_right_angles_to_it(drawn):
    harmful, harmless = drawn
    direction = np.array([1.0, 1.0, 0.0, 0.0, 0.0])  # not the widest itself, and not beside it
    found = plane(harmful, harmless, direction)
    every = np.concatenate([harmful, harmless])
    basis = np.linalg.qr(np.column_stack([direction, np.eye(5)[:, 1:]]))[0][:, 1:]  # [5, 4]
    beside = (every - every.mean(0)) @ basis
    _, values, axes = np.linalg.svd(beside, full_matrices=False)
    mine = np.concatenate([found.harmful, found.harmless])[:, 1]
    assert np.isclose(((mine - mine.mean()) ** 2).sum(), values[0] ** 2)
    assert abs(np.corrcoef(mine, beside @ axes[0])[0, 1]) > 1 - 1e-9
    total = ((every - every.mean(0)) ** 2).sum()
    first = ((every - every.mean(0)) @ direction / np.sqrt(2)) ** 2
    assert np.isclose(found.shown, (values[0] ** 2 + first.sum()) / total)


def test_the_picture_does_not_turn_over_with_the_order_of_the_prompts(drawn):
    harmful, harmless = drawn
    direction = np.eye(5)[0]
    found, again = plane(harmful, harmless, direction), plane(harmful[::-1], harmless, direction)
    assert np.allclose(found.harmful, again.harmful[::-1])


def test_residuals_that_differ_along_the_direction_alone_have_no_second_component():
    direction = np.array([0.6, 0.8, 0.0])
    found = plane(np.outer([2.0, 3.0], direction), np.outer([0.0, 1.0], direction), direction)
    assert np.allclose(found.harmful, [[1.5, 0], [2.5, 0]])
    assert np.isclose(found.shown, 1)


@pytest.mark.parametrize(
    ("harmful", "direction"), [(np.ones((0, 3)), np.ones(3)), (np.ones((2, 3)), np.zeros(3)),
                               (np.ones((2, 3)), np.ones(4))],
)  # fmt: skip
def test_what_has_no_picture_is_an_error(harmful, direction):
    with pytest.raises(ValueError, match="direction"):
        plane(harmful, np.ones((2, 3)), direction)
