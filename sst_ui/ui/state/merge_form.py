"""The merge's part of the form: every control of a `Merge`, and the way between both.

The controls of the methods' own parameters come from `maths.merge.registry.METHODS`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from sst_ui.errors import UserError, unknown
from sst_ui.maths import kernel
from sst_ui.maths.merge.parameters import Parameter
from sst_ui.maths.merge.registry import METHODS
from sst_ui.paths import DEMO
from sst_ui.recipe import FUSED, MODULES, Merge, WeightTable, late

COMMON = ("target", "mode")  # parameters that the recipe has one place for, whatever the method
FACTORS = tuple(kind for kind in MODULES if kind not in FUSED)
SHAPES = ("flat", "bell")
GOALS = ("budget", "parameters")
BUDGET = 0.0005  # nats per token, where the slider starts
WIDE = 1e3  # a bell of that width is the same everywhere


@cache
def dials() -> Mapping[str, Parameter]:
    """Parameters of all methods by name, each with the range that holds all of its namesakes."""
    found: dict[str, Parameter] = {}
    for method in METHODS:
        for row in method.parameters:
            if row.name in COMMON:
                continue
            known = found.setdefault(row.name, row)
            low, high = min(known.low, row.low), max(known.high, row.high)
            found[row.name] = replace(known, low=low, high=high)
    order = sorted(found, key=lambda name: name == "damping")  # what is turned least comes last
    return {name: found[name] for name in order}


FIELDS = (
    "merge_on", "utility", "safety", "method", "goal", "budget",
    *(f"p_{name}" for name in dials()),
    "safety_weight", "shape", "m_peak", "m_width", *(f"f_{kind}" for kind in FACTORS),
    "utility_set", "safety_set", "m_lookalikes", "m_lookalike_weight", "m_samples", "target",
    "fisher", "inputs", "m_rounds", "unaligned", "rank",
)  # fmt: skip


def shipped() -> list[tuple[str, str]]:
    """The demo's adapters as (name, path); a path below the working folder is relative to it."""
    found = []
    for config in sorted(DEMO.glob("adapters/*/adapter_config.json")):
        folder = config.parent
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())
        found.append((config.parent.name, folder.as_posix()))
    return found


def first() -> Merge:
    """What the controls show before a merge was made: the demo's adapters, within a KL budget.

    The bell is late and strong: later layers tell best what must be refused from what only looks
    so (docs/results.md measures the methods with it and without).
    """
    known = dict(shipped())
    none = (DEMO / "adapters").as_posix()
    return Merge(
        utility=known.get("utility", f"{none}/utility"),
        safety=known.get("safety", f"{none}/safety"),
        budget=BUDGET,
        weights=late(),
    )


def own(method: str) -> dict[str, Parameter]:
    """The parameters of a method that have a control of their own."""
    return {row.name: row for row in METHODS[method].parameters if row.name not in COMMON}


def priced(method: str) -> bool:
    """Whether a KL budget can choose for a method: whether it has a μ."""
    return "mu" in own(method)


def show(spec: Merge) -> dict[str, Any]:
    """The controls' values for a merge that is on."""
    mine, weights = own(spec.method), spec.weights
    peak, width = weights.bell
    values: dict[str, Any] = {
        "merge_on": True,
        "utility": spec.utility,
        "safety": spec.safety,
        "method": spec.method,
        "goal": GOALS[spec.budget is None],
        "budget": BUDGET if spec.budget is None else spec.budget,
        "safety_weight": weights.strength,
        "shape": SHAPES[width < WIDE],
        "m_peak": peak,
        "m_width": width if width < WIDE else kernel.profiles()["default"]["width"],
        "utility_set": spec.utility_prompts,
        "safety_set": spec.safety_prompts,
        "m_lookalikes": spec.lookalikes or "",
        "m_lookalike_weight": spec.lookalike_weight,
        "m_samples": spec.samples or 0,
        "target": spec.target,
        "fisher": spec.fisher,
        "inputs": spec.inputs,
        "m_rounds": spec.rounds,
        "unaligned": spec.unaligned or "",
        "rank": spec.rank or 0,
    }
    for name, row in dials().items():
        default = mine[name].default if name in mine else row.default
        values[f"p_{name}"] = spec.parameters.get(name, default)
    for kind in FACTORS:
        given, known = weights.modules, kernel.names(kind)
        values[f"f_{kind}"] = next((given[name] for name in known if name in given), 1.0)
    return values


def read(values: Any, base: Merge) -> Merge:
    """The merge that the controls say.

    Args:
        values: a form.
        base: the merge that the controls were filled from. What no control was turned for stays as
            it is there, also what no control shows (a curve, overrides, factors of other kinds).

    Raises:
        UserError: a value is missing or out of range, naming it as the recipe does.
    """
    if values.method not in METHODS.names():
        raise unknown("merge method", values.method, METHODS.names())
    shown = show(base)
    turned = {name for name in FIELDS if getattr(values, name) != shown[name]}
    budget = base.budget
    if priced(values.method):
        within = values.goal == "budget"
        if turned & {"goal", "budget", "method"}:
            budget = number("merge.budget", values.budget) if within else None
    elif "method" in turned:
        budget = None
    for name, allowed in (("shape", SHAPES), ("goal", GOALS)):
        if getattr(values, name) not in allowed:
            raise unknown(f"merge.{name}", getattr(values, name), allowed)
    return replace(
        base,
        utility=str(values.utility or "").strip(),
        safety=str(values.safety or "").strip(),
        method=values.method,
        parameters=_parameters(values, base, turned),
        budget=budget,
        target=values.target,
        fisher=values.fisher,
        inputs=whole("merge.inputs", values.inputs),
        weights=_weights(values, base.weights, turned),
        utility_prompts=text("merge.utility_prompts", values.utility_set),
        safety_prompts=text("merge.safety_prompts", values.safety_set),
        lookalikes=(values.m_lookalikes or "").strip() or None,
        lookalike_weight=number("merge.lookalike_weight", values.m_lookalike_weight),
        samples=whole("merge.samples", values.m_samples) or None,
        rounds=whole("merge.rounds", values.m_rounds),
        unaligned=(values.unaligned or "").strip() or None,
        rank=whole("merge.rank", values.rank) or None,
    )


def _parameters(values: Any, base: Merge, turned: set[str]) -> dict[str, Any]:
    """What differs from the method's defaults, and what the recipe named itself."""
    mine = own(values.method)
    given = {} if "method" in turned else dict(base.parameters)
    for name, row in mine.items():
        value = getattr(values, f"p_{name}")
        if row.kind != "choice":
            value = number(f"merge.parameters.{name}", value)
        value = row.check(value)
        if name in given:
            given[name] = given[name] if given[name] == value else value
        elif value != row.default:
            given[name] = value
    return given


def _weights(values: Any, base: WeightTable, turned: set[str]) -> WeightTable:
    weights = replace(base, strength=number("merge.weights.strength", values.safety_weight))
    if values.shape == "bell" and turned & {"shape", "m_peak", "m_width"}:
        peak, width = (number(f"merge.weights.{n}", getattr(values, f"m_{n}"))
                       for n in ("peak", "width"))  # fmt: skip
        weights = replace(weights, profile="custom", peak=peak, width=width, curve=None)
    elif "shape" in turned:
        weights = replace(
            weights, profile="flat", peak=None, width=None, threshold=None, curve=None
        )
    factors = {
        kind: number(f"merge.weights.modules.{kind}", getattr(values, f"f_{kind}"))
        for kind in FACTORS
        if f"f_{kind}" in turned
    }
    return replace(weights, modules={**base.modules, **factors})


def number(name: str, value: Any) -> float:
    """What was typed as a number; `UserError` naming it otherwise."""
    if value is None or isinstance(value, bool):
        raise UserError(f"{name} is empty; type a number.")
    try:
        typed = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name} is {repr(value)[:40]}; type a number.") from None
    if not math.isfinite(typed):
        raise UserError(f"{name} is {typed}; type a number.")
    return typed


def whole(name: str, value: Any) -> int:
    """What was typed as a whole number; `UserError` naming it otherwise."""
    typed = number(name, value)
    if typed != int(typed):
        raise UserError(f"{name} is {typed:.12g}; it must be a whole number.")
    return int(typed)


def text(name: str, value: Any) -> str:
    """What was typed as a prompt set; `UserError` naming it if empty."""
    typed = str(value or "").strip()
    if not typed:
        raise UserError(f"{name} is empty; choose a prompt set or type the path of a file.")
    return typed
