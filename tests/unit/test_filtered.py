"""The filter's maths against dense float64 computations of our own, from the samples themselves."""

import numpy as np
import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.maths import filtered
from sst_ui.maths.filtered import Moments, Stack, packed, path, random_columns, subspace

INP, OUT = 24, 10


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def taken(x, y):
    """The moments of inputs [tokens, n] and of what is written along the directions [tokens, k]."""
    second, cross = packed(x.mT @ x / len(x)), x.mT @ y / len(x)
    return Moments(second, x.mean(0), cross, y.mean(0), y.square().mean(0), len(x))


class Case:
    """A writer, two sets of inputs and k directions, as plain numbers."""

    def __init__(self, k=1, harmful=60, harmless=200, bias=True):
        mixed = draw(INP, INP, seed=1) / INP**0.5
        self.harmful = draw(harmful, INP, seed=2) @ mixed + draw(INP, seed=3)
        self.harmless = draw(harmless, INP, seed=4) @ mixed.mT + 0.3 * draw(INP, seed=5)
        self.weight = draw(OUT, INP, seed=6)
        self.bias = draw(OUT, seed=7) * bias
        self.rows = torch.linalg.qr(draw(OUT, k, seed=8)).Q.mT  # [k, out]

    def along(self, x):
        return (x @ self.weight.mT + self.bias) @ self.rows.mT

    def moments(self, x):
        return taken(x, self.along(x))

    def path(self, ridge=1e-6, affine=False, share=None):
        harmless = [(self.moments(self.harmless), 1.0)]
        return path(self.moments(self.harmful), harmless, ridge, affine, share=share)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("mu", [0.0, 0.3, 50.0])
def test_the_rows_solve_the_least_squares_problem(k, affine, mu):
    case, ridge = Case(k), 1e-3
    found = case.path(ridge, affine).rows(mu).numpy()
    x, s = case.harmful.numpy(), case.harmless.numpy()
    y = case.along(case.harmful).numpy()
    centre = case.along(case.harmless).numpy().mean(0) if affine else 0.0
    epsilon = ridge * np.square(x).mean()
    # one tall least-squares problem: harmful rows, harmless rows priced μ, the ridge
    tall = np.vstack([x / len(x) ** 0.5, (mu / len(s)) ** 0.5 * s, epsilon**0.5 * np.eye(INP)])
    wanted = np.vstack([(y - centre) / len(x) ** 0.5, np.zeros((len(s) + INP, k))])
    expected = np.linalg.lstsq(tall, wanted, rcond=None)[0].T
    assert np.allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_with_white_inputs_and_no_price_it_is_the_plain_ablation():
    case = Case(k=2, bias=False)
    n = len(case.harmful)
    case.harmful = torch.linalg.qr(draw(n, INP, seed=9)).Q * n**0.5  # E[x xᵀ] = 1
    found = case.path(ridge=1e-9).rows(0.0)
    assert torch.allclose(found, case.rows @ case.weight, atol=1e-7)


def test_a_high_price_leaves_whatever_harmless_inputs_span():
    case = Case()
    span = torch.linalg.qr(draw(INP, 6, seed=10)).Q
    case.harmless = draw(200, 6, seed=11) @ span.mT
    row = case.path().rows(1e11)[0]
    assert (case.harmless @ row).abs().max() < 1e-6 * row.norm()
    # the rest of the space still serves: much of the harmful component goes
    left = case.along(case.harmful)[:, 0] - case.harmful @ row
    assert left.square().mean() < 0.5 * case.along(case.harmful).square().mean()


@pytest.mark.parametrize("k", [1, 3])
def test_the_change_has_as_many_ranks_as_directions_and_writes_along_them_alone(k):
    case = Case(k)
    change = -case.rows.mT @ case.path().rows(1.0)
    assert torch.linalg.matrix_rank(change) == k
    outside = change - case.rows.mT @ case.rows @ change
    assert outside.abs().max() < 1e-10 * change.abs().max()


@pytest.mark.parametrize("alpha", [1.0, 0.6, -1.0, 2.0])
@pytest.mark.parametrize("affine", [False, True])
def test_what_is_predicted_is_what_the_samples_show(alpha, affine):
    case, mu = Case(k=2), 0.7
    found = case.path(ridge=1e-9, affine=affine)
    rows = found.rows(mu)
    before = case.along(case.harmful) - found.centre
    after = before - alpha * case.harmful @ rows.mT
    gone = 1 - float(after.square().sum() / before.square().sum())
    assert found.removed(mu, alpha) == pytest.approx(gone, abs=1e-6)
    moved = (alpha * case.harmless @ rows.mT).square().sum(1).mean()
    assert found.moved(mu, alpha) == pytest.approx(float(moved), rel=1e-8)
    assert found.plain == pytest.approx(float(case.along(case.harmless).square().sum(1).mean()))


def test_the_ridge_never_promises_more_than_the_samples_show():
    case = Case(harmful=15)  # fewer samples than inputs
    for ridge in (1e-6, 1e-2, 0.5):
        found = case.path(ridge)
        before = case.along(case.harmful)
        after = before - case.harmful @ found.rows(0.1).mT
        gone = 1 - float(after.square().sum() / before.square().sum())
        assert found.removed(0.1, 1.0) <= gone + 1e-9


def test_an_affine_filter_puts_what_is_written_where_harmless_prompts_have_it():
    case = Case(harmful=10)  # so few that all of them can be fitted exactly
    row = case.path(ridge=1e-9, affine=True).rows(0.0)
    after = case.along(case.harmful) - case.harmful @ row.mT
    neutral = case.along(case.harmless).mean(0)
    assert torch.allclose(after, neutral.expand_as(after), atol=1e-4)


def test_lookalikes_count_with_their_weight():
    case, other = Case(), Case()
    other.harmless = case.harmless + draw(INP, seed=20)
    sets = [(case.moments(case.harmless), 1.0), (case.moments(other.harmless), 2.5)]
    found = path(case.moments(case.harmful), sets, 1e-3).rows(0.8)
    both = sum(w * m.second() for m, w in sets)
    sigma, cross = case.moments(case.harmful).second(), case.moments(case.harmful).cross
    ridge = 1e-3 * sigma.diagonal().mean() * torch.eye(INP).double()
    expected = torch.linalg.solve(sigma + 0.8 * both + ridge, cross).mT
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_a_price_takes_harmless_energy_away_and_then_harmful_component():
    found, last = Case().path(), (1.1, float("inf"))
    for mu in (0.0, 0.1, 1.0, 10.0, 1e4):
        now = (found.removed(mu, 1.0), found.moved(mu, 1.0))
        assert now[0] < last[0]
        assert now[1] < last[1]
        last = now


def test_a_budget_chooses_the_lowest_price_that_keeps_it():
    cases = [Case().path(), Case(k=1, harmful=40).path()]
    stack = Stack(cases, [1.0, 0.5])
    for budget in (0.3, 0.01, 1e-4):
        mu = stack.price(budget)
        moved = sum(a**2 * p.moved(mu, 1.0) for p, a in zip(cases, (1.0, 0.5), strict=True))
        plain = sum(a**2 * p.plain for p, a in zip(cases, (1.0, 0.5), strict=True))
        assert stack.moved(mu) == pytest.approx(moved / plain, rel=1e-9)
        assert stack.moved(mu) <= budget
        assert stack.moved(mu * 0.99) > budget


def test_a_budget_that_any_filter_keeps_costs_nothing():
    assert Stack([Case().path()], [1e-3]).price(1.0) in (
        0.0,
        Stack([Case().path()], [1.0]).price(1),
    )


def test_inputs_that_are_not_finite_are_refused():
    case = Case()
    case.harmful[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        case.path()


def hardly_used(harmless, share):
    """[in, m]: directions of the smallest energy, one by one while they hold no more of it all."""
    axes = np.linalg.svd(harmless.numpy(), full_matrices=True)[2][::-1]
    kept, held = [], 0.0
    for axis in axes:
        held += float(np.square(harmless.numpy() @ axis).sum())
        if held > share * float(np.square(harmless.numpy()).sum()):
            break
        kept.append(axis)
    return np.stack(kept, axis=1)


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("mu", [0.0, 2.0])
@pytest.mark.parametrize("affine", [False, True])
def test_in_a_null_space_the_rows_solve_the_least_squares_problem_bound_to_it(share, mu, affine):
    case, ridge = Case(2), 1e-3
    found = case.path(ridge, affine, share).rows(mu).numpy()
    x, s = case.harmful.numpy(), case.harmless.numpy()
    null = hardly_used(case.harmless, share)
    assert 0 < null.shape[1] < INP
    y = case.along(case.harmful).numpy()
    centre = case.along(case.harmless).numpy().mean(0) if affine else 0.0
    epsilon = ridge * np.square(x).mean()
    tall = np.vstack([x / len(x) ** 0.5, (mu / len(s)) ** 0.5 * s, epsilon**0.5 * np.eye(INP)])
    wanted = np.vstack([(y - centre) / len(x) ** 0.5, np.zeros((len(s) + INP, 2))])
    expected = (null @ np.linalg.lstsq(tall @ null, wanted, rcond=None)[0]).T
    assert np.allclose(found, expected, rtol=1e-7, atol=1e-9)
    # what it reads of harmless inputs is no more than their share
    assert np.square(s @ null @ null.T).sum() <= share * np.square(s).sum()


def test_with_white_inputs_a_null_space_projects_what_the_plain_ablation_reads():
    case = Case(k=2, bias=False)
    n = len(case.harmful)
    case.harmful = torch.linalg.qr(draw(n, INP, seed=9)).Q * n**0.5  # E[x xᵀ] = 1
    null = hardly_used(case.harmless, 0.1)
    expected = (case.rows @ case.weight).numpy() @ null @ null.T  # (P Wᵀ r̂)ᵀ
    found = case.path(ridge=1e-9, share=0.1).rows(0.0).numpy()
    assert np.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("alpha", [1.0, -0.7])
def test_what_is_predicted_in_a_null_space_is_what_the_samples_show(alpha):
    case, mu = Case(k=2), 0.7
    found = case.path(ridge=1e-9, share=0.2)
    rows, before = found.rows(mu), case.along(case.harmful)
    after = before - alpha * case.harmful @ rows.mT
    gone = 1 - float(after.square().sum() / before.square().sum())
    assert found.removed(mu, alpha) == pytest.approx(gone, abs=1e-6)
    moved = (alpha * case.harmless @ rows.mT).square().sum(1).mean()
    assert found.moved(mu, alpha) == pytest.approx(float(moved), rel=1e-7)
    assert moved < case.path(ridge=1e-9).moved(mu, alpha)


def test_what_harmless_prompts_do_not_use_is_a_null_space_of_any_share():
    case = Case()
    span = torch.linalg.qr(draw(INP, 6, seed=10)).Q
    case.harmless = draw(200, 6, seed=11) @ span.mT
    row = case.path(share=1e-9).rows(0.0)[0]
    assert (case.harmless @ row).abs().max() < 1e-6 * row.norm()
    assert torch.linalg.norm(row) > 0


def test_a_null_space_that_is_not_there_is_refused_with_what_to_change():
    with pytest.raises(UserError, match=r"1e-09.*larger filter\.null_space"):
        Case().path(share=1e-9)


def test_a_null_space_of_wide_inputs_lies_in_their_subspace():
    width, rows = 600, torch.linalg.qr(draw(OUT, 1, seed=40)).Q.mT
    weight = draw(OUT, width, seed=41)
    harmful = decaying(150, width, 200, 50) + 0.1 * draw(width, seed=45) / width**0.5
    harmless = decaying(2000, width, 200, 60)
    basis = subspace([sketch(harmful), sketch(harmless)])

    def moments(x):
        return taken(x @ basis.double(), x @ weight.mT @ rows.mT)

    found = path(moments(harmful), [(moments(harmless), 1.0)], 1e-3, basis=basis, share=0.01)
    row = found.rows(0.0)[0]
    assert torch.allclose(basis.double() @ (basis.double().mT @ row), row, atol=1e-5)
    moved = (harmless @ row).square().mean()
    assert found.moved(0.0, 1.0) == pytest.approx(float(moved), rel=1e-3)
    assert moved < 0.02 * float(harmless.square().sum(1).mean() * row.square().sum())


def decaying(n, width, rank, seed):
    """Samples whose energies fall as 1 / i² over `rank` directions."""
    basis = torch.linalg.qr(draw(width, rank, seed=seed)).Q
    sizes = 1 / torch.arange(1, rank + 1).double()
    return draw(n, rank, seed=seed + 1) * sizes @ basis.mT


def sketch(x):
    return (x.mT @ (x @ random_columns(x.shape[1]).double())).float()


def test_a_subspace_holds_few_inputs_completely_and_the_strongest_of_many():
    few, many = decaying(100, 600, 500, 50), decaying(3000, 600, 500, 60)
    basis = subspace([sketch(few), sketch(many)]).double()
    assert basis.shape[1] <= 2 * filtered.SKETCH  # bounded, whatever the width
    assert torch.allclose(basis.mT @ basis, torch.eye(basis.shape[1]).double(), atol=1e-5)
    for x, share in ((few, 1 - 1e-6), (many, 0.99)):
        assert (x @ basis).square().sum() >= share * x.square().sum()


@pytest.mark.parametrize("mu", [0.01, 1.0, 100.0])
def test_wide_inputs_are_solved_in_a_subspace_nearly_as_well_and_predicted_exactly(mu):
    width, rows = 600, torch.linalg.qr(draw(OUT, 1, seed=40)).Q.mT
    weight = draw(OUT, width, seed=41)
    harmful = decaying(150, width, 400, 50) + 0.1 * draw(width, seed=45) / width**0.5
    harmless = decaying(2000, width, 400, 50 if mu < 1 else 60)
    basis = subspace([sketch(harmful), sketch(harmless)])

    def moments(x, q):
        return taken(x if q is None else x @ q.double(), x @ weight.mT @ rows.mT)

    wide, whole = (
        path(moments(harmful, q), [(moments(harmless, q), 1.0)], 1e-3, basis=q)
        for q in (basis, None)
    )
    along = (harmful @ weight.mT @ rows.mT)[:, 0]
    losses = []
    for found in (wide, whole):
        row = found.rows(mu)[0]
        left = (along - harmful @ row).square().mean()
        moved = (harmless @ row).square().mean()
        ridge = 1e-3 * harmful.square().mean() * row.square().sum()
        losses.append(float(left + mu * moved + ridge))
        assert found.moved(mu, 1.0) == pytest.approx(float(moved), rel=1e-4)
        gone = 1 - float(left / along.square().mean())
        assert gone - 0.01 < found.removed(mu, 1.0) <= gone + 1e-6
    assert losses[1] <= losses[0] * (1 + 1e-6)
    assert losses[0] < losses[1] + 0.05 * float(along.square().mean())
