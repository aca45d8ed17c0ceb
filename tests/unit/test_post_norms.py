"""A norm between a writer and the stream: the direction is gone *behind* it, live and in files."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

from sst_ui.errors import UserError
from sst_ui.jobs.export.expected_weights import expectations
from sst_ui.maths.ablation import OBLIQUE, edit_weight, through_gain
from sst_ui.model.architecture.discover import discover
from sst_ui.model.architecture.post_norm import measured_gain
from sst_ui.model.hooks.live_edits import LiveEdits, RowEdit
from sst_ui.model.lora.adapters import write_adapter
from sst_ui.model.lora.from_edits import lower
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec
from tests.talk import byte_tokenizer
from tests.tiny import HIDDEN, LAYERS, VOCAB, ids, tiny
from tests.unit.test_live_edits import assert_same, edit, logits, table

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers")
ISSUE = ("gemma2", "gemma3", "olmo2")
FAMILIES = (*ISSUE, "gemma4", "olmo3", "exaone4", "glm4", "hyperclovax", "afmoe")
PLUS_ONE = ("gemma2", "gemma3_text")  # their weight w means 1 + w


def uneven(name, zeros=(), seed=3, **overrides):
    """A tiny model whose post-norms have gains between 0.5 and 2, some of them 0."""
    model = tiny(name, **overrides)
    noise = torch.Generator().manual_seed(seed)
    for writer in discover(model).writers:
        gain = 0.5 * 4 ** torch.rand(HIDDEN, generator=noise)
        gain[list(zeros)] = 0
        writer.norm.weight.copy_(gain - float(model.config.model_type in PLUS_ONE))
    return model


def gain_of(model, writer):
    return writer.norm.weight.double() + float(model.config.model_type in PLUS_ONE)


def behind(model, row=None):
    """(what each norm got, and gave) [tokens, d] by writer, of a pass with the same inputs."""
    found = discover(model)
    live = LiveEdits(found)
    seen = {}
    handles = [
        writer.norm.register_forward_hook(
            lambda _, args, out, name=writer.name: seen.__setitem__(
                name, (args[0][0].double(), out[0].double())
            )
        )
        for writer in found.writers
    ]
    logits(model, ids(rows=1), live, [row or ()])
    live.close()
    for handle in handles:
        handle.remove()
    return found, seen


@pytest.mark.parametrize("alpha", [1.0, 0.5, -1.0, 2.0])
@pytest.mark.parametrize("name", ISSUE)
def test_the_writer_gives_what_the_formula_says(name, alpha):
    model = uneven(name)
    cells = np.zeros((LAYERS, 2))
    cells[0, 0] = alpha  # one writer alone, so that its input is that of the base model
    one = edit(cells)
    found, base = behind(model)
    _, edited = behind(model, (one,))
    writer = found.writers[0]
    y, after = base[writer.name][0], edited[writer.name][0]
    r, g = one.directions.vectors[0, 0].double(), gain_of(model, writer)
    expected = y - alpha * ((g * r) @ y.T)[:, None] * (r / g)
    assert (after - expected).abs().max() < 1e-5 * y.abs().max()


@pytest.mark.parametrize("alpha", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_behind_the_norm_the_component_is_what_the_edit_says_and_nothing_else_moves(name, alpha):
    model = uneven(name)
    found = discover(model)
    for writer in found.writers[:2]:
        cells = np.zeros((LAYERS, 2))
        cells[0, found.writers.index(writer)] = alpha
        one = edit(cells)
        _, base = behind(model)
        _, edited = behind(model, (one,))
        before, after = base[writer.name][1], edited[writer.name][1]
        r = one.directions.vectors[0, 0].double()
        wanted = before - alpha * (before @ r)[:, None] * r  # up to the norm's own rescaling
        scale = (after * wanted).sum(-1) / wanted.square().sum(-1)
        assert ((after @ r) - (1 - alpha) * scale * (before @ r)).abs().max() < 1e-5 * before.norm(
            dim=-1
        ).max()
        assert (after - scale[:, None] * wanted).abs().max() < 1e-5 * after.abs().max()
        assert (before @ r).abs().max() > 0.01


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ISSUE)
def test_where_the_gain_is_zero_the_directions_are_gone_all_the_same(name, k):
    model = uneven(name, zeros=(0, 5, 6))
    one = edit(1.0, k)
    _, seen = behind(model, (one,))
    for number, (got, gave) in enumerate(seen.values()):
        along = gave @ one.directions.vectors[number // 2].double().T
        assert along.abs().max() < 1e-5 * gave.abs().max()
        assert got.abs().max() < 100
    report = LiveEdits(discover(model)).check((one,))
    assert report.max_error < 1e-5


def test_near_zeros_project_along_the_weighed_direction():
    r = normalize(torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(0)).double())
    gain = torch.ones(HIDDEN).double()
    read, write = through_gain(r, gain * 7)
    assert torch.allclose(write.mT @ read, r.mT @ r)
    gain[3] = 1e-6
    read, write = through_gain(r, gain)
    p = normalize(gain * r)
    assert torch.allclose(write.mT @ read, p.mT @ p)
    gain[3] = 0.3
    read, write = through_gain(r, gain)
    assert torch.allclose(write.mT @ read, (r / gain).mT @ (r * gain))
    assert (r / gain).norm() * (r * gain).norm() < OBLIQUE
    assert through_gain(r, None) == (r, None)


def test_several_directions_are_one_oblique_projection():
    noise = torch.Generator().manual_seed(1)
    rows = torch.linalg.qr(torch.randn(HIDDEN, 3, generator=noise).double()).Q.mT
    gain = 0.5 + torch.rand(HIDDEN, generator=noise).double()
    read, write = through_gain(rows, gain)
    weight = torch.randn(HIDDEN, 20, generator=noise).double()
    dense = torch.diag(1 / gain) @ rows.mT @ rows @ torch.diag(gain)
    expected = weight - 0.7 * dense @ weight
    assert torch.allclose(edit_weight(weight, read, 0.7, write=write), expected)
    kept = edit_weight(weight, read, 0.7, True, write)
    assert torch.allclose(kept, expected * weight.norm(dim=0) / expected.norm(dim=0))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_gain_is_measured_whatever_the_family_stores(name, dtype):
    model = uneven(name).to(dtype)
    for writer in discover(model).writers:
        gain = gain_of(model, writer).float()
        assert torch.allclose(writer.gain / writer.gain[0], gain / gain[0], rtol=1e-5)


def test_a_norm_that_takes_the_mean_away_is_refused():
    norm = torch.nn.LayerNorm(HIDDEN)
    with pytest.raises(UserError, match=r"layers\.0\.odd \(LayerNorm\)"):
        measured_gain(norm, "layers.0.odd", HIDDEN)


def test_a_norm_without_numbers_has_the_same_gain_everywhere():
    norm = torch.nn.RMSNorm(HIDDEN, elementwise_affine=False)
    assert torch.allclose(measured_gain(norm, "n", HIDDEN), torch.ones(HIDDEN))


ROWS = {
    "one": lambda: (edit(table(7)),),
    "three directions": lambda: (edit(table(7), 3),),
    "two edits": lambda: (edit(0.7, 2, seed=1), edit(table(4), seed=2)),
    "norms kept": lambda: (edit(table(8), 2, norm_preserving=True),),
    "norms kept, two edits": lambda: (edit(0.6, seed=1), edit(0.8, 2, norm_preserving=True)),
}


@pytest.mark.parametrize("zeros", [(), (2, 9)], ids=["gains", "zeros"])
@pytest.mark.parametrize("what", ROWS)
@pytest.mark.parametrize("name", ISSUE)
def test_live_checked_and_exported_are_one_model(name, what, zeros, tmp_path):
    model = uneven(name, zeros, vocab_size=261, attention_bias=True)
    row = ROWS[what]()
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    live = LiveEdits(discover(model))
    actual = logits(model, ids(), live, [row] * 2)
    assert live.check(row).max_error < 1e-5
    spec = ModelSpec(id=str(tmp_path / "base"))
    finish(write_model(spec, row, live.architecture, tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert_same(logits(again, ids()), actual, 1e-5)
    assert (actual - logits(model, ids())).abs().max() > 0.01

    # without the live model the gain comes from the files
    finish(write_model(spec, row, None, tmp_path / "cold"))
    for file in (tmp_path / "out").glob("*.safetensors"):
        assert (tmp_path / "cold" / file.name).read_bytes() == file.read_bytes()

    # each matrix by the formula, and with its column norms where they are kept
    for writer in live.architecture.writers:
        weight = model.get_parameter(writer.tensors[0].name).double()
        found = again.get_parameter(writer.tensors[0].name).double()
        gain, expected = gain_of(model, writer), weight
        for one in row:
            r = one.directions.vectors[writer.layer].double()
            alpha = float(one.alpha[writer.layer, int(writer.role == "mlp")])
            back = torch.linalg.pinv(r * gain).mT if zeros else r / gain
            moved = expected - alpha * back.mT @ ((r * gain) @ expected)
            if one.norm_preserving:
                moved = moved * expected.norm(dim=0) / moved.norm(dim=0)
            expected = moved
        assert torch.allclose(found, expected, atol=1e-5 * float(weight.abs().max()))


@pytest.mark.parametrize("what", ["one", "three directions", "two edits"])
@pytest.mark.parametrize("name", ISSUE)
def test_an_adapter_is_the_live_model_and_exact(name, what, tiny_host, tmp_path):
    host = tiny_host(name, vocab_size=VOCAB, attention_bias=True)
    for writer in host.architecture.writers:
        writer.norm.weight.mul_(torch.linspace(0.6, 1.4, HIDDEN))
        writer.__dict__.pop("gain", None)
    row = ROWS[what]()
    found = finish(lower(host, row))
    assert found.error == 0
    assert max(d.rank for d in found.deltas.values()) == {"one": 1}.get(what, 3)
    folder = write_adapter(tmp_path / "adapter", found.deltas, host, found.biases)
    actual = logits(host.model, ids(), host.live, [row] * 2)
    base = tiny(name, vocab_size=VOCAB, attention_bias=True)
    base.load_state_dict(host.model.state_dict())
    with torch.no_grad():
        written = PeftModel.from_pretrained(base, folder).eval()(input_ids=ids()).logits
    assert_same(written, actual, 1e-5)


def test_what_verification_expects_of_the_files_is_what_is_written(tiny_host):
    host = tiny_host("gemma3")
    row = (edit(1.0, 2),)
    found = list(expectations(host, row))
    assert len(found) == 2 * LAYERS
    for name, axis, left, expected, size in found:
        writer = next(w for w in host.architecture.writers if w.tensors[0].name == name)
        r = row[0].directions.vectors[writer.layer].double()
        assert axis == 0
        assert torch.allclose(left[:2], r * gain_of(host.model, writer), atol=1e-6)
        assert (expected[:, :2].abs().amax(0) < 1e-6 * size[:2]).all()


@pytest.mark.parametrize("name", ISSUE)
def test_rows_of_strength_zero_keep_every_bit_behind_uneven_gains(name):
    model = uneven(name)
    base = logits(model, ids(rows=3))
    live = LiveEdits(discover(model))
    actual = logits(model, ids(rows=3), live, [(edit(0.0),), (edit(1.0),), ()])
    assert torch.equal(actual[[0, 2]], base[[0, 2]])
    assert not torch.equal(actual[1], base[1])


@pytest.mark.parametrize("name", ISSUE)
@pytest.mark.parametrize("options", [{"affine": True}, {"operation": "add"}], ids=str)
def test_edits_of_the_stream_itself_do_not_see_the_norm(name, options):
    report = LiveEdits(discover(uneven(name))).check((edit(0.7, 2, **options),))
    assert report.matched == LAYERS
    assert report.max_error < 1e-5


def test_bfloat16_leaves_no_more_than_rounding():
    model = uneven("gemma3").bfloat16()
    report = LiveEdits(discover(model)).check((RowEdit(edit().directions, np.ones((LAYERS, 2))),))
    assert report.max_error < 0.02
    assert not any("rounding" in message for message in report.messages)


@pytest.mark.parametrize("name", [*FAMILIES[3:], "granite", "bloom"])
def test_every_family_with_something_on_the_way_exports_what_it_computes(name, tmp_path):
    model = tiny(name, vocab_size=261) if name in ("granite", "bloom") else uneven(name, (1, 4))
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    row = (edit(table(7), 2), edit(0.6, seed=3))
    live = LiveEdits(discover(model))
    actual = logits(model, ids(), live, [row] * 2)
    spec = ModelSpec(id=str(tmp_path / "base"))
    finish(write_model(spec, row, live.architecture, tmp_path / "out"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert_same(logits(again, ids()), actual, 1e-5)
    assert (actual - logits(model, ids())).abs().max() > 0.001
