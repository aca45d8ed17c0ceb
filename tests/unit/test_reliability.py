"""Intervals and reliability of the curves over layers, against simulations and plain formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sst_ui.cli import tables
from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import measure
from sst_ui.jobs.search import trials
from sst_ui.maths import direction_intervals, reliability
from sst_ui.maths import directions as files
from sst_ui.maths.direction_estimators import _again, estimate
from sst_ui.maths.directions import CURVES, Reliability, signal
from sst_ui.maths.statistics import auroc, cohens_d
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, Recipe

LAYERS, HIDDEN = 12, 40
BELL = torch.exp(-(((torch.arange(LAYERS) - 7) / 2.0) ** 2) / 2)


def planted(draw, offset: float):
    """Of each layer the unit direction of the difference, and a mean at a right angle to it."""
    both = torch.linalg.qr(torch.randn(LAYERS, HIDDEN, 2, generator=draw)).Q
    return both[..., 0], offset * both[..., 1]


def drawn(seed: int, n: int, heldout: int, strength: torch.Tensor, offset: float = 5.0):
    """(harmful, harmless, held-out pair): noise that layers share, as residual streams do, around
    a mean that both groups share; `strength` [L] of the difference in standard deviations."""
    draw = torch.Generator().manual_seed(seed)
    truth, mean = planted(draw, offset)

    def prompts(count, harmful):
        noise = torch.randn(count, LAYERS, HIDDEN, generator=draw)
        for layer in range(1, LAYERS):
            noise[:, layer] = 0.9 * noise[:, layer - 1] + math.sqrt(0.19) * noise[:, layer]
        return noise + mean + harmful * strength[:, None] * truth

    first, second = prompts(n, 1.0), prompts(n, 0.0)
    return first, second, (prompts(heldout, 1.0), prompts(heldout, 0.0))


def measured(seed, n, heldout, strength, offset=5.0):
    harmful, harmless, held = drawn(seed, n, heldout, strength, offset)
    return estimate(harmful, harmless, DirectionSpec(), heldout=held)


def test_labels_that_mean_nothing_are_almost_never_reliable():
    """At most 5 % by the test against chance alone; with the halves it is less."""
    runs, held = 60, dict.fromkeys(CURVES, 0)
    for seed in range(runs):
        found = measured(seed, 16, 16, torch.zeros(LAYERS)).reliability
        assert set(found) == set(CURVES)
        for name in CURVES:
            held[name] += found[name].holds
    # binomial(60, .05): more than 6 has a chance of 3 %
    assert max(held.values()) <= 6
    assert held["evidence"] <= 1


def test_the_test_against_chance_alone_keeps_its_level():
    low = [
        measured(s, 16, 16, torch.zeros(LAYERS)).reliability["cohens_d"].chance for s in range(80)
    ]
    assert np.mean(np.array(low) <= 0.05) <= 0.12
    assert 0.35 < np.mean(low) < 0.65  # uniform, as p is where nothing is there


def test_a_shape_that_is_there_is_reliable_once_prompts_are_enough():
    many = [measured(seed, 80, 40, 4 * BELL) for seed in range(5)]
    for found in many:
        assert all(found.reliability[name].holds for name in CURVES)
        assert abs(int(np.argmax(signal(found))) - 7) <= 1
    few = [measured(seed, 8, 6, 1.5 * BELL) for seed in range(10)]
    assert sum(found.reliability["evidence"].holds for found in few) <= 1


def test_layers_that_all_separate_perfectly_are_reliable():
    found = measured(0, 60, 60, torch.full((LAYERS,), 20.0), offset=2.0)
    assert torch.allclose(found.stats["auroc"], torch.ones(LAYERS))
    assert all(found.reliability[name].holds for name in CURVES)


def test_where_zero_is_neutral_by_chance_only_the_evidence_is_spikes_and_not_reliable():
    """The mean that both groups share is long: the harmless side of zero is a matter of luck."""
    found = [measured(seed, 10, 16, torch.full((LAYERS,), 4.0), offset=60.0) for seed in range(10)]
    assert sum(each.reliability["cohens_d"].holds for each in found) >= 8  # separation is real
    assert sum(each.reliability["evidence"].holds for each in found) <= 1


def test_more_prompts_narrow_the_intervals():
    width = [
        float((found.intervals["cohens_d"][:, 1] - found.intervals["cohens_d"][:, 0]).mean())
        for found in (measured(0, 80, n, 3 * BELL) for n in (10, 40, 160))
    ]
    assert width[0] > 1.6 * width[1] > 2.2 * width[2]


def test_intervals_hold_the_true_value_about_95_times_in_100():
    inside: dict[str, list] = {"norm": [], "snr": [], "cosine": [], "cohens_d": [], "auroc": []}
    strength = torch.full((LAYERS,), 3.0)
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        truth, mean = planted(draw, 5.0)
        found = measured(seed, 30, 30, strength)
        d = (found.vectors[:, 0] * 3 * truth).sum(-1)  # of this direction, on endless prompts
        high = mean + 3 * truth
        true = {
            "norm": strength,
            "snr": strength / torch.maximum(high.norm(dim=-1), mean.norm(dim=-1)),
            "cosine": torch.cosine_similarity(high, mean, dim=-1),
            "cohens_d": d,
            "auroc": (1 + torch.erf(d / 2)) / 2,
        }
        for name, value in true.items():
            low, top = found.intervals[name].T
            inside[name].append(((low <= value) & (value <= top)).float().mean())
    for name, shares in inside.items():
        assert 0.90 <= np.mean(shares) <= 0.99, name


def test_intervals_of_the_means_are_the_plain_jackknifes():
    harmful, harmless, _ = drawn(3, 9, 4, 3 * BELL)
    found = direction_intervals.of_means(harmful, harmless)

    def norms(first, second):
        return (first.double().mean(0) - second.double().mean(0)).norm(dim=-1).numpy()

    whole, centre, variance = norms(harmful, harmless), norms(harmful, harmless), 0.0
    for which in (0, 1):
        fewer = []
        for leave in range(9):
            sets = [harmful, harmless]
            sets[which] = torch.cat([sets[which][:leave], sets[which][leave + 1 :]])
            fewer.append(norms(*sets))
        variance = variance + 8 / 9 * ((fewer - np.mean(fewer, 0)) ** 2).sum(0)
        centre = centre - 8 * (np.mean(fewer, 0) - whole)
    half = 2.1199 * np.sqrt(variance)  # Student's t with 16 degrees of freedom
    assert np.allclose(found["norm"], np.stack([centre - half, centre + half], 1), rtol=1e-4)


def test_the_fast_statistics_are_the_plain_ones():
    rng = np.random.default_rng(0)
    high, low = rng.normal(1, 1, (3, 11)), rng.normal(0, 2, (3, 8))
    moments = [direction_intervals.moments(x) for x in (high, low)]
    found = direction_intervals.cohens_d(*moments, (11, 8))
    assert np.allclose(found, [cohens_d(h, s) for h, s in zip(high, low, strict=True)])
    share = direction_intervals.of_auroc(high, low)
    for (bottom, top), h, s in zip(share, high, low, strict=True):
        assert 0 <= bottom < auroc(h, s) < top <= 1


@pytest.mark.parametrize("estimator", ["mean_difference", "projected", "whitened", "biprojected"])
@pytest.mark.parametrize("layer", [None, 4.3])
def test_halves_estimate_the_direction_as_the_whole_does(estimator, layer):
    harmful, harmless, _ = drawn(0, 30, 4, 4 * BELL)
    scope = "per_layer" if layer is None else "single"
    spec = DirectionSpec(estimator, scope=scope, layer=layer)
    vectors = estimate(harmful, harmless, spec).vectors[:, 0]
    means = [x.mean(0)[None] for x in (harmful, harmless)]
    again = _again(harmless, vectors, spec, ())(means[0] - means[1], means[1])
    assert torch.allclose(again[0], vectors, atol=1e-4)


def test_the_same_prompts_give_the_same_answer():
    first, second = (measured(1, 12, 8, 3 * BELL) for _ in range(2))
    assert first.reliability == second.reliability
    for name in CURVES:
        assert torch.equal(first.intervals[name], second.intervals[name])


def test_the_spearman_brown_formula():
    one = np.array([[1.0, 0.0, 0.0, 0.0]])
    other = np.array([[0.5, 0.5, 0.5, 0.5]])  # congruence 1/2 with it: 2 · 0.5 / 1.5
    assert reliability._agreement(one, other, 0.0) == pytest.approx(2 / 3)
    assert reliability._agreement(one, -other, 0.0) == 0.0


def test_a_file_keeps_intervals_and_reliability_and_one_from_before_is_not_known(tmp_path):
    before = measured(0, 12, 8, 3 * BELL)
    path = before.save(tmp_path / "d.safetensors")
    after = files.load(path)
    assert after.reliability == before.reliability
    for name in CURVES:
        assert torch.equal(after.intervals[name], before.intervals[name])
    with safe_open(path, "pt") as file:
        told = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del told["reliability"]
    save_file({k: v for k, v in tensors.items() if "interval" not in k}, path, told)
    old = files.load(path)
    assert (dict(old.intervals), dict(old.reliability)) == ({}, {})
    assert old.doubt("evidence") == ""
    assert old.digest() == before.digest()


def test_random_directions_say_nothing_of_evidence():
    harmful, harmless, held = drawn(0, 12, 8, 3 * BELL)
    found = estimate(harmful, harmless, DirectionSpec("random"), heldout=held)
    assert "evidence" not in found.reliability
    assert "evidence" not in found.intervals


def test_without_held_out_prompts_the_evidence_is_tested_by_what_it_is_made_of():
    harmful, harmless, _ = drawn(0, 60, 4, 4 * BELL)
    found = estimate(harmful, harmless, DirectionSpec("projected"))
    assert set(found.reliability) == set(CURVES) - {"auroc", "cohens_d"}
    assert found.reliability["evidence"].holds


@pytest.mark.parametrize("prompts", [2, 3])
def test_a_few_prompts_prove_nothing(prompts):
    found = measured(0, prompts, prompts, 9 * BELL)
    assert not found.reliability["evidence"].holds


def test_which_test_failed():
    assert Reliability(0.9, 0.01).doubt == ""
    assert Reliability(0.7, 0.01).doubt == "halves"
    assert Reliability(0.9, 0.2).doubt == "chance"


def test_the_demos_own_signal_is_reliable_and_of_eight_prompts_it_is_not(host):
    assert finish(measure(host, DirectionSpec(k=4))).reliability["evidence"].holds
    assert finish(measure(host, DirectionSpec(samples=8))).doubt("evidence")


def test_a_search_does_not_start_at_a_signal_that_is_not_reliable(host):
    recipe = Recipe(edits=(Ablation(DirectionSpec(samples=8)),))
    heldout = ("demo/harmful_heldout", "demo/harmless_heldout")
    with pytest.raises(UserError, match="not reliable"):
        finish(trials.Local(host).bell(recipe, heldout))


def test_the_terminal_says_what_is_not_reliable(capsys):
    tables.reliability(
        {
            "snr": Reliability(0.95, 0.01),
            "auroc": Reliability(0.95, 0.3),
            "evidence": Reliability(0.41, 0.01),
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("auroc is not reliable: no better than shuffled labels (p = 0.3)")
    assert "evidence is not reliable: two halves of the prompts disagree" in lines[1]
    assert "0.41" in lines[1]


def test_intervals_of_another_size_are_refused():
    with pytest.raises(ValueError, match="interval of norm"):
        replace(files.random(3, 8), intervals={"norm": torch.ones(2, 2)})
