"""Results as files: a table of metrics, a table of prompts and answers, and everything as JSON."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.metrics import corrections as corrected
from sst_ui.metrics.corrections import SIDES, Correction
from sst_ui.metrics.results import MetricResult, Value
from sst_ui.recipe import Recipe

METRIC_COLUMNS = (
    "variant", "recipe", "metric", "unit", "better", "change", "verdict", "negligible",
    *(f"{side}_{field}" for side in SIDES for field in ("value", "low", "high", "n")),
    "difference_value", "difference_low", "difference_high",
    "corrected", "prompts", "tokens", "note",
)  # fmt: skip
ITEM_COLUMNS = (
    "variant", "recipe", "metric", "topic", "prompt", "expected",
    *(f"{side}_{field}" for side in SIDES for field in ("answer", "label", "score", "corrected")),
)  # fmt: skip


def metrics_csv(
    recipe: Recipe, results: Sequence[MetricResult], corrections: Iterable[Correction] = ()
) -> str:
    """One row per metric: base, edited and difference with intervals, verdict, labels corrected,
    and the length of the answers in tokens, empty where there is none.

    `change` is noise, negligible or changed, `negligible` the threshold; both are about the
    difference, which of a perplexity is in nats/token.

    A number that does not exist is an empty cell.

    Args:
        recipe: what was measured; its name is the variant's.
        results: as shown, corrections applied already.
        corrections: those that were applied, to be counted.
    """
    counts = corrected.counts(results, corrected.labels(corrections))
    rows = []
    for r in results:
        row: dict[str, Any] = {
            "metric": r.name,
            "unit": r.unit,
            "better": r.better,
            "verdict": r.verdict or "",
        }
        row |= {"change": r.change or "", "negligible": r.negligible}
        row |= _numbers("difference", r.difference)
        row.pop("difference_n", None)
        row |= {"corrected": counts[r.name], "prompts": r.prompts, "note": r.note}
        row["tokens"] = "" if r.tokens is None else r.tokens
        rows.append(_named(recipe) | row | _numbers("base", r.base) | _numbers("edited", r.edited))
    return _csv(METRIC_COLUMNS, rows)


def items_csv(
    recipe: Recipe, results: Sequence[MetricResult], corrections: Iterable[Correction] = ()
) -> str:
    """One row per metric and prompt: both answers, what they were labelled and what they scored."""
    known, rows = corrected.labels(corrections), []
    for result in results:
        for item in result.items:
            row: dict[str, Any] = {
                "metric": result.name,
                "topic": item.topic,
                "prompt": item.prompt,
            }
            row["expected"] = item.expected
            for side in SIDES:
                answer, score = getattr(item, side), getattr(item, f"{side}_score")
                row |= {
                    f"{side}_answer": "" if answer is None else answer,
                    f"{side}_label": getattr(item, f"{side}_label"),
                    f"{side}_score": "" if score is None else repr(score),
                    f"{side}_corrected": int(_is_corrected(result, item.prompt, answer, known)),
                }
            rows.append(_named(recipe) | row)
    return _csv(ITEM_COLUMNS, rows)


def to_json(
    recipe: Recipe, results: Sequence[MetricResult], corrections: Iterable[Correction] = ()
) -> dict[str, Any]:
    """Everything as plain data: recipe, metrics down to the prompts, corrections."""
    kept = tuple(corrections)
    counts = corrected.counts(results, corrected.labels(kept))
    return {
        "variant": recipe.name,
        "digest": recipe.digest(),
        "recipe": recipes.to_dict(recipe),
        "metrics": [
            r.to_json()
            | r.judgement()
            | {"corrected": counts[r.name], "prompts": r.prompts}
            | {"note": r.note, "items": [_finite(asdict(item)) for item in r.items]}
            for r in results
        ],
        "corrections": corrected.rows(kept),
    }


def stem(recipe: Recipe) -> str:
    """The beginning of the files' names: variant and recipe digest, in plain characters."""
    name = recipe.name.replace("×", "x").replace("−", "-")
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")
    return f"{name or 'variant'}-{recipe.digest()}"


def write(
    folder: str | Path,
    recipe: Recipe,
    results: Sequence[MetricResult],
    corrections: Iterable[Correction] = (),
) -> dict[str, Path]:
    """Write the files into a folder that exists.

    Returns:
        `metrics` and `items` (CSV), `json`, and `corrections` (JSON lines, as `evaluation.labels`
        of a recipe takes them) to their paths.
    """
    folder, name, kept = Path(folder), stem(recipe), tuple(corrections)
    everything = to_json(recipe, results, kept)
    texts = {
        "metrics": (f"{name}-metrics.csv", metrics_csv(recipe, results, kept)),
        "items": (f"{name}-answers.csv", items_csv(recipe, results, kept)),
        "json": (f"{name}.json", json.dumps(everything, indent=1, ensure_ascii=False) + "\n"),
        "corrections": ("labels.jsonl", corrected.to_jsonl(kept)),
    }
    try:
        for file, text in texts.values():
            (folder / file).write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}.") from error
    return {kind: folder / file for kind, (file, _) in texts.items()}


def _named(recipe: Recipe) -> dict[str, str]:
    return {"variant": recipe.name, "recipe": recipe.digest()}


def _numbers(side: str, value: Value | None) -> dict[str, Any]:
    numbers = {} if value is None else value.to_json()
    return {f"{side}_{k}": "" if v is None else v for k, v in numbers.items()}


def _is_corrected(
    result: MetricResult, prompt: str, answer: str | None, known: Mapping[str, Any]
) -> bool:
    if answer is None or not known or not corrected.reads_labels(result):
        return False
    return corrected.key(prompt, answer) in known


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A number that JSON has no word for is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
