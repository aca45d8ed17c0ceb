"""What an export format gets and returns; two formats of our own, adapter and whole model."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sst_ui.errors import UserError
from sst_ui.jobs.directions.filtering import refuse
from sst_ui.maths import kernel
from sst_ui.maths.directions import random
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.hooks.low_rank import RowFilter
from sst_ui.model.hooks.row_plan import RowEdit
from sst_ui.model.load.companion_files import carry
from sst_ui.model.load.load import contents
from sst_ui.model.load.source import open_source
from sst_ui.model.lora import from_edits
from sst_ui.model.lora.adapters import write_files
from sst_ui.model.lora.from_edits import lower
from sst_ui.model.runtime.host import Host
from sst_ui.model.weights import tensor_edits
from sst_ui.model.weights.streaming_writer import write_model
from sst_ui.options import Rounding
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation, Recipe


@dataclass(frozen=True, eq=False)
class Job:
    """One export.

    Attributes:
        edits: the recipe's, resolved.
        rounding: of edited numbers to the stored type, `nearest` or `stochastic`.
        rank: of an adapter at most; None for the exact one.
    """

    host: Host
    recipe: Recipe
    edits: tuple[Edit, ...]
    rounding: Rounding = "nearest"
    rank: int | None = None


@dataclass(frozen=True)
class Made:
    """What a format wrote.

    Attributes:
        notes: what a person should know, in sentences.
        error: relative, where the format holds the edit only in part; 0 for exact.
        check: whether the folder can be read and compared with the live model.
    """

    notes: tuple[str, ...] = ()
    error: float = 0.0
    check: bool = True


def pretended(host: Host, recipe: Recipe) -> tuple[RowEdit | RowFilter, ...]:
    """The recipe's ablations along random directions: enough to tell what a format can hold,
    before minutes go into measuring the real ones.

    Raises:
        UserError: a filtered ablation that this model does not allow.
    """
    return tuple(_pretended(host, edit) for edit in recipe.edits if isinstance(edit, Ablation))


def _pretended(host: Host, edit: Ablation) -> RowEdit | RowFilter:
    directions = random(host.layers, host.hidden, edit.directions.k, 0)
    alpha = kernel.table(edit.weights, host.layers)
    if edit.operation == "filter":  # deltas like a merge's, which every format holds
        refuse(host, edit)
        return RowFilter({}, directions=directions, alpha=alpha)
    return RowEdit(
        directions,
        alpha,
        norm_preserving=edit.norm_preserving,
        affine=edit.affine,
        operation=edit.operation,
    )


def check_adapter(host: Host, recipe: Recipe, rank: int | None) -> None:
    """Raises UserError for a recipe that no adapter can hold."""
    from_edits.check(host, pretended(host, recipe), rank)


def check_model(host: Host, recipe: Recipe, rank: int | None = None) -> None:
    """Raises UserError for a recipe that no weights can hold."""
    tensor_edits.check(pretended(host, recipe), host.architecture)


def adapter(job: Job, folder: Path) -> Generator[Progress, None, Made]:
    """A PEFT LoRA adapter, with the base model's tokenizer beside it."""
    made = yield from adapter_files(job, folder)
    carry(job.host.spec, folder, config=False)
    return made


def adapter_files(job: Job, folder: Path) -> Generator[Progress, None, Made]:
    """The adapter's two files alone."""
    yield from _as_loaded(job.host)
    found = yield from lower(job.host, job.edits, job.rank)
    write_files(folder, found.deltas, job.host, found.biases)
    ranks = sorted({delta.rank for delta in found.deltas.values()})
    span = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    notes = [f"{len(found.deltas)} modules of rank {span}."]
    if found.errors:
        worst = max(found.errors, key=found.errors.__getitem__)
        notes.append(
            f"An approximation: the adapter lacks {found.error:.1%} of the change (Frobenius norm, "
            f"over all modules), at most {found.errors[worst]:.1%} in one module ({worst}), in "
            f"the median {np.median(list(found.errors.values())):.1%} of the modules concerned."
        )
    else:
        notes.append("Exact: no part of the edit is approximated.")
    if any(bool(bias.any()) for bias in found.biases.values()):
        notes.append(
            "It changes biases too (PEFT's lora_bias): PEFT reads that; other readers of adapters "
            "may refuse it. Then export the whole model."
        )
    return Made(tuple(notes), found.error)


def _as_loaded(host: Host) -> Generator[Progress, None, None]:
    """Raises UserError if the files on the disk are no longer those of the model in the chat."""
    if not host.files:
        return
    source = open_source(host.spec)
    folder = yield from source.download()
    if (yield from contents(folder, source.weights())) != host.files:
        raise UserError(
            f"the files of {host.name} have changed since they were loaded; load the model again, "
            "and check that the edit still does what it did."
        )


def model(job: Job, folder: Path) -> Generator[Progress, None, Made]:
    """The whole model in safetensors: the source's files with the edited matrices in place."""
    host = job.host
    yield from _as_loaded(host)
    done = yield from write_model(
        host.spec, job.edits, host.architecture, folder, rounding=job.rounding
    )
    yield from _as_loaded(host)  # nor did they change while they were copied
    notes = [
        f"{len(done.changed)} tensors edited in float32 and rounded ({job.rounding}); "
        f"{done.copied:,} bytes of others copied as they were."
    ]
    if done.untied:
        notes.append("The head was tied to the embedding and now has its own weights.")
    return Made(tuple(notes))
