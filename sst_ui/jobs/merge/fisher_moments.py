"""The statistics a merge needs of its data: input directions and Fisher moments of both tasks.

Nothing here depends on a method's parameters, so it is kept on disk by what went into it.
"""

import json
import random
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Literal

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sst_ui import cache
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.maths.merge.registry import METHODS
from sst_ui.maths.merge.subspace import PARTS, Moments
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.inference.batch import Row
from sst_ui.model.inference.fisher import Beside, Conversation, Labels, moments
from sst_ui.model.inference.input_basis import input_directions
from sst_ui.model.inference.replies import replies
from sst_ui.model.lora.adapters import Adapter
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.progress import part as counted
from sst_ui.recipe import Merge, digest

# Where on the way θ_U + τ D each task is asked: at its own end it is so certain of its answers that
# gradients vanish, and what an edit destroys shows only where it is being destroyed.
TAUS = {"utility": (0.0, 0.5, 1.0), "safety": (0.25, 0.5, 1.0)}
FORMULAS = 2  # raise it when the meaning of what is cached changes
ONE_IN = 4  # conversations of a set, of which a method that adapts to losses holds one out

Part = Literal["all", "seen", "held_out"]  # of a set's conversations


def inputs(
    host: Host, spec: Merge, utility: Adapter, paths: list[str]
) -> Generator[Progress, None, dict[str, Tensor]]:
    """Further input directions of every module, from the cache where they were found before."""
    asked = [
        each
        for name in sets(spec)
        for each in conversations(host, name, spec.samples, read_part(spec))
    ]
    tokens = [[list(p), list(r)] for p, r in asked]
    path = _path(host, digest([FORMULAS, host.digest, utility.digest, spec.inputs, paths, tokens]))
    if (kept := _read(path)) is not None:
        return kept[0]
    shift = (RowDelta(utility.deltas),)
    found = yield from input_directions(host, paths, asked, shift, spec.inputs)
    _write(path, found, {})
    return found


def collect(
    host: Host,
    spec: Merge,
    utility: Adapter,
    safety: Adapter,
    cores: Mapping,
    merged: Mapping[str, Beside] | None = None,
) -> Generator[Progress, None, dict[str, dict[str, Moments]]]:
    """Both tasks' moments, from the cache where the same were collected before.

    Both are averaged along the way θ_U + τ D. The utility side takes labels of the model's own, the
    safety side the refusals that the data hold. Look-alikes count to utility, with their weight.

    Args:
        merged: task -> what was collected of a merged model, to be counted too (`of_merged`).
    """

    def way(task: str) -> tuple[Row, ...]:
        back = spec.target == "interpolating"
        return tuple(
            (RowDelta(utility.deltas, 1 - tau if back else 1.0), RowDelta(safety.deltas, tau))
            for tau in TAUS[task]
        )

    part = read_part(spec)
    beside: dict[str, list[Beside]] = {task: [] for task in TAUS}
    if spec.lookalikes and spec.lookalike_weight:
        alike = conversations(host, spec.lookalikes, spec.samples, part)
        beside["utility"].append(Beside(alike, spec.lookalike_weight))
    plans: dict[str, tuple[str, tuple[Row, ...], Labels]] = {
        "utility": (spec.utility_prompts, way("utility"), "sampled"),
        "safety": (spec.safety_prompts, way("safety"), "given"),
    }
    found = {}
    talks = {task: conversations(host, plan[0], spec.samples, part) for task, plan in plans.items()}
    sizes = [sum(len(p) + len(r) for p, r in each) for each in talks.values()]
    ends = [0.0, sizes[0] / (sum(sizes) or 1), 1.0]
    for place, (task, (_, shifts, labels)) in enumerate(plans.items()):
        asked = talks[task]
        also = [*beside[task], *([merged[task]] if merged else [])]
        # moments are numbers in the cores' bases, which another linear algebra may turn round
        bases = [
            round(float(c.u.double().sum() + 7 * c.r.double().sum()), 4) for c in cores.values()
        ]
        identity = [utility.digest, safety.digest, spec.target, spec.fisher, labels, bases]
        for each in also:
            identity.append([each.weight, [[list(p), list(r)] for p, r in each.conversations]])
        tokens = [[list(p), list(r)] for p, r in asked]
        path = _path(host, digest([FORMULAS, host.digest, identity, tokens]))
        path = None if merged else path  # which a merged model is, the key does not say
        if (kept := _read(path)) is not None:
            found[task] = _unpacked(*kept)
        else:
            job = moments(
                host, cores, asked, shifts, labels, spec.fisher, "all", stage=f"{task} Fisher",
                beside=also,
            )  # fmt: skip
            found[task] = yield from counted(job, *ends[place : place + 2])
            _write(path, *_packed(found[task]))
    return found


def of_merged(
    host: Host, spec: Merge, merged: RowDelta
) -> Generator[Progress, None, dict[str, Beside]]:
    """What a merged model adds to the statistics of both tasks, asked where it is.

    Utility: its own answers to the utility prompts, look-alikes included. Safety: the refusals that
    the data hold, whether it refuses or not.
    """
    part = read_part(spec)
    names = [spec.utility_prompts, *sets(spec)[2:]]
    asked = [each for n in names for each in conversations(host, n, spec.samples, part)]
    prompts, given = zip(*asked, strict=True)
    longest = min(max(map(len, given)), host.context - max(map(len, prompts)))
    said = yield from replies(host, prompts, [(merged,)] * len(prompts), longest)
    own = [(p, r.tokens) for p, r in zip(prompts, said, strict=True) if r.tokens]
    refusals = conversations(host, spec.safety_prompts, spec.samples, part)
    if not own:
        raise UserError(
            "the merged model answers nothing to the utility prompts; merge less of it."
        )
    return {
        "utility": Beside(own, shifts=((merged,),)),
        "safety": Beside(refusals, shifts=((merged,),)),
    }


def sets(spec: Merge) -> tuple[str, ...]:
    """The prompt sets that statistics are collected on: utility, safety, look-alikes if any."""
    beside = (spec.lookalikes,) if spec.lookalikes and spec.lookalike_weight else ()
    return (spec.utility_prompts, spec.safety_prompts, *beside)


def read_part(spec: Merge) -> Part:
    """Which conversations the statistics are of: not those that losses are measured on."""
    return "seen" if "losses" in METHODS[spec.method].needs else "all"


def conversations(
    host: Host, name: str, samples: int | None, part: Part = "all"
) -> list[Conversation]:
    """The prompts of a set with their answers, as tokens.

    Args:
        part: `held_out` is one in four, drawn once for a number of prompts; `seen` the others.

    Raises:
        UserError: a prompt without an answer, or too few to hold one out.
    """
    chosen = prompt_sets.load(name, samples)
    found: list[Conversation] = []
    for number, prompt in enumerate(chosen.prompts, start=1):
        if prompt.answer is None:
            raise UserError(
                f"{name}, prompt {number} has no 'answer'; Fisher statistics need answers."
            )
        messages = chosen.messages(prompt)
        ids = host.encode(messages)
        response = host.template.answer_tokens(messages, prompt.assistant)
        found.append((tuple(ids), tuple(response)))
    return found if part == "all" else _drawn(name, found, part)


def _drawn(name: str, found: list[Conversation], part: Part) -> list[Conversation]:
    if len(found) < 2:
        raise UserError(
            f"{name} has {len(found)} prompt: a method that adapts to held-out losses needs 2 or "
            "more, one for the statistics and one to hold out."
        )
    held = random.Random(0).sample(range(len(found)), max(1, len(found) // ONE_IN))
    return [each for i, each in enumerate(found) if (i in held) == (part == "held_out")]


def _path(host: Host, key: str) -> Path | None:
    return cache.place("moments", f"{key}.safetensors") if host.digest else None


def _read(path: Path | None) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and meta data that the cache holds; a damaged file counts as nothing."""
    with cache.used(path) as there:
        if path is None or not there:
            return None
        try:
            with safe_open(path, "pt") as file:
                return load_file(path), file.metadata() or {}
        except Exception:
            return None


def _write(path: Path | None, tensors: Mapping[str, Tensor], meta: dict[str, str]) -> None:
    whole = {name: value.contiguous() for name, value in tensors.items()}
    cache.keep(path, lambda part: save_file(whole, part, meta))


def _packed(found: Mapping[str, Moments]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {
        f"{name}|{part}": value
        for name, each in found.items()
        for part in PARTS
        if (value := getattr(each, part)) is not None
    }
    return tensors, {"n": json.dumps({name: m.n for name, m in found.items()})}


def _unpacked(tensors: Mapping[str, Tensor], meta: Mapping[str, str]) -> dict[str, Moments]:
    return {
        name: Moments(
            tensors[f"{name}|a"], tensors.get(f"{name}|g"), n, tensors.get(f"{name}|block")
        )
        for name, n in json.loads(meta["n"]).items()
    }
