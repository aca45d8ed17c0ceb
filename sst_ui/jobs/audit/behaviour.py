"""How two models behave: the refusal gap and the refusal rate, and α of a filter whose recipe lies
beside the other's weights. Both models are loaded, one after the other."""

import gc
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sst_ui import recipe as recipes
from sst_ui.data.prompt_sets import load as load_prompts
from sst_ui.errors import UserError
from sst_ui.jobs.audit.compare import adapter_of, kernels, pairs_of
from sst_ui.jobs.audit.findings import Audit, Behaviour
from sst_ui.jobs.directions.measure import resolve
from sst_ui.jobs.directions.residual_cache import encode
from sst_ui.jobs.evaluate.evaluate import evaluate
from sst_ui.maths import directions as direction_files
from sst_ui.maths.audit.pair import Pair
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.hooks.low_rank import RowDelta, RowFilter
from sst_ui.model.inference.residuals import residuals
from sst_ui.model.load.source import find_files
from sst_ui.model.lora.adapters import read_adapter
from sst_ui.model.runtime.host import Host, load
from sst_ui.progress import Progress, steps
from sst_ui.recipe import KINDS, DirectionSpec, Evaluation, ModelSpec

RATE = "refusal_rate"


@dataclass(frozen=True, eq=False)
class _Measured:
    """One model: how far harmful and harmless prompts lie apart [L, d], and its refusal rate."""

    apart: Tensor
    rate: float


def behave(
    audit: Audit,
    base: ModelSpec,
    other: ModelSpec,
    samples: int,
    directions: Path | None = None,
) -> Generator[Progress, None, Audit]:
    """Add to a comparison what only running the models tells.

    Args:
        audit: of the same two.
        samples: prompts of each kind.
        directions: along which the gap is measured; by default the base's own difference of means.

    Raises:
        UserError: a model that cannot be loaded, or a prompt set that cannot be read.
    """
    adapter = adapter_of(find_files(other))
    one, edited, deltas, note = yield from _of_base(base, other, samples, adapter)
    gc.collect()  # the base has to go before the other comes
    if edited is None:
        edited = yield from _of(other, samples)
    if directions is None:
        along = torch.nn.functional.normalize(one.apart, dim=1)
    else:
        along = direction_files.load(directions).vectors[:, 0].double()
    gaps = [(model.apart * along).sum(1) for model in (one, edited)]
    told = Behaviour(
        tuple(gaps[0].tolist()), tuple(gaps[1].tolist()), one.rate, edited.rate, samples
    )
    audit = replace(audit, behaviour=told, notes=(*audit.notes, *([note] if note else [])))
    if deltas and audit.verdict.kind == "filter":
        audit = yield from _with_alpha(audit, base, other, deltas)
    return audit


def _of_base(
    base: ModelSpec, other: ModelSpec, samples: int, adapter: bool
) -> Generator[Progress, None, tuple[_Measured, _Measured | None, Mapping[str, Delta], str]]:
    """The base; with an adapter of it, that too; and the filter of a recipe beside the other."""
    host = yield from load(base)
    if adapter:
        edits = (RowDelta(read_adapter(other.id, host, other.revision).deltas),)
        apart = yield from _apart(host, (), samples)
        edited = yield from _apart(host, edits, samples)
        rates = yield from _rates(host, edits, samples)
        return _Measured(apart, rates[0]), _Measured(edited, rates[1]), {}, ""
    one = yield from _alone(host, samples)
    folder = find_files(other).folder
    if folder is None or not (folder / recipes.FILE).is_file():
        return one, None, {}, ""
    try:
        recipe = replace(recipes.load(folder / recipes.FILE), model=base)
        found = yield from resolve(host, recipe)
    except UserError as error:  # prompts or adapters that are not here: the rest still counts
        note = f"The recipe beside the other model cannot be carried out here: {error}"
        return one, None, {}, note
    rows = [edit for edit in found if isinstance(edit, RowFilter)]
    return one, None, (rows[0].deltas if len(rows) == len(found) == 1 else {}), ""


def _of(spec: ModelSpec, samples: int) -> Generator[Progress, None, _Measured]:
    host = yield from load(spec)
    return (yield from _alone(host, samples))


def _alone(host: Host, samples: int) -> Generator[Progress, None, _Measured]:
    apart = yield from _apart(host, (), samples)
    return _Measured(apart, (yield from _rates(host, (), samples))[0])


def _apart(host: Host, edits: tuple[Edit, ...], samples: int) -> Generator[Progress, None, Tensor]:
    """μ_harmful − μ_harmless at the last token of the prompt, [L, d] float64."""
    spec = DirectionSpec()
    means = []
    for name in (spec.harmful, spec.harmless):
        prompts = encode(host, load_prompts(name, samples), "template").prompts
        rows = [edits] * len(prompts) if edits else None
        found = yield from residuals(host, prompts, rows=rows)
        means.append(found.double().mean(0))
    return means[0] - means[1]


def _rates(
    host: Host, edits: tuple[Edit, ...], samples: int
) -> Generator[Progress, None, tuple[float, float]]:
    """Refusal rate without and with edits."""
    wanted = Evaluation(metrics=(RATE,), preset="quick", samples=samples)
    (result,) = yield from steps(evaluate(host, edits, wanted))
    edited = result.base if result.edited is None else result.edited
    return result.base.value, edited.value


def _with_alpha(
    audit: Audit, base: ModelSpec, other: ModelSpec, deltas: Mapping[str, Delta]
) -> Generator[Progress, None, Audit]:
    """α of a filter whose −r̂ vᵀ is known: ⟨ΔW, −r̂ vᵀ⟩ / ‖r̂ vᵀ‖², and what that leaves."""
    pairs = yield from pairs_of(base, other)
    cells: dict[tuple[int, int], float] = {}
    left = []
    for pair in pairs:
        place, delta = pair.place, deltas.get(pair.place.module)
        if place.layer is None or place.bias or delta is None:
            continue
        (matrix,) = pair.matrices()
        b, a = delta.b.double(), delta.a.double()
        written = matrix.onto(b.mT, matrix.change())  # [k, in]
        size = float(((b.mT @ b) * (a @ a.mT)).sum())
        alpha = float((written * a).sum()) / size if size else 0.0
        cells[place.layer, KINDS.index(place.role)] = alpha
        left.append(_left(matrix, b, a, alpha))
    table = np.zeros((audit.layers, len(KINDS)))
    for cell, value in cells.items():
        table[cell] = value
    sentence = (
        "By the recipe beside the other model, carried out on the base, the table shows α itself; "
        f"the recipe's filter leaves at most {max(left, default=0.0):.1e} of a change unexplained."
    )
    verdict = replace(audit.verdict, evidence=(*audit.verdict.evidence[:-1], sentence))
    audit = replace(audit, verdict=verdict, alpha=table, exact_alpha=True)
    return replace(audit, kernels=kernels(audit))


def _left(matrix: Pair, b: Tensor, a: Tensor, alpha: float) -> float:
    """‖ΔW − α B A‖ / ‖ΔW‖."""
    pick, rest, total = matrix.change(), 0.0, 0.0
    for some, base, other in matrix.blocks():
        block = pick(base, other, some).double()
        told = alpha * (a.mT[some] @ b.mT if matrix.last else b[some] @ a)
        rest += float((block - told).square().sum())
        total += float(block.square().sum())
    return (rest / total) ** 0.5 if total else 0.0
