"""What a setting is, described once: the page, the command line, every check and the reference
(docs/recipe.md) ask here.

Type, range, default and slider stand at the setting's field (recipe.py, options.py), as pydantic's
`Field` and `Slider`; unit and help in two languages stand under the same name in
presets/settings.yaml:

    >>> row = setting("directions.k")
    >>> row.range, row.default, row.help()
    ('1 to 16', 1, 'directions per layer; the first is the difference of the means')
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, cached_property
from numbers import Real
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sst_ui.errors import UserError, shown, unknown
from sst_ui.paths import PRESETS

Part = TypeVar("Part", bound=type)
KINDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
_PARTS: dict[str, type] = {}


@dataclass(frozen=True)
class Slider:
    """How a setting is dialled on the page: its step, and ends where they are not the range's."""

    step: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Limits:
    """The type of a single value and what it may be.

    Attributes:
        kind: bool, str, int or float.
        low, high: the smallest and the largest number, or None.
        above: the number that must be exceeded, or None; said in place of `low`.
        choices: the allowed words, or () for any.
        examples: for the message.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    examples: tuple[Any, ...] = ()
    slider: Slider | None = None

    @property
    def range(self) -> str:
        """In words: `0 to 1`, `1 or more`, `above 0 (up to 1e+06)`; empty for no limit."""
        high = "" if self.high is None else _figure(self.high)
        if self.above is not None:
            return f"above {_figure(self.above)}" + (f" (up to {high})" if high else "")
        if self.low is None:
            return f"at most {high}" if high else ""
        return f"{_figure(self.low)} to {high}" if high else f"{_figure(self.low)} or more"


@dataclass(frozen=True)
class Setting:
    """One setting: its place in a recipe, its annotated type and its default (None where it must
    be given)."""

    name: str
    hint: Any
    default: Any
    required: bool

    @cached_property
    def limits(self) -> Limits:
        """Of its values; of a list or mapping, those of an item."""
        return _limits(self.hint)

    @property
    def several(self) -> bool:
        """Whether it is a list or a mapping of values."""
        return _is(self.hint, tuple) or _is(self.hint, Mapping)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it may be; () for anything but a choice."""
        return self.limits.choices

    @property
    def range(self) -> str:
        """The allowed numbers in words, with the unit; empty for what is not limited."""
        words = self.limits.range
        return f"{words} {self.unit}".rstrip() if words else ""

    @property
    def slider(self) -> Slider:
        """Its slider, every end filled in.

        Raises:
            LookupError: it has none.
        """
        limits = self.limits
        if limits.slider is None:
            raise LookupError(f"{self.name} has no slider")
        low, high = limits.slider.low, limits.slider.high
        low = limits.low if low is None else low
        return Slider(limits.slider.step, low, limits.high if high is None else high)

    @property
    def unit(self) -> str:
        """Such as `nats/token`; empty for a plain number."""
        return _words()[self.name].get("unit", "")

    def help(self, language: str = "en") -> str:
        """What it is, in a short sentence without a full stop."""
        return _words()[self.name][language]

    def check(self, value: Any, where: str = "") -> None:
        """Hold a value to the type and the range.

        Args:
            where: what the message calls the setting, if not by its name.

        Raises:
            UserError: it is of another type or out of range; says which are allowed.
        """
        try:
            self._adapter.validate_python(value)
        except ValidationError as error:
            raise self._refusal(error.errors(include_url=False)[0], where or self.name) from None

    @cached_property
    def _adapter(self) -> TypeAdapter:
        return TypeAdapter(self.hint)

    def _refusal(self, error: Mapping[str, Any], where: str) -> UserError:
        """pydantic's first complaint in our words."""
        hint, outer, value = self.hint, self.hint, error["input"]
        for part in error["loc"]:
            if part == "[key]":
                where, hint = f"a key of {where.rpartition('.')[0]}", _inside(outer, key=True)
                break
            where += f"[{part}]" if _is(hint, tuple) else f".{part}"
            hint, outer = _inside(hint), hint
        limits = _limits(hint)
        if limits.choices:
            return unknown(where, value, limits.choices)
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or (limits.kind is int and error["type"] == "int_from_float"):
            return UserError(f"{where} is {shown(value)}; it must be {KINDS[limits.kind]}.")
        allowed = (self.range if hint is self.hint else limits.range) or "a finite number"
        example = f", for example {limits.examples[0]:g}" if limits.examples else ""
        return UserError(f"{where} is {shown(value)}; it must be {allowed}{example}.")


def described(name: str) -> Callable[[Part], Part]:
    """Make a dataclass a part of the vocabulary: its fields are the settings `name.field`."""

    def add(kind: Part) -> Part:
        part: Any = kind
        part._described = name  # its subclasses inherit the name
        _PARTS[name] = part
        return kind

    return add


@cache
def settings(kind: Any) -> Mapping[str, Setting]:
    """The settings of a described dataclass by field; parts of their own are not among them."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in fields(kind):
        if _holds_parts(hints[field.name]):
            continue
        required = field.default is MISSING and field.default_factory is MISSING
        default = None if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        name = f"{kind._described}.{field.name}"
        found[field.name] = Setting(name, hints[field.name], default, required)
    return found


def setting(name: str) -> Setting:
    """A setting by its name, such as `weights.peak`.

    Raises:
        LookupError: no part or no setting of that name.
    """
    part, _, field = name.partition(".")
    return settings(_PARTS[part])[field]


def parts() -> Mapping[str, type]:
    """The described dataclasses by name."""
    return dict(_PARTS)


def check(part: Any) -> None:
    """Hold a described dataclass's numbers and choices to what is said of them.

    Raises:
        UserError: as `Setting.check`.
    """
    kind: Any = type(part)
    for field, row in settings(kind).items():
        if row.limits.range or row.limits.choices or row.limits.kind is float:
            row.check(getattr(part, field))


@cache
def _words() -> Mapping[str, Mapping[str, str]]:
    return yaml.safe_load((PRESETS / "settings.yaml").read_text(encoding="utf-8"))


def _limits(hint: Any) -> Limits:
    """Of a type, `X | None`, a list or mapping of it, with pydantic's `Field`s beside it."""
    found: dict[str, Any] = {}
    while True:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            for note in args[1:]:
                found |= _notes(note)
            hint = args[0]
        elif origin is Literal:
            return Limits(str, choices=args, **found)
        elif origin is None:
            return Limits(hint, **found)
        else:
            hint = _inside(hint)


def _notes(note: Any) -> dict[str, Any]:
    if isinstance(note, Slider):
        return {"slider": note}
    if not isinstance(note, FieldInfo):
        return {}
    found: dict[str, Any] = {"examples": tuple(note.examples)} if note.examples else {}
    names = {"ge": "low", "le": "high", "gt": "above"}
    for limit in note.metadata:
        found |= {ours: getattr(limit, n) for n, ours in names.items() if hasattr(limit, n)}
    return found


def _inside(hint: Any, key: bool = False) -> Any:
    """What a union with None, a list or a mapping holds; its keys' type with `key`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(each for each in args if each is not types.NoneType)
        return _inside(inner, key) if key else inner
    if origin is tuple:
        return args[0]
    return args[0 if key else 1]


def _is(hint: Any, container: type) -> bool:
    """Whether a type, or `X | None`, is such a container."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_is(each, container) for each in args)
    return origin is container


def _holds_parts(hint: Any) -> bool:
    return (isinstance(hint, type) and is_dataclass(hint)) or any(
        map(_holds_parts, typing.get_args(hint))
    )


def _figure(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
