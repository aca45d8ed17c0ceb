"""A recipe as a mergekit configuration where mergekit can express it; else an adapter and one line.

Writes mergekit's YAML (merge_method, models as base+adapter, parameters by filter with a list of
numbers over the layers); mergekit itself is not run.

mergekit interpolates a list of n numbers over the position t = l / (L − 1) of a layer, so that L
numbers are one per layer. It can express one merge by task arithmetic, linear interpolation, TIES
or DARE with a table of weights; an ablation, an SST merge, or several edits first become an
adapter, which it can add.

mergekit first merges an adapter into a whole model, for which it needs a folder, and takes the
difference to the base again; in the type of the files that would round every change before it is
weighed, so the command asks for float32 and only the result has the files' type.
"""

import shutil
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sst_ui.errors import UserError
from sst_ui.jobs.export.formats import (
    Job,
    Made,
    adapter_files,
    check_adapter,
    check_model,
    pretended,
)
from sst_ui.jobs.merge.merge import SUMS, by_part, settings, table
from sst_ui.model.architecture.discover import fold
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.load.source import is_local, open_source
from sst_ui.model.lora.adapters import read_adapter
from sst_ui.model.runtime.host import Host
from sst_ui.model.weights import tensor_edits
from sst_ui.progress import Progress
from sst_ui.recipe import Merge, Recipe

FILE, ADAPTER = "mergekit.yaml", "adapter"
COMMAND = f"mergekit-yaml {FILE} ./merged --lora-merge-cache ./cache --lora-merge-dtype float32"
# mergekit knows a family by a list of its tensors. These lists (0.1.5) hold no biases: those of a
# model that has some would be left out without a word. One wants masks that nobody stores.
BIASLESS = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen3")
OUTDATED = ("gpt_neox",)
TYPES = ("float32", "bfloat16", "float16")  # that mergekit writes
SPOKEN = {  # our methods -> mergekit's
    "task_arithmetic": "task_arithmetic",
    "linear": "task_arithmetic",  # (1 − w) Δ_U + w Δ_S: its own `linear` divides by the weights
    "ties": "ties",
    "dare": "dare_linear",
}


def unspoken(host: Host, recipe: Recipe) -> str:
    """Why mergekit has no words for a recipe; '' if it has."""
    if len(recipe.edits) != 1 or not isinstance(recipe.edits[0], Merge):
        what = "an ablation" if recipe.edits else "no edit"
        return f"mergekit cannot express {what if len(recipe.edits) < 2 else 'several edits'}"
    merge = recipe.edits[0]
    if merge.method not in SPOKEN:
        return f"mergekit has no method {merge.method}"
    if merge.rank is not None and merge.method in SUMS:
        return f"mergekit does not cut a merge to rank {merge.rank}"
    if any(len(parts) > 1 for parts in by_part(host, merge).values()):
        return (
            "mergekit weights a fused matrix as a whole, not q, k and v (or gate and up) separately"
        )
    if merge.method == "ties" and min(table(host, merge).values(), default=0.0) < 0:
        return "mergekit's TIES divides by the sum of the weights, and some are negative"
    return ""


def unread(host: Host) -> str:
    """Which of a model's tensors mergekit would leave out or ask for in vain; '' for none."""
    if host.architecture.model_type in OUTDATED:
        return "the tensors"
    biased = any(name.endswith(".bias") for name, _ in host.model.named_parameters())
    return "the biases" if biased and host.architecture.model_type in BIASLESS else ""


def check(host: Host, recipe: Recipe, rank: int | None) -> None:
    """Raises UserError for a recipe that neither the YAML nor an adapter can hold."""
    if not recipe.edits:
        raise UserError("the recipe has no edits; there is nothing for mergekit to do.")
    if lost := unread(host):
        raise UserError(
            f"mergekit does not read {lost} of {host.name} ({host.architecture.model_type}); "
            "export format model or adapter instead."
        )
    if unspoken(host, recipe):
        check_adapter(host, recipe, rank)
        check_model(host, recipe)  # mergekit puts the adapter into the weights, biases included
        if bare := tensor_edits.without_bias(pretended(host, recipe), host.architecture):
            raise UserError(
                f"an affine edit needs a bias at what each module writes, and mergekit gives "
                f"{fold(bare)} none. Export format model or adapter instead."
            )


def write(job: Job, folder: Path) -> Generator[Progress, None, Made]:
    """`mergekit.yaml`, and beside it the adapters that it names."""
    reason = unspoken(job.host, job.recipe)
    if reason:
        (folder / ADAPTER).mkdir()
        made = yield from adapter_files(job, folder / ADAPTER)
        said = through_adapter(job.host)
        notes = (f"{reason}, so it adds the adapter in {ADAPTER}/.", *made.notes)
        error = made.error
    else:
        merge = job.recipe.edits[0]
        assert isinstance(merge, Merge)  # or there were a reason
        said, notes = spoken(job.host, merge, folder)
        error = 0.0
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=100)
    (folder / FILE).write_text(text, encoding="utf-8")
    run = f"Run it in this folder: {COMMAND}"
    run += " --trust-remote-code" if job.host.spec.trust_remote_code else ""
    yield Progress("mergekit", 1, 1)
    return Made((*notes, run), error, check=False)


def through_adapter(host: Host) -> dict[str, Any]:
    """The configuration that adds the adapter written beside it."""
    model = _reference(host, f"./{ADAPTER}")
    return {
        "merge_method": "task_arithmetic",  # with a base, whose other files it copies
        "base_model": _reference(host),
        "models": [{"model": model, "parameters": {"weight": 1.0}}],
        "parameters": {"normalize": False},
        **_types(host),
    }


def spoken(host: Host, merge: Merge, folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """One merge in mergekit's own words, and what differs from the studio.

    Args:
        folder: local adapters are copied into it, so that the configuration stands by itself.
    """
    weights, parameters = table(host, merge), settings(merge)
    read = [read_adapter(name, host).deltas for name in (merge.utility, merge.safety)]
    tensor_edits.check([RowDelta(deltas) for deltas in read], host.architecture)  # biases too
    changed = {path for deltas in read for path in deltas}
    weights = {path: weight for path, weight in weights.items() if path in changed}
    ones = dict.fromkeys(weights, 1.0)
    sides = {"utility": ones, "safety": weights}
    if merge.method == "linear":
        sides["utility"] = {path: 1 - weight for path, weight in weights.items()}
    models = []
    for side, cells in sides.items():
        given: dict[str, Any] = {"weight": by_filter(host, cells)}
        if merge.method in ("ties", "dare"):
            share = parameters["density"] if merge.method == "ties" else 1 - parameters["drop"]
            # where the safety weight is 0 the studio leaves the utility adapter whole
            kept = {path: share if weights[path] else 1.0 for path in weights}
            given["density"] = by_filter(host, kept, rest=1.0)
        place = _adapter(getattr(merge, side), side, folder)
        models.append({"model": _reference(host, place), "parameters": given})
    whole: dict[str, Any] = {"normalize": merge.method == "ties"}
    if merge.method == "ties" and parameters["scale"] != 1:
        scale = parameters["scale"]
        cells = {path: scale if weights[path] else 1.0 for path in weights}
        whole["lambda"] = by_filter(host, cells, rest=1.0)
    if merge.method == "dare":
        whole["rescale"] = True
    said = {
        "merge_method": SPOKEN[merge.method],
        "base_model": _reference(host),
        "models": models,
        "parameters": whole,
        **_types(host),
    }
    notes = ["The recipe in mergekit's own words, one weight for each layer and kind of module."]
    if merge.method in ("ties", "dare"):
        notes.append(
            "In the studio the merged change is cut to the sum of both ranks, which can lose a "
            "quarter of it; mergekit keeps it whole. Format model gives the studio's own."
        )
    if merge.method == "dare":
        notes.append("DARE drops entries at random, and mergekit draws different ones.")
    return said, tuple(notes)


def by_filter(host: Host, cells: Mapping[str, float], rest: float = 0.0) -> list[dict[str, Any]]:
    """Numbers by module path as mergekit's conditions: one list over the layers for each kind of
    module, and `rest` for all that no adapter changes."""
    columns: dict[str, list[float]] = {}
    for path, value in cells.items():
        for number, layer in enumerate(host.architecture.layer_names):
            if path.startswith(f"{layer}."):
                kind = path.removeprefix(f"{layer}.")
                columns.setdefault(kind, [rest] * host.layers)[number] = float(value)
                break
        else:
            columns[path] = [float(value)]
    # a filter matches any part of a name: longer ones first
    conditions = [
        {"filter": kind, "value": _short(values)}
        for kind, values in sorted(columns.items(), key=lambda item: (-len(item[0]), item[0]))
    ]
    return [*conditions, {"value": rest}]


def _short(values: Sequence[float]) -> float | list[float]:
    return values[0] if len(set(values)) == 1 else list(values)


def _reference(host: Host, adapter: str = "") -> str | dict[str, Any]:
    """A model as mergekit finds it, with an adapter or without: base@revision+adapter, or in parts
    where the path of a folder holds one of these signs."""
    base, revision = host.spec.id, host.spec.revision
    if is_local(base):
        base, revision = str(open_source(host.spec).folder), None
    if "@" in base or "+" in base:
        return {"model": {"path": base}, **({"lora": {"path": adapter}} if adapter else {})}
    return base + (f"@{revision}" if revision else "") + (f"+{adapter}" if adapter else "")


def _adapter(name: str, side: str, folder: Path) -> str:
    if not is_local(name):
        return name
    shutil.copytree(Path(name).expanduser(), folder / side)
    return f"./{side}"


def _types(host: Host) -> dict[str, str]:
    """Compute in float32, write what the base model's files hold."""
    said = open_source(host.spec).read("config.json")
    for part in (said, said.get("text_config") or {}):
        stored = part.get("dtype") or part.get("torch_dtype")
        if stored in TYPES:
            return {"dtype": "float32", "out_dtype": stored}
    return {"dtype": "float32"}
