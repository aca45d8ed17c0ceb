"""Reinforcing refusal: what negative strengths do under jailbreak wrappers, and what it costs."""

from collections.abc import Mapping

from benchmarks.effectiveness import Row, measured, shares
from benchmarks.ways import Sets
from sst_ui.errors import UserError
from sst_ui.model.runtime.host import Host
from sst_ui.recipe import Recipe

WAYS = ("plain", "added", "filtered")
STRENGTHS = (-0.5, -1.0, -2.0)
HEADS = {
    "wrapped": "refuses in jailbreak wrappers",
    "refused": "refuses harmful",
    "degenerate": "degenerate",
    "over_refusal": "refuses look-alikes",
    "ordinary": "refuses ordinary",
    "kl_1": "KL, first token",
    "kl_16": "KL, 16 tokens",
}


def measure(
    host: Host, chosen: Mapping[str, Recipe], sets: Sets, samples: int | None, tokens: int
) -> list[Row]:
    """The unedited model and every recipe: refusals in words where they are wanted, and elsewhere.

    Raises:
        UserError: no prompts in wrappers; as `effectiveness.measured`.
    """
    if sets.wrapped is None:
        raise UserError("this model has no prompts in jailbreak wrappers to measure refusals on.")
    metrics = {
        "wrapped": f"jailbreak_refusal@{sets.wrapped}",
        "over_refusal": f"over_refusal@{sets.lookalikes}",
        "ordinary": f"over_refusal@{sets.ordinary}",
        "kl_1": f"kl_1@{sets.ordinary}",
        "kl_16": f"kl_16@{sets.ordinary}",
    }
    found = measured(host, chosen, sets.truth, metrics, samples, tokens)
    return [
        Row(row.name, shares(row.labels) if row.labels else {}, row.values, row.note)
        for row in found
    ]
