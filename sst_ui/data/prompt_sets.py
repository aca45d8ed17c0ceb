"""Prompt sets by name: the one entry point for everything that asks for prompts.

The name is parsed in `dataset_spec`, rows are read in `files` and `hf_datasets`, and columns are
understood in `column_mapping`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sst_ui.data import column_mapping, files, hf_datasets
from sst_ui.data.dataset_spec import Spec, in_part, parse, part_of, presets
from sst_ui.data.types import LETTERS, Prompt, PromptSet, named, spread
from sst_ui.errors import UserError, shown
from sst_ui.paths import PRESETS

__all__ = [
    "LETTERS",
    "Preview",
    "Prompt",
    "PromptSet",
    "in_part",
    "load",
    "names",
    "part_of",
    "preview",
    "public_names",
]

SEARCHED = 2000  # rows that a preview looks through for those that its filter wants


@dataclass(frozen=True)
class Preview:
    """The first rows of a prompt set, and how they would be read.

    Attributes:
        columns: all columns that are there.
        rows: the first rows as they are, column -> value.
        mapping: field of a prompt -> column, given or guessed; several as in the query.
        total: rows before any slice or filter, where that is known.
        problem: why these rows are no prompts yet; empty if they are.
    """

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    mapping: dict[str, str]
    total: int | None
    problem: str = ""


def names() -> list[str]:
    """Prompt sets that come with the studio, such as `demo/harmful`."""
    return sorted(_shipped())


def public_names() -> dict[str, str]:
    """Public data sets known by name, such as `public/mmlu`, and their titles."""
    return {name: preset.title for name, preset in presets().items()}


def load(name_or_path: str | Path, samples: int | None = None) -> PromptSet:
    """Read a prompt set.

    Args:
        name_or_path: `NAME` or `NAME?key=value&key=value`. NAME is one of `names()`, one of
            `public_names()`, the path of a .jsonl, .json, .csv, .tsv or .parquet file, the folder
            of a data set, or `hf:owner/name` on the Hugging Face Hub. Keys: `config`, `split`
            (`test[:200]`, `train+test`), `revision`; `slice` (`:200`) for files; `part` (`1/2`:
            every second prompt, `2/2`: the others); a column for each field of a prompt
            (`prompt=Goal`, `prompt=instruction+input` for two that are joined, `choices=A,B,C,D`;
            `answer=` for none), guessed where not given; in a column's name "+", "," and "%" may be
            written %2B, %2C and %25;
            `where.COLUMN=VALUE` (repeated: any of them); `set.FIELD=TEXT`; `unanswerable=TEXT`;
            `shots=5` with `shots_split` or `shots_file`; `file=PATH`, a public set from disk.
        samples: how many prompts to take, evenly spread; None for all.

    Raises:
        UserError: unknown name, key, column or split; a file that is missing or damaged; a row that
            is no prompt; a set that is empty or cannot be reached.
    """
    if samples is not None and samples < 1:
        raise UserError(f"samples is {shown(samples)}; it must be 1 or more.")
    spec = parse(str(name_or_path), _shipped())
    table = _open(spec)
    kept = spec.share(column_mapping.chosen(table, spec))
    kept = [kept[i] for i in spread(len(kept), samples)]  # what is not used is not even read
    found = column_mapping.prompts(table, spec, kept)
    if not found:
        raise UserError(
            f"the prompt set {shown(spec.text)} is empty; it needs at least one prompt."
        )
    shots = _shots(spec) if spec.shots else ()
    return named(spec.text, found, shots, spec.shots if shots else 0).take(samples)


def preview(name_or_path: str | Path, rows: int = 5) -> Preview:
    """The first rows of a prompt set, for a look before it is used; from the Hub only those.

    Raises:
        UserError: as `load`, for what keeps rows from being read; a set that can be read but whose
            columns are not known yet gives a Preview with a `problem`.
    """
    spec = parse(str(name_or_path), _shipped())
    table = _open(spec, SEARCHED if spec.where or spec.part else rows)
    first = spec.share(column_mapping.chosen(table, spec))[:rows]
    shown = [dict(row) for row in table.rows(first)]
    for row in shown:
        for column, classes in table.labels.items():
            if isinstance(number := row.get(column), int) and 0 <= number < len(classes):
                row[column] = classes[number]
    try:
        fields = column_mapping.mapping(table, spec)
        column_mapping.prompts(table, spec, first)
        problem = "" if first else "it is empty"
    except UserError as error:
        known = {f: c for f, c in spec.columns.items() if not c or _known(table, f, c)}
        fields = column_mapping.mapping(table, replace(spec, columns=known))
        problem = str(error)
    mapping = {field: column_mapping.written(field, names) for field, names in fields.items()}
    return Preview(table.columns, shown, mapping, table.whole, problem)


def _known(table: files.Table, field: str, column: str) -> bool:
    try:
        return bool(column_mapping.named(field, column, table))
    except UserError:
        return False


def _open(spec: Spec, rows: int | None = None) -> files.Table:
    if spec.has_splits:
        return hf_datasets.open_split(spec, rows=rows)
    if rows is not None and not spec.slice and spec.place.endswith(".parquet"):
        spec = replace(spec, slice=f":{rows}")  # a Parquet file knows its length without the rest
    return files.open_file(Path(spec.place), spec)


def _shots(spec: Spec) -> tuple[Prompt, ...]:
    """The worked examples that the spec names, each with an answer."""
    if spec.shots_file:
        source = parse(spec.shots_file, _shipped())
        table = _open(source)
        source = replace(source, columns={**spec.columns, **source.columns}, set=spec.set)
    else:
        source = replace(spec, where={}, slice="")
        table = hf_datasets.open_split(source, spec.shots_split)
    found = column_mapping.prompts(table, source, range(len(table)))
    for place, shot in enumerate(found):
        if shot.answer is None:
            raise UserError(f"{table.where(place)} has no answer; a worked example needs one.")
    return found


def _shipped() -> dict[str, Path]:
    folder = PRESETS / "prompts"
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.rglob("*.jsonl")}
