"""How the small files of two models differ: configuration, generation settings, tokenizer, chat
template. Field by field, in values that fit a line."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sst_ui.errors import shown
from sst_ui.model.load.source import LARGEST

FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
TEMPLATE, KEY = "chat_template.jinja", "chat_template"
# What every program that saves a model writes anew, and what says nothing of it.
PASSING = ("_name_or_path", "transformers_version", "_commit_hash")
DEEPEST = 3  # levels of a settings file that get a line per field
ABSENT = "–"


@dataclass(frozen=True)
class Difference:
    """One field of one file.

    Attributes:
        base, other: as Python writes them, cut to a line; `ABSENT` where there is none.
    """

    file: str
    field: str
    base: str
    other: str


def differences(base: Path, other: Path, shared: bool = False) -> list[Difference]:
    """Compare the settings in two folders.

    Args:
        shared: only files that lie in both, as of an adapter, which has no configuration.
    """
    found: list[Difference] = []
    for name in FILES:
        there = [(folder / name).is_file() for folder in (base, other)]
        if not any(there) or (shared and not all(there)):
            continue
        if not all(there):
            words = [_size(folder / name) if is_there else ABSENT
                     for folder, is_there in zip((base, other), there, strict=True)]  # fmt: skip
            found.append(Difference(name, "", *words))
        elif _digest(base / name) != _digest(other / name):
            found += _fields(name, base / name, other / name)
    one, two = _template(base), _template(other)
    if one != two and not (shared and two is None):
        found.append(Difference("chat template", *_first_difference(one, two)))
    return found


def _fields(name: str, base: Path, other: Path) -> Iterator[Difference]:
    one, two = _read(base), _read(other)
    if one is None or two is None:
        yield Difference(name, "", _size(base), _size(other))
        return
    if name == "tokenizer.json":
        one, two = _tokenizer(one), _tokenizer(two)
    flat, other_flat = dict(_flat(one)), dict(_flat(two))
    for key in dict.fromkeys((*flat, *other_flat)):
        values = [shown(side[key]) if key in side else ABSENT for side in (flat, other_flat)]
        passing = key in PASSING or key == KEY  # the template has a line of its own
        if not passing and flat.get(key, ABSENT) != other_flat.get(key, ABSENT):
            yield Difference(name, key, *values)


def _flat(data: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(field, value), fields of nested objects joined by dots."""
    if not isinstance(data, Mapping) or depth >= DEEPEST or not data:
        yield prefix, data
        return
    for key, value in data.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key)[:80], depth + 1)


def _tokenizer(data: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json in a few fields: sizes, and digests of what is long."""
    model = data.get("model")
    model = model if isinstance(model, Mapping) else {}
    told: dict[str, Any] = {"model.type": model.get("type")}
    for key in ("vocab", "merges"):
        value = model.get(key)
        if value is not None:
            told[f"model.{key}"] = f"{len(value):,} entries, {_of(value)}"
    added = data.get("added_tokens")
    told["added_tokens"] = f"{len(added or ()):,} entries, {_of(added)}"
    for key, value in data.items():
        if key not in ("model", "added_tokens"):
            length = len(json.dumps(value))
            told[key] = value if length < 80 else f"{length:,} characters, {_of(value)}"
    return told


def _of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _template(folder: Path) -> str | None:
    """The chat template: a file of its own, else in the tokenizer's settings."""
    if (path := folder / TEMPLATE).is_file():
        return path.read_bytes()[:LARGEST].decode("utf-8", "replace")
    settings = _read(folder / "tokenizer_config.json")
    found = settings.get(KEY) if isinstance(settings, Mapping) else None
    return found if found is None or isinstance(found, str) else json.dumps(found)


def _first_difference(base: str | None, other: str | None) -> tuple[str, str, str]:
    """(where, the base's line, the other's) of two templates."""
    if base is None or other is None:
        words = [ABSENT if text is None else f"{len(text):,} characters" for text in (base, other)]
        return "", words[0], words[1]
    lines, others = base.splitlines(), other.splitlines()
    pairs = zip(lines, others, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(lines), len(others)))
    words = [shown(text[same].strip()) if same < len(text) else ABSENT for text in (lines, others)]
    return f"line {same + 1}", words[0], words[1]


def _read(path: Path) -> Any:
    """A JSON file, or None for one that is none."""
    try:
        if path.suffix != ".json" or path.stat().st_size > LARGEST:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"
