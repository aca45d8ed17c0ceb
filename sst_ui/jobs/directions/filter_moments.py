"""The statistics a filtered ablation needs: what the writers read and write on both prompt sets.

They depend on neither μ, budget, ridge nor weights, so they are kept: in memory, and on disk by
what went into them, beside the merge's.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from sst_ui.maths.filtered import EXACT, SMALL, Moments, subspace
from sst_ui.model.architecture.module_roles import Writer
from sst_ui.model.inference.batch import Row
from sst_ui.model.inference.fisher_step import Conversation, Where
from sst_ui.model.inference.replies import replies
from sst_ui.model.inference.writer_moments import input_sketches, writer_moments
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, digest

FORMULAS = 3  # raise it when the meaning of what is cached changes
RECENT = 3  # statistics that a host keeps in memory
# Of the weight of harmless prompts, the part on their last token: there refusal is decided, and one
# token among thirty would hardly be heard. Chosen on halves of the prompts that are measured on.
# Directions that were found in rounds act within answers too: with a weight on one token the model
# begins anew in the middle of them ("I Sure! To …"), so there all tokens count alike.
DECIDING = 0.5
TASKS = ("harmful", "harmless", "lookalikes")
_recent: WeakKeyDictionary[Host, Memory] = WeakKeyDictionary()
_said: WeakKeyDictionary[Host, Memory] = WeakKeyDictionary()  # other directions: the same answers


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of every writer that one matrix makes up, by module path.

    Attributes:
        bases: Q [in, q] of the modules with many inputs, see `maths.filtered.subspace`; the moments
            of those are in it.
        harmful: at the token where the directions were measured.
        harmless, lookalikes: over whole prompts and the answers to them, half of the weight being
            on the last prompt token unless the directions were found in rounds; the latter may be
            empty.
        sources: names of the prompt sets.
        key: digest of all that went into it.
    """

    bases: Mapping[str, Tensor]
    harmful: Mapping[str, Moments]
    harmless: Mapping[str, Moments]
    lookalikes: Mapping[str, Moments]
    sources: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class Asked:
    """A prompt set as it is read.

    Attributes:
        texts: tokens of each prompt, up to the position that counts.
        given: the set's own answers, '' for none.
        where: which tokens count.
        deciding: share of the weight on the last prompt token beside what it has as one of all.
    """

    texts: tuple[tuple[int, ...], ...]
    given: tuple[str, ...]
    where: Where
    deciding: float = 0.0


def single(host: Host) -> list[Writer]:
    """The writers that are one matrix: a mixture's experts are not."""
    return [w for w in host.architecture.writers if w.form != "experts"]


def collect(
    host: Host, edit: Ablation, directions: Directions, before: Row, identity: str
) -> Generator[Progress, None, Statistics]:
    """The statistics of an edit's prompts, from memory or the cache where they are known.

    Modules of up to EXACT inputs cost one pass over the prompts, wider ones a second.

    Args:
        before: the edits that come first in the recipe; the model computes with them.
        identity: of those edits, '' for none.

    Raises:
        UserError: prompt sets that are unknown, empty or too long.
    """
    names = [edit.directions.harmful, edit.directions.harmless, edit.filter.lookalikes]
    named = {task: name for task, name in zip(TASKS, names, strict=True) if name}
    deciding = 0.0 if directions.decisions else DECIDING
    asked = {task: _asked(host, edit, task, name, deciding) for task, name in named.items()}
    if directions.decisions:  # measured where each of them was, and on no other prompts
        heads = tuple(head for decision in directions.decisions for head in decision.heads)
        asked["harmful"] = Asked(heads, ("",) * len(heads), "response")
    content = [[task, each.texts, each.given, each.deciding] for task, each in asked.items()]
    key = digest(
        [FORMULAS, host.digest, directions.digest(), identity, edit.filter.answers, content]
    )
    memory = _recent.setdefault(host, Memory(RECENT))
    path = cache.place("moments", f"{key}.safetensors") if host.digest else None
    found = memory.get(key) or _read(path)
    if found is None:
        talks = yield from _conversations(host, asked, before, identity, edit.filter.answers)
        found = yield from _measured(host, directions, asked, talks, before)
        _write(path, found)
    memory.put(key, found)
    return replace(found, sources=tuple(named.values()), key=key)


def _asked(host: Host, edit: Ablation, task: str, name: str, deciding: float) -> Asked:
    chosen = prompt_sets.load(name, edit.directions.samples)
    if task != "harmful":
        given = tuple("" if p.choices else p.assistant for p in chosen.prompts)
        return Asked(encode(host, chosen, "template").prompts, given, "all", deciding)
    encoded = encode(host, chosen, edit.directions.position)
    texts = encoded.prompts
    if encoded.positions is not None:
        ends = encoded.positions
        texts = tuple(text[: end + 1] for text, end in zip(texts, ends, strict=True))
    return Asked(texts, ("",) * len(texts), "response")


def _conversations(
    host: Host, asked: Mapping[str, Asked], before: Row, identity: str, answers: int
) -> Generator[Progress, None, dict[str, list[Conversation]]]:
    """The prompts with what follows them. The last token of that is predicted but not read: one
    more makes all of them count."""
    found: dict[str, list[Conversation]] = {}
    for task, each in asked.items():
        rest: list[tuple[int, ...]] = [()] * len(each.texts)
        if each.where == "all" and answers:
            memory = _said.setdefault(host, Memory(RECENT))
            key = digest([each.texts, each.given, identity, answers])
            if (known := memory.get(key)) is None:
                known = yield from _answers(host, each, before, answers)
                memory.put(key, known)
            rest = known
        found[task] = [(t, (*r, host.pad)) for t, r in zip(each.texts, rest, strict=True)]
    return found


def _answers(
    host: Host, asked: Asked, before: Row, tokens: int
) -> Generator[Progress, None, list[tuple[int, ...]]]:
    """What follows each prompt: the set's own answer, or what the model says."""
    tokens = min(tokens, max(0, host.context - max(map(len, asked.texts), default=0)))
    found = {i: tuple(host.tokens(answer)) for i, answer in enumerate(asked.given) if answer}
    rest = [i for i, answer in enumerate(asked.given) if not answer]
    if rest and tokens:
        rows = [before] * len(rest)
        said = yield from replies(host, [asked.texts[i] for i in rest], rows, tokens)
        found |= {i: tuple(reply.tokens) for i, reply in zip(rest, said, strict=True)}
    return [found.get(i, ())[:tokens] for i in range(len(asked.texts))]


def _measured(
    host: Host,
    directions: Directions,
    asked: Mapping[str, Asked],
    talks: Mapping[str, Sequence[Conversation]],
    before: Row,
) -> Generator[Progress, None, Statistics]:
    writers = single(host)
    readers = {w.name: w.sides(directions.vectors[w.layer].float())[0] for w in writers}
    wide = [w.name for w in writers if w.width > EXACT]
    sketches: dict[str, list[Tensor]] = {path: [] for path in wide}
    for task in asked if wide else ():
        each, stage = asked[task], f"{task} inputs"
        job = input_sketches(host, wide, talks[task], each.where, before, each.deciding, stage)
        looked = yield from job
        for path, sketch in looked.items():
            sketches[path].append(sketch)
    bases = {}
    for path in wide:
        bases[path] = subspace(sketches.pop(path))  # each is freed as it is done
    found: dict[str, Mapping[str, Moments]] = {"lookalikes": {}}
    for task, each in asked.items():
        stage = f"{task} moments"
        found[task] = yield from writer_moments(
            host, readers, talks[task], each.where, before, bases, each.deciding, stage
        )
    harmful, harmless, lookalikes = (found[task] for task in TASKS)
    return Statistics(bases, harmful, harmless, lookalikes, (), "")


def _read(path: Path | None) -> Statistics | None:
    """What the cache holds; a damaged file counts as nothing."""
    with cache.used(path) as there:
        if path is None or not there:
            return None
        try:
            with safe_open(path, "pt") as file:
                counts = json.loads((file.metadata() or {})["tokens"])
            return _unpacked(load_file(path), counts)
        except Exception:
            return None


def _write(path: Path | None, found: Statistics) -> None:
    tensors = {f"basis|{name}": basis for name, basis in found.bases.items()}
    counts: dict[str, dict[str, int]] = {}
    for task in TASKS:
        counts[task] = {name: moments.n for name, moments in getattr(found, task).items()}
        for name, moments in getattr(found, task).items():
            parts = {part: getattr(moments, part) for part in ("inputs", *SMALL)}
            tensors |= {f"{task}|{name}|{part}": x.contiguous() for part, x in parts.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) <= LARGEST:
        said = {"tokens": json.dumps(counts)}
        cache.keep(path, lambda part: save_file(tensors, part, said))


def _unpacked(tensors: Mapping[str, Tensor], counts: Mapping[str, Mapping[str, int]]) -> Statistics:
    def moments(task: str, name: str, n: int) -> Moments:
        inputs, mean, cross, along, squares = (
            tensors[f"{task}|{name}|{part}"] for part in ("inputs", *SMALL)
        )
        return Moments(inputs, mean, cross, along, squares, n)

    harmful, harmless, lookalikes = (
        {name: moments(task, name, n) for name, n in counts[task].items()} for task in TASKS
    )
    bases = {
        name.removeprefix("basis|"): tensor
        for name, tensor in tensors.items()
        if name.startswith("basis|")
    }
    return Statistics(bases, harmful, harmless, lookalikes, (), "")
