"""Whole answers under an affine edit at strength 1: on the demo, and on a small Llama that learned
to refuse with no edit in the loop.

What goes wrong where the target is measured at one token and applied at all of them is shown beside
it, by hooks that this file registers itself.
"""

from contextlib import contextmanager

import numpy as np
import pytest

from sst_ui.data import prompt_sets
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.directions.rounds import rounds
from sst_ui.metrics.text.refusal_phrases import is_refusal
from sst_ui.model.inference.answer_residuals import along_answers
from sst_ui.model.inference.replies import replies
from sst_ui.model.inference.residuals import residuals
from sst_ui.model.runtime.host import load
from sst_ui.options import RoundsOptions
from sst_ui.progress import finish
from sst_ui.recipe import Ablation, DirectionSpec, ModelSpec, Recipe, WeightTable
from tests.refuser import kept

LONG, TOKENS = 40, 72  # tokens of an answer that counts as a long one, and of the longest


def answers(host, prompts, row=()):
    return [reply.tokens for reply in finish(replies(host, prompts, [row] * len(prompts), TOKENS))]


def edits(host, profile, directions=None, **options):
    ablation = Ablation(directions or DirectionSpec(), WeightTable(profile=profile), **options)
    return finish(resolve(host, Recipe(edits=(ablation,))))


@contextmanager
def pinned(host, edit):
    """After each layer, every token's component goes to where the last token of harmless prompts
    has it."""
    handles = []
    for layer, alpha in zip(host.architecture.layers, edit.per_layer(), strict=True):
        number = len(handles)
        vector, target = edit.directions.vectors[number, 0], edit.directions.neutral[number, 0]

        def hook(module, args, output, alpha=alpha, vector=vector, target=target):
            x = output[0] if isinstance(output, tuple) else output
            along = (x @ vector.to(x)).float() - target
            moved = x - (alpha * along[..., None] * vector).to(x)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handles.append(layer.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same(found, expected):
    return np.mean([a == b for a, b in zip(found, expected, strict=True)])


def test_long_answers_of_the_demo_stay_whole_and_refusals_go(host):
    prompts = prompt_sets.load("demo/harmless_heldout", 24).prompts
    asked = [host.encode(prompt.messages()) for prompt in prompts]
    base = answers(host, asked)
    kept = sorted(range(len(base)), key=lambda i: -len(base[i]))[:12]  # the longest
    asked, base = [asked[i] for i in kept], [base[i] for i in kept]
    (edit,) = row = edits(host, "late_focus", affine=True)

    with pinned(host, edit):  # the fault: every answer falls apart
        assert same(answers(host, asked), base) == 0
    assert same(answers(host, asked, row), base) >= 0.75

    harmful = prompt_sets.load("demo/harmful_heldout", 24).prompts
    asked = [host.encode(prompt.messages()) for prompt in harmful]
    refused, said = ([host.decode(a) for a in answers(host, asked, r)] for r in ((), row))
    assert np.mean([is_refusal(text) for text in refused]) >= 0.9
    # It acts where the prompt ends, so it takes the refusals that are decided there.
    opened = [is_refusal(text.split(".")[0]) for text in refused]
    at_once = [text for text, first in zip(said, opened, strict=True) if first]
    assert 8 <= len(at_once) < len(said)
    assert np.mean([is_refusal(text) for text in at_once]) <= 0.1
    assert np.mean([text.rstrip().endswith((".", "!")) for text in said]) >= 0.9  # whole ones


@pytest.mark.parametrize("profile", ["default", "late_focus", "broad"])
def test_what_was_said_before_refusing_was_learned_comes_back_word_for_word(profile):
    refuser = kept()
    host = finish(load(ModelSpec(id=str(refuser.model))))
    measured = DirectionSpec(harmful=str(refuser.harmful), harmless=str(refuser.harmless))
    sets = [prompt_sets.load(path).prompts for path in (refuser.harmful_heldout,
                                                        refuser.harmless_heldout)]  # fmt: skip
    asked, ordinary = ([host.encode(p.messages()) for p in prompts] for prompts in sets)
    before = finish(load(ModelSpec(id=str(refuser.before))))
    wanted = answers(before, asked)
    assert min(map(len, wanted)) >= LONG
    plain = edits(host, profile, measured)
    affine = edits(host, profile, measured, affine=True)
    centred = edits(host, profile, measured, affine=True, affine_at="everywhere")

    assert same(answers(host, asked), wanted) == 0  # it refuses
    assert same(answers(host, asked, plain), wanted) <= 0.1  # and goes on refusing
    assert same(answers(host, asked, affine), wanted) >= 0.9
    base = answers(host, ordinary)
    with pinned(host, affine[0]):  # the fault: answers fall apart
        assert same(answers(host, ordinary), base) <= 0.4
    assert same(answers(host, ordinary, affine), base) >= 0.95
    assert same(answers(host, ordinary, centred), base) >= 0.95


def test_an_answer_is_read_under_the_edit_that_it_was_given_under(host):
    """What the stream holds along an answer predicts that very answer, token by token."""
    prompts = prompt_sets.load("demo/harmful_heldout", 4).prompts
    asked = [host.encode(prompt.messages()) for prompt in prompts]
    row = edits(host, "late_focus", affine=True)
    said = answers(host, asked, row)
    assert said != answers(host, asked)

    def predicted(residual):  # [L, d]
        return int(host.model.lm_head(host.model.model.norm(residual[-1].float())).argmax())

    for prompt, answer in zip(asked, said, strict=True):
        along = along_answers(host, [(prompt, answer)], [0], len(answer), row)
        (found,) = finish(along)
        assert [predicted(each) for each in found.mean] == list(answer)
        heads = [[*prompt, *answer[:p]] for p in range(len(answer))]
        lengths = [len(prompt)] * len(heads)
        here = finish(residuals(host, heads, rows=[row] * len(heads), lengths=lengths))
        assert [predicted(each) for each in here] == list(answer)


def test_rounds_go_on_from_an_affine_edit_too():
    refuser = kept()
    host = finish(load(ModelSpec(id=str(refuser.model))))
    measured = DirectionSpec(harmful=str(refuser.harmful), harmless=str(refuser.harmless))
    weak = Ablation(measured, WeightTable(profile="default", strength=0.3), affine=True)
    found = finish(rounds(host, weak, RoundsOptions(rounds=2, goal=0.0)))
    assert found.rounds[0].shares["refused"] > 0.9
    assert found.ended in ("goal", "rounds", "worse", "none")
