"""Edits as low-rank weight changes: what a LoRA adapter can hold of them, and how much it cannot.

All of it in float64.

    Without norm preservation a writer's matrix becomes W' = P (W + ΔM), P = Pₙ … P₁,
    Pᵢ = I − αᵢ RᵢᵀRᵢ (I − αᵢ QᵢᵀBᵢ in front of a norm, see `maths.ablation.through_gain`), so that
    with U an orthonormal basis of all Rᵢ (Qᵢ)
        W' − W = U · Uᵀ(P − I) W + (P B) A       exactly, of rank Σ kᵢ + r.
    With it, W' = (…)·diag(D) differs from W in every direction: the best change of a given rank
    stands in for it (Eckart and Young 1936), and how far off it is is told.

A bias that a writer has is projected too, and the target of an affine edit is a bias of its own;
PEFT holds both as `lora_bias`.
"""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.ablation import edit_bias, edit_weight, orthonormalise, project
from sst_ui.maths.merge.low_rank import Delta, concat, core, truncate
from sst_ui.model.architecture.discover import fold
from sst_ui.model.architecture.module_roles import Writer
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.hooks.low_rank import RowDelta, Scaled, bias_of, summed
from sst_ui.model.hooks.row_plan import RowEdit
from sst_ui.model.load.source import open_source
from sst_ui.model.runtime.host import Host
from sst_ui.model.weights.tensor_edits import EVERYWHERE, PLAIN_ENDS, Link
from sst_ui.progress import Progress
from sst_ui.recipe import KINDS

# Families whose layer ends with x + mlp(...): what is added to the MLP's output reaches the stream.
# An adapter brings its own bias, so that here, unlike in a model's files, none need be there.
ENDS = (*PLAIN_ENDS, "mistral", "phi3", "qwen2", "qwen3")
MODEL = "Export the whole model (format model)"


@dataclass(frozen=True, eq=False)
class Lowered:
    """Low-rank changes that do what the edits do.

    Attributes:
        deltas: module path -> delta, float32 on the CPU.
        biases: module path -> what is added to its output [out], float32.
        errors: module path -> ‖change − delta‖_F / ‖change‖_F where the rank was not enough.
        error: the same over all modules together; 0 where everything is exact.
    """

    deltas: Mapping[str, Delta]
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    error: float = 0.0


def check(host: Host, edits: Sequence[Edit], rank: int | None = None) -> None:
    """Refuse what no adapter can hold, before anything is computed.

    Raises:
        UserError: an affine edit that acts at one token; norm preservation without a rank; an edit
            of experts.
    """
    if rank is not None and rank < 1:
        raise UserError(f"the rank is {rank}; it must be 1 or more.")
    for edit in (edit for edit in edits if isinstance(edit, RowEdit)):
        if edit.at_end:
            raise UserError(
                "an affine edit with affine_at 'prompt_end' acts at one token of a conversation, "
                f"which no adapter can do. {EVERYWHERE}"
            )
        if edit.norm_preserving and rank is None and edit.alpha.any():
            raise UserError(
                "norm_preserving changes every direction of a matrix, which a LoRA adapter holds "
                f"only in part. {MODEL}, or give a rank (--rank 64): the best adapter of that rank "
                "is written, with its error."
            )
    mixtures = [w.name for w in host.architecture.writers if w.form == "experts" and _on(w, edits)]
    if mixtures:
        raise UserError(
            f"{fold(mixtures)} of {host.name} are mixtures of experts, whose fused matrices a LoRA "
            f"adapter cannot change. {_whole(host)}."
        )
    odd = any(writer.norm is not None for writer in host.architecture.writers)
    odd = odd or host.architecture.model_type not in ENDS
    if odd and any(isinstance(e, RowEdit) and e.operation == "add" for e in edits):
        raise UserError(
            "operation 'add' needs a bias at what a layer writes last, and the MLP of "
            f"{host.name} ({host.architecture.model_type}) is not that. Keep this edit in the "
            "studio, or use operation 'ablate'."
        )


def _whole(host: Host) -> str:
    """The advice to export the whole model, as far as its files can be edited."""
    stored = open_source(host.spec).read("config.json") if host.files else {}
    if "quantization_config" not in stored:
        return MODEL
    return (
        "Its files are quantised or packed, as gpt-oss's are, and no format can edit those: write "
        "an unpacked copy with transformers (from_pretrained with Mxfp4Config(dequantize=True), "
        "then save_pretrained) and export the whole model (format model) from that"
    )


def lower(
    host: Host, edits: Sequence[Edit], rank: int | None = None
) -> Generator[Progress, None, Lowered]:
    """The edits as deltas: deltas first, ablations after, as the live model computes them.

    Args:
        rank: at most so many for each module; None for the exact change.

    Yields:
        Progress of the stage `adapter`, in modules.

    Raises:
        UserError: as `check`; quantised weights, which cannot be read.
    """
    check(host, edits, rank)
    added = summed(edit for edit in edits if isinstance(edit, RowDelta))
    writers = {writer.name: writer for writer in host.architecture.writers}
    paths = [
        path
        for path in host.architecture.matrices
        if path in added or (path in writers and _on(writers[path], edits))
    ]
    deltas: dict[str, Delta] = {}
    biases: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    lost = whole = 0.0
    for number, path in enumerate(paths):
        yield Progress("adapter", number, len(paths), path)
        writer = writers.get(path)
        links = _links(writer, edits) if writer is not None else []
        delta, error = _change(writer, added.get(path, ()), links, rank)
        own = bias_of(added.get(path, ()))
        if writer is not None:
            own = _bias(writer, links, edits, own)
        if own is not None:
            biases[path] = own.float().cpu()
        size = math.hypot(delta.norm(), error)  # the part kept and the part dropped are orthogonal
        lost, whole = lost + error**2, whole + size**2
        if error > 1e-6 * size:
            errors[path] = error / size
        if not delta.rank:  # a bias alone; PEFT knows no adapter without factors
            delta = Delta(delta.b.new_zeros(delta.out, 1), delta.a.new_zeros(1, delta.inp))
        deltas[path] = Delta(delta.b.float().cpu(), delta.a.float().cpu())
    yield Progress("adapter", len(paths), len(paths))
    return Lowered(deltas, biases, errors, math.sqrt(lost / whole) if errors else 0.0)


def _on(writer: Writer, edits: Sequence[Edit]) -> bool:
    """Whether an ablation or a shift changes what this module writes."""
    return any(
        _shift(writer, edit) is not None
        or (not edit.on_residual and edit.alpha[writer.layer, KINDS.index(writer.role)] != 0)
        for edit in edits
        if isinstance(edit, RowEdit)
    )


def _links(writer: Writer, edits: Sequence[Edit]) -> list[Link]:
    found = []
    for edit in edits:
        if isinstance(edit, RowEdit) and not edit.on_residual:
            alpha = float(edit.alpha[writer.layer, KINDS.index(writer.role)])
            if alpha:
                read, write = writer.sides(edit.directions.vectors[writer.layer].double())
                target = edit.target(writer.layer, KINDS.index(writer.role))
                found.append(Link(read, alpha, edit.norm_preserving, write, target))
    return found


def _change(
    writer: Writer | None, added: Sequence[Scaled], links: list[Link], rank: int | None
) -> tuple[Delta, float]:
    """The change of one matrix, and ‖what the rank leaves out‖_F."""
    parts = [Delta(scale * d.b.double().cpu(), d.a.double().cpu()) for d, scale in added]
    if any(link.preserving for link in links):
        assert writer is not None  # whose links they are
        weight = writer.weight().double().cpu()
        edited = weight + sum(part.dense() for part in parts) if parts else weight
        for rows, alpha, preserving, write, _ in links:
            edited = edit_weight(edited, rows, alpha, preserving, write)
        left, right, error = truncate(edited - weight, rank)
        return Delta(left, right), error
    if links:
        assert writer is not None
        weight = writer.weight().double().cpu()
        written = [link.rows if link.write is None else link.write for link in links]
        basis = orthonormalise(torch.cat(written))
        basis = basis[basis.norm(dim=1) > 0.5]  # [K, d]: dependent rows became zero
        turned = basis  # Uᵀ P, from the last ablation to the first
        for link, write in zip(reversed(links), reversed(written), strict=True):
            turned = turned - link.alpha * (turned @ write.mT) @ link.rows
        parts = [Delta(_projected(part.b.mT, links).mT, part.a) for part in parts]
        parts.append(Delta(basis.mT, (turned - basis) @ weight))
    if not parts:
        assert writer is not None  # a module is here for its writer or for what is added to it
        return Delta(torch.zeros(writer.written, 0), torch.zeros(0, writer.width)), 0.0
    delta = concat(parts)
    if rank is not None and rank < delta.rank:
        own = core(delta, None)
        return own.delta(own.utility, rank)
    return delta, 0.0


def _projected(values: Tensor, links: list[Link]) -> Tensor:
    """P applied to vectors [..., d] of the residual stream."""
    for link in links:
        values = project(values, link.rows, link.alpha, link.write)
    return values


def _bias(
    writer: Writer, links: list[Link], edits: Sequence[Edit], own: Tensor | None
) -> Tensor | None:
    """What is added to a writer's output for every input, [out] float64; None for nothing.

    Args:
        own: [out] what the deltas add, before the ablations.
    """
    parts = [] if own is None else [_projected(own, links)]
    if links and (bias := writer.bias()) is not None:
        parts.append(_projected(bias.double().cpu(), links) - bias.double().cpu())
    if any(link.target is not None for link in links):
        moved = torch.zeros(writer.written, dtype=torch.float64)
        for link in links:
            moved = edit_bias(moved, link.rows, link.alpha, link.write, link.target)
        parts.append(moved)
    shifts = (_shift(writer, edit) for edit in edits if isinstance(edit, RowEdit))
    parts += [change for change in shifts if change is not None]
    return sum(parts[1:], parts[0]) if parts else None


def _shift(writer: Writer, edit: RowEdit) -> Tensor | None:
    """What `add` puts on the residual after a layer, at the last module that writes to it."""
    if edit.operation != "add" or writer.role != "mlp":
        return None
    shift = float(edit.shifts()[writer.layer])
    return -shift * edit.directions.vectors[writer.layer, 0].double() if shift else None
