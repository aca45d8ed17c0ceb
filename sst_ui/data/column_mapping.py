"""Turns table rows into prompts: which column is what, which rows count, what a cell holds."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import unquote

from sst_ui.data.dataset_spec import COLUMNS, Spec
from sst_ui.data.dataset_spec import column as column_name
from sst_ui.data.files import Table, sound
from sst_ui.data.types import LETTERS, Prompt
from sst_ui.errors import BITS, UserError, line_of, shown, unknown

# Names under which public data sets keep a field, likeliest first; case does not matter.
USUAL: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "query", "goal", "request", "behavior"),
    "answer": ("answer", "correct_answer"),
    "choices": ("choices", "options"),
    "context": ("context", "document_extracted", "passage", "document"),
    "topic": ("topic", "category", "document_topic"),
    "subject": ("subject",),
    "system": ("system", "system_prompt"),
}
# Columns that belong to the request, by that of the prompt: whether they stand before it.
PARTS = {"instruction": ("input", False), "behavior": ("contextstring", True)}
LISTS = ("choices", "aliases")
TEXTS = ("prompt", "answer", "context", "text", "system")
GROUPS = ("topic", "subject", "pair", "wrapper")  # names: a number will do
Mapped = Mapping[str, tuple[str, ...]]


def mapping(table: Table, spec: Spec) -> dict[str, tuple[str, ...]]:
    """Which columns each field is read from: as the spec says, else by their well-known names.

    Raises:
        UserError: a column of the spec that the table lacks.
    """
    found = {}
    for field, column in spec.columns.items():
        if column:
            found[field] = named(field, column, table)
    taken = set(found["prompt"]) if len(found.get("prompt", ())) > 1 else set()
    for field in COLUMNS:
        if field not in spec.columns and (names := _guess(field, table)):
            if field == "prompt":
                names = _whole(names, table, {n for other in found.values() for n in other})
                taken = set(names) if len(names) > 1 else taken
            elif taken & set(names):
                continue  # a part of the request already
            found[field] = names
    said = "prompt" in found or spec.columns.keys() & {"prompt", "text"}
    if "text" in table.columns and not table.own and not said:
        # A column of plain text: in our own JSON that is a text to read, elsewhere the requests.
        found["prompt"] = ("text",)
    if "answer" not in found and "choices" not in spec.columns and not table.own:
        found.pop("choices", None)
    return {field: found[field] for field in COLUMNS if field in found}


def named(field: str, column: str, table: Table) -> tuple[str, ...]:
    """The columns that a spec names for a field.

    Raises:
        UserError: one that the table lacks.
    """
    for name in (unquote(column), unquote(column.replace("+", " "))):
        if table.has(name):
            return (name,)
    names = tuple(unquote(part) for part in column.split("," if field in LISTS else "+"))
    for name in names:
        if not table.has(name):
            raise unknown_column(table, name)
    return names


def written(field: str, names: Sequence[str]) -> str:
    """Columns as a spec names them; one alone by its plain name."""
    if len(names) == 1:
        return names[0]
    return ("," if field in LISTS else "+").join(map(column_name, names))


def unknown_column(table: Table, name: str) -> UserError:
    """The error for a column that is not there; of a wide table it lists the first ones."""
    names = [column if len(column) <= 40 else f"{column[:37]}..." for column in table.columns]
    near = [column for column in names if column.lower() == name.lower()]
    return unknown(f"column of {table.title}", name, {*names[:20], *near})


def _whole(names: tuple[str, ...], table: Table, other: set[str]) -> tuple[str, ...]:
    """The prompt's column with the one that belongs to it, where it is free."""
    lower = {column.lower(): column for column in reversed(table.columns)}
    part, before = PARTS.get(names[0].lower(), ("", False))
    if part not in lower or lower[part] in other:
        return names
    return (lower[part], *names) if before else (*names, lower[part])


def _guess(field: str, table: Table) -> tuple[str, ...]:
    if field in table.columns:
        return (field,)
    lower = {column.lower(): column for column in reversed(table.columns)}
    for name in USUAL.get(field, ()):
        if name in lower:
            return (lower[name],)
    if field == "choices" and set(LETTERS[:2]) <= set(table.columns):
        count = next((i for i, c in enumerate(LETTERS) if c not in table.columns), len(LETTERS))
        return tuple(LETTERS[:count])
    return ()


def chosen(table: Table, spec: Spec) -> list[int]:
    """The rows that have a wanted value in every column of `where`.

    Raises:
        UserError: a column that is not there, or no row left.
    """
    kept = list(range(len(table)))
    for column, wanted in spec.where.items():
        if not table.has(column):
            raise unknown_column(table, column)
        values = [_word(value, table.labels.get(column)) for value in table.column(column)]
        matches = {i for i in kept if values[i] in {_word(each) for each in wanted}}
        if kept and not matches:
            there = ", ".join(line_of(v, 30) for v in sorted({values[i] for i in kept})[:10])
            raise UserError(
                f"no row of {table.title} has {line_of(' or '.join(map(shown, wanted)), 120)} in"
                f" the column {shown(column)}; there are: {there}."
            )
        kept = [i for i in kept if i in matches]
    return kept


def _word(value: Any, names: Sequence[str] | None = None) -> str:
    """A value as it is written in `where`: without case, class numbers by their name."""
    if names and isinstance(value, int) and 0 <= value < len(names):
        value = names[value]
    return "" if value is None else str(value).strip().casefold()


def prompts(table: Table, spec: Spec, indices: Sequence[int]) -> tuple[Prompt, ...]:
    """Rows as prompts.

    Raises:
        UserError: no column for the prompt, or a cell that cannot be what it should be; with its
            line or row.
    """
    rows = table.rows(indices)  # first: they may have columns that the beginning lacks
    fields = mapping(table, spec)
    if indices and not fields.keys() & {"prompt", "text"}:
        raise UserError(_unfit(table, table.where(indices[0]) if table.own else table.title))
    return tuple(
        _prompt(row, fields, table, spec, table.where(i))
        for i, row in zip(indices, rows, strict=True)
    )


def _unfit(table: Table, where: str) -> str:
    example = column_name(table.columns[0]) if table.columns else "column"
    found = f"it has {_listed(table.columns)}" if table.columns else "it is empty"
    return (
        f'{where} lacks "prompt" (or "text", for plain text); {found}. Say which column holds the'
        f" prompts: ?prompt={example}"
    )


def _prompt(row: Mapping, fields: Mapped, table: Table, spec: Spec, where: str) -> Prompt:
    """One row as a prompt."""
    values = {}
    for field, columns in fields.items():
        if any(column in row for column in columns):
            values[field] = _field(field, _cell(field, row, columns, table), where)
    values["prompt"] = values.get("prompt", "").strip()
    if not (values["prompt"] or values.get("text", "").strip()):
        found = f"it has {_listed(row)}" if table.own and row else "the cell is empty"
        raise UserError(f'{where} lacks "prompt" (or "text", for plain text); {found}.')
    if values.get("choices"):
        values["answer"] = _index(_loosened(values, table), values["choices"], where)
    elif values.get("answer") is not None:
        if isinstance(values["answer"], int) and values["answer"].bit_length() > BITS:
            raise UserError(f"{where}: answer must be text, not {shown(values['answer'])}.")
        values["answer"] = str(values["answer"])  # "the year": 1987
        if spec.unanswerable and "answerable" not in fields:
            values["answerable"] = _said(values["answer"]) != _said(spec.unanswerable)
    for field, text in spec.set.items():
        for group in ("subject", "topic"):
            name = str(values.get(group, "")).replace("_", " ")
            text = text.replace(f"{{{group}}}", name)
        values[field] = text
    return Prompt(**values)


def _listed(names: Collection[str]) -> str:
    """Names of columns for a message, the first twenty."""
    more = ", ..." if len(names) > 20 else ""
    return ", ".join(map(shown, islice(names, 20))) + more


def _said(answer: str) -> str:
    return answer.strip().rstrip(".").casefold()


def _cell(field: str, row: Mapping, columns: tuple[str, ...], table: Table) -> Any:
    """The value of a field as the table has it, with what only the table knows cleared up."""
    if len(columns) > 1 and field not in LISTS:
        cells = [_class(row.get(column), column, table) for column in columns]
        cells = [cell for cell in cells if cell not in (None, "")]
        odd = [cell for cell in cells if not isinstance(cell, str | int | float)]
        # what is no text goes on as it is, to be named in the error
        return odd[0] if odd else ("\n\n" if field in TEXTS else ", ").join(map(str, cells))
    if len(columns) > 1:
        cells = [row.get(column) for column in columns]
        # A question with fewer options leaves the last cells empty.
        while cells and cells[-1] in (None, ""):
            cells.pop()
        return [cell if isinstance(cell, str) or table.own else str(cell) for cell in cells]
    value = row.get(columns[0])
    if field != "answer":
        value = _class(value, columns[0], table)
    if not table.loose or not isinstance(value, str):
        return value
    if value == "":
        return None
    if field in LISTS:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value if field == "choices" else [value]
    if field == "answerable":
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    return value


def _class(value: Any, column: str, table: Table) -> Any:
    """A class by its name; "" for a row without one (-1)."""
    names = table.labels.get(column)
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else ""
    return value


def _loosened(values: Mapping[str, Any], table: Table) -> str | int | None:
    """In a CSV file the number of the right choice is text: "2" is the third of three or more."""
    answer = values.get("answer")
    if table.loose and isinstance(answer, str) and answer.strip().isdecimal() and len(answer) < 10:
        return int(answer) if int(answer) < len(values["choices"]) else answer
    return answer


def _field(name: str, value: Any, where: str) -> Any:
    """Check one value; null means that the field is not there."""
    for text in (value,) if isinstance(value, str) else value if isinstance(value, list) else ():
        if isinstance(text, str):
            sound(text, f"{where}: {name}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {name} must be text, not {value!r}.")
    if isinstance(value, float) and name in ("answer", *GROUPS):
        value = int(value) if value.is_integer() else str(value)  # whole numbers beside gaps
    if name in LISTS:
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            hint = "; for one column each write choices=A,B,C,D" if name == "choices" else ""
            raise UserError(f"{where}: {name} must be a list of texts, not {shown(value)}{hint}.")
        return tuple(value)
    if name == "answer":
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise UserError(
                f"{where}: answer must be text or a choice's number, not {shown(value)}; answer="
                " (with nothing after it) leaves the column out."
            )
        return value
    if name == "answerable":
        if not isinstance(value, bool):
            raise UserError(f"{where}: answerable must be true or false, not {shown(value)}.")
        return value
    if value is None:
        return ""
    if name in GROUPS and isinstance(value, int) and value.bit_length() <= BITS:
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} must be text, not {shown(value)}.")
    return value


def _index(answer: str | int | None, choices: tuple[str, ...], where: str) -> int:
    """The right choice as a number, given as number, letter or the choice's own words."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{where}: {len(choices)} choices; 2 to {len(LETTERS)} are possible.")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    elif isinstance(answer, str) and len(answer) == 1 and answer.upper() in LETTERS:
        answer = LETTERS.index(answer.upper())
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(
            f"{where}: answer is {shown(answer)}; with {len(choices)} choices it must be 0 to"
            f" {len(choices) - 1} or a letter {LETTERS[0]} to {LETTERS[len(choices) - 1]}."
        )
    return answer
