"""Compares two models tensor by tensor: a base, and another model or an adapter for it.

Both are read from their files, one pair of tensors at a time; no model is loaded.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sst_ui import reach
from sst_ui.errors import UserError
from sst_ui.jobs.audit.findings import ORDER, Audit, Finding, Kind
from sst_ui.jobs.audit.verdict import judge
from sst_ui.maths import directions as direction_files
from sst_ui.maths.audit.change import Change, analyse
from sst_ui.maths.audit.kernel_fit import KernelFit, fits
from sst_ui.maths.audit.spectrum import SKETCHES
from sst_ui.maths.directions import Directions
from sst_ui.model.load.settings_differences import differences
from sst_ui.model.load.source import ADAPTER, Source, find_files, open_source
from sst_ui.model.lora.adapters import read_adapter
from sst_ui.model.weights.blueprint import Blueprint, read_blueprint
from sst_ui.model.weights.stored_tensors import DTYPES, Shard, Stored, read_shard
from sst_ui.model.weights.tensor_pairs import Matching, TensorPair, match, places, with_adapter
from sst_ui.progress import Progress
from sst_ui.recipe import FILE, KINDS, ModelSpec

DENSE = 8  # tensors of high rank in a row, after which high ranks are not looked for
ALONG = 0.02  # share of a bias's change that may lie outside of the ablated directions


def compare(
    base: ModelSpec, other: ModelSpec, directions: Path | None = None
) -> Generator[Progress, None, Audit]:
    """Find out what turned one model into another.

    Args:
        base: the model before.
        other: the model after, or a PEFT LoRA adapter of the base.
        directions: a file of `Directions.save`, to compare recovered directions with.

    Yields:
        Progress in bytes of tensors.

    Raises:
        UserError: a model that is not found, damaged, or of an unknown architecture; directions of
            another model.
    """
    measured = _directions(directions)
    source = find_files(other)
    blueprint = yield from read_blueprint(open_source(base))
    if measured is not None:
        _fits(measured, blueprint)
    matching, name, notes, folder, adapter = yield from _other(blueprint, source)
    findings = yield from _findings(matching, measured)
    findings += _added_biases(findings, matching, blueprint)
    findings = _shared(findings)
    alpha = _table(findings, len(blueprint.architecture.layers))
    known = {finding.name for finding in findings}
    added = tuple(stored.name for _, stored in matching.added if stored.name not in known)
    audit = Audit(
        blueprint.name,
        name,
        len(blueprint.architecture.layers),
        tuple(findings),
        judge(findings, matching, alpha, adapter),
        tuple(stored.name for _, stored in matching.missing),
        added,
        matching.renamed,
        matching.reshaped,
        () if folder is None else tuple(differences(blueprint.folder, folder, adapter)),
        alpha,
        notes=(*notes, *_claims(folder)),
    )
    return replace(audit, kernels=kernels(audit))


def kernels(audit: Audit) -> tuple[KernelFit, ...]:
    """The weight kernels that follow its table of α; none where that is no table of α."""
    if audit.verdict.kind != "ablation" and not audit.exact_alpha:
        return ()
    return tuple(fits(audit.alpha, KINDS))


def _directions(path: Path | None) -> Directions | None:
    if path is None:
        return None
    reach.check(path)
    return direction_files.load(path)


def _fits(directions: Directions, model: Blueprint) -> None:
    layers, hidden = len(model.architecture.layers), model.architecture.hidden
    if (directions.layers, directions.hidden) != (layers, hidden):
        raise UserError(
            f"the directions have {directions.layers} layers of {directions.hidden}, "
            f"the model has {layers} of {hidden}: they were measured on another model."
        )


def adapter_of(source: Source) -> bool:
    """Whether a folder holds an adapter and no model."""
    return ADAPTER in source.files and "config.json" not in source.files


def pairs_of(
    base: ModelSpec, other: ModelSpec
) -> Generator[Progress, None, tuple[TensorPair, ...]]:
    """The tensors of two models side by side."""
    blueprint = yield from read_blueprint(open_source(base))
    matching, *_ = yield from _other(blueprint, find_files(other))
    return matching.pairs


def _other(
    base: Blueprint, source: Source
) -> Generator[Progress, None, tuple[Matching, str, tuple[str, ...], Path | None, bool]]:
    """(pairs, name, notes, folder, whether it is an adapter) of the other side."""
    if adapter_of(source):
        adapter = read_adapter(source.spec.id, base, source.spec.revision)
        matching = with_adapter(base, adapter.deltas)
        return matching, adapter.name, adapter.notes, source.folder, True
    folder = yield from open_source(source.spec).download()
    shards = [read_shard(folder / name) for name in source.weights()]
    return match(base, shards), source.name, (), folder, False


def _findings(
    matching: Matching, directions: Directions | None
) -> Generator[Progress, None, list[Finding]]:
    """Every pair, matrices first: what a bias lost is told by what its matrix lost."""
    total = sum(pair.bytes for pair in matching.pairs)
    found: dict[str, Finding] = {}
    done, dense = 0, 0
    # Small matrices first: where those have a high rank, the embedding's is not looked for.
    for pair in sorted(matching.pairs, key=lambda pair: (len(pair.shape) < 2, pair.bytes)):
        yield Progress("compare", done, total, pair.name)
        widest = SKETCHES[0] if dense >= DENSE else SKETCHES[-1]
        if len(pair.shape) < 2 and not pair.packed and pair.delta is None:
            found[pair.name] = _vector(pair, list(found.values()))
        else:
            found[pair.name] = _matrix(pair, directions, widest)
            dense = dense + 1 if found[pair.name].kind == "dense" else 0
        done += pair.bytes
    yield Progress("compare", total, total)
    return [found[pair.name] for pair in matching.pairs]


def _start(pair: TensorPair, kind: Kind) -> Finding:
    place = pair.place
    return Finding(
        pair.name, pair.other_name, kind, pair.types, pair.shape, layer=place.layer, role=place.role
    )


def _matrix(pair: TensorPair, directions: Directions | None, widest: int) -> Finding:
    """A matrix, or the matrices of several experts."""
    if pair.delta is None and pair.identical():
        return _start(pair, "same")
    if pair.packed:
        return _start(pair, "packed")
    writes = bool(pair.place.role)
    changes = [analyse(each, pair.place.gain, writes, widest) for each in pair.matrices()]
    if not changes:
        return _start(pair, "same")
    kinds: list[Kind] = [change.kind for change in changes]
    finding = replace(
        _start(pair, min(kinds, key=ORDER.index)),
        size=float(np.mean([change.size for change in changes])),
        norms=max(change.norms for change in changes),
        bits=next((change.bits for change in changes if change.bits), None),
        rank=_rank(changes),
    )
    fitted = [change for change in changes if change.fit is not None]
    return _fitted(finding, fitted, directions) if fitted else finding


def _rank(changes: Sequence[Change]) -> int | None:
    ranks = [change.rank for change in changes if change.kind not in ("same", "retyped")]
    return None if None in ranks else max((rank for rank in ranks if rank is not None), default=0)


def _fitted(finding: Finding, changes: Sequence[Change], directions: Directions | None) -> Finding:
    """With what the nearest ablations say, averaged over experts."""
    fitted = [change.fit for change in changes if change.fit is not None]
    ablates = finding.kind == "ablation"
    alphas = [float(a) for fit in fitted for a in fit.alphas]
    alpha = float(np.mean(alphas if ablates else [fit.share for fit in fitted]))
    best = max(zip(changes, fitted, strict=True), key=lambda pair: pair[0].size)[1]
    kept = [change.preserving for change in changes if change.preserving is not None]
    return replace(
        finding,
        alpha=alpha,
        spread=max(alphas) - min(alphas) if ablates else 0.0,
        misfit=max(fit.misfit for fit in fitted),
        read=float(np.mean([fit.read for fit in fitted])),
        preserving=None if not kept or not ablates else sum(kept) > len(kept) / 2,
        direction=best.rows,
        cosine=_cosine(best.rows, directions, finding.layer),
    )


def _cosine(rows: Tensor, directions: Directions | None, layer: int | None) -> float | None:
    """|cos| to the layer's direction; of several, to the span of as many."""
    if directions is None or layer is None:
        return None
    return span_cosine(rows, directions.vectors[layer, : len(rows)].double())


def span_cosine(one: Tensor, two: Tensor) -> float:
    """√ of the mean squared cosine of the angles between two spans, orthonormal rows each."""
    count = min(len(one), len(two))
    return float((one.double() @ two.double().mT).square().sum() / count) ** 0.5


def _vector(pair: TensorPair, found: Sequence[Finding]) -> Finding:
    """A bias or the gain of a norm."""
    if pair.identical():
        return _start(pair, "same")
    base, other = pair.vector
    change = other - base
    norm = float(base.norm())
    size = float(change.norm()) / norm if norm else float("inf")
    finding = replace(_start(pair, "vector"), size=size)
    one, two = (DTYPES[kind] for kind in pair.types)
    if any(
        torch.equal(base.to(kind).double(), other) or torch.equal(other.to(kind).double(), base)
        for kind in {one, two, torch.bfloat16, torch.float16}
    ):
        return replace(finding, kind="retyped")
    matrix = _of_cell(found, pair.place.layer, pair.place.role) if pair.place.bias else None
    return finding if matrix is None else _along(finding, matrix, base, change)


def _of_cell(found: Sequence[Finding], layer: int | None, role: str) -> Finding | None:
    """The matrix of a cell that has a direction."""
    cell = (f for f in found if (f.layer, f.role) == (layer, role) and f.direction is not None)
    return next(cell, None)


def _along(finding: Finding, matrix: Finding, base: Tensor, change: Tensor) -> Finding:
    """A bias whose change lies along what its matrix lost, with the target of an affine edit.

    b' = b − α r̂ (r̂·b − t), so that t = r̂·b + r̂·(b' − b) / α.
    """
    assert matrix.direction is not None  # `_of_cell` looked for one
    rows = matrix.direction
    along = rows @ change
    step = {"BF16": 2.0**-8, "F16": 2.0**-11}.get(finding.types[1], 2.0**-22)
    outside = float((change - along @ rows).norm())
    allowed = ALONG * float(change.norm()) + step * float((base + change).norm())
    if outside > allowed:
        return finding
    alpha = matrix.alpha if matrix.kind == "ablation" else None
    target = None if not alpha else float((rows @ base + along / alpha).norm())
    return replace(finding, kind="ablated_bias", target=target)


def _added_biases(found: Sequence[Finding], matching: Matching, base: Blueprint) -> list[Finding]:
    """Biases that the base lacks and that lie along what the matrix beside them lost."""
    known = places(base)
    there = {place.module: place for place in known.values() if place.role and not place.bias}
    fresh = []
    for shard, stored in matching.added:
        place = there.get(stored.name.removesuffix(".bias"))
        if place is None or len(stored.shape) != 1 or stored.dtype not in DTYPES:
            continue
        matrix = _of_cell(found, place.layer, place.role)
        finding = Finding(
            stored.name, stored.name, "vector", ("–", stored.dtype), stored.shape,
            layer=place.layer, role=place.role, size=1.0,
        )  # fmt: skip
        fresh.append(_new_bias(finding, matrix, shard, stored))
    return fresh


def _new_bias(finding: Finding, matrix: Finding | None, shard: Shard, stored: Stored) -> Finding:
    change = shard.read(stored).double()
    if not bool(change.any()):
        return replace(finding, kind="same", size=0.0)
    if matrix is None:
        return finding
    return _along(finding, matrix, torch.zeros_like(change), change)


def _shared(findings: Sequence[Finding]) -> list[Finding]:
    """With how near the two writers of a layer are in what they lose."""
    cells: dict[tuple[int, str], Tensor] = {}
    for finding in findings:
        if finding.layer is not None and finding.direction is not None:
            cells.setdefault((finding.layer, finding.role), finding.direction)
    told = []
    for finding in findings:
        other = KINDS[1 - KINDS.index(finding.role)] if finding.role else ""
        mine, theirs = finding.direction, cells.get((finding.layer or 0, other))
        if mine is not None and theirs is not None:
            finding = replace(finding, shared=span_cosine(mine, theirs))
        told.append(finding)
    return told


def _table(findings: Sequence[Finding], layers: int) -> np.ndarray:
    """[layers, kinds] α: the mean of what writes there, 0 where nothing changed."""
    cells: dict[tuple[int, int], list[float]] = {}
    for finding in findings:
        if finding.layer is None or len(finding.shape) < 2:
            continue
        cell = (finding.layer, KINDS.index(finding.role))
        known = finding.alpha if finding.kind in ("ablation", "low_rank") else None
        still = 0.0 if finding.kind in ("same", "retyped", "rounding") else float("nan")
        cells.setdefault(cell, []).append(still if known is None else known)
    table = np.full((layers, len(KINDS)), np.nan)
    for cell, values in cells.items():
        table[cell] = np.mean(values)
    return table


def _claims(folder: Path | None) -> tuple[str, ...]:
    """What the folder says of itself."""
    if folder is not None and (folder / FILE).is_file():
        return (f"The other folder holds a {FILE}: an export of this studio, or a copy of one.",)
    return ()
