"""Low-rank deltas and their common core space, against numpy on the dense matrices."""

import numpy as np
import pytest
import torch

from sst_ui.maths.merge.low_rank import Delta, concat, core, truncate, zero

SHAPES = [(12, 9), (9, 12), (40, 6), (6, 40), (3, 4)]  # (40, 6): an lm_head; (3, 4): ranks too big


@pytest.fixture
def noise():
    return torch.Generator().manual_seed(5)


def random(noise, out, inp, rank, dtype=torch.float64):
    return Delta(
        torch.randn(out, rank, generator=noise, dtype=dtype),
        torch.randn(rank, inp, generator=noise, dtype=dtype),
    )


def dense(delta):
    return delta.b.double().numpy() @ delta.a.double().numpy()


def orthonormal(columns, atol=1e-12):
    gram = columns.double().T @ columns.double()
    return torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_deltas_come_back_exactly_from_the_core(noise, shape):
    utility, safety = random(noise, *shape, 2), random(noise, *shape, 3)
    joint = core(utility, safety)
    assert orthonormal(joint.u)
    assert orthonormal(joint.r)
    columns = np.hstack([dense(utility), dense(safety)])
    rows = np.vstack([dense(utility), dense(safety)])
    assert joint.q == np.linalg.matrix_rank(columns)
    assert joint.p == np.linalg.matrix_rank(rows)
    for c, delta in ((joint.utility, utility), (joint.safety, safety)):
        assert np.allclose(joint.u @ c @ joint.r.T, dense(delta), atol=1e-12)


def test_float32_factors_come_back_as_float32_and_as_close(noise):
    utility, safety = (random(noise, 30, 20, r, torch.float32) for r in (4, 2))
    joint = core(utility, safety)
    delta, error = joint.delta(joint.utility + joint.safety)
    assert delta.b.dtype == delta.a.dtype == torch.float32
    assert error == 0
    assert np.allclose(dense(delta), dense(utility) + dense(safety), atol=2e-5)


def test_the_core_space_does_not_depend_on_how_the_deltas_are_factored(noise):
    utility, safety = random(noise, 12, 9, 2), random(noise, 12, 9, 3)
    mix = torch.randn(3, 3, generator=noise, dtype=torch.float64)
    other = core(utility, Delta(safety.b @ mix.inverse(), mix @ safety.a))
    joint = core(utility, safety)
    assert torch.allclose(other.u @ other.u.T, joint.u @ joint.u.T, atol=1e-9)
    assert torch.allclose(other.r @ other.r.T, joint.r @ joint.r.T, atol=1e-9)


def test_directions_in_which_neither_delta_acts_are_not_in_the_core(noise):
    delta = random(noise, 12, 9, 2)
    twice = Delta(torch.cat([delta.b, delta.b], 1), torch.cat([delta.a, delta.a]))
    joint = core(delta, twice)  # the same space twice, and a factor of rank 4 that holds rank 2
    assert (joint.q, joint.p) == (2, 2)
    fresh = core(delta, Delta(torch.zeros(12, 5), torch.randn(5, 9, generator=noise)))
    assert (fresh.q, fresh.p) == (2, 2)  # an untrained adapter: b is zero


def test_a_missing_adapter_is_the_zero_delta(noise):
    delta = random(noise, 12, 9, 2)
    for joint, there, missing in (
        (core(delta, None), "utility", "safety"),
        (core(None, delta), "safety", "utility"),
    ):
        c = getattr(joint, there)
        assert np.allclose(joint.u @ c @ joint.r.T, dense(delta), atol=1e-12)
        assert not getattr(joint, missing).any()
        assert sorted(joint.ranks) == [0, 2]
    with pytest.raises(ValueError, match="at least one"):
        core(None, None)


def test_deltas_of_rank_zero_have_an_empty_core_and_a_zero_sum(noise):
    joint = core(zero(12, 9), zero(12, 9))
    assert (joint.q, joint.p) == (0, 0)
    delta, error = joint.delta(joint.utility)
    assert (delta.rank, error) == (0, 0)
    assert torch.equal(delta.dense(), torch.zeros(12, 9))
    assert concat([delta, random(noise, 12, 9, 2, torch.float32)]).rank == 2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_truncation_is_the_best_there_is_and_says_its_error_exactly(noise, shape, rank):
    matrix = torch.randn(*shape, generator=noise, dtype=torch.float64)
    left, right, error = truncate(matrix, rank)
    sigma = np.linalg.svd(matrix.numpy(), compute_uv=False)
    assert left.shape[1] == right.shape[0] == min(rank, *shape)
    assert error == pytest.approx(np.sqrt((sigma[rank:] ** 2).sum()), abs=1e-12)
    assert np.linalg.norm(matrix.numpy() - (left @ right).numpy()) == pytest.approx(
        error, abs=1e-12
    )


def test_without_a_rank_only_rounding_is_dropped(noise):
    delta = random(noise, 12, 9, 4)
    left, right, error = truncate(delta.dense())
    assert (left.shape[1], error) == (4, 0)
    assert torch.allclose(left @ right, delta.dense(), atol=1e-12)


def test_truncating_a_core_truncates_the_delta_itself(noise):
    joint = core(random(noise, 30, 20, 3), random(noise, 30, 20, 4))
    total = joint.u @ (joint.utility + joint.safety) @ joint.r.T
    delta, error = joint.delta(joint.utility + joint.safety, rank=2)
    sigma = np.linalg.svd(total.numpy(), compute_uv=False)
    assert error == pytest.approx(np.sqrt((sigma[2:] ** 2).sum()))
    assert np.linalg.norm(total.numpy() - dense(delta)) == pytest.approx(error)


def test_a_big_dense_matrix_is_truncated_fast_with_a_true_error_and_no_trace_in_the_seed(noise):
    matrix = torch.randn(1100, 1030, generator=noise)
    matrix += 20 * random(noise, 1100, 1030, 3, torch.float32).dense()
    torch.manual_seed(1)
    expected_draw = torch.rand(1)
    torch.manual_seed(1)
    left, right, error = truncate(matrix, 8)
    assert torch.equal(torch.rand(1), expected_draw)
    apart = np.linalg.norm(matrix.double().numpy() - (left @ right).numpy())
    assert error == pytest.approx(apart)
    sigma = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    best = np.sqrt((sigma[8:] ** 2).sum())
    assert best <= error <= 1.01 * best


def test_a_sum_of_deltas_is_exact_and_ranks_add_up(noise):
    deltas = [random(noise, 12, 9, r) for r in (1, 2, 3)]
    total = concat(deltas)
    assert total.rank == 6
    assert np.allclose(dense(total), sum(dense(d) for d in deltas), atol=1e-12)
    with pytest.raises(ValueError, match="several shapes"):
        concat([*deltas, random(noise, 9, 12, 1)])
    with pytest.raises(ValueError, match="nothing"):
        concat([])


def test_the_norm_of_a_delta_needs_no_dense_matrix(noise):
    delta = random(noise, 12, 9, 3)
    assert delta.norm() == pytest.approx(np.linalg.norm(dense(delta)))
    assert zero(12, 9).norm() == 0


def test_factors_that_do_not_fit_are_named(noise):
    with pytest.raises(ValueError, match=r"\[12, 3\] and a \[2, 9\]"):
        Delta(torch.zeros(12, 3), torch.zeros(2, 9))
    with pytest.raises(ValueError, match="utility delta is"):
        core(random(noise, 12, 9, 2), random(noise, 9, 12, 2))
    with pytest.raises(ValueError, match="rank"):
        truncate(torch.zeros(3, 3), -1)


def test_further_inputs_widen_the_core_and_change_no_delta():
    draw = torch.Generator().manual_seed(3)
    utility, safety = (
        Delta(torch.randn(9, 2, generator=draw), torch.randn(2, 12, generator=draw))
        for _ in range(2)
    )
    extra = torch.linalg.qr(torch.randn(12, 5, generator=draw)).Q
    wide = core(utility, safety, extra)
    assert wide.p == 9  # 2 + 2 of the deltas, 5 further ones
    for c, delta in ((wide.utility, utility), (wide.safety, safety)):
        dense = wide.u.double() @ c @ wide.r.double().T
        assert torch.allclose(dense, delta.dense().double(), atol=1e-5)
    assert torch.allclose(wide.r @ (wide.r.T @ extra), extra, atol=1e-5)  # they are spanned
