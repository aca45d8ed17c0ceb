"""Parses the string that names a prompt set: `NAME?key=value&key=value`.

Public data sets have presets in presets/datasets.yaml. No prompt file is opened here, and no
network used.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus

import yaml

from sst_ui import reach
from sst_ui.checked import Checked
from sst_ui.data.types import Prompt
from sst_ui.errors import UserError, shown, unknown
from sst_ui.paths import PRESETS
from sst_ui.schema import build

PUBLIC, HUB = "public/", "hf:"
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COLUMNS = tuple(f.name for f in fields(Prompt))
_PLAIN = (
    "config", "split", "revision", "slice", "part", "unanswerable", "shots_split", "shots_file",
)  # fmt: skip
_KEYS = (*_PLAIN, "file", "shots", *COLUMNS)
_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_SPLIT = re.compile(r"[^\[\]]*(\[[^\[\]]*\])?")
_NUMBER = r"(-?[0-9]{1,15}%?)"  # more digits than that are no row of anything
_RANGE = re.compile(rf"\s*{_NUMBER}?\s*:\s*{_NUMBER}?\s*")
_PART = re.compile(r"([1-9][0-9]?)/([1-9][0-9]?)")


@dataclass(frozen=True)
class Preset(Checked):
    """A public data set and how its columns become prompts: one entry of presets/datasets.yaml.

    Attributes:
        id: on the Hugging Face Hub.
        columns: field of a prompt -> column; several joined by "+" make one text, several joined
            by commas the list of choices.
        where: column -> value that a row must have.
        set: field of a prompt -> fixed text, in which {subject} and {topic} are filled in.
        unanswerable: the answer that says that the passage does not hold one.
        shots: worked examples before each question, from `shots_split`.
    """

    title: str
    id: str
    split: str
    columns: Mapping[str, str]
    config: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    set: Mapping[str, str] = field(default_factory=dict)
    unanswerable: str = ""
    shots: int = 0
    shots_split: str = ""


@dataclass(frozen=True)
class Spec:
    """Where rows come from and what becomes of them; the string `text` says all of it.

    Attributes:
        place: path of a file or folder, or an id on the Hub where `hub` is true.
        split: as the `datasets` library writes it, `test[:200]`; a single file has none.
        slice: `:200`, `10:20` or `10%:20%` of the rows of a file, before `where`.
        part: `1/2` or `2/2`: every second prompt, from the first or from the second one on; after
            `slice` and `where`. The parts of a set have no row in common.
        columns: field -> column as given, "+", "," and "%" in a name written as %2B, %2C and %25;
            an empty one says that the field is not there.
        where: column -> values, one of which a row must have.
        preset: name of the preset it came from.
    """

    text: str
    place: str
    hub: bool = False
    config: str = ""
    split: str = ""
    revision: str = ""
    slice: str = ""
    part: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    set: Mapping[str, str] = field(default_factory=dict)
    unanswerable: str = ""
    shots: int = 0
    shots_split: str = ""
    shots_file: str = ""
    preset: str = ""

    @property
    def title(self) -> str:
        """How messages call the data: the id, or the name of the file."""
        return self.place if self.hub else Path(self.place).name

    @property
    def has_splits(self) -> bool:
        """Whether the rows are read by the `datasets` library: from the Hub or a folder."""
        return self.hub or os.path.isdir(self.place)

    def bounds(self, rows: int) -> range:
        """The rows that `slice` chooses out of so many."""
        first, last = (_place(part, rows) for part in self._ends())
        return range(rows)[first:last]

    def share(self, rows: list[int]) -> list[int]:
        """The rows that `part` chooses out of these."""
        if not self.part:
            return rows
        number, parts = map(int, self.part.split("/"))
        return rows[number - 1 :: parts]

    @property
    def enough(self) -> int | None:
        """How many rows are enough to read from the start; None where only the end tells."""
        first, last = self._ends()
        return int(last) if last and last.isdecimal() and _first(first) else None

    def _ends(self) -> tuple[str | None, str | None]:
        match = _RANGE.fullmatch(self.slice.strip("[]") or ":")
        assert match is not None  # `parse` refuses any other slice
        return match[1], match[2]


@cache
def presets() -> Mapping[str, Preset]:
    """The public data sets that are known by name, `public/...`."""
    entries = yaml.safe_load((PRESETS / "datasets.yaml").read_text(encoding="utf-8"))
    return {
        PUBLIC + name: build(Preset, entry, f"datasets.yaml: {name}")
        for name, entry in entries["public"].items()
    }


def parse(text: str, shipped: Mapping[str, Path]) -> Spec:
    """Take the name of a prompt set apart.

    Args:
        text: `NAME?key=value&...`, NAME being a shipped set, `public/...`, a path or `hf:ID`.
        shipped: names of the sets that come with the studio, and their files.

    Raises:
        UserError: an unknown name or key, a missing file, a value that cannot be.
    """
    text = text.strip()
    name, query = (text, "") if os.path.exists(_path(text)) else text.partition("?")[::2]
    spec = _override(_named(name.strip(), text, shipped), _pairs(query, text))
    _check(spec)
    return spec


def _named(name: str, text: str, shipped: Mapping[str, Path]) -> Spec:
    """What the name alone says."""
    if name in shipped:
        return Spec(text, str(shipped[name]))
    if name.startswith(PUBLIC):
        if name not in presets():
            raise unknown("public prompt set", name, presets())
        preset = presets()[name]
        same = ("config", "split", "columns", "set", "unanswerable", "shots", "shots_split")
        where = {column: (value,) for column, value in preset.where.items()}
        return Spec(
            text,
            preset.id,
            hub=True,
            where=where,
            preset=name,
            **{key: getattr(preset, key) for key in same},
        )
    if name.startswith(HUB):
        if not _ID.fullmatch(place := name.removeprefix(HUB)):
            raise UserError(f"{shown(place)} is not the id of a data set; write hf:owner/name.")
        return Spec(text, place, hub=True)
    return Spec(text, _file(name, [*shipped, *presets()]))


def _file(name: str, known: Iterable[str]) -> str:
    """The path of a prompt file or of a data set's folder."""
    path = _path(name)
    if os.path.splitext(path)[1].lower() in FORMATS or os.sep in path or os.path.exists(path):
        reach.check(path)
    is_format = Path(path).suffix.lower() in FORMATS
    if os.path.isdir(path) or (is_format and os.path.isfile(path)):
        return path
    if is_format:
        raise UserError(f"there is no prompt file {shown(name)}.")
    if os.path.isfile(path):
        raise UserError(
            f"cannot read prompts from {shown(name)}: a prompt file is JSON lines (.jsonl, one"
            f' object with a "prompt" on each line), or one of {", ".join(FORMATS[1:])}.'
        )
    error = unknown("prompt set", name, known)
    if "/" in name and _ID.fullmatch(name):
        error = UserError(f"{error} For a data set on the Hugging Face Hub write hf:{name}.")
    raise error


def _pairs(query: str, text: str) -> list[tuple[str, str]]:
    """Key and value of each part; a column's name stays as it is written, see `Spec.columns`.

    "+" joins columns and splits, and stands for itself in a path; in texts it is a space.
    """
    found = []
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(
                f"{shown(text)}: {shown(part)} is not key=value; write ?prompt=column, for example."
            )
        key = unquote(key)
        if key.startswith(("set.", "where.")) or key == "unanswerable":
            value = unquote_plus(value)
        elif key not in COLUMNS:
            value = unquote(value)
        found.append((key, value))
    return found


def _override(spec: Spec, pairs: list[tuple[str, str]]) -> Spec:
    """The spec with what the query says in place of what the preset says."""
    changes: dict[str, Any] = {}
    columns, fixed = dict(spec.columns), dict(spec.set)
    where: dict[str, tuple[str, ...]] = {}
    for key, value in pairs:
        kind, dot, rest = key.partition(".")
        if dot and kind == "where":
            where[rest] = (*where.get(rest, ()), value)
        elif dot and kind == "set":
            if rest not in COLUMNS or rest in ("answer", "choices", "answerable", "aliases"):
                raise unknown(
                    "key", key, [f"set.{name}" for name in ("system", "topic", "subject")]
                )
            fixed[rest] = value
        elif key in COLUMNS:
            columns[key] = value
        elif key == "shots":
            if not re.fullmatch(r"[0-9]{1,3}", value) or int(value) > 50:
                raise UserError(f"{shown(spec.text)}: shots is {shown(value)}; it must be 0 to 50.")
            changes[key] = int(value)
        elif key == "file":
            changes |= {"place": _file(value, ()), "hub": False}
        elif key in _PLAIN:
            changes[key] = value.strip()
        else:
            raise unknown("key", key, [*_KEYS, "where.COLUMN", "set.FIELD"])
    if spec.preset and changes.get("hub") is False and not os.path.isdir(changes["place"]):
        # A file is one split already; which part of it the preset takes still holds.
        part = spec.split.partition("[")[2].rstrip("]")
        changes = {"split": "", "config": "", "slice": part, **changes}
    return replace(spec, columns=columns, where={**spec.where, **where}, set=fixed, **changes)


def _check(spec: Spec) -> None:
    if not _RANGE.fullmatch(spec.slice.strip("[]") or ":"):
        raise UserError(
            f"{shown(spec.text)}: slice is {shown(spec.slice)}; write slice=:200, slice=100:200 or"
            " slice=10%:20%."
        )
    found = _PART.fullmatch(spec.part)
    if spec.part and (found is None or int(found[1]) > int(found[2])):
        raise UserError(
            f"{shown(spec.text)}: part is {shown(spec.part)}; write part=1/2 for every second"
            " prompt from the first one on, part=2/2 for the others."
        )
    if spec.slice and "[" in spec.split:
        raise UserError(f"{shown(spec.text)} slices twice, in split and in slice; one is enough.")
    if not all(_SPLIT.fullmatch(part.strip()) for part in spec.split.split("+")):
        raise UserError(
            f"{shown(spec.text)}: split is {shown(spec.split)}; write split=test[:200], or"
            " split=train+test."
        )
    if not spec.has_splits:
        for key in ("split", "config", "revision"):
            if getattr(spec, key):
                raise UserError(
                    f"{spec.title} is one file and has no {key}; for a part of it write slice=:200."
                )
    if spec.shots and not (spec.shots_file or (spec.has_splits and spec.shots_split)):
        raise UserError(
            f"{shown(spec.text)} takes {spec.shots} worked examples, which need a source: add"
            + (
                " shots_split=dev"
                if spec.has_splits
                else " shots_file=dev.jsonl (or .csv, .parquet)"
            )
            + ", or shots=0."
        )


def part_of(name: str) -> str:
    """Which part of a set a name says: `1/2`; empty for all of it."""
    found = re.search(r"[?&]part=([^&]*)", name)
    return found[1] if found else ""


def in_part(name: str, part: str) -> str:
    """The name of a part of a set, in place of the part that it says, if any."""
    bare = re.sub(r"([?&])part=[^&]*(&|$)", lambda m: m[1] if m[2] else "", name)
    return f"{bare}{'&' if '?' in bare else '?'}part={part}"


def _path(name: str) -> str:
    """A name as a path; os.path answers no for what cannot be one, where pathlib raises."""
    return name if "\0" in name else os.path.expanduser(name)


def _first(part: str | None) -> bool:
    return part is None or part.isdecimal()


def column(name: str) -> str:
    """A column's name as `Spec.columns` and the query have it."""
    for mark in "%+,":
        name = name.replace(mark, f"%{ord(mark):02X}")
    return name


def _place(part: str | None, rows: int) -> int | None:
    if part is None:
        return None
    return round(rows * int(part[:-1]) / 100) if part.endswith("%") else int(part)
