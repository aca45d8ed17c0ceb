"""A comparison as one page of plain text."""

from collections.abc import Iterator, Sequence

import numpy as np

from sst_ui.jobs.audit.findings import ORDER, Audit, counts
from sst_ui.maths.audit.kernel_fit import CLOSE, KernelFit
from sst_ui.model.architecture.discover import fold
from sst_ui.recipe import KINDS

PER_LINE = 8  # layers
MOST = 6  # tensors, fields and kernels that are listed each
LARGEST = 12  # settings
NAMES = {"ablated_bias": "bias along the ablated direction", "low_rank": "low rank",
         "vector": "norm or bias", "packed": "packed"}  # fmt: skip


def text(audit: Audit) -> str:
    """The verdict with its evidence, α per cell, kernels, tensors and settings that differ."""
    lines = [f"{audit.base} → {audit.other}", f"Verdict: {audit.verdict.title}."]
    lines += [f"  {sentence}" for sentence in audit.verdict.evidence]
    lines += _alpha(audit)
    lines += _kernels(audit.kernels)
    lines += _behaviour(audit)
    lines += _tensors(audit)
    lines += _settings(audit)
    lines += [f"Note: {note}" for note in audit.notes]
    return "\n".join(lines)


def _alpha(audit: Audit) -> Iterator[str]:
    if audit.verdict.kind not in ("ablation", "filter"):
        return
    yield ("α by layer:" if audit.verdict.kind == "ablation" or audit.exact_alpha
           else "Share of W's own component along the direction that goes, by layer:")  # fmt: skip
    for start in range(0, audit.layers, PER_LINE):
        stop = min(start + PER_LINE, audit.layers)
        for column, kind in enumerate(KINDS):
            cells = " ".join(_cell(value) for value in audit.alpha[start:stop, column])
            where = f"{start}–{stop - 1}" if column == 0 else ""
            yield f"  {where:>7} {kind:<9} {cells}"


def _cell(value: float) -> str:
    if np.isnan(value):
        return "      ?"
    return "      ·" if value == 0 else f"{value:7.4f}"


def _kernels(kernels: Sequence[KernelFit]) -> Iterator[str]:
    if not kernels:
        return
    close = [row for row in kernels if row.misfit <= CLOSE]
    if not close:
        yield f"Kernel: no named one fits; the nearest is {_kernel(kernels[0])}."
        return
    yield f"Kernel: {_kernel(close[0])}."
    if len(close) > 1:
        others = "; ".join(_kernel(row) for row in close[1:MOST])
        yield f"  With so few edited layers it may as well be {others}."


def _kernel(row: KernelFit) -> str:
    about = "about " if row.name == "custom" else ""
    strength = ", ".join(f"{kind} {value:.3f}" for kind, value in row.strength.items())
    return (
        f"{row.name} (peak {row.peak:.2f}, width {row.width:.4g}, threshold {about}"
        f"{row.threshold:g}), strength {strength}; misfit {row.misfit:.1e}"
    )


def _behaviour(audit: Audit) -> Iterator[str]:
    found = audit.behaviour
    if found is None:
        return
    base, other = np.array(found.gap), np.array(found.other_gap)
    best = int(base.argmax())
    shares = other[base > 0] / base[base > 0]
    left = f"{other[best] / base[best]:.0%}" if base[best] > 0 else "nothing to compare"
    median = f"{float(np.median(shares)):.0%}" if len(shares) else "–"
    yield (
        f"Refusal gap (harmful − harmless along the direction, {found.samples} prompts each), in "
        f"layer {best}: {base[best]:.3g} → {other[best]:.3g} ({left} is left; median over layers "
        f"{median})."
    )
    yield f"Refusal rate on as many held-out prompts: {found.rate:.0%} → {found.other_rate:.0%}."


def _tensors(audit: Audit) -> Iterator[str]:
    found = counts(audit.findings)
    told = [f"{found[kind]} {NAMES.get(kind, kind)}" for kind in ORDER[::-1] if kind in found]
    yield f"Tensors in both: {', '.join(told) or 'none'}."
    for kind in ORDER:
        rows = [finding for finding in audit.findings if finding.kind == kind]
        if kind in ("same", "ablation", "ablated_bias") or not rows:
            continue
        patterns = fold(row.name for row in rows).split(", ")
        yield f"  {NAMES.get(kind, kind)}: {_some(patterns)}"
    if audit.missing:
        yield f"  missing in {audit.other}: {_some(fold(audit.missing).split(', '))}"
    if audit.added:
        yield f"  only in {audit.other}: {_some(fold(audit.added).split(', '))}"
    if audit.renamed:
        pairs = [f"{before} → {after}" for before, after in audit.renamed]
        yield f"  renamed: {_some(pairs)}"
    if audit.reshaped:
        shapes = [f"{name} {list(one)} → {list(two)}" for name, one, two in audit.reshaped]
        yield f"  of another shape, not compared: {_some(shapes)}"


def _settings(audit: Audit) -> Iterator[str]:
    if not audit.settings:
        yield "Settings, tokenizer and chat template: the same."
        return
    yield "Settings that differ:"
    for row in audit.settings[:LARGEST]:
        yield f"  {row.file}{f' {row.field}' if row.field else ''}: {row.base} → {row.other}"
    if len(audit.settings) > LARGEST:
        yield f"  and {len(audit.settings) - LARGEST} more (--json lists all)"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
