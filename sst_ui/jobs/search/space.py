"""The search space: named settings, their ranges, and the recipe that a choice of them makes.

Every candidate is a whole recipe: it starts from the untouched base.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sst_ui.jobs.purpose import purpose
from sst_ui.jobs.search.objectives import presets, searched
from sst_ui.maths import kernel
from sst_ui.maths.merge.registry import METHODS
from sst_ui.recipe import (
    FUSED,
    KINDS,
    MODULES,
    Ablation,
    DirectionSpec,
    Merge,
    Recipe,
    WeightTable,
)

Params = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """Numbers from low to high; `log` for even draws of the exponent, `whole` for integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choice:
    """One of these."""

    options: tuple[Any, ...]


def space(
    recipe: Recipe, preserving: bool = True, fused: Sequence[str] = ()
) -> dict[str, Span | Choice]:
    """The settings that the multi-objective search draws, by name.

    Args:
        recipe: decides by what is being searched: affine edits cannot preserve norms, a method
            without a price has no budget, and only a filter has a price or the budget it names.
        preserving: whether this model's norms can be preserved while it computes.
        fused: kinds of this model's matrices that hold several kinds (qkv, gate_up); they are
            weighed as a whole, as a budget needs.
    """
    edit = searched(recipe)
    if isinstance(edit, Merge):
        rows = dict(presets()["merge"])
        known = {parameter.name for parameter in METHODS[edit.method].parameters}
        factors = rows.pop("modules")
        for name, needed in (("budget", "mu"), ("k", "k")):
            if needed not in known:
                rows.pop(name)
        parts = {part for kind in fused for part in FUSED[kind]}
        single = [kind for kind in MODULES if kind not in FUSED and kind not in parts]
        rows |= {f"module_{kind}": factors for kind in (*single, *fused)}
        return {name: _span(row) for name, row in rows.items()}
    rows = dict(presets()["ablation"])
    if not preserving or edit.affine or edit.operation != "ablate":
        rows.pop("norm_preserving")
    chosen = "mu" if edit.filter.budget is None else "budget"
    for name in ("mu", "budget"):
        if edit.operation != "filter" or name != chosen:
            rows.pop(name)
    if edit.directions.file is not None:
        rows.pop("scope"), rows.pop("layer")
    if purpose(replace(recipe, edits=(edit,))) == "reinforced":
        low, high = rows["strength"]
        rows["strength"] = [-high, -low]
    return {name: _span(row) for name, row in rows.items()}


def values(recipe: Recipe, rows: Mapping[str, Span | Choice], layers: int) -> Params:
    """The recipe's own settings, drawn into the ranges: where a search may start."""
    edit = searched(recipe)
    own: Params = {}
    for name, row in rows.items():
        value = _own(edit, name, layers)
        if isinstance(row, Choice):
            own[name] = value if value in row.options else row.options[0]
            continue
        if value is None:  # the recipe says nothing of it: the middle
            value = math.sqrt(row.low * row.high) if row.log else (row.low + row.high) / 2
        value = min(max(row.low, float(value)), row.high)
        own[name] = round(value) if row.whole else value
    return own


def candidate(recipe: Recipe, params: Mapping[str, Any], layers: int) -> Recipe:
    """The recipe with these settings in place of its own.

    Args:
        params: of `space`, or `only` (the one layer to edit, at the recipe's strength).
        layers: of the model.
    """
    old = searched(recipe)
    weights = _weights(old.weights, params, layers)
    if isinstance(old, Merge):
        method = {n: v for n, v in old.parameters.items() if not (n == "mu" and "budget" in params)}
        if "k" in params:
            method["k"] = int(params["k"])
        budget = params.get("budget", old.budget)
        new: Ablation | Merge = replace(old, weights=weights, parameters=method, budget=budget)
    else:
        new = replace(
            old,
            weights=weights,
            directions=_directions(old.directions, params, layers),
            norm_preserving=bool(params.get("norm_preserving", old.norm_preserving)),
            filter=replace(old.filter, **_only(params, ("mu", "budget"))),
        )
    edits = tuple(new if edit is old else edit for edit in recipe.edits)
    return replace(recipe, edits=edits, name=describe(params))


def describe(params: Mapping[str, Any]) -> str:
    """A candidate's name: its settings in words, short."""
    words = []
    for name, value in params.items():
        unused = name == "layer" and params.get("scope") != "single"
        if unused or name == "scope" or value is False:
            continue
        name = {"only": "layer", "layer": "direction of"}.get(name, name.replace("_", " "))
        number = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(name if value is True else f"{name} {number}")
    return ", ".join(words)


def _span(row: Any) -> Span | Choice:
    if isinstance(row, list):
        low, high = map(float, row)
        return Span(low, high)
    if "any" in row:
        return Choice(tuple(row["any"]))
    if "log" in row:
        low, high = map(float, row["log"])
        return Span(low, high, log=True)
    low, high = row["whole"]
    return Span(low, high, whole=True)


def _own(edit: Ablation | Merge, name: str, layers: int) -> Any:
    weights = edit.weights
    if name in KINDS:
        return weights.modules.get(name, 1.0)
    if name.startswith("module_"):
        given, known = weights.modules, kernel.names(name.removeprefix("module_"))
        return next((given[kind] for kind in known if kind in given), 1.0)
    if hasattr(weights, name):
        return getattr(weights, name)
    if isinstance(edit, Merge):
        return edit.budget if name == "budget" else edit.parameters.get(name)
    if name in ("mu", "budget"):
        return getattr(edit.filter, name)
    if name == "layer":
        place = edit.directions.layer
        return None if place is None else place / max(1, layers - 1)
    return edit.directions.scope if name == "scope" else edit.norm_preserving


def _only(params: Mapping[str, Any], names: Sequence[str]) -> Params:
    return {name: float(params[name]) for name in names if name in params}


def _weights(old: WeightTable, params: Mapping[str, Any], layers: int) -> WeightTable:
    if "only" in params:
        curve = tuple(float(layer == params["only"]) for layer in range(layers))
        return replace(old, profile="custom", curve=curve, threshold=0.0, overrides={})
    shape = {n: params[n] for n in ("peak", "width", "threshold", "strength") if n in params}
    modules = {kind: params[kind] for kind in KINDS if kind in params}
    modules |= {n.removeprefix("module_"): v for n, v in params.items() if n.startswith("module_")}
    bell = {"peak", "width"} & shape.keys()
    if bell:  # a bell in place of any curve and of cells typed by hand
        shape |= {"profile": "custom", "curve": None, "overrides": {}}
    elif "strength" not in shape and not modules:
        return old
    parts = {part for kind in modules for part in FUSED.get(kind, ())}  # would count before it
    kept = {kind: factor for kind, factor in old.modules.items() if kind not in parts}
    return replace(old, modules={**kept, **modules}, **shape)


def _directions(old: DirectionSpec, params: Mapping[str, Any], layers: int) -> DirectionSpec:
    scope = params.get("scope", old.scope)
    if "scope" not in params:
        return old
    if scope == "per_layer":
        return replace(old, scope="per_layer", layer=None)
    place = round(params.get("layer", 0.6) * (layers - 1))
    return replace(old, scope="single", layer=float(place))
