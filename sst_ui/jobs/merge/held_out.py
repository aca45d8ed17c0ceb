"""What each data set of a merge has at stake, on conversations that the statistics leave out."""

from collections.abc import Generator, Sequence

import torch

from sst_ui.jobs.merge.fisher_moments import conversations
from sst_ui.maths.merge.types import FLOOR, Stakes
from sst_ui.model.hooks.low_rank import RowDelta
from sst_ui.model.inference.batch import Row
from sst_ui.model.inference.fisher import Conversation
from sst_ui.model.inference.logprobs import teacher_forced
from sst_ui.model.lora.adapters import Adapter
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress
from sst_ui.recipe import Merge

BATCH = 8  # conversations; each has a table of the whole vocabulary


def stakes(
    host: Host, spec: Merge, utility: Adapter, safety: Adapter
) -> Generator[Progress, None, Stakes]:
    """The held-out loss of both adapters on both data sets, as what either set has to lose.

    The prompts are those that the merge learns from, one in four; none that a result is reported
    on, unless the merge's own sets are.

    Raises:
        UserError: as `conversations`.
    """
    sides = {"utility": utility, "safety": safety}
    rows: dict[str, Row] = {name: (RowDelta(each.deltas),) for name, each in sides.items()}
    sets = {"utility": spec.utility_prompts, "safety": spec.safety_prompts}
    asked = {n: conversations(host, sets[n], spec.samples, "held_out") for n in sides}
    found, done, total = {}, 0, sum(map(len, asked.values()))
    for name, other in (("utility", "safety"), ("safety", "utility")):
        lost, tokens = 0.0, 0
        for start in range(0, len(asked[name]), BATCH):
            yield Progress("losses", done, total, name)
            group = asked[name][start : start + BATCH]
            lost += _nats(host, group, rows[other]) - _nats(host, group, rows[name])
            tokens += sum(len(answer) for _, answer in group)
            done += len(group)
        found[name] = lost / max(1, tokens)
        if found[name] < FLOOR:
            yield Progress(
                "losses", done, total,
                warning=f"{sides[name].name} hardly does better than {sides[other].name} on "
                f"{sets[name]} ({found[name]:.3g} nats/token); its data set gets the least weight.",
            )  # fmt: skip
    yield Progress("losses", total, total)
    return Stakes(**found)


def _nats(host: Host, group: Sequence[Conversation], row: Row) -> float:
    """−log p of the answers' tokens under a row's edit, summed."""
    prompts, answers = zip(*group, strict=True)
    tables = teacher_forced(host, prompts, answers, [row] * len(group))
    each = [
        table.double().gather(1, torch.tensor(answer)[:, None]).sum()
        for table, answer in zip(tables, answers, strict=True)
    ]
    return -float(sum(each))
