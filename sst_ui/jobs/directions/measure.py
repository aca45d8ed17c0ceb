"""Measures refusal directions, and turns a recipe into edits that the model can apply.

Each edit's directions are measured on the base model. The formulas are in
`maths/direction_estimators.py`.
"""

import json
import os
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakKeyDictionary

from sst_ui import cache, reach
from sst_ui.data.prompt_sets import Prompt, PromptSet
from sst_ui.data.prompt_sets import load as load_prompts
from sst_ui.errors import UserError
from sst_ui.jobs.directions.concepts import Concepts, concepts
from sst_ui.jobs.directions.concepts import residuals as of_concepts
from sst_ui.jobs.directions.filtering import filters, refuse
from sst_ui.jobs.directions.kl_budget import within
from sst_ui.jobs.directions.neutral_points import at_prompt_end, everywhere
from sst_ui.jobs.directions.residual_cache import Encoded, captured, check_fits, encode
from sst_ui.jobs.merge.merge import merge
from sst_ui.maths import kernel
from sst_ui.maths.direction_estimators import estimate
from sst_ui.maths.directions import Directions, load, random
from sst_ui.model.hooks.live_edits import Edit, RowEdit
from sst_ui.model.load.fingerprint import state
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, DirectionSpec, Merge, Recipe, digest, to_dict

HELDOUT = ("demo/harmful_heldout", "demo/harmless_heldout")
FORMULAS = 2  # raise it when an estimator or a statistic changes: older cache files are then unused
RECENT = 16  # directions a host keeps in memory

# The same question gives the same object, so that what the live edits prepared for it still serves,
# and a slider that resolves its recipe at every move costs no prompt encoding.
_recent: WeakKeyDictionary[Host, dict[str, Directions]] = WeakKeyDictionary()


def measure(
    host: Host, spec: DirectionSpec, heldout: tuple[str, str] | None = HELDOUT
) -> Generator[Progress, None, Directions]:
    """Directions as the spec says: from its file, from the cache, or measured.

    Args:
        host: the model.
        spec: what to measure; with `file`, the file as it is (estimator `random`: a random control
            of the file's size).
        heldout: prompt sets (harmful, harmless) for AUROC and Cohen's d, or None. Prompts that are
            also measured on are left out; sets that cannot be loaded leave the two statistics NaN.
            Either is said in a `Progress` note and in the meta data.

    Yields:
        Progress of the stages `residuals` (prompts) and `directions`.

    Raises:
        UserError: prompt sets that are unknown, too small or the same; a file of another model;
            an estimator that protects concepts, and none that it could.
    """
    if spec.file is not None:
        read, note = _from_file(host, spec, spec.file)
        yield Progress("directions", 1, 1, note)
        return read
    harmful, harmless = (load_prompts(name, spec.samples) for name in (spec.harmful, spec.harmless))
    if texts(harmful) == texts(harmless):
        raise UserError(
            f"the harmful prompts {spec.harmful!r} and the harmless prompts {spec.harmless!r} are "
            "the same; a direction needs two different sets."
        )
    protected = concepts(spec, harmful, harmless)
    measured = texts(harmful) | texts(harmless)
    measured |= texts(protected.prompts) if protected else set()
    other, note = _heldout(heldout, spec.samples, measured)
    sets = (harmful, harmless, *other)
    meta = described(host, spec, sets, protected) | {"note": note}
    asked = digest(meta)
    if (recent := _recent.get(host, {}).get(asked)) is not None:
        yield Progress("directions", 1, 1, note)
        return recent
    encoded = [encode(host, each, spec.position) for each in sets]
    path = _path(host, spec, encoded, protected)
    directions = _cached(host, path)
    if directions is None:
        found = yield from captured(host, encoded)
        beside = yield from of_concepts(host, spec, protected)
        yield Progress("directions", 0, 1, note)
        held = (found[2], found[3]) if other else None
        directions = estimate(found[0], found[1], spec, host.digest, held, beside)
        cache.keep(path, directions.write)
    # The cache knows tokens; names and notes are this call's own.
    directions = replace(directions, meta={**directions.meta, **meta})
    yield Progress("directions", 1, 1, note)
    return _keep(host, asked, directions)


def resolve(host: Host, recipe: Recipe) -> Generator[Progress, None, tuple[Edit, ...]]:
    """The recipe's edits: directions measured, adapters merged, weight tables filled in.

    Raises:
        UserError: as `measure` and `merge`, or a weight table that does not fit the model's layers.
    """
    # The tables first: a typing error there should not show after minutes of measuring.
    ablations = [edit for edit in recipe.edits if isinstance(edit, Ablation)]
    for ablation in ablations:
        kernel.table(ablation.weights, host.layers)
    for ablation in ablations:
        if ablation.operation == "filter":
            refuse(host, ablation)
    edits: list[Edit] = []
    for number, edit in enumerate(recipe.edits):
        if isinstance(edit, Merge):
            edits.append((yield from merge(host, edit)).live)
            continue
        directions = yield from measure(host, edit.directions)
        identity = named(recipe.edits[:number]) if edit.operation == "filter" else ""
        edits.append((yield from along(host, edit, directions, tuple(edits), identity)))
    return tuple(edits)


def along(
    host: Host,
    edit: Ablation,
    directions: Directions,
    before: tuple[Edit, ...] = (),
    identity: str = "",
) -> Generator[Progress, None, Edit]:
    """An ablation along measured directions, with what its kind needs beside them.

    Args:
        before: the edits in front of it, and `identity` what names them; a filter needs both.
    """
    if edit.operation == "filter":
        found = yield from filters(host, edit, directions, before, identity)
        if edit.filter.kl is not None:
            edit = yield from within(host, edit, found, before, identity)
        return found.edit_row(edit)
    centre = None
    if edit.affine and edit.affine_at == "everywhere":
        centre = yield from everywhere(host, edit.directions, directions)
    elif edit.affine:
        directions = yield from at_prompt_end(host, edit.directions, directions)
    return RowEdit(
        directions,
        kernel.table(edit.weights, host.layers),
        norm_preserving=edit.norm_preserving,
        affine=edit.affine,
        operation=edit.operation,
        centre=centre,
    )


def named(edits: Sequence[Ablation | Merge]) -> str:
    """Names edits by their settings and by the state of the files that they name; '' for none."""
    if not edits:
        return ""
    files = [
        state(e.utility, e.safety, e.unaligned)
        if isinstance(e, Merge)
        else state(e.directions.file)
        for e in edits
    ]
    return digest([to_dict(tuple(edits)), files])


def control(recipe: Recipe, seed: int = 0) -> Recipe:
    """The same edits at the same weights along random directions: what the edit must beat."""
    edits = tuple(
        replace(edit, directions=replace(edit.directions, estimator="random", seed=seed + number))
        if isinstance(edit, Ablation)
        else edit
        for number, edit in enumerate(recipe.edits)
    )
    return replace(recipe, name=f"{recipe.name} (random control)".strip(), edits=edits)


def _from_file(host: Host, spec: DirectionSpec, path: str) -> tuple[Directions, str]:
    reach.check(path)
    directions = load(os.path.expanduser(path))
    check_fits(host, directions, f"the directions in {path}")
    source = directions.meta.get("model", "")
    note = ""
    if source and host.digest and source != host.digest:
        name = directions.meta.get("model_name") or source
        note = f"these directions were measured on another model ({name})"
    if spec.estimator == "random":
        shape = (directions.layers, directions.hidden, directions.k)
        control = random(*shape, spec.seed, directions.norms)
        directions = replace(control, decisions=directions.decisions)
    asked = directions.digest()
    return _recent.get(host, {}).get(asked) or _keep(host, asked, directions), note


def _keep(host: Host, asked: str, directions: Directions) -> Directions:
    kept = _recent.setdefault(host, {})
    kept[asked] = directions
    for oldest in list(kept)[:-RECENT]:
        kept.pop(oldest, None)
    return directions


def _heldout(
    names: tuple[str, str] | None, samples: int | None, measured: set[str]
) -> tuple[tuple[PromptSet, ...], str]:
    """Held-out sets without the prompts measured on, and what was left out (or no sets at all)."""
    if names is None:
        return (), ""
    try:
        sets = [load_prompts(name, samples) for name in names]
    except UserError as error:
        return (), f"no held-out prompts: {error}"
    kept = [[p for p in each.prompts if _text(p) not in measured] for each in sets]
    left_out = sum(len(each) - len(rest) for each, rest in zip(sets, kept, strict=True))
    note = f"{left_out} held-out prompts left out: they are also measured on" if left_out else ""
    if min(map(len, kept)) < 2:
        return (), f"no held-out prompts: {note or 'the sets are too small'}"
    if left_out:
        sets = [
            replace(each, prompts=tuple(rest), digest=digest(to_dict(tuple(rest))))
            for each, rest in zip(sets, kept, strict=True)
        ]
    return tuple(sets), note


def _text(prompt: Prompt) -> str:
    return prompt.key


def texts(prompts: PromptSet) -> set[str]:
    """The requests of a prompt set, for telling whether two share any."""
    return {_text(prompt) for prompt in prompts.prompts}


def _path(
    host: Host, spec: DirectionSpec, encoded: list[Encoded], protected: Concepts | None
) -> Path | None:
    """The cache file for exactly this model, these tokens and settings; None without identity."""
    if not host.digest:
        return None
    # All of it is in the tokens:
    names = ("harmful", "harmless", "concepts", "samples", "position", "file")
    settings = {name: value for name, value in to_dict(spec).items() if name not in names}
    tokens = [(each.prompts, each.positions) for each in encoded]
    beside = [] if protected is None else [[protected.prompts.digest, protected.topics]]
    key = digest([FORMULAS, host.digest, settings, tokens, *beside])
    return cache.place("directions", f"{key}.safetensors")


def _cached(host: Host, path: Path | None) -> Directions | None:
    """What the cache holds; a damaged or foreign file counts as nothing."""
    with cache.used(path) as there:
        try:
            directions = load(path) if path is not None and there else None
        except UserError:
            return None
    if directions is None or (directions.layers, directions.hidden) != (host.layers, host.hidden):
        return None
    return directions


def described(
    host: Host, spec: DirectionSpec, sets: tuple[PromptSet, ...], protected: Concepts | None = None
) -> dict[str, str]:
    """Meta data of directions: model, settings, and the sets in the order of their roles."""
    roles = ("harmful", "harmless", "heldout_harmful", "heldout_harmless")
    names = {
        role: f"{each.name} ({len(each)} prompts, {each.digest})"
        for role, each in zip(roles, sets, strict=False)
    }
    if protected is not None:
        prompts = protected.prompts
        names["concepts"] = f"{prompts.name} ({len(prompts)} prompts, {prompts.digest})"
        names["protected"] = protected.told
    return {"model_name": host.name, **names, "settings": json.dumps(to_dict(spec))}
