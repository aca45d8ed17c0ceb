"""Reads rows from JSON lines, JSON, CSV and Parquet files, and from tables of `datasets`.

Errors name the line of the file. A file is read row by row, again for each question, and only rows
that are used are kept: four samples of a large file cost the memory of four rows.
"""

import codecs
import csv
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sst_ui.data.dataset_spec import FORMATS, Spec
from sst_ui.errors import UserError, line_of, shown, unknown

LINE = 1 << 24  # bytes of a line, characters of a CSV cell or of an entry of a JSON array
PIECE = 1 << 18  # characters of a JSON array that are read at a time
BATCH = 1024  # rows of a Parquet file that are decoded at a time
FIRST = 1000  # rows whose columns are known before any row is asked for


class Table(Protocol):
    """Rows with named columns.

    Attributes:
        title: how messages call it.
        loose: every value is text (CSV), whatever it stands for.
        own: rows are objects in the studio's own form, each with its own fields (JSON).
        whole: the rows of the file or split before slicing, where known.
        labels: names of the classes of those columns that hold class numbers.
    """

    @property
    def title(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def loose(self) -> bool: ...
    @property
    def own(self) -> bool: ...
    @property
    def whole(self) -> int | None: ...
    @property
    def labels(self) -> Mapping[str, Sequence[str]]: ...

    def __len__(self) -> int: ...

    def has(self, name: str) -> bool:
        """Whether some row has this column."""

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

    def has(self, name: str) -> bool:
        return name in self.columns

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

    def has(self, name: str) -> bool:
        return name in self.columns

    def column(self, name: str) -> Sequence[Any]:
        return list(self._dataset[name])

    def rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        return self._dataset.select(indices).to_list()

    def where(self, index: int) -> str:
        return f"{self.title}, row {index + self._start}"


def class_names(features: Mapping[str, Any] | None) -> dict[str, Sequence[str]]:
    """Names of the classes of each column that holds class numbers."""
    return {name: f.names for name, f in (features or {}).items() if hasattr(f, "int2str")}


class Streamed:
    """A table over a file: entries are found one by one, and only those that are used are parsed.

    Args:
        entries: gives every entry of the file with the number of its line, from the start.
        parse: makes a row of an entry; the second argument is its place in words.
        columns: of a file with a header; None where every row has its own (JSON).
    """

    def __init__(
        self,
        title: str,
        entries: Callable[[], Iterable[tuple[int, Any]]],
        parse: Callable[[Any, str], Mapping[str, Any]],
        spec: Spec,
        unit: str = "line",
        columns: tuple[str, ...] | None = None,
    ) -> None:
        self.title, self.unit = title, unit
        self.own, self.loose = columns is None, columns is not None
        self.labels: Mapping[str, Sequence[str]] = {}
        self._entries, self._parse = entries, parse
        self._kept: dict[int, tuple[int, Mapping[str, Any]]] = {}
        count = sum(1 for _ in islice(entries(), spec.enough))
        self._range = spec.bounds(count)
        self.whole = count if spec.enough is None else None
        self._names = dict.fromkeys(columns or ())
        self._complete = not self.own
        if self.own:
            for _ in islice(self._all(), FIRST):
                pass

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the header, or of the rows that were read so far."""
        return tuple(self._names)

    def __len__(self) -> int:
        return len(self._range)

    def has(self, name: str) -> bool:
        if name not in self._names and not self._complete:
            for _ in self._all():
                pass
            self._complete = True
        return name in self._names

    def column(self, name: str) -> list[Any]:
        return [row.get(name) for _, row in self._all()]

    def rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        missing = set(indices) - self._kept.keys()
        if missing:
            self._kept = {i: self._kept[i] for i in indices if i in self._kept}
            for i, number, entry in self._found(missing):
                self._kept[i] = (number, self._row(number, entry))
        if not set(indices) <= self._kept.keys():
            raise UserError(f"{self.title} changed while it was read; try again.")
        return [self._kept[i][1] for i in indices]

    def where(self, index: int) -> str:
        if index not in self._kept:
            self.rows([index])
        return f"{self.title}, {self.unit} {self._kept[index][0]}"

    def _all(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for i, number, entry in self._found(None):
            yield i, self._row(number, entry)

    def _found(self, wanted: set[int] | None) -> Iterator[tuple[int, int, Any]]:
        """Index, number and entry of the rows of the slice, or of those that are wanted."""
        left = None if wanted is None else len(wanted)
        part = islice(self._entries(), self._range.start, self._range.stop)
        for i, (number, entry) in enumerate(part):
            if left == 0:
                return
            if wanted is None or i in wanted:
                left = None if left is None else left - 1
                yield i, number, entry

    def _row(self, number: int, entry: Any) -> Mapping[str, Any]:
        row = self._parse(entry, f"{self.title}, {self.unit} {number}")
        if self.own and not self._complete and not row.keys() <= self._names.keys():
            sound("".join(row), f"{self.title}, {self.unit} {number}: a field's name")
            self._names |= dict.fromkeys(row)
        return row


def sound(text: str, where: str) -> None:
    """Refuse what a tokenizer or a file could not take.

    Raises:
        UserError: half a character (a surrogate without its other half), or a NUL.
    """
    if "\0" in text:
        raise UserError(f"{where} holds a NUL character; leave it out.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds half a character ({text[error.start]!a}, a lone surrogate); write the"
            " whole character, or leave it out."
        ) from error


def open_file(path: Path, spec: Spec, title: str = "") -> Table:
    """The rows of one file that the slice of the spec chooses.

    Raises:
        UserError: a file that cannot be read, is not what its name says, or not UTF-8 text; with
            the line where there is one.
    """
    readers: dict[str, Callable[[Path, str, Spec], Table]] = {
        ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json,
        ".csv": _csv, ".tsv": _csv, ".parquet": Parquet,
    }  # fmt: skip
    if path.suffix.lower() not in readers:
        raise unknown(f"format of {path.name}", path.suffix, FORMATS)
    with reading(path):
        return readers[path.suffix.lower()](path, title or path.name, spec)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """An error of the disk as one of ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or line_of(error, 200)
        raise UserError(f"cannot read the prompt file {path}: {reason}.") from error


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Lines with their number, their place in the file and their ends; no byte order mark.

    Only "\\n" ends a line: Unicode has other separators, and they may stand inside a prompt.
    """
    with reading(path), path.open("rb") as file:
        mark = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        number, start = 1, file.seek(len(codecs.BOM_UTF8) if mark else 0)
        while raw := file.readline(LINE + 1):
            if len(raw) > LINE:
                raise UserError(
                    f"{path.name}, line {number} is longer than {LINE >> 20} MiB; write one prompt"
                    " a line."
                )
            yield number, start, raw
            number, start = number + 1, start + len(raw)


def _text(path: Path, number: int, start: int, raw: bytes) -> str:
    """A line as text.

    Raises:
        UserError: it is not UTF-8, or holds NUL bytes as UTF-16 does.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (line {number}, byte {start + error.start}); save it as"
            " UTF-8."
        ) from error
    if "\0" in text:
        raise UserError(f"{path} holds a NUL byte (line {number}); save it as UTF-8 text.")
    return text


def _texts(path: Path) -> Iterator[str]:
    return (_text(path, *line) for line in _lines(path))


def _json_lines(path: Path, title: str, spec: Spec) -> Table:
    def entries() -> Iterator[tuple[int, tuple[int, int, bytes]]]:
        return ((line[0], line) for line in _lines(path) if line[2].strip())

    def parse(entry: tuple[int, int, bytes], where: str) -> Mapping[str, Any]:
        line = _text(path, *entry)
        return _mapping(_parse(line, where), where, line)

    return Streamed(title, entries, parse, spec)


def _json(path: Path, title: str, spec: Spec) -> Table:
    """A list of objects, or an object that holds one (`{"data": [...]}`)."""
    return Streamed(title, partial(_array, path, title), _mapping, spec, "entry")


def _array(path: Path, title: str) -> Iterator[tuple[int, Any]]:
    """The entries of the one list in a JSON file, numbered, a piece of the file at a time."""
    source = _Json(path, title)
    if source.peek() == "[":
        yield from enumerate(source.array(), start=1)
    elif source.peek() == "{":
        lists = 0
        for _ in source.members():
            if source.peek() == "[":
                lists += 1
                if lists > 1:
                    raise _no_list(title)
                yield from enumerate(source.array(), start=1)
            else:
                source.value()
        if not lists:
            raise _no_list(title)
    elif source.peek():
        source.value()
        raise _no_list(title)
    else:
        raise UserError(f'{title} is empty; write [{{"prompt": "..."}}, ...].')
    source.end()


def _no_list(title: str) -> UserError:
    return UserError(
        f'{title} holds no list of prompts: write [{{"prompt": "..."}}, ...], or one object per '
        "line and name the file .jsonl."
    )


def _pieces(path: Path) -> Iterator[str]:
    """The text of a file, a piece at a time, without its byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with reading(path), path.open("rb") as file:
        line = 1
        while raw := file.read(PIECE):
            try:
                text = decoder.decode(raw)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise UserError(
                    f"{path} is not UTF-8 text (line {line}); save it as UTF-8."
                ) from error
            line += text.count("\n")
            if "\0" in text:
                raise UserError(f"{path} holds a NUL byte; save it as UTF-8 text.")
            yield text
        try:
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8.") from error


class _Json:
    """A JSON file that is read value by value: what was read is not kept."""

    def __init__(self, path: Path, title: str) -> None:
        self._title = title
        self._pieces = _pieces(path)
        self._text, self._at = "", 0
        self._lines = self._column = 0  # where the text begins: lines before it, characters in it
        self._done = False  # whether the text is the rest of the file
        self._decoder = json.JSONDecoder()

    def _more(self) -> bool:
        """Read on; what was used up already is let go. False at the end of the file."""
        piece = next(self._pieces, None)
        if piece is None:
            self._done = True
            return False
        self._column = self._place(self._at)
        self._lines += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + piece, 0
        return True

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            spaces = _SPACES.match(self._text, self._at)
            assert spaces is not None  # it matches no space at all, too
            self._at = spaces.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        size = PIECE
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # a number may go on in the next piece
                if self._done or (end < len(self._text) and self._text[end] not in ".eE"):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._done or (error.pos < len(self._text) - 64 and not _cut(error)):
                    raise self._wrong(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{self._title}, line {self._line(self._at)} is not a prompt:"
                    f" {line_of(error, 120)}."
                ) from error
            if len(self._text) - self._at > LINE:
                raise UserError(
                    f"{self._title}, line {self._line(self._at)}: an entry is longer than"
                    f" {LINE >> 20} MiB; write one object for each prompt."
                )
            # twice as much before the next try, so that a long value is not read too often
            start = len(self._text) - self._at
            while len(self._text) - self._at < start + size and self._more():
                pass
            size *= 2

    def array(self) -> Iterator[Any]:
        """The entries of the list that begins here."""
        return (self.value() for _ in self._parts("[", "]"))

    def members(self) -> Iterator[None]:
        """Before each value of the object that begins here."""
        for _ in self._parts("{", "}"):
            if self.peek() != '"':
                raise self._wrong("Expecting property name enclosed in double quotes", self._at)
            self.value()
            if self.peek() != ":":
                raise self._wrong("Expecting ':' delimiter", self._at)
            self._at += 1
            yield

    def _parts(self, opening: str, closing: str) -> Iterator[None]:
        self.peek()
        self._at += len(opening)
        if self.peek() == closing:
            self._at += 1
            return
        while True:
            yield
            mark = self.peek()
            if mark not in (",", closing):
                raise self._wrong("Expecting ',' delimiter", self._at)
            self._at += 1
            if mark == closing:
                return

    def end(self) -> None:
        """Nothing may stand behind the last value."""
        if self.peek():
            raise self._wrong("Extra data", self._at)

    def _line(self, place: int) -> int:
        return self._lines + self._text.count("\n", 0, place) + 1

    def _wrong(self, what: str, place: int) -> UserError:
        where = f"line {self._line(place)}, column {self._place(place) + 1}"
        return UserError(f"{self._title} is not valid JSON: {what} ({where}).")

    def _place(self, place: int) -> int:
        """Characters of the same line before a place."""
        start = self._text.rfind("\n", 0, place)
        return self._column + place if start < 0 else place - start - 1


_SPACES = re.compile(r"[ \t\n\r]*")


def _cut(error: json.JSONDecodeError) -> bool:
    """Whether a text without its end says this: what is wrong stands where the value begins."""
    return "Unterminated" in error.msg


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(
            f"{where} is not valid JSON: {error.msg} ({line}column {error.colno})."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise UserError(f"{where} is not a prompt: {line_of(error, 120)}.") from error


def _mapping(value: Any, where: str, line: str = "") -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        text = shown(line.strip()[:40]) if line else shown(value)
        raise UserError(f'{where} is not an object: write {{"prompt": "..."}}, not {text}.')
    return value


def _csv(path: Path, title: str, spec: Spec) -> Table:
    """A table with a header; commas, tabs (.tsv), or semicolons where the header has no comma."""
    csv.field_size_limit(LINE)
    first = next(_texts(path), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter not in first:
        delimiter = next((mark for mark in ";\t" if mark in first), delimiter)
    header = next((cells for _, cells in _cells(path, title, delimiter)), [])
    _sound(header, title)

    def entries() -> Iterator[tuple[int, list[str]]]:
        rows = islice(_cells(path, title, delimiter), 1, None)
        for number, cells in rows:
            if len(cells) != len(header):
                raise UserError(
                    f"{title}, line {number}: {len(cells)} cells under {len(header)} columns;"
                    f' put a text that holds {delimiter!r} or a line break in "double quotes".'
                )
            yield number, cells

    def parse(cells: list[str], where: str) -> Mapping[str, Any]:
        return dict(zip(header, cells, strict=True))

    return Streamed(title, entries, parse, spec, columns=tuple(header))


def _cells(path: Path, title: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of every line that has some, with the number of its first line."""
    reader = csv.reader(_texts(path), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{title}, line {reader.line_num}: {error}; check the double quotes there and before"
            ' (one inside a quoted text is written "").'
        ) from error


def _sound(header: list[str], title: str) -> None:
    if not header:
        raise UserError(f"{title} is empty; it needs a header line such as prompt,topic.")
    once: set[str] = set()
    for name in header:
        if name in once:
            raise UserError(f"{title} has the column {shown(name)} twice; give each its own name.")
        once.add(name)


class Parquet:
    """A Parquet file: rows are read in batches, from the row groups that hold them."""

    own = loose = False

    def __init__(self, path: Path, title: str, spec: Spec) -> None:
        import pyarrow.parquet as pq
        from datasets import Features  # takes a second

        self.title, self._path = title, path
        with _arrow(path):
            # pages are read as they are needed, not whole columns
            self._file = pq.ParquetFile(path, buffer_size=PIECE, pre_buffer=False)
            self.columns = tuple(self._file.schema_arrow.names)
            self.whole = self._file.metadata.num_rows
            self.labels = class_names(Features.from_arrow_schema(self._file.schema_arrow))
        self._range = spec.bounds(self.whole)

    def __len__(self) -> int:
        return len(self._range)

    def has(self, name: str) -> bool:
        return name in self.columns

    def column(self, name: str) -> list[Any]:
        return [row[name] for _, row in self._read(self._range, [name])]

    def rows(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        found = dict(self._read([self._range[i] for i in indices]))
        return [found[self._range[i]] for i in indices]

    def where(self, index: int) -> str:
        return f"{self.title}, row {self._range[index] + 1}"

    def _read(
        self, places: Sequence[int], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Rows by their place in the file."""
        import pyarrow as pa

        wanted = sorted(set(places))
        at = start = 0
        with _arrow(self._path):
            for group in range(self._file.num_row_groups):
                end = start + self._file.metadata.row_group(group).num_rows
                if at < len(wanted) and wanted[at] < end:
                    for batch in self._batches(group, columns):
                        stop = start + len(batch)
                        upto = bisect_left(wanted, stop, at)
                        if upto > at:
                            chosen = [place - start for place in wanted[at:upto]]
                            rows = batch.take(pa.array(chosen, pa.int64())).to_pylist()
                            yield from zip(wanted[at:upto], rows, strict=True)
                        at, start = upto, stop
                        if at == len(wanted) or wanted[at] >= end:
                            break
                start = end

    def _batches(self, group: int, columns: list[str] | None) -> Iterator[Any]:
        return self._file.iter_batches(BATCH, row_groups=[group], columns=columns)


@contextmanager
def _arrow(path: Path) -> Iterator[None]:
    """An error about the content of a Parquet file as one of ours."""
    import pyarrow as pa

    try:
        with reading(path):
            try:
                yield
            except OSError as error:
                if error.errno:  # the disk's, not the content's
                    raise
                raise pa.ArrowException(str(error)) from error
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path.name} is not a readable Parquet file: {line_of(error, 200).rstrip('.')}."
        ) from error
