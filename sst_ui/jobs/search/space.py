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
FILTERED = ("filtered", "filtered_affine")  # ways that have a price
PRICES = ("mu", "budget")  # of a filter
MEASURED = ("estimator", "k")  # settings of how directions are measured


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
        recipe: decides by what is being searched: an edit that adds has no ways, directions of a
            file are as they are, a method without a price has no budget; a filter has a price, or
            a budget where the recipe gives one. MLPs that the recipe leaves alone (a factor of 0)
            are left alone: of a mixture of experts a filter can edit attention only.
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
    ways = [way for way in rows.pop("way")["any"] if preserving or way != "norm_preserving"]
    if edit.operation != "add":  # which goes with none of them
        rows["way"] = {"any": ways}
    price = "mu" if edit.filter.budget is None else "budget"
    if edit.filter.kl is not None:  # which each candidate keeps as it is
        price = ""
    for name in PRICES:
        if edit.operation == "add" or name != price:
            rows.pop(name)
    if edit.weights.modules.get("mlp") == 0:
        rows = {name: row for name, row in rows.items() if not name.startswith("mlp")}
    if edit.directions.file is not None:
        rows = {n: row for n, row in rows.items() if n not in ("scope", "layer", *MEASURED)}
    if edit.directions.estimator == "random":  # a control stays one
        rows = {n: row for n, row in rows.items() if n not in MEASURED}
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


def beginnings(recipe: Recipe, rows: Mapping[str, Span | Choice], layers: int) -> list[Params]:
    """Where a search starts: the recipe's own settings, then what has worked elsewhere."""
    own = values(recipe, rows, layers)
    found = [own]
    if isinstance(searched(recipe), Ablation):
        sign = math.copysign(1.0, searched(recipe).weights.strength)
        for changes in presets()["first"]:
            known = {name: value for name, value in changes.items() if name in rows}
            way = rows.get("way")
            if isinstance(way, Choice) and known.get("way", own["way"]) in way.options:
                known["strength"] = sign * known["strength"]
                found.append({**own, **known})
    return found


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
            **_way(old, params),
        )
    edits = tuple(new if edit is old else edit for edit in recipe.edits)
    return replace(recipe, edits=edits, name=describe(params))


def describe(params: Mapping[str, Any]) -> str:
    """A candidate's name: its settings in words, short."""
    words = []
    for name, value in params.items():
        if name == "scope" or not used(name, params):
            continue
        if name in ("way", "estimator"):
            words.append(str(value).replace("_", " "))
            continue
        name = {"only": "layer", "layer": "direction of"}.get(name, name.replace("_", " "))
        number = f"{value:.3g}" if isinstance(value, float) else str(value)
        words.append(f"{name} {number}")
    return ", ".join(words)


def used(name: str, params: Mapping[str, Any]) -> bool:
    """Whether a setting that was drawn counts beside the others that were."""
    if name == "layer":
        return params.get("scope") == "single"
    return name not in PRICES or params.get("way", FILTERED[0]) in FILTERED  # or a merge's


def _way(old: Ablation, params: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an ablation that say in which way it is made."""
    way = params.get("way")
    if way is None:
        return {}
    fields: dict[str, Any] = {
        "operation": "filter" if way in FILTERED else "ablate",
        "norm_preserving": way == "norm_preserving",
        "affine": way in ("affine", "filtered_affine"),
    }
    if way in FILTERED:
        price: dict[str, Any] = {name: float(params[name]) for name in PRICES if name in params}
        fields["filter"] = replace(old.filter, **price)
    return fields


def _own_way(edit: Ablation) -> str:
    if edit.operation == "filter":
        return "filtered_affine" if edit.affine else "filtered"
    return "norm_preserving" if edit.norm_preserving else "affine" if edit.affine else "plain"


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
    kind, _, part = name.partition("_")
    if kind in KINDS and part in ("peak", "width"):
        return getattr(weights, f"{part}s").get(kind, getattr(weights, part))
    if hasattr(weights, name):
        return getattr(weights, name)
    if isinstance(edit, Merge):
        return edit.budget if name == "budget" else edit.parameters.get(name)
    if name in PRICES:
        return getattr(edit.filter, name)
    if name == "layer":
        place = edit.directions.layer
        return None if place is None else place / max(1, layers - 1)
    return _own_way(edit) if name == "way" else getattr(edit.directions, name)


def _weights(old: WeightTable, params: Mapping[str, Any], layers: int) -> WeightTable:
    if "only" in params:
        curve = tuple(float(layer == params["only"]) for layer in range(layers))
        return replace(
            old, profile="custom", curve=curve, threshold=0.0, overrides={}, peaks={}, widths={}
        )
    shape = {n: params[n] for n in ("peak", "width", "threshold", "strength") if n in params}
    modules = {kind: params[kind] for kind in KINDS if kind in params}
    modules |= {n.removeprefix("module_"): v for n, v in params.items() if n.startswith("module_")}
    bell = {"peak", "width"} & shape.keys()
    if bell:  # a bell in place of any curve and of cells typed by hand
        shape |= {"profile": "custom", "curve": None, "overrides": {}, **_bells(params)}
    elif "strength" not in shape and not modules:
        return old
    parts = {part for kind in modules for part in FUSED.get(kind, ())}  # would count before it
    kept = {kind: factor for kind, factor in old.modules.items() if kind not in parts}
    return replace(old, modules={**kept, **modules}, **shape)


def _bells(params: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Peaks and widths of kinds of module, where they are not those of all."""
    return {
        f"{part}s": {
            kind: own
            for kind in KINDS
            if (own := params.get(f"{kind}_{part}", params.get(part))) != params.get(part)
        }
        for part in ("peak", "width")
    }


def _directions(old: DirectionSpec, params: Mapping[str, Any], layers: int) -> DirectionSpec:
    old = replace(old, **{name: params[name] for name in MEASURED if name in params})
    scope = params.get("scope", old.scope)
    if "scope" not in params:
        return old
    if scope == "per_layer":
        return replace(old, scope="per_layer", layer=None)
    place = round(params.get("layer", 0.6) * (layers - 1))
    return replace(old, scope="single", layer=float(place))
