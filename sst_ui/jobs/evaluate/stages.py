"""A long evaluation in stages: first numbers within a minute, then more prompts and longer answers.

The last stage is what was asked for; what came before is only shown until it is there. Sizes, and
what comes first for which goal, are in presets/first_numbers.yaml.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import yaml

from sst_ui.jobs.evaluate.apart import prompts
from sst_ui.jobs.evaluate.evaluate import grouped, limits
from sst_ui.jobs.evaluate.observations import prepare
from sst_ui.jobs.evaluate.speed import Speed
from sst_ui.metrics.families.divergence import TOKENS
from sst_ui.metrics.registry import Reads, default_metrics, find
from sst_ui.metrics.results import Goal
from sst_ui.model.runtime.host import Host
from sst_ui.paths import PRESETS
from sst_ui.recipe import Evaluation

LOOKED = 16  # prompts of a set whose tokens are counted


@dataclass(frozen=True)
class Work:
    """One pass of an evaluation.

    Attributes:
        metrics: what comes of it, whether it was asked for or others are made of it.
        prompts: how many, all that are asked for.
        tokens: of a prompt, on average.
    """

    reads: Reads
    metrics: tuple[str, ...]
    prompts: int
    tokens: float


@dataclass(frozen=True)
class Stage:
    """A part of a long evaluation, or all of it.

    Attributes:
        evaluation: what is measured; of the last stage, exactly what was asked for.
        prompts, tokens: of each set at most (None: all), and of an answer.
        seconds: that it is expected to take.
    """

    evaluation: Evaluation
    prompts: int | None
    tokens: int
    seconds: float = 0.0


def may_grow(model: str) -> bool:
    """Whether evaluations of this model, by its id, are ever taken in stages."""
    return _longest(model) is not None


def works(host: Host, wanted: Evaluation) -> tuple[Work, ...]:
    """What an evaluation has to do.

    Raises:
        UserError: as `jobs.evaluate.evaluate.evaluate`.
    """
    samples, tokens = limits(wanted, host.spec.id)
    found = []
    for (reads, name), members in grouped([find(each) for each in _names(wanted)]).items():
        chosen = prompts(name, samples, wanted)
        few = prepare(host, reads, chosen.take(LOOKED), tokens, members[0].title).tokens
        mean = sum(map(len, few)) / len(few)
        found.append(Work(reads, tuple(m.name for m in members), len(chosen.prompts), mean))
    return tuple(found)


def plan(
    wanted: Evaluation, model: str, goal: Goal, speed: Speed, work: Sequence[Work], sides: int = 2
) -> tuple[Stage, ...]:
    """The stages of an evaluation: one where it is short.

    The first one is the largest that fits its seconds, its prompts being fewer, then its answers
    shorter, and the least that tells anything where none fits. Each of the following costs some
    times what the one before it did, until the next one would be all of it.

    Args:
        model: its id; the demo has lengths of its own, and one stage.
        speed: of the model.
        work: what `wanted` has to do, as `works` says.
        sides: how many answer each prompt: base and edited.
    """
    rules, longest = _rules(), _longest(model)
    samples, tokens = limits(wanted, model)
    whole = Stage(wanted, samples, tokens, seconds(work, speed, samples, tokens, sides))
    if longest is None or whole.seconds <= longest:
        return (whole,)
    names = ordered(_names(wanted), goal)
    largest = max((each.prompts for each in work), default=0)
    smaller = [
        Stage(
            replace(wanted, metrics=names, samples=few, max_new_tokens=short),
            few,
            short,
            seconds(work, speed, few, short, sides),
        )
        for few, short in _sizes(largest, tokens)
    ]
    found: list[Stage] = []
    for each in smaller:
        fits = each.seconds <= rules["seconds"]
        if not found or (len(found) == 1 and fits):
            found = [each]
        elif each.seconds >= rules["growth"] * found[-1].seconds:
            found.append(each)
    worth = whole.seconds / rules["growth"]
    return (*(each for each in found if each.seconds <= worth), whole)


def seconds(
    work: Sequence[Work], speed: Speed, samples: int | None, tokens: int, sides: int = 2
) -> float:
    """Expected seconds of these passes with so many prompts, and answers of so many tokens."""
    total = 0.0
    for each in work:
        few = each.prompts if samples is None else min(samples, each.prompts)
        read = each.tokens * speed.prompt * sides
        said = speed.length(tokens) * speed.token
        more = {
            "answer": said * sides,
            "refusals": said + each.tokens * speed.prompt,  # the base's answers are read again
            "divergence": TOKENS * (speed.token + sides * speed.prompt),
        }
        total += few * (read + more.get(each.reads, 0.0))
    return total


def ordered(names: Sequence[str], goal: Goal) -> tuple[str, ...]:
    """The metrics in the order in which they tell most about a goal."""
    order = _rules()["order"][goal]

    def place(name: str) -> int:
        bare = name.partition("@")[0]
        return order.index(bare) if bare in order else len(order)

    return tuple(sorted(names, key=place))


def _longest(model: str) -> float | None:
    """Seconds up to which an evaluation is taken as a whole; None: however many."""
    return _rules()["whole"]["demo" if model == "demo" else "other"]


def _names(wanted: Evaluation) -> tuple[str, ...]:
    return wanted.metrics or tuple(default_metrics())


def _sizes(prompts: int, tokens: int) -> list[tuple[int, int]]:
    """Prompts and tokens from few and short on: first answers grow, then prompts."""
    rules = _rules()
    lengths, length = [], rules["tokens"]
    while length < tokens:
        lengths.append(length)
        length *= 2
    counts, count = [], rules["prompts"]
    while count < prompts:
        counts.append(count)
        count *= 2
    least = min(rules["prompts"], max(1, prompts))
    return [(least, each) for each in lengths] + [(each, tokens) for each in counts]


@cache
def _rules() -> dict[str, Any]:
    return yaml.safe_load((PRESETS / "first_numbers.yaml").read_text(encoding="utf-8"))
