"""The filter's maths against dense float64 computations of our own, from the samples themselves."""

import numpy as np
import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.maths import filtered
from sst_ui.maths.filtered import Moments, Sketch, Stack, path, random_columns

INP, OUT = 24, 10


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


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
        y, n = self.along(x), len(x)
        second, cross = x.mT @ x / n, x.mT @ y / n
        return Moments(second, x.mean(0), cross, y.mean(0), y.square().mean(0), n)

    def path(self, ridge=1e-6, affine=False):
        return path(self.moments(self.harmful), [(self.moments(self.harmless), 1.0)], ridge, affine)


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
    both = sum(w * m.inputs for m, w in sets)
    sigma, cross = case.moments(case.harmful).inputs, case.moments(case.harmful).cross
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


def sketched(x, seed=0):
    """The sketch of samples, and the whole second moment."""
    whole = x.mT @ x / len(x)
    omega = random_columns(x.shape[1], seed)
    return Sketch((whole @ omega.double()).float(), omega, float(whole.trace())), whole


def decaying(n, width, rank, seed):
    """Samples with a few strong directions, many weak ones and a floor."""
    basis = torch.linalg.qr(draw(width, rank, seed=seed)).Q
    sizes = torch.logspace(0.5, -1.5, rank).double()
    return draw(n, rank, seed=seed + 1) * sizes @ basis.mT + 1e-3 * draw(n, width, seed=seed + 2)


def test_a_sketch_keeps_the_trace_and_the_strong_directions():
    x = decaying(500, 600, 100, 30)
    sketch, whole = sketched(x)
    left, values, rest = sketch.parts()
    dense = left * (values - rest) @ left.mT + rest * torch.eye(600).double()
    assert float(dense.trace()) == pytest.approx(float(whole.trace()), rel=1e-3)
    assert torch.linalg.matrix_norm(dense - whole, 2) < 1e-3 * torch.linalg.matrix_norm(whole, 2)


def test_a_sketch_of_nothing_is_nothing():
    _, values, rest = sketched(torch.zeros(5, 300).double())[0].parts()
    assert len(values) == 0
    assert rest == 0


@pytest.mark.parametrize("mu", [0.01, 1.0, 100.0])
def test_wide_inputs_are_solved_from_sketches_nearly_as_well_as_from_whole_moments(mu):
    width, rows = 600, torch.linalg.qr(draw(OUT, 1, seed=40)).Q.mT
    weight = draw(OUT, width, seed=41)
    sets, exact = [], []
    for x in (decaying(150, width, 100, 50), decaying(2000, width, 120, 60)):
        sketch, whole = sketched(x)
        y = x @ weight.mT @ rows.mT
        rest = (x.mean(0), x.mT @ y / len(x), y.mean(0), y.square().mean(0), len(x))
        sets.append(Moments(sketch, *rest))
        exact.append(Moments(whole, *rest))
    wide = path(sets[0], [(sets[1], 1.0)], 1e-3)
    whole = path(exact[0], [(exact[1], 1.0)], 1e-3)

    def loss(row):  # the objective, on the whole moments
        left = exact[0].squares[0] - 2 * row @ exact[0].cross[:, 0] + row @ exact[0].inputs @ row
        ridge = 1e-3 * exact[0].inputs.diagonal().mean() * row.square().sum()
        return float(left + mu * row @ exact[1].inputs @ row + ridge)

    assert loss(wide.rows(mu)[0]) < 1.05 * loss(whole.rows(mu)[0])
    assert wide.modes.shape[1] <= 2 * filtered.SKETCH + 2  # bounded, whatever the width
    assert wide.removed(mu, 1.0) == pytest.approx(whole.removed(mu, 1.0), abs=0.01)
