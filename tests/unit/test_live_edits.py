"""The live model against copies whose weights were edited by plain formulas in float64."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from sst_ui.errors import UserError
from sst_ui.maths.directions import Directions
from sst_ui.model.architecture.discover import discover
from sst_ui.model.hooks.live_edits import LiveEdits, RowEdit
from tests.tiny import ARCHITECTURES, EXPERTS, HIDDEN, LAYERS, VARIANTS, ids, tiny

ALL = ARCHITECTURES + VARIANTS
DENSE = tuple(name for name in ALL if name not in EXPERTS)
STRENGTHS = (-1.0, 0.0, 0.5, 1.0, 2.0)
# What writes, spelled out here again: (parameter, kind, axis of the residual stream).
WRITES = (
    (r"(self_attn\.o_proj|attention\.dense)\.(weight|bias)$", 0, 0),
    (r"(down_proj|dense_4h_to_h)\.(weight|bias)$", 1, 0),
    (r"\.attn\.c_proj\.(weight|bias)$", 0, -1),  # Conv1D: [in, out]
    (r"\.mlp\.c_proj\.(weight|bias)$", 1, -1),
    (r"experts\.down_proj(_bias)?$", 1, 1),  # [experts, out, in]
)


def directions(k=1, seed=0, layers=LAYERS, hidden=HIDDEN):
    noise = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(layers, hidden, k, generator=noise).double()).Q.mT
    return Directions(
        vectors=vectors.float().contiguous(),
        norms=torch.rand(layers, generator=noise) + 1,
        neutral=torch.randn(layers, k, generator=noise),
    )


def edit(alpha=1.0, k=1, seed=0, **options):
    table = np.broadcast_to(np.asarray(alpha, dtype=float), (LAYERS, 2))
    return RowEdit(directions(k, seed), table, **options)


def table(seed):
    """[layers, kinds] strengths between −1 and 2, with a cell that is 0."""
    cells = np.random.default_rng(seed).uniform(-1, 2, (LAYERS, 2))
    cells[1, 0] = 0
    return cells


def behind(model, layer, kind):
    """[d] gain of the norm between a writer and the stream, by family; None where there is none."""
    names = ("post_attention_layernorm", "post_feedforward_layernorm")
    if model.config.model_type not in ("gemma2", "gemma3_text", "olmo2"):
        return None
    weight = getattr(model.model.layers[layer], names[kind]).weight.double()
    return weight + 1 if model.config.model_type.startswith("gemma") else weight


def projector(model, layer, kind, vectors, alpha):
    """[d, d] P of y' = P y: what is behind the norm, g ∘ y', is I − α r̂ r̂ᵀ times g ∘ y."""
    plain = torch.eye(HIDDEN).double() - alpha * vectors.T @ vectors
    gain = behind(model, layer, kind)
    return plain if gain is None else plain * gain / gain[:, None]


def edited_copy(model, row):
    """The weights changed as the definition says, with dense projectors, one edit at a time."""
    model = copy.deepcopy(model)
    transposed = model.config.model_type == "gpt_oss"  # [experts, in, out]
    for one in row:
        for name, parameter in model.named_parameters():
            for pattern, kind, axis in WRITES:
                if not re.search(pattern, name):
                    continue
                layer = int(re.search(r"\.(\d+)\.", name)[1])
                vectors = one.directions.vectors[layer].double()
                alpha = one.alpha[layer, kind]
                matrix = projector(model, layer, kind, vectors, alpha)
                axis = -1 if name.endswith("bias") or (transposed and "experts" in name) else axis
                old = parameter.double().movedim(axis, -1)  # [..., out]
                new = old @ matrix.T
                if one.norm_preserving and not name.endswith("bias"):
                    new = new * (old.norm(dim=-1) / new.norm(dim=-1))[..., None]
                parameter.copy_(new.movedim(-1, axis))
    return model


def logits(model, tokens, live=None, rows=None, tail=1):
    """Of prompts that end `tail` tokens before the end of the text, the last token included."""
    with torch.no_grad():
        if rows is None:
            return model(input_ids=tokens).logits
        with live.applied(live.compile(rows).ending([tail] * len(rows))):
            return model(input_ids=tokens).logits


def assert_same(actual, expected, tolerance=1e-4):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture
def llama():
    model = tiny("llama")
    return model, LiveEdits(discover(model))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ALL)
def test_each_row_computes_as_a_copy_with_edited_weights(name, k):
    model, tokens = tiny(name), ids(rows=6)
    rows = [(edit(strength, k),) for strength in STRENGTHS] + [(edit(table(7), k),)]
    expected = [logits(edited_copy(model, row), tokens)[i] for i, row in enumerate(rows)]
    base = logits(model, tokens)
    live = LiveEdits(discover(model))
    actual = logits(model, tokens, live, rows)
    assert_same(actual, torch.stack(expected))
    assert (actual[3] - base[3]).abs().max() > 0.01  # and the edit is no small thing


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", DENSE)
def test_norm_preserving_rows_compute_as_copies_with_edited_weights(name, k):
    model, tokens = tiny(name), ids(rows=6)
    rows = [(edit(strength, k, norm_preserving=True),) for strength in STRENGTHS]
    rows.append((edit(table(8), k, norm_preserving=True),))
    expected = [logits(edited_copy(model, row), tokens)[i] for i, row in enumerate(rows)]
    actual = logits(model, tokens, LiveEdits(discover(model)), rows)
    assert_same(actual, torch.stack(expected))
    plain = logits(edited_copy(model, (edit(1.0, k),)), tokens)
    assert (actual[3] - plain[3]).abs().max() > 1e-3  # the norms make a difference


@pytest.mark.parametrize("options", [{}, {"norm_preserving": True}], ids=["plain", "norm"])
@pytest.mark.parametrize("name", DENSE)
def test_rows_of_strength_zero_keep_every_bit(name, options):
    model, tokens = tiny(name), ids(rows=4)
    base = logits(model, tokens)
    live = LiveEdits(discover(model))
    rows = [(edit(0.0, **options),), (edit(1.0, **options),), (), (edit(-1.0, 3, 5, **options),)]
    actual = logits(model, tokens, live, rows)
    assert torch.equal(actual[[0, 2]], base[[0, 2]])
    assert not torch.equal(actual[1], base[1])
    assert torch.equal(logits(model, tokens, live, [(edit(0.0, **options),)] * 4), base)


@pytest.mark.parametrize("name", EXPERTS)
def test_rows_of_strength_zero_among_experts_keep_all_but_rounding(name):
    model, tokens = tiny(name), ids(rows=4)
    base = logits(model, tokens)
    live = LiveEdits(discover(model))
    actual = logits(model, tokens, live, [(edit(0.0),), (edit(1.0),), (), (edit(2.0),)])
    assert_same(actual[[0, 2]], base[[0, 2]], 1e-5)
    assert torch.equal(logits(model, tokens, live, [(edit(0.0),)] * 4), base)


@pytest.mark.parametrize("name", ALL)
def test_removing_the_direction_leaves_no_component_along_it(name):
    model = tiny(name)
    found = discover(model)
    live = LiveEdits(found)
    one = edit(1.0, 2)
    left = []

    def look(writer):
        def hook(module, args, output):
            y = output[0] if isinstance(output, tuple) else output
            along = y.reshape(-1, HIDDEN) @ one.directions.vectors[writer.layer].T
            left.append((along.abs().max() / y.abs().max()).item())

        return hook

    for writer in found.writers:  # the stream gets what is behind the norm, where there is one
        (writer.norm or writer.module).register_forward_hook(look(writer))
    logits(model, ids(), live, [(one,)] * 2)
    assert len(left) == 2 * LAYERS
    assert max(left) < 1e-5


def test_without_a_plan_the_hooks_do_nothing(llama):
    model, live = llama
    base = logits(tiny("llama"), ids())
    assert torch.equal(logits(model, ids()), base)
    with live.applied(None):
        assert torch.equal(logits(model, ids()), base)
    with pytest.raises(RuntimeError, match="stop"), live.applied(live.compile([(edit(),)] * 2)):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, ids()), base)


def test_no_weight_changes(llama):
    model, live = llama
    before = {name: p.clone() for name, p in model.named_parameters()}
    logits(model, ids(), live, [(edit(norm_preserving=True),), (edit(2.0),)])
    live.check((edit(norm_preserving=True),))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_two_edits_apply_one_after_the_other(llama):
    model, live = llama
    tokens = ids(rows=5)
    first, second = edit(0.7, 1, seed=1), edit(table(3), 2, seed=2)
    strong = edit(1.3, 1, seed=4, norm_preserving=True)
    kept = edit(table(4), 2, seed=3, norm_preserving=True)
    rows = [(first, second), (second, first), (first, kept), (kept, strong, first), (strong, kept)]
    expected = [logits(edited_copy(model, row), tokens)[i] for i, row in enumerate(rows)]
    assert_same(logits(model, tokens, live, rows), torch.stack(expected))


def test_rows_may_have_different_directions_and_numbers_of_edits(llama):
    model, live = llama
    tokens = ids(rows=4)
    shared = edit(1.0, 3, seed=1)
    rows = [(shared, edit(0.5, 1, seed=2)), (), (edit(-1.0, 2, seed=3),), (shared,)]
    expected = [logits(edited_copy(model, row), tokens)[i] for i, row in enumerate(rows)]
    assert_same(logits(model, tokens, live, rows), torch.stack(expected))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox", "mixtral"])
def test_decoding_with_a_cache_equals_the_full_forward_pass(name):
    model, tokens = tiny(name), ids(rows=3, tokens=8)
    live = LiveEdits(discover(model))
    preserving = name != "mixtral"
    rows = [(edit(1.0, 2, norm_preserving=preserving),), (), (edit(-0.5), edit(0.4, affine=True))]
    full = logits(model, tokens, live, rows, tail=4)
    plan, cache, steps = live.compile(rows), None, []
    for part in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:7], tokens[:, 7:]):
        ends = [int(part.shape[1] == 5)] * 3  # the first five tokens are the prompt
        with torch.no_grad(), live.applied(plan.ending(ends)):
            out = model(input_ids=part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    assert_same(torch.cat(steps, 1), full)


def test_rows_that_stay_keep_their_edits(llama):
    model, live = llama
    rows = [
        (edit(1.0, 2, seed=1, norm_preserving=True), edit(0.5, affine=True)),
        (),
        (edit(-1.0, 2, seed=1),),
        (edit(-0.3, operation="add"), edit(0.5, norm_preserving=True)),
    ]
    plan = live.compile(rows).ending([1, 1, 1, 1])
    for stay in ([0, 2, 3], [3, 0], [1], [2, 2, 1, 0], [0, 1, 2, 3]):
        tokens = ids(rows=len(stay))
        with live.applied(plan.select(stay)), torch.no_grad():
            actual = model(input_ids=tokens).logits
        assert_same(actual, logits(model, tokens, live, [rows[i] for i in stay]), 1e-6)
    again = plan.select([0, 2, 3]).select([2])
    with live.applied(again), torch.no_grad():
        actual = model(input_ids=ids(rows=1)).logits
    assert_same(actual, logits(model, ids(rows=1), live, [rows[3]]), 1e-6)


def after_layers(model, tokens, live, rows):
    """[L] of [rows, tokens, hidden]: the residual stream after each layer."""
    states = []
    handles = [
        layer.register_forward_hook(
            lambda module, args, output: states.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        for layer in discover(model).layers
    ]
    logits(model, tokens, live, rows)
    for handle in handles:
        handle.remove()
    return states


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_affine_edit_moves_the_component_to_the_harmless_mean_where_the_prompt_ends(name):
    model = tiny(name)
    live = LiveEdits(discover(model))
    one = edit(1.0, 2, affine=True)
    base = after_layers(model, ids(), live, [(), ()])
    for layer, state in enumerate(after_layers(model, ids(), live, [(one,), ()])):
        along = state[0, -1] @ one.directions.vectors[layer].T  # [k]
        assert torch.allclose(along, one.directions.neutral[layer], atol=1e-4)
        if name not in EXPERTS:  # a mixture's experts compute the tokens of all rows together
            assert torch.equal(state[0, :-1], base[layer][0, :-1])
            assert torch.equal(state[1], base[layer][1])


def test_each_row_is_edited_where_its_own_prompt_ends(llama):
    model, live = llama
    rows = [(edit(1.0, affine=True),)] * 3
    plan = live.compile(rows).ending([4, 1, 0])
    base = logits(model, ids(rows=3))
    with torch.no_grad(), live.applied(plan):
        found = model(input_ids=ids(rows=3)).logits
    changed = (found != base).any(-1)  # [rows, tokens]
    length = changed.shape[1]
    assert changed.tolist() == [
        [column >= length - 4 for column in range(length)],
        [column == length - 1 for column in range(length)],
        [False] * length,
    ]


def test_an_edit_where_the_prompt_ends_refuses_a_pass_that_does_not_say_where(llama):
    model, live = llama
    with pytest.raises(ValueError, match="does not say where"), torch.no_grad():
        with live.applied(live.compile([(edit(1.0, affine=True),)])):
            model(input_ids=ids(rows=1))


def centred(alpha=1.0, k=1, seed=0):
    """An affine edit of what the modules write, towards random points."""
    noise = torch.Generator().manual_seed(seed + 50)
    return edit(alpha, k, seed, affine=True, centre=torch.randn(LAYERS, 2, k, generator=noise))


def centred_copy(model, row):
    """Weights edited as the definition says, and a bias at every writer for the targets; written
    without the code that edits."""
    copied = copy.deepcopy(model)
    writers = discover(copied).writers
    for one in row:
        for writer in writers:
            kind = int(writer.role == "mlp")
            alpha, target = one.alpha[writer.layer, kind], one.centre[writer.layer, kind].double()
            vectors = one.directions.vectors[writer.layer].double()
            gain = behind(model, writer.layer, kind)
            weight = writer.module.weight
            matrix = weight.double() if writer.form == "conv1d" else weight.double().T  # [in, out]
            bias = writer.module.bias
            bias = torch.zeros(HIDDEN).double() if bias is None else bias.double()
            project = projector(model, writer.layer, kind, vectors, alpha)
            back = vectors if gain is None else vectors / gain
            new = (matrix @ project.T).float()
            shifted = bias @ project.T + alpha * target @ back
            writer.module.weight = nn.Parameter(
                new if writer.form == "conv1d" else new.T, requires_grad=False
            )
            writer.module.bias = nn.Parameter(shifted.float(), requires_grad=False)
    return copied


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", DENSE)
def test_an_affine_edit_of_what_is_written_is_an_ablation_and_a_bias(name, k):
    model, tokens = tiny(name), ids(rows=3)
    rows = [(centred(1.0, k),), (), (centred(table(7), k), centred(0.4, k, seed=3))]
    live = LiveEdits(discover(model))
    actual = logits(model, tokens, live, rows)
    for i, row in enumerate(rows):
        assert_same(actual[i], logits(centred_copy(model, row), tokens)[i])
    assert torch.equal(actual[1], logits(model, tokens)[1])


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_gets_the_component_of_the_centre(name):
    model = tiny(name)
    found = discover(model)
    live, one, seen = LiveEdits(found), centred(1.0, 2), {}
    for writer in found.writers:
        place = (writer.layer, int(writer.role == "mlp"))
        writer.module.register_forward_hook(
            lambda module, args, output, place=place: seen.update(
                {place: output[0] if isinstance(output, tuple) else output}
            )
        )
    logits(model, ids(), live, [(one,), (one,)])
    for writer in found.writers:
        layer, kind = place = (writer.layer, int(writer.role == "mlp"))
        read = one.directions.vectors[layer]
        gain = behind(model, layer, kind)
        read = read if gain is None else read * gain.float()
        along = seen[place].reshape(-1, HIDDEN) @ read.T
        assert torch.allclose(along, one.centre[layer, kind].expand_as(along), atol=1e-3)
    assert live.check((one,)).max_error < 1e-5


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_an_affine_edit_of_one_layer_follows_its_formula(llama, alpha):
    model, live = llama
    cells = np.zeros((LAYERS, 2))
    cells[1] = alpha
    one = edit(cells, 2, affine=True)
    before = after_layers(model, ids(), live, [(), ()])[1][0].double()
    after = after_layers(model, ids(), live, [(one,), ()])[1][0].double()
    vectors, target = one.directions.vectors[1].double(), one.directions.neutral[1].double()
    end, expected = before[-1], before.clone()
    expected[-1] = end - alpha * (end @ vectors.T - target) @ vectors
    assert torch.allclose(after, expected, atol=1e-5)


def test_adding_at_one_layer_adds_the_difference_of_the_means_once(llama):
    model, live = llama
    cells = np.zeros((LAYERS, 2))
    cells[1] = -1.0
    one = edit(cells, 2, operation="add")
    base = after_layers(model, ids(), live, [(), ()])
    states = after_layers(model, ids(), live, [(one,), ()])
    expected = base[1][0] + one.directions.norms[1] * one.directions.vectors[1, 0]
    assert torch.equal(states[0], base[0])
    assert torch.allclose(states[1][0], expected, atol=1e-5)
    assert torch.equal(states[1][1], base[1][1])


def test_adding_spreads_one_difference_over_the_layers():
    cells = np.array([[0.2, 0.2], [1.0, 1.0], [0.8, 0.0]])
    one = edit(-cells, operation="add")
    share = np.array([0.2, 1.0, 0.4])
    expected = -share / share.sum() * one.directions.norms.numpy()
    assert np.allclose(one.shifts(), expected)
    assert np.allclose(edit(-2 * cells, operation="add").shifts(), 2 * expected)
    assert not edit(0.0, operation="add").shifts().any()


def test_bfloat16_rows_stay_near_the_edited_copy():
    model = tiny("llama_bias").bfloat16()
    live = LiveEdits(discover(model))
    rows = [(edit(1.0, 3, norm_preserving=True),), ()]
    expected = logits(edited_copy(model, rows[0]), ids())[0].float()
    actual = logits(model, ids(), live, rows)
    assert actual.dtype == torch.bfloat16
    assert_same(actual[0].float(), expected, 0.05)
    report = live.check(rows[0])
    assert report.max_error < 0.02
    live.check((edit(1e-5),))  # too weak to show in bfloat16, and no error for that


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"operation": "add"}], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_the_check_finds_every_module_and_no_error(name, options):
    live = LiveEdits(discover(tiny(name)))
    one = edit(np.linspace(-1, 2, 2 * LAYERS).reshape(LAYERS, 2), 2, **options)
    report = live.check((one,))
    assert report.matched == report.expected == (LAYERS if options else 2 * LAYERS)
    assert report.max_error < 1e-5
    assert report.nonfinite == 0


@pytest.mark.parametrize("name", DENSE)
def test_the_check_measures_the_norm_preserving_invariant(name):
    live = LiveEdits(discover(tiny(name)))
    report = live.check((edit(0.6, 3, norm_preserving=True), edit(table(1), seed=2)))
    assert report.matched == 4 * LAYERS - 1
    assert report.max_error < 1e-5
    assert report.clamped == 0


def test_the_check_lists_what_changes_and_what_is_left(llama):
    _, live = llama
    cells = np.zeros((LAYERS, 2))
    cells[1, 0] = 0.5
    report = live.check((edit(cells),))
    assert report.changed == ("model.layers.1.self_attn.o_proj",)
    for name in ("model.layers.1.mlp.down_proj", "model.embed_tokens", "lm_head", "model.norm"):
        assert name in report.untouched
    assert "model.layers.1.self_attn.o_proj" not in report.untouched
    assert "changes nothing" in live.check((edit(0.0),)).messages[0]


def test_the_check_fails_by_name_when_a_module_is_not_reached(llama):
    model, live = llama
    model.model.layers[1].mlp.down_proj = nn.Linear(48, HIDDEN)  # replaced behind our back
    with pytest.raises(UserError, match=r"5 of 6.*model\.layers\.1\.mlp\.down_proj"):
        live.check((edit(),))


def test_the_check_counts_clamped_columns(llama):
    model, live = llama
    one = edit(1.0, norm_preserving=True)
    model.model.layers[0].mlp.down_proj.weight[:, 3] = one.directions.vectors[0, 0]
    report = live.check((one,))
    assert report.clamped == 1
    assert any("norm was not restored" in message for message in report.messages)


@pytest.mark.parametrize("name", EXPERTS)
def test_norm_preservation_with_experts_points_to_the_export(name):
    live = LiveEdits(discover(tiny(name)))
    with pytest.raises(UserError, match=r"layers\.0\.mlp.*experts.*export"):
        live.compile([(edit(norm_preserving=True),)])
    cells = np.zeros((LAYERS, 2))
    cells[:, 0] = 1.0  # attention alone has ordinary matrices
    live.compile([(edit(cells, norm_preserving=True),)])


def test_norm_preservation_with_quantised_weights_points_to_the_export(llama):
    model, live = llama
    packed = torch.zeros(HIDDEN, 48, dtype=torch.int8)
    model.model.layers[0].mlp.down_proj.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UserError, match=r"down_proj is quantised.*export"):
        live.compile([(edit(norm_preserving=True),)])
    live.compile([(edit(),)])


@pytest.mark.parametrize("shape", [{"layers": LAYERS + 1}, {"hidden": HIDDEN // 2}], ids=str)
def test_directions_of_another_model_are_refused(llama, shape):
    other = directions(**shape)
    one = RowEdit(other, np.ones((other.layers, 2)))
    with pytest.raises(UserError, match="another model"):
        llama[1].compile([(one,)])


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"\[2, 2\].*\[3, 2\]"):
        RowEdit(directions(), np.ones((2, 2)))
    with pytest.raises(UserError, match="not finite"):
        edit(float("nan"))
    with pytest.raises(UserError, match="norm_preserving"):
        edit(affine=True, norm_preserving=True)


def test_a_batch_of_another_size_than_the_plan_is_an_error(llama):
    model, live = llama
    with pytest.raises(ValueError, match=r"3 rows.*\[2, 7, 32\]"):
        logits(model, ids(rows=2), live, [(edit(),)] * 3)


def test_closing_takes_the_hooks_off(llama):
    model, live = llama
    base = logits(model, ids())
    live.close()
    assert torch.equal(logits(model, ids(), live, [(edit(),)] * 2), base)
