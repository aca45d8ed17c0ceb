"""Builds frozen dataclasses from plain data, checked against their type hints."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from numbers import Real
from typing import Any, Literal

from sst_ui.errors import UserError, shown, unknown

LARGEST = 2**53  # whole numbers beyond it are not exact in JSON, nor in a browser


def build(kind: type, data: Any, where: str) -> Any:
    """Fill a dataclass of this file from a mapping, checked by its type hints.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range; `where` names the place.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where} is {_said(data)}; it must be a mapping of settings.")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    values = {}
    for key, item in data.items():
        if not isinstance(key, str) or key not in known:
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
        if all(map(is_dataclass, args)):  # whichever it looks like
            kind = max(args, key=lambda each: _shared(each, value))
            return build(kind, value, where)
        if value is None and type(None) in args:
            return None
        return _convert(args[0], value, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise unknown(where, value, args)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} is {_said(value)}; it must be a list.")
        return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {_said(value)}; it must be a mapping.")
        found: dict[Any, Any] = {}
        for key, item in value.items():
            name = _convert(args[0], key, f"a key of {where}")
            if name in found:  # 2 and "2" are two keys of YAML and one layer
                raise UserError(f"{where} has {shown(name)} twice; keep one of them.")
            found[name] = _convert(args[1], item, f"{where}.{_key(name)}")
        return found
    return _scalar(hint, value, where)


def _shared(kind: type, value: Any) -> int:
    if not isinstance(value, Mapping):
        return 0
    return sum(f.name in value for f in fields(kind))


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return _text(value, where)
    if hint in (int, float) and isinstance(value, Real | str) and not isinstance(value, bool):
        return _number(hint, value, where)
    raise _wrong(hint, value, where)


def _text(value: str, where: str) -> str:
    """Text that can be stored, hashed and given to the system as the name of a file."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where} is {shown(value)}, with half of a character (a lone surrogate)."
        ) from None
    if "\0" in value:
        raise UserError(f"{where} is {shown(value)}, with a zero character; leave it out.")
    return value


def _number(hint: type, value: Any, where: str) -> Any:
    try:
        size = float(value)
        number = hint(value)
    except OverflowError:
        size, number = math.inf, value
    except (TypeError, ValueError):
        raise _wrong(hint, value, where) from None
    if math.isnan(size):
        raise UserError(f"{where} is {shown(value)}; it must be a number.")
    if math.isinf(size) or (hint is int and abs(size) > LARGEST):
        raise UserError(f"{where} is {shown(value)}; so large a number cannot be used.")
    if float(number) != size:
        raise _wrong(hint, value, where)
    return number


def _wrong(hint: type, value: Any, where: str) -> UserError:
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    return UserError(f"{where} is {_said(value)}; it must be {names[hint]}.")


def _said(value: Any) -> str:
    return "empty" if value is None else shown(value)


def _key(name: object) -> str:
    """A key as a part of a place's name."""
    text = name if isinstance(name, str) else str(name)
    return text if len(text) <= 40 and text.isprintable() else shown(name)
