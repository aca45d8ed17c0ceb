"""What a visitor's session holds: small frozen data, and the form of controls as a recipe.

Knows the controls by name and how they make a `Recipe` and come from one. Holds no tensors, models
or locks: those live in the engine, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sst_ui.errors import UserError, unknown
from sst_ui.maths import kernel
from sst_ui.recipe import (
    Ablation,
    DirectionSpec,
    Evaluation,
    ModelSpec,
    Recipe,
    WeightTable,
)

OWN_PROFILES = ("measured", "model", "custom")  # beside the named ones of presets/profiles.yaml


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
    metric_samples: Any
    metric_tokens: Any


@dataclass(frozen=True)
class Extras:
    """The part of a weight table that no single control shows: a pasted curve, pinned cells."""

    curve: tuple[float, ...] | None = None
    overrides: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """An applied recipe under a name that is unique in the session."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Variants:
    """Applied recipes, oldest first, and which of them is the edited model now."""

    items: tuple[Variant, ...] = ()
    current: str = ""

    def get(self, name: str) -> Variant | None:
        """The variant of that name, if there is one."""
        return next((v for v in self.items if v.name == name), None)

    @property
    def now(self) -> Variant | None:
        """The variant that chat and metrics use."""
        return self.get(self.current)

    def add(self, recipe: Recipe) -> "Variants":
        """The recipe as the current variant; one that was applied before is only picked again."""
        digest = recipe.digest()
        known = next((v for v in self.items if v.recipe.digest() == digest), None)
        if known is not None:
            items = tuple(replace(v, recipe=recipe) if v is known else v for v in self.items)
            return Variants(items, known.name)
        name = unique(title(recipe), {v.name for v in self.items})
        return Variants((*self.items, Variant(name, replace(recipe, name=name))), name)

    def back(self) -> "Variants":
        """The variant applied before the current one becomes current (undo)."""
        names = [v.name for v in self.items]
        place = names.index(self.current) if self.current in names else 0
        if place == 0:
            raise UserError("there is nothing earlier to go back to.")
        return replace(self, current=names[place - 1])


@dataclass(frozen=True)
class Turn:
    """One message and what each column answered; `note` is what the screen says below them."""

    message: str
    answers: tuple[str, ...] = ("", "")


@dataclass(frozen=True)
class Conversation:
    """The turns of a chat, oldest first."""

    turns: tuple[Turn, ...] = ()

    def history(self, column: int) -> list[dict[str, str]]:
        """The messages as one column's model saw them; an unanswered turn ends with the user."""
        messages = []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.message})
            if turn.answers[column]:
                messages.append({"role": "assistant", "content": turn.answers[column]})
        return messages


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
    evaluation = Evaluation(
        metrics=tuple(values.metrics or ()),
        samples=int(_number("evaluation.samples", values.metric_samples)) or None,
        max_new_tokens=int(_number("evaluation.max_new_tokens", values.metric_tokens)),
    )
    return Recipe(model=model, edits=(edit,), evaluation=evaluation)


def show(recipe: Recipe) -> tuple[Form, Extras]:
    """The controls' values for a recipe with at most one edit; the inverse of `read`."""
    edit = recipe.edits[0] if recipe.edits else Ablation(weights=WeightTable(strength=0.0))
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
        metric_samples=recipe.evaluation.samples or 0,
        metric_tokens=recipe.evaluation.max_new_tokens,
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


def title(recipe: Recipe) -> str:
    """A short name that says what the recipe does: profile, strength, and what is unusual."""
    edit = recipe.edits[0] if recipe.edits else None
    if edit is None:
        return "base"
    marks = [edit.weights.profile, f"×{edit.weights.strength:g}"]
    marks += [edit.operation] if edit.operation != "ablate" else []
    marks += ["affine"] if edit.affine else []
    marks += ["random"] if edit.directions.estimator == "random" else []
    return " ".join(marks).replace("-", "−")


def unique(name: str, taken: set[str]) -> str:
    """The name, or the name with the next free number."""
    if name not in taken:
        return name
    return next(n for i in range(2, 10_000) if (n := f"{name} #{i}") not in taken)


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
