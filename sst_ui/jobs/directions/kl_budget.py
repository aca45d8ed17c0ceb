"""The price at which a filter costs no more than so many nats, measured on the model itself.

What a price moves is predicted from moments, in milliseconds. What that costs is not: how energies
of several layers add up to a divergence is the model's affair. So the edit is tried at several
prices in one batch with the base, and then between the two that the budget lies between.
"""

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from sst_ui.errors import UserError
from sst_ui.jobs.directions.filtering import Filters
from sst_ui.jobs.evaluate.evaluate import evaluate_rows
from sst_ui.maths import kernel
from sst_ui.model.inference.batch import Row
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress, steps
from sst_ui.recipe import Ablation, Evaluation

PROMPTS = 64
PRICES = tuple(10.0**power for power in range(-2, 6))  # μ of the first look
BETWEEN = 6  # prices of each of two further looks: the budget is kept to a fifteenth in μ
LOOKS = 3


def within(
    host: Host, edit: Ablation, found: Filters, before: Row = (), identity: str = ""
) -> Generator[Progress, None, Ablation]:
    """The edit at the smallest μ at which it keeps its KL budget, `filter.kl`.

    The divergence is the metric `kl_16` of the recipe up to this edit, on the first 64 of the
    harmless prompts that it is made with: prompts that results are reported on take no part.

    Args:
        found: the edit's filters.
        before: the edits in front of it, and `identity` what names them.

    Raises:
        UserError: no price keeps it.
    """
    budget = edit.filter.kl
    assert budget is not None
    key = (kernel.table(edit.weights, host.layers).tobytes(), budget, identity)
    mu = found.kept.get(key)
    if mu is None:
        mu, nats = yield from _search(host, edit, found, before, budget)
        found.kept.put(key, mu)
        found.learn(at(edit, mu), nats)
    return at(edit, mu)


def at(edit: Ablation, mu: float) -> Ablation:
    """The edit at a price, without a budget."""
    return replace(edit, filter=replace(edit.filter, mu=mu, budget=None, kl=None))


def _search(
    host: Host, edit: Ablation, found: Filters, before: Row, budget: float
) -> Generator[Progress, None, tuple[float, float]]:
    """(μ, its divergence)."""
    asked = Evaluation(metrics=(f"kl_16@{edit.directions.harmless}",), samples=PROMPTS)
    costs: dict[float, float] = {}
    prices, best = list(PRICES), 0.0
    for _ in range(LOOKS):
        rows = [(*before, found.edit_row(at(edit, mu))) for mu in prices]
        results = yield from steps(evaluate_rows(host, rows, asked))
        for mu, (result,) in zip(prices, results, strict=True):
            costs[mu] = (result.edited or result.base).value
        kept = [mu for mu in sorted(costs) if costs[mu] <= budget]
        if not kept:
            least = min(costs.values())
            raise UserError(
                f"the edit costs {least:.2g} nats a token on harmless prompts even where it leaves "
                f"them alone most, more than filter.kl, {budget:g}. Give more, or less strength."
            )
        best = kept[0]
        dearer = [mu for mu in costs if mu < best]
        if not dearer:
            break
        prices = [float(mu) for mu in np.geomspace(max(dearer), best, BETWEEN + 2)[1:-1]]
    return best, costs[best]
