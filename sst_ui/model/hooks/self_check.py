"""The numerical self-check of an edit: which modules it changes, which it leaves, and how exactly.

What an ablation or a delta does to what a module writes is measured by running the module. What
that is worth in the model is measured on the residual stream: the model is run over a few random
tokens with the edit, and what every layer adds must have (1 − α) of the component along r̂ that its
writers would have given on the same input. The expected values are computed here from the formula,
in float64, not with the code that edits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.model.architecture.discover import fold
from sst_ui.model.architecture.module_roles import Writer, device_of, shape_of
from sst_ui.model.hooks.low_rank import RowDelta, RowFilter
from sst_ui.model.hooks.row_plan import Plan, RowEdit, stream_of
from sst_ui.model.hooks.stream_accounting import Seen, run_tokens, watched
from sst_ui.recipe import KINDS

if TYPE_CHECKING:
    from sst_ui.model.hooks.live_edits import Edit, LiveEdits

TOKENS = 16  # random inputs per module
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # others: the rounding of half precision
HALF_TOLERANCE = 0.05


@dataclass(frozen=True)
class EditReport:
    """What an edit did.

    Attributes:
        matched, expected: modules that changed, and that should have; once for every edit.
        changed, untouched: names; `untouched` also has the writers whose weights are 0.
        max_error: largest deviation of r̂ᵀW'x from (1 − α) (u ∘ D) x, relative to the largest r̂ᵀWx;
            for deltas of W'x from Wx + s B A x, relative to the largest of Wx and s B A x.
        clamped: columns whose norm could not be restored.
        nonfinite: values that were not finite.
        messages: what a person should know, in sentences.
    """

    matched: int
    expected: int
    changed: tuple[str, ...]
    untouched: tuple[str, ...]
    max_error: float
    clamped: int
    nonfinite: int
    messages: tuple[str, ...]


@dataclass(frozen=True)
class _Finding:
    name: str
    changed: bool
    error: float
    nonfinite: int


@torch.no_grad()
def check(live: "LiveEdits", edits: "tuple[Edit, ...]") -> EditReport:
    """See `LiveEdits.check`."""
    architecture = live.architecture
    findings: list[_Finding] = []
    for edit in edits:
        if isinstance(edit, RowDelta):
            findings += _deltas(live, edit)
        else:
            findings += _residuals(live, edit) if edit.on_residual else _writers(live, edit)
    missed = [f.name for f in findings if not f.changed]
    if missed:
        raise UserError(
            f"the edit reached {len(findings) - len(missed)} of {len(findings)} modules; "
            f"it had no effect on {fold(missed)}: {', '.join(missed[:6])}."
        )
    stream = [_stream(live, e) for e in edits if isinstance(e, RowEdit) and not e.on_residual]
    changed = tuple(dict.fromkeys(f.name for f in findings))
    left = (*(w.name for w in architecture.writers), *architecture.untouched)
    error = max([*(f.error for f in findings), *stream], default=0.0)
    nonfinite = sum(f.nonfinite for f in findings)
    clamped = live.compile([edits]).clamped
    messages = []
    if not findings:
        messages.append("every weight is 0: the edit changes nothing.")
    ablations = [
        edit
        for edit in edits
        if isinstance(edit, RowFilter) or (isinstance(edit, RowEdit) and not edit.on_residual)
    ]
    if any(edit.alpha.any() for edit in ablations):
        messages += [f"{note[0].upper()}{note[1:]}." for note in architecture.notes]
    dtype = next(architecture.layers[0].parameters()).dtype
    if not error <= TOLERANCE.get(dtype, HALF_TOLERANCE):
        messages.append(f"the largest relative error is {error:.2g}, more than rounding explains.")
    if clamped:
        messages.append(f"{clamped} columns lie along the direction; their norm was not restored.")
    if nonfinite:
        messages.append(f"{nonfinite} values were not finite.")
    return EditReport(
        matched=len(findings),
        expected=len(findings),
        changed=changed,
        untouched=tuple(name for name in left if name not in changed),
        max_error=error,
        clamped=clamped,
        nonfinite=nonfinite,
        messages=tuple(messages),
    )


def _writers(live: "LiveEdits", edit: RowEdit) -> list[_Finding]:
    plan = live.compile([(edit,)])
    present = {id(module) for module in live.architecture.decoder.modules()}
    found = []
    for writer in live.architecture.writers:
        alpha = float(edit.alpha[writer.layer, KINDS.index(writer.role)])
        if alpha == 0:
            continue
        if id(writer.module) not in present:  # replaced since: its hook is never called
            found.append(_Finding(writer.name, False, 0.0, 0))
            continue
        x = _noise(writer.module, writer.width)
        before, after = _both(live, plan, writer.module, x)
        rows, written = writer.sides(edit.directions.vectors[writer.layer].double())  # [k, d]
        written = rows if written is None else written
        kept = before @ rows.T  # r̂·Wx, [tokens, k]
        scaled = _scaled(writer, x, rows, written, alpha) if edit.norm_preserving else kept
        wrong = (after @ rows.T - (1 - alpha) * scaled).abs().max() / kept.abs().max()
        wanted = abs(alpha) * float((kept @ written).abs().max())
        eps = torch.finfo(x.dtype).eps
        found.append(_finding(writer.name, before, after, wanted, float(wrong), eps))
    return found


def _scaled(writer: Writer, x: Tensor, rows: Tensor, written: Tensor, alpha: float) -> Tensor:
    """(u ∘ D) x + r̂·b, [tokens, k], from the weights."""
    weight = writer.weight().double().cpu()
    along = rows @ weight  # u, [k, in]
    edited = weight - alpha * written.mT @ along
    scale = (weight.norm(dim=0) / edited.norm(dim=0).clamp_min(1e-300)).clamp_max(100)
    bias = writer.bias()
    shift = 0 if bias is None else rows @ bias.double().cpu()
    return x.double().cpu().view(TOKENS, -1) @ (along * scale).T + shift


def _deltas(live: "LiveEdits", edit: RowDelta) -> list[_Finding]:
    plan = live.compile([(edit,)])
    found = []
    for name, (delta, scale) in edit.active().items():
        module = live.architecture.matrices[name]
        x = _noise(module, shape_of(module)[1])
        before, after = _both(live, plan, module, x)
        inner = x[0].double().cpu() @ delta.a.double().cpu().T  # [tokens, r]
        change = scale * inner @ delta.b.double().cpu().T
        if delta.bias is not None:
            change = change + scale * delta.bias.double().cpu()
        largest = max(float(before.abs().max()), float(change.abs().max()))
        wrong = float((after - before - change).abs().max()) / largest
        visible, eps = float(change.abs().max()), torch.finfo(x.dtype).eps
        found.append(_finding(name, before, after, visible, wrong, eps))
    return found


def _both(live: "LiveEdits", plan: Plan, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a module computes without and with a plan, each [TOKENS, out] float64 on the CPU."""
    with live.applied(None):
        before = stream_of(module(x)).double().cpu().view(TOKENS, -1)
    with live.applied(plan):
        after = stream_of(module(x)).double().cpu().view(TOKENS, -1)
    return before, after


def _stream(live: "LiveEdits", edit: RowEdit) -> float:
    """Largest deviation of what a layer adds along r̂ from what the edit says, relative to the
    largest that its writers would have added; what rounding the stream explains is taken off.

    Raises:
        UserError: the deviation is more than an inexact module explains; names the layer.
    """
    architecture, account = live.architecture, live.account
    if not edit.alpha.any():
        return 0.0
    plan = live.compile([(edit,)])
    with live.applied(plan), watched(architecture) as layers:
        run_tokens(architecture, rows=1)
    largest = 0.0
    for number, seen in enumerate(seen.finite() for seen in layers):
        alphas = edit.alpha[number]
        if not alphas.any():
            continue
        into, out = seen.ends
        if not len(out):
            continue
        rows = edit.directions.vectors[number].double()
        factors = account.factors[number]
        wanted, size = torch.zeros(len(out), len(rows)).double(), 0.0
        coarse = out.abs() + into.abs()
        for role in KINDS:
            writer, alpha = architecture.writer(number, role), float(alphas[KINDS.index(role)])
            base, kept = _unedited(seen, writer)
            along = factors[role] * base @ rows.T  # [tokens, k]
            wanted += (1 - alpha) * kept * along
            size = max(size, float((kept * along).abs().max()))
            coarse += (factors[role] * kept * base).abs()
        found = (out - factors["stream"] * into) @ rows.T
        # In that type nothing is more exact; of what was removed before, rounding alone is left.
        rounding = seen.eps * (coarse.square() @ rows.square().T).sqrt()
        wrong = ((found - wanted).abs() - 4 * rounding).clamp_min(0).max()
        error = float(wrong) / max(size, 1e-30)
        if not error <= TOLERANCE.get(seen.dtype, HALF_TOLERANCE):
            raise UserError(
                f"the edit does not change the residual stream as it should: the component along "
                f"the direction that {architecture.layer_names[number]} adds is off by {error:.2g} "
                f"of what {' and '.join(architecture.writer(number, r).name for r in KINDS)} write."
            )
        largest = max(largest, error)
    return largest


def _unedited(seen: Seen, writer: Writer) -> tuple[Tensor, Tensor | float]:
    """What the stream would have got of a writer's own output on this input, [tokens, d], and by
    how much the norm behind it scales the edited output otherwise, [tokens, 1]."""
    wrote = seen.wrote[writer.role]
    if writer.norm is None:
        return wrote, 1.0
    assert writer.gain is not None  # a writer with a norm has one
    gain = writer.gain.double()
    got, gave = seen.normed[writer.role]
    given = wrote.to(seen.dtype).to(device_of(writer.norm))
    base = stream_of(writer.norm(given[None]))[0].double().cpu()
    return base, _divisor(base, gain * wrote) ** -1 * _divisor(gave, gain * got)


def _divisor(gave: Tensor, weighed: Tensor) -> Tensor:
    """[tokens, 1] by what factor a norm made `gave` of the weighed features."""
    square = weighed.square().sum(-1, keepdim=True).clamp_min(1e-300)
    return (gave * weighed).sum(-1, keepdim=True) / square


def _residuals(live: "LiveEdits", edit: RowEdit) -> list[_Finding]:
    """An edit of the stream, on the stream: what each layer returns and what leaves it."""
    architecture = live.architecture
    if not edit.alpha.any():
        return []
    with live.applied(live.compile([(edit,)])), watched(architecture) as layers:
        run_tokens(architecture, rows=1)
    alphas, shifts = edit.per_layer(), edit.shifts()
    found = []
    for number, (seen, name) in enumerate(zip(layers, architecture.layer_names, strict=True)):
        if alphas[number] == 0:
            continue
        rows = edit.directions.vectors[number].double()
        before = seen.gave
        _, after = seen.ends
        if number + 1 < len(layers):  # what counts is what the next layer reads
            after, _ = layers[number + 1].ends
        assert before is not None  # seen as `after` was
        if edit.operation == "add":
            wanted = before @ rows.T
            wanted[:, 0] -= float(shifts[number])
        else:
            target = edit.directions.neutral[number].double()
            wanted = target + (1 - float(alphas[number])) * (before @ rows.T - target)
        wrong = (after @ rows.T - wanted).abs()
        wrong -= seen.eps * (before.abs() @ rows.abs().T)  # the stream is kept in its own type
        size = max(float(wanted.abs().max()), float((before @ rows.T).abs().max()))
        error = float(wrong.clamp_min(0).max()) / max(size, 1e-30)
        change = float(((wanted - before @ rows.T) @ rows).abs().max())
        found.append(_finding(name, before, after, change, error, seen.eps))
    return found


def _finding(
    name: str, before: Tensor, after: Tensor, wanted: float, error: float, eps: float
) -> _Finding:
    """Whether a module changed; `wanted` is the largest change that it should show."""
    # Half precision swallows a weak edit whole; that is rounding, not a module that was missed.
    visible = wanted > eps * float(before.abs().max())
    nonfinite = int((~after.isfinite()).sum())
    return _Finding(name, not (visible and torch.equal(before, after)), error, nonfinite)


def _noise(module: nn.Module, width: int) -> Tensor:
    """[1, TOKENS, width] random input of a module, in the type it computes in."""
    parameter = next(p for p in module.parameters())
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    if dtype.itemsize == 1:
        dtype = torch.bfloat16
    x = torch.randn(1, TOKENS, width, generator=_seeded())
    return x.to(device_of(module), dtype)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
