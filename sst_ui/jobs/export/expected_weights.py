"""The expected matrices of an edited model, computed from the definition (ABLITERATION §6).

Shares no code with the writer: these are what written tensors are compared with.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sst_ui.model.architecture.module_roles import Writer, is_conv1d
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.hooks.low_rank import RowDelta, Scaled, summed
from sst_ui.model.hooks.row_plan import RowEdit
from sst_ui.model.runtime.host import Host
from sst_ui.recipe import KINDS

PROBES = 4  # random directions in which every changed matrix is looked at, beside the edited ones


def expectations(
    host: Host, edits: tuple[Edit, ...]
) -> Iterator[tuple[str, int, Tensor, Tensor, Tensor]]:
    """For every parameter that the edits change: its name, the axis of the residual stream (or of
    the output), `left` [m, out], left · W' [..., m] and the largest |left · W| [m]; float64.

    Parameters that cannot be read (quantised, offloaded) are left out.
    """
    added = summed(edit for edit in edits if isinstance(edit, RowDelta))
    places: dict[str, tuple[int, tuple[Scaled, ...], list]] = {}
    for path, scaled in added.items():
        axis = 1 if is_conv1d(host.architecture.matrices[path]) else 0
        places[f"{path}.weight"] = (axis, scaled, [])
    for writer in host.architecture.writers:
        links = [
            (*_sides(writer, edit), alpha, edit.norm_preserving)
            for edit in edits
            if isinstance(edit, RowEdit) and not edit.on_residual
            if (alpha := float(edit.alpha[writer.layer, KINDS.index(writer.role)]))
        ]
        for tensor in writer.tensors if links else ():
            scaled = places.get(tensor.name, (0, (), []))[1]
            places[tensor.name] = (tensor.axis, scaled, links)
    for name, (axis, scaled, links) in places.items():
        weight = host.model.get_parameter(name).detach()
        if weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize < 2:
            continue
        base = weight.double().cpu().movedim(axis, -1)  # [..., out]
        edited = base
        for delta, scale in scaled:
            edited = edited + scale * delta.a.double().cpu().mT @ delta.b.double().cpu().mT
        for rows, write, alpha, preserving in links:
            before = edited.norm(dim=-1, keepdim=True)
            edited = edited - alpha * (edited @ rows.mT) @ write
            if preserving:
                after = edited.norm(dim=-1, keepdim=True).clamp_min(1e-300)
                edited = edited * (before / after).clamp_max(100)
        noise = torch.randn(PROBES, base.shape[-1], generator=torch.Generator().manual_seed(0))
        probes = torch.nn.functional.normalize(noise.double(), dim=1)
        left = torch.cat([*(rows for rows, *_ in links), probes])  # [m, out]
        size = (base @ left.mT).abs().flatten(0, -2).amax(0).clamp_min(1e-12)
        yield name, axis, left, edited @ left.mT, size


def _sides(writer: Writer, edit: RowEdit) -> tuple[Tensor, Tensor]:
    """What an ablation reads and what it writes, [k, d] float64: r̂, or r̂ seen through a norm."""
    read, write = writer.sides(edit.directions.vectors[writer.layer].double())
    return read, read if write is None else write
