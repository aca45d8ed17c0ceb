"""Frozen dataclasses from plain data, checked by their own type hints.

Knows types. Does not know what is described: the vocabulary is recipe.py.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal

from sst_ui.errors import UserError, unknown


def build(kind: type, data: Any, where: str) -> Any:
    """Fill a dataclass of this file from a mapping, checked by its type hints.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range; `where` names the place.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where} must be a mapping of settings, not {type(data).__name__}.")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    values = {}
    for key, item in data.items():
        if key not in known:
            raise unknown(f"key in {where}", key, known)
        if item is None and known[key].default is not None:
            continue  # an empty key keeps its default
        values[key] = _convert(hints[key], item, f"{where}.{key}".removeprefix("recipe."))
    missing = [
        n
        for n, f in known.items()
        if n not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}.")
    return kind(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check and convert one value by its type hint; only the hints used above are understood."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if all(map(is_dataclass, args)) and isinstance(value, Mapping):  # whichever it looks like
            return build(max(args, key=lambda kind: _shared(kind, value)), value, where)
        return None if value is None else _convert(args[0], value, where)
    if is_dataclass(hint):
        return build(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise unknown(where, value, args)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} must be a list, not {value!r}.")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a mapping, not {value!r}.")
        return {
            _convert(args[0], k, f"key of {where}"): _convert(args[1], v, f"{where}.{k}")
            for k, v in value.items()
        }
    return _scalar(hint, value, where)


def _shared(kind: type, value: Mapping) -> int:
    return len({f.name for f in fields(kind)} & set(value))


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = hint(value)
            if float(number) == float(value):
                return number
        except (TypeError, ValueError):
            pass
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    raise UserError(f"{where} is {value!r}; it must be {names[hint]}.")
