"""Merging two adapters, from folders to a live row, against weights merged by hand in float64."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from sst_ui.errors import UserError
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.merge import merge as lab
from sst_ui.jobs.merge import method_fronts
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.maths.merge.registry import METHODS
from sst_ui.model.inference.fisher import moments
from sst_ui.model.inference.generate import logprobs
from sst_ui.model.inference.replies import replies
from sst_ui.model.lora.adapters import write_adapter
from sst_ui.paths import DEMO
from sst_ui.progress import finish
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Merge,
    Recipe,
    WeightTable,
    flat,
    from_yaml,
    to_yaml,
)

MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("SST_CACHE", str(tmp_path / "cache"))
    lab._kept.clear()


@pytest.fixture
def small(tiny_host):
    return tiny_host("llama")


@pytest.fixture
def pair(small, tmp_path):
    """Two adapters of different rank and modules, the head in the second one."""

    def write(name, rank, seed, head):
        noise = torch.Generator().manual_seed(seed)
        paths = [f"model.layers.{n}.{m}" for n in range(small.layers) for m in MODULES]
        deltas = {}
        for path in [*paths, *(["lm_head"] if head else [])]:
            out, inp = small.model.get_submodule(path).weight.shape
            b, a = torch.randn(out, rank, generator=noise), torch.randn(rank, inp, generator=noise)
            deltas[path] = Delta(0.03 * b, a)
        return str(write_adapter(tmp_path / name, deltas, small)), deltas

    utility, u = write("utility", 4, 0, head=False)
    safety, s = write("safety", 3, 1, head=True)
    return utility, safety, u, s


@pytest.fixture
def talks(tmp_path):
    """Two prompt sets with answers."""

    def write(name, *rows):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in rows))
        return str(path)

    return {
        "utility_prompts": write("u", ("How?", "Like this."), ("And?", "So."), ("Why", "Because")),
        "safety_prompts": write("s", ("Bad?", "I cannot."), ("Worse?", "I will not do that.")),
    }


def model_by_hand(host, changes):
    """The model with W + change in every module, in float64."""
    model = copy.deepcopy(host.model)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    model.double()
    for path, change in changes.items():
        model.get_submodule(path).weight.data += change
    return model


def merged_by_hand(host, changes):
    """Log-probabilities of one prompt with W + change in every module, in float64."""
    model = model_by_hand(host, changes)
    ids = torch.tensor([host.encode("Hello there")])
    return model(ids).logits[0, -1].log_softmax(-1).float()


def live(host, recipe):
    edits = finish(resolve(host, recipe))
    return logprobs(host, [host.encode("Hello there")], [edits])[0], edits


def dense(delta):
    return delta.b.double() @ delta.a.double()


def test_task_arithmetic_under_a_table_is_the_sum_of_weighted_deltas(small, pair):
    utility, safety, u, s = pair
    weights = replace(flat(), strength=0.5, modules={"mlp": 0.3, "down": 2.0, "lm_head": 3.0})
    spec = Merge(utility, safety, method="task_arithmetic", weights=weights)
    found, _ = live(small, Recipe(edits=(spec,)))
    factor = {"q_proj": 1.0, "o_proj": 1.0, "up_proj": 0.3, "down_proj": 2.0, "lm_head": 3.0}
    changes = {p: 0.5 * factor[p.rpartition(".")[2]] * dense(d) for p, d in s.items()}
    for path, delta in u.items():
        changes[path] = changes[path] + dense(delta)
    assert torch.allclose(found, merged_by_hand(small, changes), atol=1e-4)


def test_the_kernel_shapes_a_merge_layer_by_layer(small, pair):
    utility, safety, u, s = pair
    weights = WeightTable(peak=1.0, width=0.3, threshold=0.2, modules={"lm_head": 0.0})
    spec = Merge(utility, safety, method="task_arithmetic", weights=weights)
    found, _ = live(small, Recipe(edits=(spec,)))
    bell = [0.0, float(torch.exp(torch.tensor(-(0.5**2) / (2 * 0.09)))), 1.0]
    changes = {p: dense(d) for p, d in u.items()}
    for path, delta in s.items():
        if path != "lm_head":
            changes[path] = changes[path] + bell[int(path.split(".")[2])] * dense(delta)
    assert torch.allclose(found, merged_by_hand(small, changes), atol=1e-4)


def test_no_price_keeps_the_whole_safety_edit_and_a_high_one_leaves_the_utility_adapter(
    small, pair, talks
):
    utility, safety, u, s = pair
    for mu, weight in ((0.0, 1.0), (1e6, 0.0)):
        spec = Merge(utility, safety, parameters={"mu": mu}, target="additive", **talks)
        found, _ = live(small, Recipe(edits=(spec,)))
        changes = {p: dense(d) for p, d in u.items()}
        for path, delta in s.items():
            changes[path] = changes.get(path, 0) + weight * dense(delta)
        assert torch.allclose(found, merged_by_hand(small, changes), atol=2e-3)


def test_a_budget_chooses_mu_so_that_the_predicted_kl_is_within_it(small, pair, talks):
    utility, safety, *_ = pair
    spent = []
    for budget in (0.001, 0.01, 0.1):
        spec = Merge(utility, safety, budget=budget, **talks)
        outcome = finish(lab.merge(small, spec))
        spent.append(sum(r.kl for r in outcome.records.values()))
        assert spent[-1] <= budget * 1.001
    assert spent == sorted(spent)


def test_merge_then_ablate_is_one_recipe(small, pair, tmp_path):
    utility, safety, u, s = pair
    edit = Ablation(
        directions=DirectionSpec(estimator="random"), weights=WeightTable(peak=0.5, width=1e6)
    )
    merge = Merge(utility, safety, method="task_arithmetic")
    recipe = from_yaml(to_yaml(Recipe(edits=(merge, edit))))
    assert recipe.edits == (merge, edit)
    found, edits = live(small, recipe)
    changes = {p: dense(d) for p, d in s.items()}
    for path, delta in u.items():
        changes[path] = changes[path] + dense(delta)
    for number in range(small.layers):
        r = edits[1].directions.vectors[number, 0].double()
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            path = f"model.layers.{number}.{name}"
            weight = small.model.get_submodule(path).weight.double() + changes[path]
            alpha = edits[1].alpha[number, 0]
            changes[path] = changes[path] - alpha * torch.outer(r, r @ weight)
    assert torch.allclose(found, merged_by_hand(small, changes), atol=1e-4)


def test_the_statistics_of_a_pair_are_collected_once(small, pair, talks, monkeypatch):
    utility, safety, *_ = pair
    first = finish(lab.merge(small, Merge(utility, safety, **talks)))
    lab._kept.clear()  # a new session: the disk still knows

    def never(*_, **__):
        raise AssertionError("the moments are known")
        yield

    monkeypatch.setattr(lab.statistics, "moments", never)
    monkeypatch.setattr(lab.statistics, "input_directions", never)
    again = finish(lab.merge(small, Merge(utility, safety, **talks)))
    for path, delta in first.deltas.items():
        assert torch.allclose(delta.dense(), again.deltas[path].dense(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"parameters": {"nu": 1.0}}, "'nu'"),
        ({"method": "ties", "budget": 0.1}, "chooses mu, and ties has none"),
        ({"safety": "nowhere"}, "nowhere"),
        ({"method": "fisher", "fisher": "input"}, "set it to nearest or kfac"),
    ],
)
def test_what_cannot_be_merged_is_said(small, pair, talks, change, message):
    spec = replace(Merge(pair[0], pair[1], **talks), **change)
    with pytest.raises(UserError, match=message):
        finish(lab.merge(small, spec))


def test_what_a_data_set_has_at_stake_is_its_held_out_loss_under_either_adapter(small, pair, talks):
    utility, safety, u, s = pair
    found = finish(lab.prepare(small, Merge(utility, safety, method="sst_adaptive", **talks)))
    models = {
        name: model_by_hand(small, {path: dense(d) for path, d in deltas.items()})
        for name, deltas in (("utility", u), ("safety", s))
    }

    def loss(model, talk):
        prompt, answer = (torch.tensor(part) for part in talk)
        logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits, answer))

    for own, other in (("utility", "safety"), ("safety", "utility")):
        parts = [
            lab.statistics.conversations(small, talks[f"{own}_prompts"], None, part)
            for part in ("seen", "held_out", "all")
        ]
        seen, held, everything = parts
        assert sorted(seen + held) == sorted(everything)
        (talk,) = held
        expected = loss(models[other], talk) - loss(models[own], talk)
        assert getattr(found.stakes, own) == pytest.approx(expected, abs=1e-5)


def test_held_out_prompts_take_no_part_in_the_statistics(small, pair, talks, tmp_path):
    utility, safety, *_ = pair
    spec = Merge(utility, safety, method="sst_adaptive", inputs=4, **talks)
    before = finish(lab.prepare(small, spec))
    name = spec.utility_prompts
    (held,) = lab.statistics.conversations(small, name, None, "held_out")
    number = lab.statistics.conversations(small, name, None).index(held)
    with open(name) as file:
        rows = [json.loads(line) for line in file]
    rows[number] = {"prompt": "Something else?", "answer": "Something quite different."}
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, rows)))
    after = finish(lab.prepare(small, replace(spec, utility_prompts=str(other))))
    assert after.stakes != before.stakes
    for old, new in zip(before.modules, after.modules, strict=True):
        assert torch.allclose(old.utility.a, new.utility.a, atol=1e-6)
        assert torch.allclose(old.utility.g, new.utility.g, atol=1e-6)


def test_lookalikes_count_to_utility_with_their_weight(small, pair, talks, tmp_path):
    """As if they stood so many times among the utility prompts."""
    rows = [("Kill a process?", "Yes: use kill."), ("Shoot a film?", "With a camera.")]
    beside, whole = tmp_path / "l.jsonl", tmp_path / "w.jsonl"
    written = [json.dumps({"prompt": p, "answer": a}) for p, a in rows]
    beside.write_text("\n".join(written))
    with open(talks["utility_prompts"]) as file:
        whole.write_text("\n".join([*file.read().splitlines(), *written * 3]))
    spec = Merge(*pair[:2], fisher="input", inputs=0, parameters={"mu": 1.0}, **talks)
    found = {
        name: finish(lab.prepare(small, each))
        for name, each in {
            "none": spec,
            "weighed": replace(spec, lookalikes=str(beside), lookalike_weight=3.0),
            "nothing": replace(spec, lookalikes=str(beside), lookalike_weight=0.0),
            "thrice": replace(spec, utility_prompts=str(whole)),
        }.items()
    }

    def utility_side(name):
        return {module.name: module.utility for module in found[name].modules}

    weighed, none = utility_side("weighed"), utility_side("none")
    for path, wanted in utility_side("thrice").items():
        assert torch.allclose(weighed[path].a, wanted.a, atol=1e-6)
        assert weighed[path].n == wanted.n
        assert not torch.allclose(weighed[path].a, none[path].a, atol=1e-6)
        assert torch.equal(utility_side("nothing")[path].a, none[path].a)
    before, after = (lab.combine(small, found[name], spec).deltas for name in ("none", "weighed"))
    assert any(not torch.allclose(dense(before[p]), dense(after[p])) for p in before)


def test_a_round_counts_what_the_merged_model_says_where_it_is(small, pair, talks):
    spec = Merge(*pair[:2], fisher="input", inputs=0, parameters={"mu": 1.0}, **talks)
    before = finish(lab.prepare(small, spec))
    merged = lab.combine(small, before, spec)
    after = finish(lab.again(small, spec, before, merged))
    row = (merged.live,)
    for task in ("utility", "safety"):
        asked = lab.statistics.conversations(small, talks[f"{task}_prompts"], None)
        if task == "utility":  # its own answers; of safety the refusals that the data hold
            longest = max(len(answer) for _, answer in asked)
            prompts = [prompt for prompt, _ in asked]
            said = finish(replies(small, prompts, [row] * len(prompts), longest))
            asked = [(p, r.tokens) for p, r in zip(prompts, said, strict=True) if r.tokens]
            assert asked
        cores = {module.name: module.core for module in before.modules}
        alone = finish(moments(small, cores, asked, [row], mode="input", where="all"))
        for old, new in zip(before.modules, after.modules, strict=True):
            first, whole, more = getattr(old, task), getattr(new, task), alone[old.name]
            assert whole.n == first.n + more.n
            pooled = (first.n * first.a + more.n * more.a) / whole.n
            assert torch.allclose(whole.a, pooled, atol=1e-6)
    rounds = finish(lab.merge(small, replace(spec, rounds=1)))
    by_hand = lab.combine(small, after, spec)
    for path, delta in rounds.deltas.items():
        assert torch.allclose(dense(delta), dense(by_hand.deltas[path]), atol=1e-6)


def test_rounds_of_a_method_without_statistics_are_refused(small, pair, talks):
    with pytest.raises(UserError, match=r"merge.rounds collects.*ties uses none"):
        finish(lab.merge(small, Merge(*pair[:2], method="ties", rounds=1, **talks)))


def test_one_prompt_cannot_be_held_out_and_learnt_from(small, pair, talks, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "x", "answer": "y"}')
    spec = Merge(
        pair[0], pair[1], method="sst_combined", **(talks | {"utility_prompts": str(path)})
    )
    with pytest.raises(UserError, match=r"1 prompt.*needs 2 or more"):
        finish(lab.merge(small, spec))


def test_a_safety_adapter_that_does_no_better_on_its_own_data_is_said(small, pair, talks):
    same = Merge(pair[0], pair[0], method="sst_adaptive", **talks)
    steps, job = [], lab.prepare(small, same)
    found = finish(job, steps.append)
    assert found.stakes.price(3.0) == 3.0
    assert len([s for s in steps if "hardly does better" in s.warning]) == 2


@pytest.mark.parametrize("name", ["safe_lora", "safe_merge"])
def test_on_the_demo_the_default_selects_about_half_of_the_modules(host, name):
    spec = Merge(*(str(DEMO / "adapters" / side) for side in ("utility", "safety")), method=name)
    notes = [record.note for record in finish(lab.merge(host, spec)).records.values()]
    acted = sum(not note.startswith("kept") for note in notes)
    assert 0.4 * len(notes) <= acted <= 0.6 * len(notes)


def test_prompts_without_answers_give_no_statistics(small, pair, tmp_path, talks):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"prompt": "x"}')
    spec = Merge(pair[0], pair[1], **(talks | {"safety_prompts": str(path)}))
    with pytest.raises(UserError, match="prompt 1 has no 'answer'"):
        finish(lab.merge(small, spec))


@pytest.mark.parametrize("grid", [method_fronts.GRID, method_fronts.HEADS], ids=["all", "heads"])
def test_every_setting_of_the_sweep_is_one_that_its_method_takes(grid):
    rows = method_fronts.settings(Merge("utility", "safety"), grid=grid)
    assert len({name for name, _ in rows}) == len(rows)
    for _, spec in rows:
        taken = lab.settings(spec)
        assert {name: taken[name] for name in spec.parameters} == spec.parameters


def test_the_sweep_is_of_every_method():
    assert set(method_fronts.GRID) == set(METHODS.names())
