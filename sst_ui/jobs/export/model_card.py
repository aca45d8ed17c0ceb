"""The model card of an export: what was done, what it costs, how to load and reproduce it.

Sentences are in presets/card.yaml, the layout in presets/card.md.jinja; the figure is SVG of our
own making.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import yaml
from huggingface_hub import ModelCardData

from sst_ui import recipe as recipes
from sst_ui.jobs.layer_figure import by_layer
from sst_ui.jobs.purpose import Purpose, purpose
from sst_ui.maths import kernel
from sst_ui.metrics.results import MEANING, MetricResult, Value
from sst_ui.model.load.source import is_local
from sst_ui.paths import PRESETS
from sst_ui.recipe import KINDS, Ablation, Filter, Merge, ModelSpec, Recipe

if TYPE_CHECKING:
    from sst_ui.jobs.export.export import Export

FIGURE = "weights.svg"
LIBRARY = {"adapter": "peft", "model": "transformers", "mergekit": "mergekit", "gguf": "gguf"}
RELATION = {"adapter": "adapter", "mergekit": "merge"}
TAGS = {
    "abliterated": ("abliterated",),
    "reinforced": ("refusal-reinforced",),
    "merged": ("safety-merged",),
    "both": ("safety-merged", "abliterated"),
    "plain": (),
}
VERDICTS = {
    "better": "✓ changed, better",
    "worse": "✗ changed, worse",
    "changed": "changed",
    "negligible": "negligible (±{:g})",
    "noise": "≈ noise",
}


def card(recipe: Recipe, results: Sequence[MetricResult], export: "Export", layers: int) -> str:
    """README.md of an exported folder, with front matter for the Hub.

    Args:
        recipe: what was done.
        results: metrics, corrections applied; may be empty.
        export: what was written.
        layers: of the model.
    """
    texts, what = _texts(), purpose(recipe, layers)
    base = _base(recipe.model)
    load = texts["load"][export.format]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string((PRESETS / "card.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        front=f"---\n{metadata(recipe, export.format, what).to_yaml()}\n---\n",
        title=recipe.name or f"{recipe.model.id.rstrip('/').rpartition('/')[2]}, edited",
        intro=f"{base[0].upper()}{base[1:]} {texts['intro'][what]}",
        safety=texts["safety"][what],
        goal=texts["goal"][recipe.evaluation.goal],
        base=base,
        edits=[_edit(edit) for edit in recipe.edits] or ["none"],
        format=export.format,
        digest=recipe.digest(),
        figure=FIGURE,
        table=_table(recipe, layers),
        metrics=[_metric(result) for result in results],
        meaning=MEANING,
        language=load["language"],
        load=load["text"].format(base=_place(recipe.model)),
        notes=export.notes,
        checked=export.verification,
        command=_command(export),
        recipe=recipes.to_yaml(recipe),
    )


def metadata(recipe: Recipe, format: str, what: Purpose) -> ModelCardData:
    """Front matter as the Hub reads it. A local base model is not named: the Hub has no such id.

    Args:
        what: the recipe's `purpose`.
    """
    data: dict[str, Any] = {
        "library_name": LIBRARY[format],
        "pipeline_tag": "text-generation",
        "tags": [*TAGS[what], "sst-studio"],
    }
    if not is_local(recipe.model.id):
        data["base_model"] = recipe.model.id
        data["base_model_relation"] = RELATION.get(format, "finetune")
    return ModelCardData(**data)


def curves(recipe: Recipe, layers: int) -> dict[str, np.ndarray]:
    """Name -> [layers] weight of each edit and kind of module; equal kinds share a curve."""
    found: dict[str, np.ndarray] = {}
    for number, edit in enumerate(recipe.edits, 1):
        kinds: tuple[str, ...] = KINDS
        if isinstance(edit, Merge):
            named = {*edit.weights.modules, *edit.weights.overrides}
            single = [k for k in recipes.MODULES if k in named and k not in KINDS]
            kinds = (*KINDS, *(k for k in single if k != "lm_head"))
        alpha = kernel.table(edit.weights, layers, kinds)
        where = f"{number}. " if len(recipe.edits) > 1 else ""
        what = "merge" if isinstance(edit, Merge) else edit.operation
        if (alpha == alpha[:, :1]).all():
            found[f"{where}{what}"] = alpha[:, 0]
        else:
            found |= {f"{where}{what}, {k}": alpha[:, i] for i, k in enumerate(kinds)}
    return found


def figure(recipe: Recipe, layers: int) -> str:
    """The weights of all layers as an SVG: one line for each edit and kind of module."""
    return by_layer(curves(recipe, layers), layers, "Weight of each layer")


def _table(recipe: Recipe, layers: int) -> str:
    lines = curves(recipe, layers)
    if not lines:
        return "No layer is edited."
    head = f"| Layer | {' | '.join(lines)} |\n|---|{'---|' * len(lines)}"
    rows = [
        f"| {layer} | {' | '.join(f'{curve[layer]:.4g}' for curve in lines.values())} |"
        for layer in range(layers)
    ]
    return "\n".join([head, *rows])


def _edit(edit: Ablation | Merge) -> str:
    if isinstance(edit, Merge):
        return f"merge of `{edit.safety}` into `{edit.utility}` by {edit.method}"
    d = edit.directions
    options = [f"{d.k} direction{'s' if d.k > 1 else ''} per layer ({d.estimator})"]
    if d.estimator == "surgical" and d.concepts:
        options += [f"protecting the topics of `{d.concepts}`"]
    options += [f"from `{d.harmful}` and `{d.harmless}`", f"strength {edit.weights.strength:g}"]
    options += ["norm preserving"] * edit.norm_preserving
    options += [f"affine ({edit.affine_at.replace('_', ' ')})"] * edit.affine
    options += _filter(edit.filter) if edit.operation == "filter" else []
    return f"{edit.operation}: {', '.join(options)}"


def _filter(settings: Filter) -> list[str]:
    price = f"μ {settings.mu:g}"
    if settings.budget is not None:
        price = f"at most {settings.budget:.3g} of the harmless energy that plain ablation moves"
    if settings.kl is not None:
        price = f"at most {settings.kl:.3g} nats a token on harmless measuring prompts"
    bound = settings.null_space
    if bound is not None:
        price += f", in the null space of {bound:g} of the harmless energy"
    beside = settings.lookalikes
    return [price] + ([f"look-alikes `{beside}` × {settings.lookalike_weight:g}"] if beside else [])


def _metric(result: MetricResult) -> Mapping[str, Any]:
    return {
        "title": f"{result.title} ({result.unit})" if result.unit else result.title,
        "base": _value(result.base, result.unit),
        "edited": "–" if result.edited is None else _value(result.edited, result.unit),
        "verdict": VERDICTS.get(result.verdict or "", "").format(result.negligible),
        "n": result.base.n,
        "tokens": "–" if result.tokens is None else result.tokens,
        "note": result.note,
    }


def _value(value: Value, unit: str) -> str:
    if not math.isfinite(value.value):
        return "–"
    if unit == "rate":
        return f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]"
    return f"{value.value:.4g} [{value.low:.4g}, {value.high:.4g}]"


def _command(export: "Export") -> str:
    options = "" if export.rounding == "nearest" else f" --rounding {export.rounding}"
    options += "" if export.rank is None else f" --rank {export.rank}"
    return f"python -m sst_ui export recipe.yaml --format {export.format}{options} --out FOLDER"


def _place(spec: ModelSpec) -> str:
    """What `from_pretrained` takes."""
    return "assets/demo" if spec.id == "demo" else spec.id


def _base(spec: ModelSpec) -> str:
    if is_local(spec.id):
        return "the demo model of SST Studio" if spec.id == "demo" else f"`{spec.id}` (local)"
    revision = f" at `{spec.revision}`" if spec.revision else ""
    return f"[{spec.id}](https://huggingface.co/{spec.id}){revision}"


@cache
def _texts() -> Mapping[str, Any]:
    return yaml.safe_load((PRESETS / "card.yaml").read_text(encoding="utf-8"))
