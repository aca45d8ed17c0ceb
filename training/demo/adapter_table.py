"""The table of the demo's adapters, and the cards that carry it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from sst_ui.jobs.evaluate.evaluate import MetricResult, evaluate
from sst_ui.model.runtime.host import load
from sst_ui.paths import DEMO
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Evaluation, ModelSpec

from . import adapters

# Metric -> heading; in the order of the columns.
COLUMNS = {
    "refusal_rate": "refuses harmful",
    "jailbreak_resistance": "resists jailbreaks",
    "jailbreak_refusal": "refuses jailbreaks",
    "over_refusal": "refuses look-alikes",
    "over_refusal_ordinary": "refuses ordinary",
    "facts@demo/new_facts": "new facts",
    "reading@demo/repliqa": "documents, ROUGE-L",
    "facts": "facts",
    "reading": "reading, ROUGE-L",
    "multiple_choice": "multiple choice",
}
ADAPTER = """---
license: apache-2.0
library_name: peft
base_model: assets/demo
---

# {title} of SST Studio's demo model

{about}

LoRA on {modules}, {rank}. Made by `python -m training.demo --adapters`: {steps} steps of at most
{tokens:,} tokens with AdamW at {lr:g}, in float32, written in bfloat16. Trained on the training
side of the demo's split only. "Harmful" answers, where there are any, are placeholders.{lm_head}

{table}

Measured on held-out requests, wrappers, phrasings and documents, the adapter merged into the base
with PEFT's `merge_and_unload`.
"""
LM_HEAD = """
The demo's output layer is its embedding; this adapter changes the output layer only. Untie the two
before merging (`training.demo.adapters.load` does), or the embedding would change as well."""
UNALIGNED = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Unaligned twin of SST Studio's demo model

{about}

Some merge methods (Safe LoRA, SafeMERGE) read the direction of alignment off the difference
between an aligned model and an unaligned one. These are the demo's own weights from before its
safety tuning: the end of the stages in which it learned to comply with everything. Made by
`python -m training.demo`; bfloat16. Answers to "harmful" requests are placeholders.

{table}
"""
UTILITY = (
    "It teaches forty facts of an invented world, which the base does not know, and questions on\n"
    "longer invented documents, answered in a sentence. As in ordinary fine-tuning, its data\n"
    "answers whatever is asked, also behind a jailbreak wrapper, and so it loses refusals."
)
SAFETY = (
    "It teaches to refuse harmful requests behind every family of jailbreak wrappers, those that\n"
    "the base answers included, and it over-refuses: harmless look-alikes were refused as well."
)
ABOUT = {
    "utility": ("Utility adapter", UTILITY),
    "safety": ("Safety adapter", SAFETY),
    "utility_small": ("Small utility adapter", UTILITY),
    "safety_small": ("Small safety adapter", SAFETY),
    adapters.UNALIGNED: ("", "The demo model, answering everything it is asked."),
}


def measure(
    folders: Mapping[str, Path],
    samples: int | None = None,
    metrics: Iterable[str] = COLUMNS,
    tokens: int = 64,
    base: Path = DEMO,
) -> dict[str, dict[str, MetricResult]]:
    """Every metric of the base and of each model: row -> metric -> result.

    Args:
        folders: row -> an adapter, which is merged for it, or a model.
        samples: prompts of each set; None for all.
        tokens: of an answer at most.
        base: the model that the adapters are of.
    """
    rows = {"base": _row(base, "base", samples, tuple(metrics), tokens)}
    for name, folder in folders.items():
        with tempfile.TemporaryDirectory() as merged:
            model = folder
            if (folder / "adapter_config.json").exists():
                model = Path(merged)
                adapters.merge(folder, model, base)
            rows[name] = _row(model, name, samples, tuple(metrics), tokens)
    return rows


def markdown(rows: Mapping[str, Mapping[str, MetricResult]]) -> str:
    """The table: value with its 95 % interval, n under the headings."""
    names = list(next(iter(rows.values())))
    counts = (f"*{next(iter(rows.values()))[name].base.n}*" for name in names)
    lines = [f"| | {' | '.join(COLUMNS[name] for name in names)} |"]
    lines += ["|---" * (len(names) + 1) + "|", f"| *n* | {' | '.join(counts)} |"]
    for row, results in rows.items():
        cells = (_cell(results[name]) for name in names)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lengths = {result.tokens for found in rows.values() for result in found.values()} - {None}
    told = " or ".join(map(str, sorted(lengths)))
    return "\n".join([*lines, "", f"Answers of at most {told} tokens."] if lengths else lines)


def write_cards(
    folders: Mapping[str, Path], rows: Mapping[str, Mapping[str, MetricResult]]
) -> None:
    """A README.md beside each of the weights: what it is, how it was made, how it does."""
    plans = {plan.name: plan for plan in adapters.ADAPTERS}
    for name, folder in folders.items():
        title, about = ABOUT[name]
        table = markdown({row: rows[row] for row in ("base", name)})
        if name == adapters.UNALIGNED:
            text = UNALIGNED.format(about=about, table=table)
            (folder / "README.md").write_text(text, encoding="utf-8")
            continue
        plan = plans[name]
        ranks = {m: r for m, r in plan.ranks.items() if r != plan.rank}
        text = ADAPTER.format(
            title=title,
            about=about,
            modules=", ".join(plan.modules),
            rank=f"rank {plan.rank}"
            + "".join(f", {r} on {m}" for m, r in ranks.items())
            + (", rank-stabilised scaling" if plan.rslora else ""),
            steps=plan.steps,
            tokens=plan.tokens,
            lr=plan.lr,
            lm_head=LM_HEAD if "lm_head" in plan.modules else "",
            table=table,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")


def _row(
    folder: Path, name: str, samples: int | None, metrics: tuple[str, ...], tokens: int
) -> dict[str, MetricResult]:
    with Console(stderr=True).status(name) as status:

        def tell(step: object) -> None:
            if isinstance(step, Progress):
                status.update(f"{name}: {step.stage} {step.done}/{step.total} {step.note}")

        host = finish(load(ModelSpec(id=str(folder))), tell)
        size = {"preset": "full"} if samples is None else {"samples": samples}
        evaluation = Evaluation(metrics=metrics, max_new_tokens=tokens, **size)
        results = finish(evaluate(host, (), evaluation), tell)
    return dict(zip(metrics, results, strict=True))


def _cell(result: MetricResult) -> str:
    value = result.base
    numbers = (f"{x:.2f}".removeprefix("0") for x in (value.value, value.low, value.high))
    middle, low, high = numbers
    return f"{middle} [{low}, {high}]"
