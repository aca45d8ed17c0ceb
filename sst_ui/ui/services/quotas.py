"""How much work and disk a request asks for, held against what its sender's role may have."""

import shutil
from pathlib import Path

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.evaluate.evaluate import limits
from sst_ui.jobs.search.objectives import SearchSpec, presets, tokens
from sst_ui.maths import kernel
from sst_ui.metrics.registry import default_metrics, prompts_named
from sst_ui.model.runtime.host import Host
from sst_ui.options import Format
from sst_ui.recipe import Evaluation, Recipe
from sst_ui.ui.services.job_queue import JobQueue
from sst_ui.ui.services.roles import Refused, Role, current, within

WHOLE = 1000  # prompts of a set that is not named, where all of it is asked for
SPARE = 10**9  # bytes of the disk that visitors leave free
WHAT = "tokens of a job"


def answer(queue: JobQueue, length: int, rows: int) -> None:
    """An answer in the chat.

    Raises:
        Refused: it is longer than it may be, or the hour's tokens are used up.
    """
    within("tokens of an answer", current().limits.answer, length)
    queue.spend(length * rows)


def evaluation(wanted: Evaluation, model: str) -> int:
    """An evaluation of that many prompts and metrics.

    Returns:
        Its tokens, for the queue to count once it has taken the job in.

    Raises:
        Refused: they are more than one job may have.
    """
    if current().role is Role.OWNER:
        return 0
    samples, length = limits(wanted, model)
    total = 0
    for name in wanted.metrics or default_metrics():
        total += length * (_prompts(name) if samples is None else samples)
    within(WHAT, current().limits.job, total)
    return total


def _prompts(metric: str) -> int:
    try:
        named = prompts_named(metric)
        return WHOLE if named is None else len(prompt_sets.load(named))
    except UserError:  # the evaluation says so
        return 0


def search(recipe: Recipe, spec: SearchSpec) -> int:
    """A search of that many candidates.

    Returns:
        As `evaluation`.

    Raises:
        Refused: as `evaluation`.
    """
    if current().role is Role.OWNER:
        return 0
    usual = presets()["trials"] if spec.strategy == "tpe" else len(kernel.grid())
    trials = spec.trials or usual
    each = (spec.samples or WHOLE) * tokens(recipe, spec)
    total = trials * each * max(1, len(spec.objectives))
    within(WHAT, current().limits.job, total)
    return total


def export(host: Host, format: Format, out: Path) -> None:
    """Files of a whole model, or of an adapter.

    Raises:
        Refused: they are more than they may be, or would fill the disk.
    """
    if current().role is Role.OWNER:
        return
    each = next(host.model.parameters()).element_size()
    size = host.parameters * each // (10 if format == "adapter" else 1)
    within("bytes of an export", current().limits.export, size)
    if shutil.disk_usage(out.parent).free < size + SPARE:
        raise Refused(
            "the disk of this shared studio is nearly full; try again in an hour, when older "
            "exports are gone, or copy the recipe and run your own copy."
        )
