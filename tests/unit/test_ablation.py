"""The edit of one matrix, against the definition written out in float64."""

import pytest
import torch

from sst_ui.maths.ablation import (
    FLOOR,
    edit_bias,
    edit_weight,
    norm_scale,
    orthonormalise,
    project,
)

STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 1.7, 2.0)


@pytest.fixture
def noise():
    return torch.Generator().manual_seed(3)


@pytest.fixture(params=[(1, 16, 24), (3, 16, 24), (2, 16, 16), (1, 16, 5)], ids=str)
def case(request, noise):
    """(W [out, in], R [k, out]) in float64."""
    k, rows, columns = request.param
    weight = torch.randn(rows, columns, generator=noise, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(rows, k, generator=noise, dtype=torch.float64)).Q.T
    return weight, basis.contiguous()


def test_orthonormal_rows_keep_the_main_direction_and_the_span(noise):
    vectors = torch.randn(4, 12, generator=noise)
    rows = orthonormalise(vectors)
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    assert torch.allclose(rows[0], vectors[0] / vectors[0].norm(), atol=1e-6)
    assert torch.linalg.matrix_rank(torch.cat([rows, vectors])) == 4


def test_dependent_and_zero_rows_become_zero_and_project_nothing(noise):
    first = torch.randn(12, generator=noise)
    rows = orthonormalise(torch.stack([first, -2 * first, torch.zeros(12)]))
    assert torch.equal(rows[1:], torch.zeros(2, 12))
    values = torch.randn(5, 12, generator=noise)
    expected = values - 0.5 * torch.outer(values @ rows[0], rows[0])
    assert torch.allclose(project(values, rows, 0.5), expected, atol=1e-6)


def test_strength_zero_changes_no_bit(case):
    weight, basis = case
    assert torch.equal(edit_weight(weight, basis, 0.0), weight)
    assert torch.equal(edit_weight(weight, basis, 0.0, norm_preserving=True), weight)


@pytest.mark.parametrize("alpha", STRENGTHS)
def test_the_matrix_is_projected_on_the_side_of_the_residual_stream(case, alpha):
    weight, basis = case
    projector = torch.eye(16, dtype=torch.float64) - alpha * basis.T @ basis
    assert torch.allclose(edit_weight(weight, basis, alpha), projector @ weight)


@pytest.mark.parametrize("alpha", STRENGTHS)
def test_keeping_column_norms_keeps_each_of_them(case, alpha):
    weight, basis = case
    edited = edit_weight(weight, basis, alpha, norm_preserving=True)
    assert torch.allclose(edited.norm(dim=0), weight.norm(dim=0))


@pytest.mark.parametrize("norm_preserving", [False, True])
@pytest.mark.parametrize("alpha", STRENGTHS)
def test_what_is_left_along_the_direction_follows_the_strength(case, alpha, norm_preserving):
    weight, basis = case
    along = basis @ weight
    share = (along / weight.norm(dim=0)).square().sum(0)
    scale = (1 - alpha * (2 - alpha) * share) ** -0.5 if norm_preserving else torch.ones(1).double()
    edited = edit_weight(weight, basis, alpha, norm_preserving)
    assert torch.allclose(basis @ edited, (1 - alpha) * along * scale, atol=1e-12)


def test_every_direction_may_have_its_own_strength(case):
    weight, basis = case
    alpha = torch.linspace(0.3, 1.6, len(basis), dtype=torch.float64)
    expected = weight - basis.T @ torch.diag(alpha) @ basis @ weight
    assert torch.allclose(edit_weight(weight, basis, alpha), expected)
    kept = edit_weight(weight, basis, alpha, norm_preserving=True)
    assert torch.allclose(kept, expected * (weight.norm(dim=0) / expected.norm(dim=0)))


def test_a_reflection_needs_no_scale_and_undoes_itself(case):
    weight, basis = case
    scale, clamped = norm_scale(basis @ weight, weight.norm(dim=0), 2.0)
    assert torch.allclose(scale, torch.ones_like(scale))
    assert clamped == 0
    assert torch.allclose(edit_weight(edit_weight(weight, basis, 2.0), basis, 2.0), weight)


def test_a_column_along_the_direction_is_clamped_and_counted(case):
    weight, basis = case
    weight = weight.clone()
    weight[:, 1] = 3 * basis[0]
    scale, clamped = norm_scale(basis @ weight, weight.norm(dim=0), 1.0)
    assert clamped == 1
    assert scale[1] == pytest.approx(FLOOR**-0.5)
    assert edit_weight(weight, basis, 1.0, norm_preserving=True).isfinite().all()


def test_an_empty_column_stays_empty(case):
    weight, basis = case
    weight = weight.clone()
    weight[:, 0] = 0
    edited = edit_weight(weight.float(), basis, 1.0, norm_preserving=True)
    assert torch.equal(edited[:, 0], torch.zeros(16))


def test_the_bias_is_part_of_what_is_written(case, noise):
    weight, basis = case
    bias = torch.randn(16, generator=noise, dtype=torch.float64)
    x = torch.randn(weight.shape[1], generator=noise, dtype=torch.float64)
    edited = edit_weight(weight, basis, 0.7) @ x + edit_bias(bias, basis, 0.7)
    assert torch.allclose(edited, project(weight @ x + bias, basis, 0.7))


def test_half_precision_is_computed_in_single(case):
    weight, basis = case
    half = weight.bfloat16()
    expected = edit_weight(half.float(), basis, 0.5).bfloat16()
    assert torch.equal(edit_weight(half, basis, 0.5), expected)
    assert edit_weight(half, basis, 0.5, norm_preserving=True).dtype == torch.bfloat16
