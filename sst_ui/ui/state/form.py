"""The form: every control that is part of a recipe, and its values to a `Recipe` and back."""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sst_ui.errors import UserError, unknown
from sst_ui.maths import kernel
from sst_ui.metrics.registry import find
from sst_ui.profiles import OWN as OWN_PROFILES
from sst_ui.program import program
from sst_ui.recipe import (
    KINDS,
    Ablation,
    DirectionSpec,
    Evaluation,
    Filter,
    Merge,
    ModelSpec,
    Recipe,
    WeightTable,
)
from sst_ui.schema import setting
from sst_ui.ui.state import merge_form
from sst_ui.ui.state.merge_form import number, text, whole

MEASURING = (
    "metrics",
    "metric_preset",
    "metric_samples",
    "metric_tokens",
    "judge",
    "labels",
    "metric_goal",
)


WAYS = ("operation", "norm_preserving", "affine")  # exclude one another where not at rest

FILTER_GOALS = ("price", "budget", "kl")
FILTER_BUDGET, FILTER_KL = 0.01, 0.001  # where the sliders start
ABLATION = (
    "ablation_on", "profile", "strength", "peak", "width", "threshold", "attention", "mlp",
    "operation", "norm_preserving", "affine", "affine_at", "filter_goal", "filter_budget",
    "filter_kl", "filter_mu", "null_space", "lookalikes", "lookalike_weight", "filter_answers",
    "filter_ridge", "estimator", "k", "scope", "layer", "winsorize", "position", "shrinkage",
    "seed", "samples", "harmful", "harmless", "concepts", "file",
)  # fmt: skip


def _fields() -> Any:
    return namedtuple("Form", (*ABLATION, *MEASURING, *merge_form.FIELDS))


_Named: Any = _fields()  # no type: some fields are the merge methods' parameters, read at start


class Form(_Named):
    """Every control that is part of a recipe: as components in `build`, as values in handlers."""

    __slots__ = ()


@dataclass(frozen=True)
class Extras:
    """The part of a recipe that no single control shows.

    Attributes:
        curve, overrides: of the ablation's table, a pasted curve and pinned cells.
        peaks, widths: of the ablation's table, kinds of module with a bell of their own.
        merge: what the merge's controls were filled from (see `merge_form.read`).
    """

    curve: tuple[float, ...] | None = None
    overrides: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    merge: Merge = field(default_factory=merge_form.first)
    peaks: Mapping[str, float] = field(default_factory=dict)
    widths: Mapping[str, float] = field(default_factory=dict)

    def one_bell(self) -> "Extras":
        """Without what stands in place of the bell that the controls show."""
        return replace(self, curve=None, peaks={}, widths={})


def tabled(values: Form, extras: Extras, before: str | None, layers: int) -> Extras:
    """What is pinned: in the profile `table` every cell, at what it comes to, and no longer when
    that is left.

    Args:
        before: the profile that was drawn last.
    """
    if values.profile != "table":
        return replace(extras, overrides={}) if before == "table" else extras
    try:
        alpha = kernel.table(ablation(values, extras).weights, layers)
    except UserError:  # said at its control; until then there is nothing to pin
        return extras
    ends = setting("weights.overrides").limits
    assert ends.low is not None  # both are said at its field
    assert ends.high is not None
    cells = alpha.clip(ends.low, ends.high).round(3).tolist()  # as the table shows them
    pinned = {
        kind: {layer: row[column] for layer, row in enumerate(cells)}
        | {**extras.overrides.get(kind, {})}
        for column, kind in enumerate(KINDS)
    }
    return replace(extras.one_bell(), overrides=pinned)


def read(values: Form, extras: Extras, model: ModelSpec) -> Recipe:
    """The recipe that the controls say: what is switched on, a merge before an ablation.

    Raises:
        UserError: a value is missing or out of range, naming it as the recipe does.
    """
    edits: tuple[Ablation | Merge, ...] = ()
    if values.merge_on:
        edits = (merge_form.read(values, extras.merge),)
    if values.ablation_on:
        edits = (*edits, ablation(values, extras))
    return Recipe(model=model, edits=edits, evaluation=evaluation(*measuring(values)))


def ablation(values: Form, extras: Extras) -> Ablation:
    """The ablation that the controls say, switched on or not.

    Raises:
        UserError: as `read`.
    """
    known = (*kernel.profiles(), *OWN_PROFILES)
    if values.profile not in known:
        raise unknown("profile", values.profile, known)
    weights = WeightTable(
        profile=values.profile,
        peak=number("weights.peak", values.peak),
        width=number("weights.width", values.width),
        threshold=number("weights.threshold", values.threshold),
        strength=number("weights.strength", values.strength),
        modules={
            "attention": number("weights.modules.attention", values.attention),
            "mlp": number("weights.modules.mlp", values.mlp),
        },
        peaks=extras.peaks,
        widths=extras.widths,
        curve=extras.curve,
        overrides=extras.overrides,
    )
    winsorize = number("directions.winsorize", values.winsorize)
    single = values.scope == "single"
    directions = DirectionSpec(
        estimator=values.estimator,
        harmful=text("directions.harmful", values.harmful),
        harmless=text("directions.harmless", values.harmless),
        k=whole("directions.k", values.k),
        scope=values.scope,
        layer=number("directions.layer", values.layer) if single else None,
        winsorize=None if winsorize == 1 else winsorize,
        position=values.position,
        shrinkage=number("directions.shrinkage", values.shrinkage),
        concepts=(values.concepts or "").strip() or None,
        samples=whole("directions.samples", values.samples) or None,
        seed=whole("directions.seed", values.seed),
        file=(values.file or "").strip() or None,
    )
    return Ablation(
        directions=directions,
        weights=weights,
        operation=values.operation,
        norm_preserving=bool(values.norm_preserving),
        affine=bool(values.affine),
        affine_at=values.affine_at,
        filter=_filter(values),
    )


def _filter(values: Form) -> Filter:
    if values.filter_goal not in FILTER_GOALS:
        raise unknown("filter.goal", values.filter_goal, FILTER_GOALS)
    goal = values.filter_goal
    return Filter(
        mu=number("filter.mu", values.filter_mu),
        budget=number("filter.budget", values.filter_budget) if goal == "budget" else None,
        kl=number("filter.kl", values.filter_kl) if goal == "kl" else None,
        null_space=number("filter.null_space", values.null_space) or None,
        ridge=number("filter.ridge", values.filter_ridge),
        answers=whole("filter.answers", values.filter_answers),
        lookalikes=(values.lookalikes or "").strip() or None,
        lookalike_weight=number("filter.lookalike_weight", values.lookalike_weight),
    )


def measuring(values: Form) -> tuple:
    """The controls (or their values) that say what is measured, as `evaluation` takes them."""
    return tuple(getattr(values, name) for name in MEASURING)


def evaluation(
    metrics: Sequence[str] | None,
    preset: Any,
    samples: Any,
    tokens: Any,
    judge: str | None,
    labels: str | None,
    goal: Any,
) -> Evaluation:
    """What to measure, as the controls of `MEASURING` say.

    Raises:
        UserError: a value is missing or out of range, an unknown metric or preset.
    """
    for name in metrics or ():
        find(name)
    return Evaluation(
        metrics=tuple(metrics or ()),
        goal=goal,
        preset=preset,
        samples=whole("evaluation.samples", samples) or None,
        max_new_tokens=whole("evaluation.max_new_tokens", tokens) or None,
        judge=(judge or "").strip() or None,
        labels=(labels or "").strip() or None,
    )


def measured_by(wanted: Evaluation) -> dict[str, Any]:
    """The values of the controls of `MEASURING`; the inverse of `evaluation`."""
    values = (
        list(wanted.metrics), wanted.preset, wanted.samples or 0, wanted.max_new_tokens or 0,
        wanted.judge or "", wanted.labels or "", wanted.goal,
    )  # fmt: skip
    return dict(zip(MEASURING, values, strict=True))


def split(recipe: Recipe) -> tuple[Merge | None, Ablation | None]:
    """The recipe's merge and its ablation.

    Raises:
        UserError: edits that the controls cannot show: two of a kind, or a merge after an ablation.
    """
    kinds = [type(edit) for edit in recipe.edits]
    if kinds not in ([], [Merge], [Ablation], [Merge, Ablation]):
        names = ", ".join(kind.__name__.lower() for kind in kinds)
        raise UserError(
            f"the recipe's edits are {names}; the screen shows one merge, one ablation, or a merge "
            f"and then an ablation. Run it with: {program()} run recipe.yaml"
        )
    found: dict[type, Any] = dict(zip(kinds, recipe.edits, strict=True))
    return found.get(Merge), found.get(Ablation)


def show(
    recipe: Recipe, now: Form | None = None, extras: Extras | None = None
) -> tuple[Form, Extras]:
    """The controls' values for a recipe; the inverse of `read`.

    Args:
        now, extras: what the controls hold; an edit that the recipe lacks stays there, switched
            off. Without them it has its defaults.

    Raises:
        UserError: as `split`.
    """
    merge, edit = split(recipe)
    kept = {} if now is None else now._asdict()
    before = extras or Extras()
    if edit is not None or now is None:
        kept |= _shown(edit or Ablation())
        weights = (edit or Ablation()).weights
        before = replace(
            before, curve=weights.curve, overrides=weights.overrides,
            peaks=weights.peaks, widths=weights.widths,
        )  # fmt: skip
    if merge is not None or now is None:
        before = replace(before, merge=merge or before.merge)
        kept |= merge_form.show(before.merge)
    kept |= {
        "ablation_on": edit is not None,
        "merge_on": merge is not None,
        **measured_by(recipe.evaluation),
    }
    return Form(**kept), before


def _shown(edit: Ablation) -> dict[str, Any]:
    weights, directions, filtered = edit.weights, edit.directions, edit.filter
    offered = (*kernel.profiles(), *OWN_PROFILES)  # a merge's `flat` is not among them
    return {
        "profile": weights.profile if weights.profile in offered else "custom",
        "strength": weights.strength,
        "peak": weights.peak,
        "width": weights.width,
        "threshold": weights.threshold,
        "attention": weights.modules.get("attention", 1.0),
        "mlp": weights.modules.get("mlp", 1.0),
        "operation": edit.operation,
        "norm_preserving": edit.norm_preserving,
        "affine": edit.affine,
        "affine_at": edit.affine_at,
        "filter_goal": "kl" if filtered.kl else "budget" if filtered.budget else "price",
        "filter_budget": FILTER_BUDGET if filtered.budget is None else filtered.budget,
        "filter_kl": FILTER_KL if filtered.kl is None else filtered.kl,
        "filter_mu": filtered.mu,
        "null_space": filtered.null_space or 0,
        "lookalikes": filtered.lookalikes or "",
        "lookalike_weight": filtered.lookalike_weight,
        "filter_answers": filtered.answers,
        "filter_ridge": filtered.ridge,
        "estimator": directions.estimator,
        "k": directions.k,
        "scope": directions.scope,
        "layer": directions.layer or 0,
        "winsorize": 1.0 if directions.winsorize is None else directions.winsorize,
        "position": directions.position,
        "shrinkage": directions.shrinkage,
        "seed": directions.seed,
        "samples": directions.samples or 0,
        "harmful": directions.harmful,
        "harmless": directions.harmless,
        "concepts": directions.concepts or "",
        "file": directions.file or "",
    }


def wrong(values: Form, extras: Extras, model: ModelSpec, sound: Form) -> dict[str, str]:
    """Control -> what is wrong with its value; nothing for a form that `read` takes.

    The control is the one that a `sound` value repairs, the last of several: switching a merge off
    repairs each of its numbers too. For what none of them repairs it is the profile.
    """
    found: dict[str, str] = {}
    names: tuple[str, ...] = Form._fields
    while (text := _refused(values, extras, model)) is not None:
        for name in [name for name in reversed(names) if name not in found]:
            repaired = values._replace(**{name: getattr(sound, name)})
            if _refused(repaired, extras, model) != text:
                break
        else:
            return {"profile": text, **found}
        values, found[name] = repaired, text
    return found


def _refused(values: Form, extras: Extras, model: ModelSpec) -> str | None:
    """Why a form is no recipe; its ablation must be sound though it is off, for it is drawn."""
    try:
        read(values, extras, model)
        ablation(values, extras)
    except UserError as error:
        return str(error)
    return None


def asks_where(values: Form) -> bool:
    """Whether it is asked where the edit acts: a filter's affine centre acts wherever the filter
    does."""
    return bool(values.affine) and values.operation == "ablate"


def free(values: Form) -> dict[str, bool]:
    """Which of `WAYS` can be chosen beside what is chosen: no two of add, norms and affine, and
    no norms beside a filter."""
    norms, affine = bool(values.norm_preserving), bool(values.affine)
    plain = values.operation == "ablate"
    return {
        "operation": not plain or not (norms or affine),
        "norm_preserving": norms or (plain and not affine),
        "affine": affine or (values.operation != "add" and not norms),
    }
