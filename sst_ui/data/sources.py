"""Where rows come from: JSON lines, JSON, CSV and Parquet files, and tables of `datasets`.

Knows file formats, and in which line of a file something is wrong. Does not know what a column
means (`columns.py`) nor the Hub (`hub.py`). Rows that a slice leaves out are not kept, and not
even read where the file allows it.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sst_ui.data.spec import FORMATS, Spec
from sst_ui.errors import UserError, unknown

CELL = 1 << 24  # characters of one CSV cell; Python's own limit, 131,072, is short for documents


class Table(Protocol):
    """Rows with named columns.

    Attributes:
        title: how messages call it.
        loose: every value is text (CSV), whatever it stands for.
        own: rows are objects in the studio's own form, each with its own fields (JSON).
        whole: the rows of the file or split before slicing, where known.
        labels: names of the classes of those columns that hold class numbers.
    """

    title: str
    columns: tuple[str, ...]
    loose: bool
    own: bool
    whole: int | None
    labels: Mapping[str, Sequence[str]]

    def __len__(self) -> int: ...

    def column(self, name: str) -> Sequence[Any]:
        """All values of one column; None where a row lacks it."""

    def rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """Some rows, as mappings of column -> value."""

    def where(self, index: int) -> str:
        """The place of a row in words, such as `set.csv, line 7`."""


@dataclass(frozen=True)
class Records:
    """A table held as a list of rows, each with the number of its line or row."""

    title: str
    columns: tuple[str, ...]
    records: list[Mapping[str, Any]]
    numbers: Sequence[int]
    unit: str = "line"
    loose: bool = False
    own: bool = False
    whole: int | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def column(self, name: str) -> list[Any]:
        return [record.get(name) for record in self.records]

    def rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        return [self.records[i] for i in indices]

    def where(self, index: int) -> str:
        return f"{self.title}, {self.unit} {self.numbers[index]}"


class Columnar:
    """A table of the `datasets` library (memory-mapped where it can be): rows are read on demand.

    Args:
        dataset: a `datasets.Dataset`.
        first: number of its first row in the file, counted from 1.
    """

    loose = own = False

    def __init__(self, title: str, dataset: Any, first: int = 1, whole: int | None = None) -> None:
        self.title, self.whole = title, whole
        self._dataset, self._start = dataset, first
        self.columns = tuple(dataset.column_names)
        self.labels = class_names(dataset.features)

    def __len__(self) -> int:
        return len(self._dataset)

    def column(self, name: str) -> Sequence[Any]:
        return list(self._dataset[name])

    def rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        return self._dataset.select(indices).to_list()

    def where(self, index: int) -> str:
        return f"{self.title}, row {index + self._start}"


def class_names(features: Mapping[str, Any] | None) -> dict[str, Sequence[str]]:
    """Names of the classes of each column that holds class numbers."""
    return {name: f.names for name, f in (features or {}).items() if hasattr(f, "int2str")}


def open_file(path: Path, spec: Spec, title: str = "") -> Table:
    """The rows of one file that the slice of the spec chooses.

    Raises:
        UserError: a file that cannot be read, is not what its name says, or not UTF-8 text; with
            the line where there is one.
    """
    readers = {
        ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json,
        ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise unknown(f"format of {path.name}", path.suffix, FORMATS)
    try:
        return readers[path.suffix.lower()](path, title or path.name, spec)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise UserError(f"cannot read the prompt file {path}: {reason}.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8 text with their line ends; a byte order mark is left out.

    Only "\\n" ends a line: Unicode has other separators, and they may stand inside a prompt.
    """
    start = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 text (line {number}, byte {start + error.start});"
                    " save it as UTF-8."
                ) from error
            start += len(raw)


def _json_lines(path: Path, title: str, spec: Spec) -> Table:
    filled = ((n, line) for n, line in _lines(path) if line.strip())
    found = [(n, _object(line, f"{title}, line {n}")) for n, line in islice(filled, spec.enough)]
    return _own(title, found, "line", spec)


def _json(path: Path, title: str, spec: Spec) -> Table:
    """A list of objects, or an object that holds one (`{"data": [...]}`)."""
    data = _parse("".join(line for _, line in _lines(path)), title)
    if isinstance(data, Mapping):
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else None
    if not isinstance(data, list):
        raise UserError(
            f'{title} holds no list of prompts: write [{{"prompt": "..."}}, ...], or one object'
            " a line and name the file .jsonl."
        )
    found = [(n, _mapping(item, f"{title}, entry {n}")) for n, item in enumerate(data, start=1)]
    return _own(title, found, "entry", spec)


def _own(title: str, found: list[tuple[int, Mapping]], unit: str, spec: Spec) -> Table:
    columns = tuple(dict.fromkeys(name for _, record in found for name in record))
    whole = len(found) if spec.enough is None else None
    chosen = [found[i] for i in spec.bounds(len(found))]
    records, numbers = [record for _, record in chosen], [number for number, _ in chosen]
    return Records(title, columns, records, numbers, unit, own=True, whole=whole)


def _object(line: str, where: str) -> Mapping[str, Any]:
    return _mapping(_parse(line, where), where, line)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(
            f"{where} is not valid JSON: {error.msg} ({line}column {error.colno})."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise UserError(f"{where} is not a prompt: {error}.") from error


def _mapping(value: Any, where: str, line: str = "") -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        shown = line.strip() or repr(value)
        raise UserError(f'{where} is not an object: write {{"prompt": "..."}}, not {shown[:40]!r}.')
    return value


def _csv(path: Path, title: str, spec: Spec) -> Table:
    """A table with a header; commas, tabs (.tsv), or semicolons where the header has no comma."""
    csv.field_size_limit(CELL)
    first = next(_lines(path), (1, ""))[1]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter not in first:
        delimiter = next((mark for mark in ";\t" if mark in first), delimiter)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    records: list[Mapping[str, Any]] = []
    numbers: list[int] = []
    try:
        header = next((cells for cells in reader if cells), [])
        _sound(header, title)
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise UserError(
                        f"{title}, line {start}: {len(cells)} cells under {len(header)} columns;"
                        f' put a text that holds {delimiter!r} or a line break in "double quotes".'
                    )
                records.append(dict(zip(header, cells, strict=True)))
                numbers.append(start)
            if len(records) == spec.enough:
                break
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{title}, line {reader.line_num}: {error}; check the double quotes there and before"
            ' (one inside a quoted text is written "").'
        ) from error
    whole = len(records) if spec.enough is None else None
    chosen = spec.bounds(len(records))
    return Records(
        title,
        tuple(header),
        [records[i] for i in chosen],
        [numbers[i] for i in chosen],
        loose=True,
        whole=whole,
    )


def _sound(header: list[str], title: str) -> None:
    if not header:
        raise UserError(f"{title} is empty; it needs a header line such as prompt,topic.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{title} has the column {twice[0]!r} twice; give each its own name.")


def _parquet(path: Path, title: str, spec: Spec) -> Table:
    """Only the row groups that the slice touches are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        rows = spec.bounds(file.metadata.num_rows)
        groups, start, first = [], 0, 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if rows and start < rows.stop and end > rows.start:
                first = first if groups else start
                groups.append(group)
            start = end
        table = file.read_row_groups(groups).slice(rows.start - first, len(rows))
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # the disk's, not the content's
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path.name} is no readable Parquet file: {reason.rstrip('.')}."
        ) from error
    from datasets import Dataset  # takes a second
    from datasets.table import InMemoryTable

    dataset = Dataset(InMemoryTable(table))
    return Columnar(title, dataset, rows.start + 1, file.metadata.num_rows)
