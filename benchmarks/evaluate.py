"""What an evaluation saves: prompts per second against `generate` in a loop and in one batch.

    python -m benchmarks.evaluate --model both

The plain ways are in plain.py. Every way answers the same prompts with the base and the edited
model, greedily. Rounds alternate between the ways, so that a slow moment of the machine hits all of
them; medians are reported.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median

import torch

from benchmarks import two_models
from benchmarks.clock import short, timed
from benchmarks.plain import Plain
from sst_ui.data import prompt_sets
from sst_ui.data.prompt_sets import LETTERS
from sst_ui.jobs.directions import measure as lab
from sst_ui.jobs.evaluate import observations
from sst_ui.jobs.evaluate.evaluate import evaluate
from sst_ui.maths import directions as direction_files
from sst_ui.maths import kernel
from sst_ui.maths.directions import Directions
from sst_ui.metrics.registry import find
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.runtime.host import Host, load
from sst_ui.progress import finish
from sst_ui.recipe import DirectionSpec, Evaluation, ModelSpec, WeightTable

WAYS = ("studio", "again", "loop", "batch")
ANSWERS, LIKELIHOODS = "refusal_rate", "multiple_choice"  # a metric that generates, one that reads
STRENGTH, ANOTHER = 1.0, 0.99  # close, so that the answers are as long


@dataclass(frozen=True)
class Sizes:
    """How much is measured: prompts answered, tokens an answer, questions scored, rounds."""

    prompts: int
    tokens: int
    questions: int
    repeats: int


DEFAULTS = {"demo": Sizes(160, 48, 150, 3), "qwen2-0.5b": Sizes(8, 12, 4, 3)}


@dataclass(frozen=True)
class Result:
    """One model's measurements.

    Attributes:
        answers: seconds until every prompt is answered by both models, way -> median. `again` is
            the studio with another strength, the base's answers known.
        letters: seconds until every question's letters are scored under both models; `loop` scores
            a row a choice.
        differ: answers that are not the loop's, of `2 * sizes.prompts`.
        letters_differ: questions with another likeliest letter, of `2 * sizes.questions`.
    """

    model: str
    parameters: int
    device: str
    dtype: str
    threads: int
    sizes: Sizes
    answers: dict[str, float]
    letters: dict[str, float]
    differ: dict[str, int]
    letters_differ: int


def measure(
    name: str, folder: Path, device: str, dtype: str, sizes: Sizes, untrained: bool = False
) -> Result:
    """Run every comparison for one model folder.

    Args:
        untrained: the weights are random. Then so are the directions, and answers are compared as
            token numbers, since most of the vocabulary has no text.
    """
    host = finish(load(ModelSpec(id=str(folder), device=device, dtype=dtype)))
    if untrained:
        host.answer = host.decode = lambda ids: " ".join(map(str, ids))
        directions = direction_files.random(host.layers, host.hidden)
    else:
        directions = finish(lab.measure(host, DirectionSpec(), heldout=None))
    plain = Plain(folder, host, directions, STRENGTH)
    _round(host, directions, plain, Sizes(2, 2, 2, 1))  # warms up
    rounds = [_round(host, directions, plain, sizes) for _ in range(sizes.repeats)]
    times = {way: median(seconds[way] for seconds, _ in rounds) for way in rounds[0][0]}
    found = rounds[-1][1]
    texts = {way: found[way] for way in ("studio", "batch")}
    return Result(
        model=name,
        parameters=host.parameters,
        device=str(host.device),
        dtype=str(host.model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        sizes=sizes,
        answers={way: times[way] for way in WAYS},
        letters={way: times[f"{way}, letters"] for way in WAYS[:3]},
        differ={way: _differ(both, found["loop"]) for way, both in texts.items()},
        letters_differ=_differ(found["studio, letters"], found["loop, letters"]),
    )


def _round(
    host: Host, directions: Directions, plain: Plain, sizes: Sizes
) -> tuple[dict[str, float], dict[str, list[list]]]:
    """Seconds of every way, and what it found: of the base and of the edited model."""
    asked = _encoded(host, ANSWERS, sizes.prompts)
    questions = _encoded(host, LIKELIHOODS, sizes.questions)
    letters = [
        [host.tokens(f" {letter}")[0] for letter in LETTERS[: len(prompt.choices)]]
        for prompt in _prompts(LIKELIHOODS, sizes.questions)
    ]

    def studio(metric: str, samples: int, strength: float) -> list[list[str]]:
        alpha = kernel.table(WeightTable(strength=strength), host.layers)
        evaluation = Evaluation((metric,), samples=samples, max_new_tokens=sizes.tokens)
        (result,) = finish(evaluate(host, (RowEdit(directions, alpha),), evaluation))
        return [[item.base for item in result.items], [item.edited for item in result.items]]

    answers, scores = (ANSWERS, sizes.prompts), (LIKELIHOODS, sizes.questions)
    ways = {
        "studio": lambda: studio(*answers, STRENGTH),
        "again": lambda: studio(*answers, ANOTHER),
        "loop": lambda: plain.loop(asked, sizes.tokens),
        "batch": lambda: plain.batch(asked, sizes.tokens),
        "studio, letters": lambda: studio(*scores, STRENGTH),
        "again, letters": lambda: studio(*scores, ANOTHER),
        "loop, letters": lambda: [
            [LETTERS[best] for best in model] for model in plain.choices(questions, letters)
        ],
    }
    observations.forget()  # of the base's answers; what the first way finds, the second one knows
    seconds, found = {}, {}
    for way, work in ways.items():
        seconds[way] = timed(host.device, lambda w=way, do=work: found.update({w: do()}))
    shown = found["studio, letters"]  # such as "B. Delhi"
    found["studio, letters"] = [[text[:1] for text in model] for model in shown]
    return seconds, found


def _prompts(metric: str, samples: int) -> Sequence[prompt_sets.Prompt]:
    return prompt_sets.load(find(metric).prompts, samples).prompts


def _encoded(host: Host, metric: str, samples: int) -> list[list[int]]:
    return [host.encode(prompt.messages()) for prompt in _prompts(metric, samples)]


def _differ(one: list[list[str]], other: list[list[str]]) -> int:
    pairs = [zip(a, b, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(a != b for pair in pairs for a, b in pair)


def markdown(results: Sequence[Result]) -> str:
    """The table of docs/benchmarks.md: speeds, and in brackets as multiples of the studio's."""
    lines = [
        "| | studio | studio, base known | `generate` in a loop | one batched `generate` |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        size = f"{r.parameters / 1e6:.1f} M parameters"
        lines.append(f"| **{r.model}** ({size}, {r.dtype}, {r.device}) | | | | |")
        speeds = _speeds(r.answers, r.sizes.prompts)
        lines.append(f"| prompts per second, both models | {' | '.join(speeds)} |")
        one, two = (f"{r.differ[way]} of {2 * r.sizes.prompts}" for way in ("studio", "batch"))
        lines.append(f"| answers unlike the loop's | {one} | | | {two} |")
        speeds = _speeds(r.letters, r.sizes.questions)
        lines.append(f"| questions per second, by likelihood | {' | '.join(speeds)} | |")
    return "\n".join(lines)


def _speeds(seconds: dict[str, float], number: int) -> list[str]:
    """Each way's speed, and how many times the studio's it is."""
    first, *others = (number / taken for taken in seconds.values())
    return [short(first), *(f"{short(speed)} ({short(speed / first)}×)" for speed in others)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    numbers = {
        "prompts": "answered by both models",
        "tokens": "length of an answer",
        "questions": "multiple choice questions scored",
        "repeats": "rounds",
    }
    two_models.options(parser, numbers, DEFAULTS)
    options = parser.parse_args(arguments)
    sizes = {name: _sizes(options, usual) for name, usual in DEFAULTS.items()}
    shared = (options.device, options.dtype)
    results = []
    for name, folder in two_models.chosen(options):
        title, untrained = two_models.TITLES[name], name != "demo"
        results.append(measure(title, folder, *shared, sizes[name], untrained=untrained))
    if options.json:
        print(json.dumps([asdict(result) for result in results]))
        return 0
    print(markdown(results))
    for r in results:
        s = r.sizes
        print(
            f"\n{r.model}: medians of {s.repeats}, {r.threads} threads, torch {torch.__version__}; "
            f"{s.prompts} prompts, answers of at most {s.tokens} tokens, {s.questions} questions "
            f"({r.letters_differ} of {2 * s.questions} with another likeliest letter than a row a "
            "choice finds)."
        )
    return 0


def _sizes(options: argparse.Namespace, usual: Sizes) -> Sizes:
    """What was asked for; the sets that come with the studio bound the prompts and questions."""
    asked = {field.name: getattr(options, field.name) for field in fields(Sizes)}
    sizes = replace(usual, **{name: number for name, number in asked.items() if number})
    prompts, questions = _prompts(ANSWERS, sizes.prompts), _prompts(LIKELIHOODS, sizes.questions)
    return replace(sizes, prompts=len(prompts), questions=len(questions))


if __name__ == "__main__":
    sys.exit(main())
