"""Directions and their estimators, on data where the truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths import directions as files
from sst_ui.maths.direction_estimators import estimate, whitened, winsorized
from sst_ui.maths.directions import Directions, random, signal
from sst_ui.recipe import DirectionSpec

LAYERS, HIDDEN = 4, 48
ESTIMATORS = ["mean_difference", "projected", "biprojected", "whitened"]


def planted(
    n: int = 80, size: float = 6.0, seed: int = 0, offset: float = 5.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(harmful, harmless, truth): Gaussian residuals around a common mean, one direction added."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(LAYERS, HIDDEN, generator=draw), dim=-1)
    mean = torch.randn(LAYERS, HIDDEN, generator=draw)
    # the truth is planted beside the common mean, where 'projected' looks for it
    mean = mean - (mean * truth).sum(-1, keepdim=True) * truth
    mean = offset * torch.nn.functional.normalize(mean, dim=-1)
    noise = torch.randn(2, n, LAYERS, HIDDEN, generator=draw)
    return noise[0] + mean + size * truth, noise[1] + mean, truth


def cosines(directions: Directions, truth: Tensor) -> Tensor:
    return (directions.vectors[:, 0] * truth).sum(-1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_recovers_a_planted_direction_pointing_to_harmful(estimator):
    harmful, harmless, truth = planted(n=500)  # a covariance needs many more than dimensions
    found = estimate(harmful, harmless, DirectionSpec(estimator))
    assert (cosines(found, truth) > 0.95).all()


def test_the_mean_difference_is_the_difference_of_the_means():
    harmful, harmless, _ = planted()
    found = estimate(harmful, harmless, DirectionSpec())
    expected = harmful.numpy().mean(0) - harmless.numpy().mean(0)
    assert np.allclose(found.norms[:, None] * found.vectors[:, 0], expected, atol=1e-5)


def test_a_projected_direction_has_no_component_along_the_harmless_mean():
    harmful, harmless, _ = planted()
    found = estimate(harmful, harmless, DirectionSpec("projected", k=3))
    mean = torch.nn.functional.normalize(harmless.mean(0), dim=-1)
    assert torch.einsum("lkd,ld->lk", found.vectors, mean).abs().max() < 1e-5
    assert found.neutral.abs().max() < 1e-4


@pytest.mark.parametrize("prompts", [20, 100], ids=["fewer prompts than dimensions", "more"])
@pytest.mark.parametrize("shrinkage", [0.05, 0.5, 1.0])
def test_whitening_without_the_dense_matrix_equals_the_dense_formula(prompts, shrinkage):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(prompts, HIDDEN, generator=draw, dtype=torch.float64) @ torch.randn(
        HIDDEN, HIDDEN, generator=draw, dtype=torch.float64
    )
    r = torch.randn(HIDDEN, generator=draw, dtype=torch.float64)
    covariance = np.cov(x.numpy(), rowvar=False)
    dense = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / HIDDEN * np.eye(
        HIDDEN
    )
    expected = np.linalg.solve(dense, r.numpy())
    found = whitened(r, x, shrinkage).numpy()
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_whitening_finds_a_weak_direction_under_loud_channels_that_the_mean_misses():
    harmful, harmless, truth = planted(n=1000, size=1.5)
    loud = torch.ones(HIDDEN)
    loud[:6] = 30.0  # channels whose noise dwarfs the signal
    harmful, harmless = harmful * loud, harmless * loud
    target = torch.nn.functional.normalize(truth / loud, dim=-1)  # Σ⁻¹r of the scaled data
    by_mean = estimate(harmful, harmless, DirectionSpec())
    by_fisher = estimate(harmful, harmless, DirectionSpec("whitened", shrinkage=0.0001))
    assert (cosines(by_fisher, target) > 0.8).all()
    assert (cosines(by_mean, target).abs() < 0.3).all()


def test_centring_the_differences_first_would_lose_the_direction():
    harmful, harmless, truth = planted()
    found = estimate(harmful, harmless, DirectionSpec(k=2))
    for layer in range(LAYERS):
        difference = harmful[:, layer] - harmless[:, layer].mean(0)
        centred = difference - difference.mean(0)
        first = torch.linalg.svd(centred, full_matrices=False)[2][0]
        uncentred = torch.linalg.svd(difference, full_matrices=False)[2][0]
        assert abs(first @ truth[layer]) < 0.5
        assert abs(uncentred @ truth[layer]) > 0.95
        assert found.vectors[layer, 0] @ truth[layer] > 0.95


def test_further_directions_are_orthonormal_and_find_a_second_planted_one():
    harmful, harmless, truth = planted()
    second = torch.zeros(HIDDEN)
    second[0] = 1.0
    second = second - (second * truth).sum(-1, keepdim=True) * truth  # [L, d]
    second = torch.nn.functional.normalize(second, dim=-1)
    sign = torch.tensor([1.0, -1.0]).repeat(40)[:, None, None]
    found = estimate(harmful + 6 * sign * second, harmless, DirectionSpec(k=3))
    eye = torch.eye(3).expand(LAYERS, 3, 3)
    assert torch.allclose(found.vectors @ found.vectors.mT, eye, atol=1e-5)
    assert ((found.vectors[:, 1] * second).sum(-1).abs() > 0.9).all()


def test_winsorising_survives_outliers_that_ruin_the_mean():
    harmful, harmless, truth = planted()
    harmful = harmful.clone()
    harmful[::10, :, 3] = 4000.0  # one channel of a few prompts
    plain = estimate(harmful, harmless, DirectionSpec())
    clipped = estimate(harmful, harmless, DirectionSpec(winsorize=0.97))
    assert (cosines(plain, truth) < 0.5).all()
    assert (cosines(clipped, truth) > 0.95).all()


def test_winsorising_clips_each_vector_at_its_own_quantile():
    x = torch.arange(1, 11.0).repeat(2, 1, 1) * torch.tensor([1.0, -7.0])[:, None, None]
    assert torch.equal(winsorized(x, 0.8)[0, 0], torch.arange(1, 11.0).clamp(max=8.0))
    assert torch.equal(winsorized(x, 0.8)[1, 0], -7 * torch.arange(1, 11.0).clamp(max=8.0))
    assert torch.equal(winsorized(x, 1.0), x)


def test_a_single_layer_is_used_everywhere_and_fractions_lie_between_neighbours():
    harmful, harmless, _ = planted()
    every = estimate(harmful, harmless, DirectionSpec()).vectors[:, 0]
    whole = estimate(harmful, harmless, DirectionSpec(scope="single", layer=2))
    assert torch.allclose(whole.vectors[:, 0], every[2].expand(LAYERS, HIDDEN), atol=1e-6)
    half = estimate(harmful, harmless, DirectionSpec(scope="single", layer=1.5)).vectors[:, 0]
    between = torch.nn.functional.normalize(every[1] + every[2], dim=-1)
    assert torch.allclose(half, between.expand(LAYERS, HIDDEN), atol=1e-6)
    assert not torch.allclose(whole.stats["norm"][0], whole.stats["norm"][2])  # a layer's own


def test_the_neutral_point_is_the_harmless_mean_and_the_norm_leads_to_the_harmful_mean():
    harmful, harmless, _ = planted()
    for spec in (DirectionSpec(), DirectionSpec("whitened"), DirectionSpec("projected")):
        found = estimate(harmful, harmless, spec)
        onto = found.vectors[:, 0]
        assert torch.allclose((onto * harmless.mean(0)).sum(-1), found.neutral[:, 0], atol=1e-4)
        reached = found.neutral[:, 0] + found.norms
        assert torch.allclose((onto * harmful.mean(0)).sum(-1), reached, atol=1e-4)


def test_the_statistics_follow_their_formulas():
    harmful, harmless, _ = planted()
    stats = estimate(harmful, harmless, DirectionSpec()).stats
    high, low = harmful.double().mean(0).numpy(), harmless.double().mean(0).numpy()
    for layer in range(LAYERS):
        h, s = high[layer], low[layer]
        r = h - s
        snr = np.linalg.norm(r) / max(np.linalg.norm(h), np.linalg.norm(s))
        cosine = h @ s / np.linalg.norm(h) / np.linalg.norm(s)
        angle = r @ s / np.linalg.norm(r) / np.linalg.norm(s)
        purity = np.sqrt(1 - angle**2)
        expected = [np.linalg.norm(r), snr, cosine, purity, snr * (1 - cosine) * purity]
        found = [float(stats[name][layer]) for name in files.STATS[:5]]
        assert np.allclose(found, expected, rtol=1e-5)


def test_separation_is_measured_on_held_out_prompts_only():
    harmful, harmless, _ = planted()
    without = estimate(harmful, harmless, DirectionSpec())
    assert without.stats["auroc"].isnan().all()
    assert without.stats["cohens_d"].isnan().all()
    other = planted(seed=0, size=0.0)  # held-out sets that do not differ: chance
    chance = estimate(harmful, harmless, DirectionSpec(), heldout=(other[1], other[1]))
    assert torch.allclose(chance.stats["auroc"], torch.tensor(0.5))
    told = estimate(harmful, harmless, DirectionSpec(), heldout=(harmful, harmless))
    assert (told.stats["auroc"] > 0.99).all()
    assert (told.stats["cohens_d"] - 6).abs().max() < 1.5  # 6 standard deviations were planted


def test_random_directions_are_a_control_with_the_measured_size():
    harmful, harmless, truth = planted()
    measured = estimate(harmful, harmless, DirectionSpec())
    control = estimate(harmful, harmless, DirectionSpec("random", k=2, seed=5))
    assert torch.allclose(control.norms, measured.norms)
    assert (cosines(control, truth).abs() < 0.6).all()
    assert torch.equal(control.vectors, random(LAYERS, HIDDEN, 2, 5).vectors)
    assert not torch.equal(random(LAYERS, HIDDEN, 2, 6).vectors, control.vectors)
    single = estimate(harmful, harmless, DirectionSpec("random", scope="single", layer=1))
    assert torch.equal(single.vectors[0], single.vectors[3])


def test_prompt_sets_without_a_difference_are_refused():
    harmful, harmless, _ = planted()
    with pytest.raises(UserError, match="same mean in layer 0"):
        estimate(harmless, harmless.flip(0), DirectionSpec())
    with pytest.raises(UserError, match="1 harmful prompts are too few"):
        estimate(harmful[:1], harmless, DirectionSpec())
    with pytest.raises(UserError, match="0 harmless prompts are too few"):
        estimate(harmful, harmless[:0], DirectionSpec())


def test_overflow_of_half_precision_is_named_with_its_layer():
    harmful, harmless, _ = planted()
    harmful[4, 2:] = float("inf")
    with pytest.raises(UserError, match="not finite from layer 2 on; load the model as bfloat16"):
        estimate(harmful, harmless, DirectionSpec())


def test_settings_beyond_the_data_are_refused_with_the_reason():
    harmful, harmless, _ = planted()
    with pytest.raises(UserError, match=r"layer is 3\.5, but the model's layers are 0 to 3"):
        estimate(harmful, harmless, DirectionSpec(scope="single", layer=3.5))
    with pytest.raises(UserError, match="k is 5, but these prompts differ in 3 directions"):
        estimate(harmful[:3], harmless, DirectionSpec(k=5))
    with pytest.raises(UserError, match="shrinkage above 0"):
        estimate(harmful[:9], harmless[:9], DirectionSpec("whitened", shrinkage=0.0))


def test_a_saved_file_gives_the_same_directions_back(tmp_path):
    harmful, harmless, _ = planted()
    before = estimate(harmful, harmless, DirectionSpec(k=2), "abc", heldout=(harmful, harmless))
    after = files.load(before.save(tmp_path / "new" / "d.safetensors"))
    assert after.digest() == before.digest()
    assert dict(after.meta) == dict(before.meta) == {"model": "abc", "estimator": "mean_difference"}
    for name in files.STATS:
        assert torch.equal(after.stats[name], before.stats[name])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["d.safetensors"]


def test_the_digest_follows_what_an_edit_uses():
    base = random(3, 8, 1, seed=0)
    assert base.digest() == random(3, 8, 1, seed=0).digest()
    assert base.digest() != random(3, 8, 1, seed=1).digest()
    assert base.digest() != replace(base, neutral=base.neutral + 1).digest()
    assert base.digest() != replace(base, norms=base.norms * 2).digest()
    assert base.digest() == replace(base, meta={"note": "x"}).digest()


def test_files_that_are_no_directions_are_refused(tmp_path):
    path = tmp_path / "d.safetensors"
    with pytest.raises(UserError, match="no directions file"):
        files.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="damaged"):
        files.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="not a directions file"):
        files.load(path)
    good = random(3, 8).save(path).read_bytes()
    path.write_bytes(good[:-10])
    with pytest.raises(UserError, match="damaged"):
        files.load(path)
    save_file(
        {"vectors": torch.ones(3, 1, 8), "norms": torch.ones(3), "neutral": torch.ones(3, 1)}
        | {f"stats.{name}": torch.ones(3) for name in files.STATS},
        path,
        metadata={"format": files.FORMAT, "meta": json.dumps({})},
    )
    with pytest.raises(UserError, match="orthonormal"):
        files.load(path)


def test_the_signal_follows_separation_where_zero_is_neutral():
    nan = float("nan")
    stats = {
        "quality": torch.tensor([0.1, 0.5, 0.6, 0.1]),
        "cohens_d": torch.tensor([-3.0, 4.0, 6.0, 8.0]),
    }
    drawn = replace(random(4, 8), meta={})  # any vectors: this is not about a control
    flat = replace(drawn, norms=torch.ones(4), neutral=torch.zeros(4, 1), stats=stats)
    assert np.allclose(signal(flat), [0.0, 0.5, 0.75, 1.0])  # the wrong sign is no signal
    # in the last layer zero is where harmful prompts are: harmless at -1, harmful at 0
    late = replace(flat, neutral=torch.tensor([[0.0], [2.0], [-0.25], [-1.0]]))
    assert np.allclose(signal(late), [0.0, 1.0, 0.75, 0.0])
    alone = signal(replace(flat, stats={"quality": stats["quality"]}))
    assert np.allclose(alone, stats["quality"] / 0.6)
    odd = {"quality": torch.tensor([1.0, 1, 1, 1]), "cohens_d": torch.tensor([1.0, nan, 2, 1e400])}
    assert np.isfinite(signal(replace(flat, stats=odd))).all()
    assert not signal(replace(flat, stats={})).any()


@pytest.mark.parametrize("prompts", [20, 100], ids=["fewer prompts than dimensions", "more"])
def test_further_directions_are_singular_vectors_of_what_the_first_leaves(prompts):
    harmful, harmless, _ = planted(n=prompts)
    found = estimate(harmful, harmless, DirectionSpec(k=3)).vectors.double()
    for layer in range(LAYERS):
        rest = harmful[:, layer].double() - harmless[:, layer].double().mean(0)
        rest = rest - rest @ found[layer, :1].T @ found[layer, :1]
        expected = np.linalg.svd(rest.numpy(), full_matrices=False)[2][:2]
        cosine = np.abs((found[layer, 1:].numpy() * expected).sum(-1))
        assert np.allclose(cosine, 1, atol=1e-5)


def test_random_directions_have_no_evidence_in_any_layer():
    stats = {"cohens_d": torch.tensor([0.1, 0.2, 0.1, 0.3]), "quality": torch.ones(4)}
    for drawn in (random(4, 8), replace(random(4, 8), stats=stats)):
        assert drawn.control
        assert not signal(drawn).any()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("layer", [1.0, 2.5])
def test_a_biprojected_direction_leaves_every_target_layers_harmless_mean_alone(k, layer):
    harmful, harmless, _ = planted()
    spec = DirectionSpec("biprojected", k=k, scope="single", layer=layer)
    found = estimate(harmful, harmless, spec)
    once = estimate(harmful, harmless, replace(spec, estimator="projected"))
    mean = harmless.double().numpy().mean(0)
    for target in range(LAYERS):
        away = mean[target] / np.linalg.norm(mean[target])
        rows = once.vectors[target].double().numpy()  # [k, d], the measured layer's
        q, r = np.linalg.qr((rows - np.outer(rows @ away, away)).T)
        expected = (q * np.sign(np.diag(r))).T
        assert np.allclose(found.vectors[target].numpy(), expected, atol=1e-5)
    assert found.neutral.abs().max() < 1e-4
    assert once.neutral.abs().max() > 0.1  # projecting at the measured layer alone does not do it


def test_with_a_direction_of_its_own_in_each_layer_biprojected_is_projected():
    harmful, harmless, _ = planted()
    found, same = (
        estimate(harmful, harmless, DirectionSpec(name, k=2))
        for name in ("biprojected", "projected")
    )
    assert torch.equal(found.vectors, same.vectors)


def test_a_direction_that_is_another_layers_harmless_mean_cannot_be_biprojected():
    harmful, harmless, truth = planted(n=4, size=6.0)
    centre = 5 * truth[1]  # layer 1's direction is where layer 3 has its harmless prompts
    harmless = harmless * 0 + torch.stack([centre.roll(7), centre.roll(9), centre.roll(3), centre])
    harmful = harmless + 6 * truth
    spec = DirectionSpec("biprojected", scope="single", layer=1)
    harmless[:, 1] -= (harmless[:, 1] @ truth[1])[:, None] * truth[1]
    harmful[:, 1] = harmless[:, 1] + 6 * truth[1]
    with pytest.raises(UserError, match=r"mean of layer 3, so 'biprojected' leaves nothing"):
        estimate(harmful, harmless, spec)


def confounded() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Harmful prompts that also differ by two concepts; (harmful, harmless, truth, concepts)."""
    harmful, harmless, truth = planted(n=200)
    draw = torch.Generator().manual_seed(3)
    shifts = torch.randn(2, LAYERS, HIDDEN, generator=draw)
    shifts = shifts - (shifts * truth).sum(-1, keepdim=True) * truth  # the truth is none of them
    shifts = 5 * torch.nn.functional.normalize(shifts, dim=-1)
    noise = torch.randn(2, 200, LAYERS, HIDDEN, generator=draw)
    concepts = [noise[i] + harmless.mean(0) + shifts[i] for i in range(2)]
    return harmful + 0.8 * shifts.sum(0), harmless, truth, concepts


@pytest.mark.parametrize("ridge", [0.0, 0.1, 1.0])
def test_a_surgical_direction_is_what_ridge_regression_on_the_concepts_leaves(ridge):
    harmful, harmless, _, concepts = confounded()
    spec = DirectionSpec("surgical", shrinkage=ridge)
    found = estimate(harmful, harmless, spec, concepts=concepts)
    mean = harmless.double().numpy().mean(0)
    r = harmful.double().numpy().mean(0) - mean
    for layer in range(LAYERS):
        atoms = np.stack([c.double().numpy().mean(0)[layer] - mean[layer] for c in concepts])
        atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).T  # [d, 2]
        # one tall least-squares problem: the atoms, and the ridge on their coefficients
        tall = np.vstack([atoms, ridge**0.5 * np.eye(2)])
        wanted = np.concatenate([r[layer], np.zeros(2)])
        left = r[layer] - atoms @ np.linalg.lstsq(tall, wanted, rcond=None)[0]
        assert np.allclose(found.vectors[layer, 0].numpy(), left / np.linalg.norm(left), atol=1e-6)


def test_a_surgical_direction_finds_the_truth_behind_concepts_that_mislead_the_mean():
    harmful, harmless, truth, concepts = confounded()
    plain = estimate(harmful, harmless, DirectionSpec())
    spec = DirectionSpec("surgical", k=3, shrinkage=0.0)
    clean = estimate(harmful, harmless, spec, concepts=concepts)
    assert (cosines(plain, truth) < 0.85).all()
    assert (cosines(clean, truth) > 0.98).all()
    for concept in concepts:  # none of the k directions has anything of a concept
        shift = torch.nn.functional.normalize(concept.mean(0) - harmless.mean(0), dim=-1)
        assert torch.einsum("lkd,ld->lk", clean.vectors, shift).abs().max() < 1e-4


def test_topics_that_make_up_the_harmless_prompts_are_protected_without_a_ridge_too():
    harmful, harmless, truth = planted(n=90)
    topics = [harmless[i::3] for i in range(3)]  # their shifts add up to zero: rank 2
    found = estimate(harmful, harmless, DirectionSpec("surgical", shrinkage=0.0), concepts=topics)
    assert (cosines(found, truth) > 0.9).all()


def test_concepts_that_cannot_be_protected_are_refused_with_the_reason():
    harmful, harmless, _, concepts = confounded()
    spec = DirectionSpec("surgical", shrinkage=0.0)
    with pytest.raises(UserError, match="'surgical' needs concepts"):
        estimate(harmful, harmless, spec)
    with pytest.raises(UserError, match="same mean as the harmless prompts"):
        estimate(harmful, harmless, spec, concepts=[harmless.flip(0)])
    with pytest.raises(UserError, match="within the protected concepts, so 'surgical' leaves"):
        estimate(harmful, harmless, spec, concepts=[harmful.flip(0)])
    with pytest.raises(UserError, match=f"{HIDDEN} concepts leave nothing"):
        estimate(harmful, harmless, spec, concepts=concepts * (HIDDEN // 2))
