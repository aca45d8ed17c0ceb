"""The form: every control that is part of a recipe, and the way between its values and a `Recipe`.

Knows controls by name. Does not know components, models or windows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from sst_ui.errors import UserError, unknown
from sst_ui.maths import kernel
from sst_ui.metrics.registry import find
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Evaluation,
    ModelSpec,
    Recipe,
    Size,
    WeightTable,
)

OWN_PROFILES = ("measured", "model", "custom")  # beside the named ones of presets/profiles.yaml
MEASURING = ("metrics", "metric_preset", "metric_samples", "metric_tokens", "judge", "labels")


class Form(NamedTuple):
    """Every control that is part of a recipe: as components in `build`, as values in handlers."""

    profile: Any
    strength: Any
    peak: Any
    width: Any
    threshold: Any
    attention: Any
    mlp: Any
    operation: Any
    norm_preserving: Any
    affine: Any
    estimator: Any
    k: Any
    scope: Any
    layer: Any
    winsorize: Any
    position: Any
    shrinkage: Any
    seed: Any
    samples: Any
    harmful: Any
    harmless: Any
    file: Any
    metrics: Any
    metric_preset: Any
    metric_samples: Any
    metric_tokens: Any
    judge: Any
    labels: Any


@dataclass(frozen=True)
class Extras:
    """The part of a weight table that no single control shows: a pasted curve, pinned cells."""

    curve: tuple[float, ...] | None = None
    overrides: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


def read(values: Form, extras: Extras, model: ModelSpec) -> Recipe:
    """The recipe that the controls say.

    Raises:
        UserError: a value is missing or out of range, naming it as the recipe does.
    """
    known = (*kernel.profiles(), *OWN_PROFILES)
    if values.profile not in known:
        raise unknown("profile", values.profile, known)
    weights = WeightTable(
        profile=values.profile,
        peak=_number("weights.peak", values.peak),
        width=_number("weights.width", values.width),
        threshold=_number("weights.threshold", values.threshold),
        strength=_number("weights.strength", values.strength),
        modules={
            "attention": _number("weights.modules.attention", values.attention),
            "mlp": _number("weights.modules.mlp", values.mlp),
        },
        curve=extras.curve,
        overrides=extras.overrides,
    )
    winsorize = _number("directions.winsorize", values.winsorize)
    single = values.scope == "single"
    directions = DirectionSpec(
        estimator=values.estimator,
        harmful=_text("directions.harmful", values.harmful),
        harmless=_text("directions.harmless", values.harmless),
        k=int(_number("directions.k", values.k)),
        scope=values.scope,
        layer=_number("directions.layer", values.layer) if single else None,
        winsorize=winsorize if winsorize < 1 else None,
        position=values.position,
        shrinkage=_number("directions.shrinkage", values.shrinkage),
        samples=int(_number("directions.samples", values.samples)) or None,
        seed=int(_number("directions.seed", values.seed)),
        file=(values.file or "").strip() or None,
    )
    edit = Ablation(
        directions=directions,
        weights=weights,
        operation=values.operation,
        norm_preserving=bool(values.norm_preserving),
        affine=bool(values.affine),
    )
    return Recipe(model=model, edits=(edit,), evaluation=evaluation(*measuring(values)))


def measuring(values: Form) -> tuple:
    """The controls (or their values) that say what is measured, as `evaluation` takes them."""
    return tuple(getattr(values, name) for name in MEASURING)


def evaluation(metrics, preset, samples, tokens, judge, labels) -> Evaluation:
    """What to measure, as the controls of `MEASURING` say.

    Raises:
        UserError: a value is missing or out of range, an unknown metric or preset.
    """
    for name in metrics or ():
        find(name)
    if preset not in get_args(Size):
        raise unknown("evaluation.preset", preset, get_args(Size))
    return Evaluation(
        metrics=tuple(metrics or ()),
        preset=preset,
        samples=int(_number("evaluation.samples", samples)) or None,
        max_new_tokens=int(_number("evaluation.max_new_tokens", tokens)) or None,
        judge=(judge or "").strip() or None,
        labels=(labels or "").strip() or None,
    )


def show(recipe: Recipe) -> tuple[Form, Extras]:
    """The controls' values for a recipe with at most one edit; the inverse of `read`."""
    edit = recipe.edits[0] if recipe.edits else Ablation(weights=WeightTable(strength=0.0))
    if not isinstance(edit, Ablation):
        raise UserError(
            "this recipe merges adapters, which the screen has no controls for yet; run it with "
            "`python -m sst_ui run` or `python -m sst_ui merge`."
        )
    weights, directions = edit.weights, edit.directions
    known = (*kernel.profiles(), *OWN_PROFILES)
    if weights.profile not in known:
        raise unknown("profile", weights.profile, known)
    form = Form(
        profile=weights.profile,
        strength=weights.strength,
        peak=weights.peak,
        width=weights.width,
        threshold=weights.threshold,
        attention=weights.modules.get("attention", 1.0),
        mlp=weights.modules.get("mlp", 1.0),
        operation=edit.operation,
        norm_preserving=edit.norm_preserving,
        affine=edit.affine,
        estimator=directions.estimator,
        k=directions.k,
        scope=directions.scope,
        layer=directions.layer or 0,
        winsorize=1.0 if directions.winsorize is None else directions.winsorize,
        position=directions.position,
        shrinkage=directions.shrinkage,
        seed=directions.seed,
        samples=directions.samples or 0,
        harmful=directions.harmful,
        harmless=directions.harmless,
        file=directions.file or "",
        metrics=list(recipe.evaluation.metrics),
        metric_preset=recipe.evaluation.preset,
        metric_samples=recipe.evaluation.samples or 0,
        metric_tokens=recipe.evaluation.max_new_tokens or 0,
        judge=recipe.evaluation.judge or "",
        labels=recipe.evaluation.labels or "",
    )
    return form, Extras(weights.curve, weights.overrides)


def culprit(values: Form, extras: Extras, model: ModelSpec, sound: Form) -> str | None:
    """The control whose value makes `read` fail: the one that a `sound` value repairs."""
    for name in Form._fields:
        try:
            read(values._replace(**{name: getattr(sound, name)}), extras, model)
        except UserError:
            continue
        return name
    return None


def _number(name: str, value: Any) -> float:
    if value is None or isinstance(value, bool):
        raise UserError(f"{name} is empty; type a number.")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {value!r}; type a number.") from None


def _text(name: str, value: Any) -> str:
    text = str(value or "").strip()
    if not text:
        raise UserError(f"{name} is empty; choose a prompt set or type the path of a file.")
    return text
