"""The safety subspace, against dense float64 algebra on the Fisher matrix written out in full."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.maths.merge.low_rank import Delta, core, zero
from sst_ui.maths.merge.subspace import (
    Moments,
    decompose,
    mu_for_budget,
    scaled,
    soft,
    top,
    total,
)

MUS = (1e-3, 0.1, 1.0, 10.0, 1e3)
SHAPES = [(7, 5), (5, 7), (30, 4), (3, 3)]  # (30, 4): an lm_head; (3, 3): ranks beyond the matrix


class Case:
    """Two deltas, and the tokens of two tasks: inputs x [T, in], gradients d [T, out]."""

    def __init__(self, out=7, inp=5, ranks=(2, 3), seed=0, tokens=60):
        draw = np.random.default_rng(seed)
        self.utility, self.safety = (
            Delta(
                torch.tensor(draw.normal(size=(out, r))), torch.tensor(draw.normal(size=(r, inp)))
            )
            for r in ranks
        )
        self.x, self.d = {}, {}
        for task, size in (("utility", 0.3), ("safety", 0.01)):  # refusals are certain
            self.x[task] = draw.normal(size=(tokens, inp)) @ draw.normal(size=(inp, inp))
            self.d[task] = size * draw.normal(size=(tokens, out)) @ draw.normal(size=(out, out))
        self.core = core(self.utility, self.safety)

    def moments(self, task, block=False, gradients=True):
        x, d = self.x[task] @ self.core.r.numpy(), self.d[task] @ self.core.u.numpy()
        n = len(x)
        e = np.einsum("ti,tj->tij", d, x).reshape(n, -1)
        return Moments(
            torch.tensor(x.T @ x / n),
            torch.tensor(d.T @ d / n) if gradients else None,
            n,
            torch.tensor(e.T @ e / n) if block else None,
        )

    def spectrum(self, mode="kfac", damping=0.0, target="additive", gradients=True):
        pair = [self.moments(t, mode == "block", gradients) for t in ("safety", "utility")]
        return decompose(self.core, *pair, target=target, mode=mode, damping=damping)

    def fishers(self, mode="kfac", damping=0.0):
        """Dense (normalised F_S, damped F_U, raw F_S, raw F_U) of the flattened core, [qp, qp]."""
        s, u = self.moments("safety", True), self.moments("utility", True)
        ratio = np.trace(u.g.numpy()) / np.trace(s.g.numpy())
        if mode == "block":
            raw_s, raw_u = s.block.numpy(), u.block.numpy()
            eta = damping * np.trace(raw_u) / len(raw_u)
            return ratio * raw_s, raw_u + eta * np.eye(len(raw_u)), raw_s, raw_u
        a, g = u.a.numpy(), u.g.numpy()
        p, q = len(a), len(g)
        pi = math.sqrt(np.trace(a) / np.trace(g) * q / p)
        eta = damping * math.sqrt(np.trace(a) * np.trace(g) / (p * q))
        damped = np.kron(g + eta / pi * np.eye(q), a + pi * eta * np.eye(p))
        raw_s = np.kron(s.g.numpy(), s.a.numpy())
        return ratio * raw_s, damped, raw_s, np.kron(g, a)

    def target(self, name="additive"):
        s, u = self.core.safety.numpy(), self.core.utility.numpy()
        return (s - u if name == "interpolating" else s).reshape(-1)


def flat(edit):
    return edit.numpy().reshape(-1)


@pytest.mark.parametrize("mode", ["kfac", "block"])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("target", ["additive", "interpolating"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_edit_is_the_minimiser_of_the_objective(mode, damping, target, shape):
    case = Case(*shape, tokens=400)
    spectrum = case.spectrum(mode, damping, target)
    f_s, f_u, _, _ = case.fishers(mode, damping)
    d = case.target(target)
    for mu in MUS:
        dense = np.linalg.solve(f_s + mu * f_u, f_s @ d)
        assert np.allclose(flat(spectrum.edit(soft(mu))), dense, rtol=1e-6, atol=1e-9)


def test_damping_a_block_is_the_ridge_of_the_objective():
    case, mu, damping = Case(tokens=400), 2.0, 0.05
    f_s, _, _, raw_u = case.fishers("block")
    rho = mu * damping * np.trace(raw_u) / len(raw_u)
    ridge = np.linalg.solve(f_s + mu * raw_u + rho * np.eye(len(raw_u)), f_s @ case.target())
    assert np.allclose(flat(case.spectrum("block", damping).edit(soft(mu))), ridge, atol=1e-9)


@pytest.mark.parametrize("mode", ["kfac", "block"])
def test_eigenvalues_and_directions_solve_the_generalised_problem(mode):
    case = Case(tokens=400)
    spectrum = case.spectrum(mode, 1e-3)
    f_s, f_u, _, _ = case.fishers(mode, 1e-3)
    expected = np.linalg.eigvals(np.linalg.solve(f_u, f_s)).real
    found = np.sort(spectrum.eigenvalues.numpy().reshape(-1))
    assert np.allclose(found, np.sort(expected), rtol=1e-6)
    v = np.kron(spectrum.left.numpy(), spectrum.right.numpy())
    assert np.allclose(v.T @ f_u @ v, np.eye(len(v)), atol=1e-8)
    assert np.allclose(spectrum.c.numpy().reshape(-1), v.T @ f_u @ case.target(), atol=1e-8)


@pytest.mark.parametrize("damping", [0.0, 0.02])
@pytest.mark.parametrize("gradients", [True, False])
def test_input_only_mode_is_its_closed_form(damping, gradients):
    case = Case(tokens=400)
    spectrum = case.spectrum("input", damping, gradients=gradients)
    a_s, a_u = (case.moments(t).a.numpy() for t in ("safety", "utility"))
    for mu in MUS:
        rho = mu * damping * np.trace(a_u) / len(a_u)
        inverse = np.linalg.inv(a_s + mu * a_u + rho * np.eye(len(a_u)))
        expected = case.core.safety.numpy() @ a_s @ inverse
        assert np.allclose(spectrum.edit(soft(mu)).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("mode", ["kfac", "block", "input"])
def test_without_a_price_on_utility_it_is_task_arithmetic_and_with_any_price_nothing(mode):
    case = Case(tokens=400)
    spectrum = case.spectrum(mode)
    d = case.target()
    assert np.allclose(flat(spectrum.edit(soft(1e-12))), d, atol=1e-6)
    assert np.allclose(flat(spectrum.edit(soft(0.0))), d, atol=1e-9)
    assert np.abs(flat(spectrum.edit(soft(1e12)))).max() < 1e-6
    assert not spectrum.edit(soft(math.inf)).any()


@pytest.mark.parametrize("mode", ["kfac", "block", "input"])
def test_two_tasks_with_one_fisher_share_the_edit_by_the_price(mode):
    case = Case(tokens=400)
    same = case.moments("utility", block=True)
    spectrum = decompose(case.core, same, same, mode=mode, damping=0.0)
    for mu in MUS:
        assert np.allclose(flat(spectrum.edit(soft(mu))), case.target() / (1 + mu), atol=1e-9)


@pytest.mark.parametrize("mode", ["kfac", "block", "input"])
def test_the_result_does_not_depend_on_how_the_adapters_are_factored(mode):
    case, other = Case(tokens=400), Case(tokens=400)
    draw = np.random.default_rng(9)
    for name in ("utility", "safety"):
        delta = getattr(case, name)
        mix = torch.tensor(draw.normal(size=(delta.rank, delta.rank)))
        setattr(other, name, Delta(delta.b @ mix.inverse(), mix @ delta.a))
    other.core = core(other.utility, other.safety)
    for g in (soft(1.0), top(3), top(2, rest=0.4)):
        edits = [c.core.u @ c.spectrum(mode, 1e-3).edit(g) @ c.core.r.T for c in (case, other)]
        assert torch.allclose(*edits, atol=1e-8)
        kls = [c.spectrum(mode, 1e-3).predicted_kl(g) for c in (case, other)]
        assert kls[0] == pytest.approx(kls[1])


@pytest.mark.parametrize("mode", ["kfac", "block", "input"])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_falls_with_the_price_and_rises_with_the_number_of_directions(mode, seed):
    spectrum = Case(seed=seed).spectrum(mode, 1e-3)
    by_mu = [spectrum.kept(soft(mu)) for mu in (0, *np.geomspace(1e-6, 1e6, 40))]
    assert by_mu[0] == pytest.approx(1)
    assert all(a > b for a, b in pairwise(by_mu))
    directions = spectrum.eigenvalues.numel()
    by_k = [spectrum.kept(top(k)) for k in range(directions + 1)]
    assert by_k[0] == 0
    assert by_k[-1] == pytest.approx(1)
    assert all(a <= b for a, b in pairwise(by_k))
    assert len(set(by_k)) > directions // 2  # k does something


def test_what_is_kept_is_the_share_of_the_effect_on_safety_data():
    case = Case()
    spectrum = case.spectrum("kfac", 1e-3)
    _, _, f_s, _ = case.fishers()
    d, e = case.target(), flat(spectrum.edit(soft(3.0)))
    assert spectrum.kept(soft(3.0)) == pytest.approx(math.sqrt((e @ f_s @ e) / (d @ f_s @ d)))
    assert spectrum.size(soft(3.0)) == pytest.approx(np.linalg.norm(e) / np.linalg.norm(d))


def test_the_first_k_directions_are_an_oblique_projection():
    case = Case()
    spectrum = case.spectrum("kfac", 1e-3)
    _, f_u, _, _ = case.fishers("kfac", 1e-3)
    v = np.kron(spectrum.left.numpy(), spectrum.right.numpy())
    order = np.argsort(-spectrum.eigenvalues.numpy().reshape(-1))
    for k in (1, 4, 9):
        kept = v[:, order[:k]]
        projector = kept @ kept.T @ f_u
        assert np.allclose(projector @ projector, projector, atol=1e-8)
        assert np.allclose(flat(spectrum.edit(top(k))), projector @ case.target(), atol=1e-8)
        mixed = 0.3 * case.target() + 0.7 * projector @ case.target()
        assert np.allclose(flat(spectrum.edit(top(k, rest=0.3))), mixed, atol=1e-8)


def residual(spectrum, g):
    """What one module leaves undone on safety data."""
    return total({"": spectrum}, g)[1]


@pytest.mark.parametrize("mode", ["kfac", "block", "input"])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_predictions_are_quadratic_forms_in_the_tasks_own_fisher(mode, damping):
    case = Case(tokens=400)
    spectrum = case.spectrum(mode, damping)
    _, _, f_s, f_u = case.fishers(mode)
    for g in (soft(0.5), top(4), scaled(soft(2.0), 1.7)):
        e = flat(spectrum.edit(g))
        assert spectrum.predicted_kl(g) == pytest.approx(0.5 * e @ f_u @ e)
        rest = e - case.target()
        assert residual(spectrum, g) == pytest.approx(0.5 * rest @ f_s @ rest)


def test_without_damping_the_predicted_kl_is_the_sum_over_directions():
    spectrum = Case(tokens=400).spectrum("kfac")
    g = soft(2.0)
    expected = 0.5 * float((g(spectrum.eigenvalues) * spectrum.c).square().sum())
    assert spectrum.predicted_kl(g) == pytest.approx(expected)


def test_the_prediction_in_the_core_is_the_one_of_the_whole_matrix():
    case = Case(7, 5)
    spectrum = case.spectrum("kfac", 1e-3)
    x, d = case.x["utility"], case.d["utility"]
    fisher = np.kron(d.T @ d, x.T @ x) / len(x) ** 2  # [out in, out in]
    edit = case.core.u @ spectrum.edit(soft(1.0)) @ case.core.r.T
    e = flat(edit)
    assert spectrum.predicted_kl(soft(1.0)) == pytest.approx(0.5 * e @ fisher @ e)


def test_the_unit_of_the_prediction_is_not_touched_by_normalising_the_gradients():
    case = Case()
    spectrum = case.spectrum("kfac", 1e-3)
    pair = [case.moments("safety"), case.moments("utility")]
    quieter = Moments(pair[0].a, pair[0].g * 1e-6, pair[0].n)
    other = decompose(case.core, quieter, pair[1])
    assert torch.allclose(other.edit(soft(1.0)), spectrum.edit(soft(1.0)), atol=1e-9)
    assert other.predicted_kl(soft(1.0)) == pytest.approx(spectrum.predicted_kl(soft(1.0)))
    assert residual(other, soft(1.0)) == pytest.approx(1e-6 * residual(spectrum, soft(1.0)))


@pytest.fixture
def model():
    """Three modules of a model, one of them an lm_head."""
    cases = {"q": Case(7, 5, seed=1), "down": Case(5, 7, seed=2), "lm_head": Case(30, 4, seed=3)}
    return {name: case.spectrum("kfac", 1e-3) for name, case in cases.items()}


def test_the_curve_is_the_sum_over_modules(model):
    weights = {"q": 0.5, "lm_head": 3.0}
    for mu in MUS:
        filters = {name: scaled(soft(mu), weights.get(name, 1.0)) for name in model}
        kls = [model[name].predicted_kl(g) for name, g in filters.items()]
        residuals = [residual(model[name], g) for name, g in filters.items()]
        kl, left, _ = total(model, soft(mu), weights)
        assert kl == pytest.approx(sum(kls))
        assert left == pytest.approx(sum(residuals))
    _, left, kept = total(model, soft(0.0))
    assert (left, kept) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    kl, _, kept = total(model, soft(math.inf))
    assert (kl, kept) == (0, 0)
    assert total({}, soft(1.0)) == (0, 0, 1)


def test_the_curve_falls_and_the_order_of_the_modules_does_not_matter(model):
    mus = np.geomspace(1e-3, 1e3, 30)
    curve = [total(model, soft(mu)) for mu in mus]
    for (kl, left, _), (dearer, more, _) in pairwise(reversed(curve)):
        assert dearer > kl
        assert more < left
    backwards = dict(reversed(model.items()))
    assert [total(backwards, soft(mu)) for mu in mus] == curve


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 0.99])
def test_the_price_is_the_smallest_within_the_budget(model, share):
    weights = {"lm_head": 2.0}
    budget = share * total(model, soft(0.0), weights)[0]
    mu = mu_for_budget(model, budget, weights)
    assert total(model, soft(mu), weights)[0] == pytest.approx(budget, rel=1e-6)
    assert total(model, soft(mu), weights)[0] <= budget
    assert mu_for_budget(dict(reversed(model.items())), budget, weights) == mu


def test_a_budget_above_the_whole_edit_keeps_it(model):
    assert mu_for_budget(model, 1.1 * total(model, soft(0.0))[0]) == 0


def test_a_budget_that_no_price_can_keep_is_refused(model):
    with pytest.raises(UserError, match="no price keeps the predicted KL within 1e-60"):
        mu_for_budget(model, 1e-60)


def test_a_module_that_only_one_adapter_has():
    case = Case()
    only_utility, only_safety = core(case.utility, None), core(None, case.safety)
    for joint, shape in ((only_utility, 2), (only_safety, 3)):
        eye = Moments(torch.eye(shape), torch.eye(shape), 9)
        spectrum = decompose(joint, eye, eye, damping=0.0)
        assert np.allclose(spectrum.edit(soft(1.0)), joint.safety / 2)
    assert spectrum.kept(soft(1.0)) == pytest.approx(0.5)


@pytest.mark.parametrize("mode", ["kfac", "block", "input"])
def test_rank_zero_is_an_empty_edit(mode):
    joint = core(zero(7, 5), zero(7, 5))
    empty = Moments(torch.zeros(0, 0), torch.zeros(0, 0), 5, torch.zeros(0, 0))
    spectrum = decompose(joint, empty, empty, mode=mode)
    for g in (soft(1.0), top(5)):
        assert spectrum.edit(g).shape == (0, 0)
        assert spectrum.predicted_kl(g) == 0
        assert (spectrum.kept(g), spectrum.size(g)) == (1, 1)


def test_a_module_the_utility_data_does_not_reach_is_edited_in_full():
    case = Case()
    silent = Moments(torch.zeros(5, 5), torch.zeros(5, 5), 60)
    spectrum = decompose(case.core, case.moments("safety"), silent)
    assert np.allclose(flat(spectrum.edit(soft(10.0))), case.target(), atol=1e-6)
    assert spectrum.predicted_kl(soft(10.0)) == 0


def test_a_module_the_safety_data_does_not_reach_is_left_alone():
    case = Case()
    silent = Moments(torch.zeros(5, 5), torch.zeros(5, 5), 60)
    spectrum = decompose(case.core, silent, case.moments("utility"))
    assert not spectrum.edit(soft(1e-3)).any()
    assert spectrum.kept(soft(1e-3)) == 0


def test_few_tokens_need_damping_and_the_message_says_so():
    case = Case(tokens=2)
    with pytest.raises(UserError, match=r"singular; give a damping above 0"):
        case.spectrum("kfac", damping=0.0)
    assert torch.isfinite(case.spectrum("kfac", damping=1e-3).edit(soft(1.0))).all()


def test_bad_input_is_named():
    case = Case()
    s, u = case.moments("safety", gradients=False), case.moments("utility")
    with pytest.raises(UserError, match=r"mode kfac needs g of the safety moments.*input"):
        decompose(case.core, s, u)
    with pytest.raises(UserError, match="mode block needs block"):
        decompose(case.core, u, u, mode="block")
    with pytest.raises(UserError, match="did you mean 'kfac'"):
        decompose(case.core, s, u, mode="kfak")
    with pytest.raises(UserError, match="did you mean 'additive'"):
        decompose(case.core, s, u, target="aditive")
    with pytest.raises(UserError, match="damping is -1"):
        decompose(case.core, s, u, damping=-1)
    with pytest.raises(UserError, match="hold no token"):
        decompose(case.core, u, Moments(u.a, u.g, 0))
    with pytest.raises(UserError, match="not finite"):
        decompose(case.core, Moments(u.a * math.nan, u.g, 5), u)
    with pytest.raises(ValueError, match=r"utility a is \[2, 2\]"):
        decompose(case.core, u, Moments(torch.eye(2), u.g, 5))
    for bad in (-1, math.nan):
        with pytest.raises(UserError, match="mu is"):
            soft(bad)
    with pytest.raises(UserError, match="k is -1"):
        top(-1)
    with pytest.raises(UserError, match="budget is 0"):
        mu_for_budget({}, 0)
    with pytest.raises(UserError, match="needs gradients"):
        mu_for_budget({"q": case.spectrum("input", 1e-3, gradients=False)}, 0.1)
    assert math.isnan(case.spectrum("input", 1e-3, gradients=False).predicted_kl(soft(1.0)))
