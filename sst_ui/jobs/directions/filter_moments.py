"""The statistics a filtered ablation needs: what the writers read and write on both prompt sets.

They depend on neither μ, budget, ridge nor weights, so they are kept: in memory, and on disk by
what went into them, beside the merge's.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sst_ui import cache
from sst_ui.data import prompt_sets
from sst_ui.jobs.directions.residual_cache import LARGEST, encode
from sst_ui.lru import Memory
from sst_ui.maths.directions import Directions
from sst_ui.maths.filtered import SMALL, Moments, Sketch, random_columns
from sst_ui.model.architecture.module_roles import Writer
from sst_ui.model.inference.batch import Row
from sst_ui.model.inference.fisher_step import Conversation, Where
from sst_ui.model.inference.generate import replies
from sst_ui.model.inference.writer_moments import writer_moments
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, digest

FORMULAS = 1  # raise it when the meaning of what is cached changes
RECENT = 6  # sets of moments that a host keeps in memory
_recent: WeakKeyDictionary[Host, Memory] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of every writer that one matrix makes up, by module path.

    Attributes:
        harmful: at the token where the directions were measured.
        harmless, lookalikes: over whole prompts and the answers to them; the latter may be empty.
        sources: names of the prompt sets.
        key: digest of all that went into it.
    """

    harmful: Mapping[str, Moments]
    harmless: Mapping[str, Moments]
    lookalikes: Mapping[str, Moments]
    sources: tuple[str, ...]
    key: str


def single(host: Host) -> list[Writer]:
    """The writers that are one matrix: a mixture's experts are not."""
    return [w for w in host.architecture.writers if w.form != "experts"]


def collect(
    host: Host, edit: Ablation, directions: Directions, before: Row, identity: str
) -> Generator[Progress, None, Statistics]:
    """The statistics of an edit's prompts, from memory or the cache where they are known.

    Args:
        before: the edits that come first in the recipe; the model computes with them.
        identity: of those edits, '' for none.

    Raises:
        UserError: prompt sets that are unknown, empty or too long.
    """
    spec, answers = edit.directions, edit.filter.answers
    names = {"harmful": spec.harmful, "harmless": spec.harmless}
    if edit.filter.lookalikes:
        names["lookalikes"] = edit.filter.lookalikes
    found: dict[str, Mapping[str, Moments]] = {"lookalikes": {}}
    memory, keys = _recent.setdefault(host, Memory(RECENT)), []
    for task, name in names.items():
        chosen = prompt_sets.load(name, spec.samples)
        harmful = task == "harmful"
        encoded = encode(host, chosen, spec.position if harmful else "template")
        texts = [list(prompt) for prompt in encoded.prompts]
        if encoded.positions is not None:
            ends = encoded.positions
            texts = [text[: end + 1] for text, end in zip(texts, ends, strict=True)]
        given = [] if harmful else [p.assistant if not p.choices else "" for p in chosen.prompts]
        asked = [texts, given, 0 if harmful else answers, harmful]
        key = digest([FORMULAS, host.digest, directions.digest(), identity, asked])
        known = memory.get(key)
        path = cache.place("moments", f"{key}.safetensors") if host.digest else None
        if known is None:
            known = _read(path)
        if known is None:
            rest: list[tuple[int, ...]] = [(host.pad,)] * len(texts)
            if not harmful and answers:
                rest = yield from _answers(host, texts, given, before, answers, task)
            talks = list(zip(texts, rest, strict=True))
            where: Where = "response" if harmful else "all"
            known = yield from _moments(host, directions, talks, where, before, task)
            _write(path, known)
        memory.put(key, known)
        keys.append(key)
        found[task] = known
    sets = (found["harmful"], found["harmless"], found["lookalikes"])
    return Statistics(*sets, sources=tuple(names.values()), key=digest(keys))


def _answers(
    host: Host,
    texts: Sequence[list[int]],
    given: Sequence[str],
    before: Row,
    tokens: int,
    task: str,
) -> Generator[Progress, None, list[tuple[int, ...]]]:
    """What follows each prompt: the set's own answer, or what the model says."""
    room = max(0, host.context - max(map(len, texts)))
    asked = [i for i, answer in enumerate(given) if not answer]
    found = {i: tuple(host.tokens(answer)) for i, answer in enumerate(given) if answer}
    if asked and (tokens := min(tokens, room)):
        rows = [before] * len(asked)
        said = yield from replies(host, [texts[i] for i in asked], rows, tokens, stage="answers")
        found |= {i: tuple(reply.tokens) for i, reply in zip(asked, said, strict=True)}
    # the last token of what follows is predicted but not read: one more makes all of them count
    return [(*found.get(i, ())[: min(tokens, room)], host.pad) for i in range(len(texts))]


def _moments(
    host: Host,
    directions: Directions,
    talks: Sequence[Conversation],
    where: Where,
    before: Row,
    task: str,
) -> Generator[Progress, None, dict[str, Moments]]:
    readers = {}
    for writer in single(host):
        read, _ = writer.sides(directions.vectors[writer.layer].float())
        readers[writer.name] = read
    job = writer_moments(host, readers, talks, where, before, stage=f"{task} moments")
    return (yield from job)


def _read(path: Path | None) -> dict[str, Moments] | None:
    """What the cache holds; a damaged file counts as nothing."""
    with cache.used(path) as there:
        if path is None or not there:
            return None
        try:
            with safe_open(path, "pt") as file:
                meta = json.loads((file.metadata() or {})["writers"])
            return _unpacked(load_file(path), meta)
        except Exception:
            return None


def _write(path: Path | None, found: Mapping[str, Moments]) -> None:
    tensors: dict[str, Tensor] = {}
    meta = {}
    for name, moments in found.items():
        sketched = isinstance(moments.inputs, Sketch)
        whole = moments.inputs.product if isinstance(moments.inputs, Sketch) else moments.inputs
        tensors[f"{name}|inputs"] = whole.contiguous()
        tensors |= {f"{name}|{part}": getattr(moments, part).contiguous() for part in SMALL}
        trace = moments.inputs.trace if isinstance(moments.inputs, Sketch) else 0.0
        meta[name] = [moments.n, sketched, trace]
    if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST:
        said = {"writers": json.dumps(meta)}
        cache.keep(path, lambda part: save_file(tensors, part, said))


def _unpacked(tensors: Mapping[str, Tensor], meta: Mapping[str, list]) -> dict[str, Moments]:
    found = {}
    for name, (n, sketched, trace) in meta.items():
        whole = tensors[f"{name}|inputs"]
        inputs = Sketch(whole, random_columns(len(whole)), trace) if sketched else whole
        mean, cross, along, squares = (tensors[f"{name}|{part}"] for part in SMALL)
        found[name] = Moments(inputs, mean, cross, along, squares, int(n))
    return found
