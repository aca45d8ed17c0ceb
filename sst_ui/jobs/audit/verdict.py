"""What was done to a whole model, from what was done to its tensors, with the numbers it rests on.

Two checkpoints tell what changed, never why: where they cannot tell, the verdict says so.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sst_ui.jobs.audit.findings import CHANGED, Finding, Verdict
from sst_ui.model.architecture.discover import fold
from sst_ui.model.weights.tensor_pairs import Matching

ALIKE = 0.98  # |cos| from which two writers are said to lose the same direction
ONE = 0.995  # and two layers
MOSTLY = 0.9  # share of the changed matrices that must agree


def judge(
    findings: Sequence[Finding], matching: Matching, alpha: np.ndarray, adapter: bool
) -> Verdict:
    """The verdict on a comparison.

    Args:
        alpha: [layers, kinds], see `Audit`.
        adapter: whether the other is an adapter of the base by what it is.
    """
    lost = [stored.shape for _, stored in matching.missing]
    lost += [shape for _, shape, _ in matching.reshaped]
    gone, there = (sum(map(_numbers, shapes)) for shapes in (lost, [f.shape for f in findings]))
    if gone >= there:
        share = gone / max(1, gone + there)
        told = f"{share:.0%} of the base's numbers have no tensor of the same shape in the other: "
        told += f"{len(matching.missing)} tensors are missing, {len(matching.reshaped)} reshaped."
        return Verdict("other", "another model", (told,))
    changed = [finding for finding in findings if finding.kind in CHANGED]
    if not changed:
        return _unchanged(findings, matching)
    matrices = [finding for finding in changed if len(finding.shape) > 1]
    vectors = [f for f in changed if len(f.shape) < 2 and f.kind != "ablated_bias"]
    for look in (_packed, _rounded, _ablation, _filter, _low_rank, _full):
        if (found := look(matrices, vectors, findings)) is not None:
            return _with_adapter(found, adapter)
    kinds = sorted({finding.kind for finding in changed})
    return Verdict("unclear", "changed in several ways at once; which cannot be told", (
        f"{len(changed)} of {len(findings)} tensors changed: " + "; ".join(
            f"{_many([f for f in changed if f.kind == kind])} {kind.replace('_', ' ')}"
            for kind in kinds) + ".",
    ))  # fmt: skip


def _with_adapter(found: Verdict, adapter: bool) -> Verdict:
    if not adapter:
        return found
    title = found.title.replace("a low-rank adapter, merged:", "a low-rank change,")
    return Verdict(found.kind, f"an adapter: {title}", found.evidence)


def _unchanged(findings: Sequence[Finding], matching: Matching) -> Verdict:
    """No number changed, or only its type."""
    retyped = [finding for finding in findings if finding.kind == "retyped"]
    if retyped:
        return Verdict("retyped", f"stored in another type: {_types(retyped)}", (
            f"{_many(retyped)} hold the base's numbers rounded to the nearest of the other type, "
            f"every one of them; the largest relative difference of a tensor is "
            f"{max(f.size for f in retyped):.1e}. {len(findings) - len(retyped)} are the same.",
        ))  # fmt: skip
    lost = len(matching.missing) + len(matching.added) + len(matching.reshaped)
    title = "the same weights" if not lost else "the same weights, as far as both hold them"
    return Verdict("unchanged", title, (f"All {len(findings)} tensors are the same, bit for bit.",))


def _packed(
    matrices: Sequence[Finding], vectors: Sequence[Finding], findings: Sequence[Finding]
) -> Verdict | None:
    packed = [finding for finding in matrices if finding.kind == "packed"]
    if not packed:
        return None
    others = [f for f in (*matrices, *vectors) if f.kind not in ("packed", "rounding", "quantised")]
    told = f"{_many(packed)} are stored packed ({_types(packed)}), and their numbers were not read."
    rest = f" {_many(others)} changed otherwise." if others else ""
    return Verdict("quantised", "a quantised copy; whether it was edited first cannot be told",
                   (told + rest,))  # fmt: skip


def _rounded(
    matrices: Sequence[Finding], vectors: Sequence[Finding], findings: Sequence[Finding]
) -> Verdict | None:
    """Quantised and stored in ordinary numbers again, or moved by no more than a step."""
    few = [finding for finding in matrices if finding.kind == "quantised"]
    steps = [finding for finding in matrices if finding.kind == "rounding"]
    if vectors or len(few) + len(steps) < len(matrices) or not matrices:
        return None
    if few:
        bits = max(finding.bits or 0 for finding in few)
        sizes = [finding.size for finding in few]
        return Verdict("quantised", f"quantised to {bits} bits and unpacked again", (
            f"{_many(few)} hold no more than {2**bits} different numbers in each group, and the "
            f"change is {min(sizes):.1%} to {max(sizes):.1%} of them, without a low rank.",
        ))  # fmt: skip
    return Verdict("rounding", "rounding only; or a change too small to tell from it", (
        f"No number of {_many(steps)} moved by more than one step of its type, and the changes "
        f"have no low rank; at most {max(f.size for f in steps):.1e} of a tensor.",
    ))  # fmt: skip


def _ablation(
    matrices: Sequence[Finding], vectors: Sequence[Finding], findings: Sequence[Finding]
) -> Verdict | None:
    cells = [finding for finding in matrices if finding.kind == "ablation"]
    # a bf16 cell of a small α may be lost in its rounding
    others = [f for f in matrices if f.kind not in ("ablation", "rounding") and not _weak(f, cells)]
    if not cells or others or vectors:
        return None
    kept = [finding.preserving for finding in cells if finding.preserving is not None]
    k = max(set(ranks := [f.rank or 0 for f in cells]), key=ranks.count)
    how = "norm preserving" if kept and sum(kept) > len(kept) / 2 else "plain"
    if not kept:
        how = "plain or norm preserving (the two are the same here)"
    alphas = [finding.alpha or 0.0 for finding in cells]
    told = [
        f"{_many(cells)} that write to the residual stream lost {_directions(k)}, and nothing else "
        f"changed but rounding: α {min(alphas):.3f} to {max(alphas):.3f}, largest misfit "
        f"{max(f.misfit or 0 for f in cells):.1e}.",
        f"Column norms deviate by at most {max(f.norms for f in cells):.1e}.",
        *_sharing(cells),
    ]
    biases = [finding for finding in findings if finding.kind == "ablated_bias"]
    moved = [f.target for f in biases if f.target is not None]
    if moved and max(moved) > 0.01 * max(1e-6, *(abs(a) for a in alphas)):
        how = f"{how}, affine"
        told.append(f"{_many(biases)} (biases) move the component to {min(moved):.3g} to "
                    f"{max(moved):.3g} instead of 0.")  # fmt: skip
    sign = ", negative α" if max(alphas) < 0 else ""
    return Verdict("ablation", f"ablation, {how}, {_directions(k)}{sign}", tuple(told))


def _weak(finding: Finding, cells: Sequence[Finding]) -> bool:
    """A low rank that is tiny beside the ablated cells: rounding that has a shape."""
    largest = max((cell.size for cell in cells), default=0.0)
    return bool(finding.role) and finding.kind == "low_rank" and finding.size < 0.02 * largest


def _filter(
    matrices: Sequence[Finding], vectors: Sequence[Finding], findings: Sequence[Finding]
) -> Verdict | None:
    """A low rank in what writes, along a direction that the writers of a layer share."""
    cells = [finding for finding in matrices if finding.kind in ("low_rank", "ablation")]
    if vectors or not cells or len(cells) < len(matrices) or not all(f.role for f in cells):
        return None
    if any(finding.direction is None for finding in cells):
        return None
    ranks = [finding.rank or 0 for finding in cells]
    shared = [finding.shared for finding in cells if finding.shared is not None]
    given = [finding.cosine for finding in cells if finding.cosine is not None]
    between = _between(cells)
    alike = bool(shared) and float(np.median(shared)) >= ALIKE
    alike = alike or (len(between) > 1 and min(between) >= ONE)
    known = bool(given) and float(np.median(given)) >= ALIKE
    reads = [finding.read or 0.0 for finding in cells]
    told = [
        f"{_many(cells)} that write to the residual stream changed by rank {_span(ranks)}, and "
        f"what is read is not the matrix's own component (|cos| {min(reads):.3f} to "
        f"{max(reads):.3f} with Wᵀr̂).",
        *_sharing(cells),
    ]
    if not (alike or known):
        told.append(
            "The writers of a layer lose different directions: an adapter on these modules, not a "
            "filter." if shared else
            "One writer per layer changed, along a direction of its own: whether by a filter or by "
            "an adapter cannot be told."
        )  # fmt: skip
        return Verdict("adapter", f"a low-rank change of rank {_span(ranks)}", tuple(told))
    told.append(
        "Its weight α and its filter v enter as their product: the table shows how much of W's own "
        "component goes, and α alone cannot be told from two checkpoints."
    )
    k = max(set(ranks), key=ranks.count)
    return Verdict("filter", f"filtered ablation, {_directions(k)}", tuple(told))


def _low_rank(
    matrices: Sequence[Finding], vectors: Sequence[Finding], findings: Sequence[Finding]
) -> Verdict | None:
    low = [finding for finding in matrices if finding.kind in ("low_rank", "ablation")]
    steps = [finding for finding in matrices if finding.kind == "rounding"]
    if vectors or not low or len(low) + len(steps) < len(matrices):
        return None
    ranks, sizes = [f.rank or 0 for f in low], [f.size for f in low]
    modules = fold(finding.name.removesuffix(".weight") for finding in low)
    return Verdict("adapter", f"a low-rank adapter, merged: rank {_span(ranks)}", (
        f"{_many(low)} changed by a rank of {_span(ranks)} and {min(sizes):.1%} to "
        f"{max(sizes):.1%} of their size, and nothing else changed: {modules}.",
    ))  # fmt: skip


def _full(
    matrices: Sequence[Finding], vectors: Sequence[Finding], findings: Sequence[Finding]
) -> Verdict | None:
    dense = [finding for finding in matrices if finding.kind == "dense"]
    if not matrices or len(dense) < MOSTLY * len(matrices):
        return None
    everything = [finding for finding in findings if len(finding.shape) > 1]
    sizes = sorted(finding.size for finding in dense)
    return Verdict("full", "a fine-tune of all weights, or a merge of full models", (
        f"{len(dense)} of {len(everything)} matrices changed with a high rank, by "
        f"{sizes[0]:.1%} to {sizes[-1]:.1%} of their size (median {sizes[len(sizes) // 2]:.1%}), "
        f"and {len(vectors)} norms and biases.",
        "Which of the two it is cannot be told from two checkpoints.",
    ))  # fmt: skip


def _sharing(cells: Sequence[Finding]) -> list[str]:
    """Sentences on how directions agree between writers, between layers and with the given ones."""
    told = []
    shared = [finding.shared for finding in cells if finding.shared is not None]
    if shared:
        told.append(f"Attention and MLP of a layer agree on it (|cos| {min(shared):.4f} at least, "
                    f"{float(np.median(shared)):.4f} in the median).")  # fmt: skip
    if cosines := _between(cells):
        same = min(cosines) >= ONE
        told.append(
            f"All layers lose the same (|cos| {min(cosines):.4f} at least)." if same else
            f"Layers lose directions of their own (|cos| {min(cosines):.3f} to {max(cosines):.3f} "
            "from one to the next)."
        )  # fmt: skip
    given = [finding.cosine for finding in cells if finding.cosine is not None]
    if given:
        told.append(f"|cos| to the given directions: {min(given):.4f} to {max(given):.4f}, median "
                    f"{float(np.median(given)):.4f}.")  # fmt: skip
    return told


def _between(cells: Sequence[Finding]) -> list[float]:
    """|cos| of the directions of neighbouring layers, by their most changed writer."""
    largest = sorted(cells, key=lambda finding: finding.size)
    rows = {f.layer: f.direction for f in largest if f.direction is not None}
    found = [rows[layer].double() for layer in sorted(rows, key=lambda layer: layer or 0)]
    return [
        float((one @ two.mT).square().sum() / min(len(one), len(two))) ** 0.5
        for one, two in pairwise(found)
    ]


def _numbers(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _directions(k: int) -> str:
    return "one direction" if k == 1 else f"{k} directions"


def _many(findings: Sequence[Finding]) -> str:
    return "1 tensor" if len(findings) == 1 else f"{len(findings)} tensors"


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"


def _types(findings: Sequence[Finding]) -> str:
    return ", ".join(sorted({" → ".join(finding.types) for finding in findings}))
