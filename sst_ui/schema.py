"""What a setting is, described once: the page, the command line, every check and the reference
(docs/recipe.md) ask here.

Type, range, default and slider stand at the setting's field (recipe.py, options.py), as pydantic's
`Field` and `Slider`; unit and help in two languages stand under the same name in
presets/settings.yaml:

    >>> row = setting("directions.k")
    >>> row.range, row.default, row.help()
    ('1 to 16', 1, 'directions per layer; the first is the difference of the means')
"""

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
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
Made = TypeVar("Made")
KINDS = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
# pydantic's complaints about a key, about a container, about the size of a number.
STRANGERS = ("unexpected_keyword_argument", "invalid_key")
CONTAINERS = {
    "dataclass_type": "a mapping of settings",
    "dict_type": "a mapping",
    "tuple_type": "a list",
}
SIZES = (
    "greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number",
    "int_parsing_size",
)  # fmt: skip
_PARTS: dict[str, type] = {}


@dataclass(frozen=True)
class Slider:
    """How a setting is dialled on the page: its step, and ends where they are not the range's."""

    step: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Dial(Slider):
    """A slider with both of its ends."""

    low: float
    high: float


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

    def hold(self, number: float) -> bool:
        """Whether a number is within them."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= number <= high and (self.above is None or number > self.above)

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
    def slider(self) -> Dial:
        """Its slider, every end filled in.

        Raises:
            LookupError: it has none.
        """
        limits = self.limits
        if limits.slider is None:
            raise LookupError(f"{self.name} has no slider")
        low, high = limits.slider.low, limits.slider.high
        low = limits.low if low is None else low
        high = limits.high if high is None else high
        if low is None or high is None:
            raise LookupError(f"{self.name} has a slider without an end")
        return Dial(limits.slider.step, low, high)

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
            raise _refusal(error, _Place(where or self.name, self.hint, self)) from None

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.hint)


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
    found = {}
    for field in fields(kind):
        if _holds_parts(_hints(kind)[field.name]):
            continue
        required = field.default is MISSING and field.default_factory is MISSING
        default = None if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        name = f"{kind._described}.{field.name}"
        found[field.name] = Setting(name, _hints(kind)[field.name], default, required)
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


def build(kind: type[Made], data: Any, where: str) -> Made:
    """Fill a `Checked` dataclass, and those that are parts of it, from plain data.

    Args:
        where: what messages call the data. A recipe's own keys are named without it.

    Raises:
        UserError: an unknown or a missing key, a wrong type or a value out of range; says where,
            and what is allowed there.
    """
    made: Any = kind
    try:
        return _adapter(made).validate_python(data)
    except ValidationError as error:
        raise _refusal(error, _Place(where, made)) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@dataclass(frozen=True)
class _Place:
    """A place in plain data: what messages call it, the type that it has, and whose value it is."""

    name: str
    hint: Any
    row: Setting | None = None

    def at(self, parts: Sequence[int | str]) -> "_Place":
        """The place within it that pydantic names by keys, numbers and kinds of part."""
        if not parts:
            return self
        (part, *rest), hint = parts, _bare(self.hint)
        if is_dataclass(hint):
            kind: Any = hint
            row = settings(kind).get(str(part)) if hasattr(kind, "_described") else None
            name = f"{self.name}.{part}".removeprefix("recipe.")
            return _Place(name, _hints(kind)[str(part)], row).at(rest)
        if _is(hint, tuple):
            return _Place(f"{self.name}[{part}]", _inside(hint)).at(rest)
        if not _is(hint, Mapping):
            return _Place(self.name, _PARTS[str(part)]).at(rest)
        if rest == ["[key]"]:
            return _Place(f"a key of {self.name}", _inside(hint, key=True))
        key = str(part) if len(str(part)) <= 40 and str(part).isprintable() else shown(part)
        return _Place(f"{self.name}.{key}", _inside(hint)).at(rest)

    @property
    def range(self) -> str:
        """The allowed numbers in words."""
        return self.row.range if self.row else _limits(self.hint).range


def _refusal(error: ValidationError, start: _Place) -> UserError:
    """pydantic's first complaint in our words. An unknown key comes before all others: it may be
    the missing one, misspelt."""
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] in STRANGERS), found[0])
    kind, loc, value = first["type"], first["loc"], first["input"]
    if kind in (*STRANGERS, "missing"):
        owner = start.at(loc[:-1])
        if kind in STRANGERS:
            key = value if kind == "invalid_key" else loc[-1]
            return unknown(f"key in {owner.name}", key, _hints(_bare(owner.hint)))
        lacks = [e["loc"][-1] for e in found if (e["type"], e["loc"][:-1]) == (kind, loc[:-1])]
        return UserError(f"{owner.name} lacks {', '.join(map(str, lacks))}.")
    place = start.at(loc)
    if kind == "string_unicode" and is_dataclass(
        _bare(place.hint)
    ):  # a key with half of a character
        return unknown(f"key in {place.name}", value, _hints(_bare(place.hint)))
    if kind == "value_error":
        reason = first["ctx"]["error"]
        return reason if isinstance(reason, UserError) else UserError(f"{place.name} {reason}.")
    said = f"{place.name} is {'empty' if value is None else shown(value)}"
    if kind in CONTAINERS:
        return UserError(f"{said}; it must be {CONTAINERS[kind]}.")
    limits = _limits(place.hint)
    if limits.choices:
        return unknown(place.name, value, limits.choices)
    return UserError(f"{said}; {_allowed(kind, value, limits, place.range)}.")


def _allowed(kind: str, value: Any, limits: Limits, words: str) -> str:
    """What may stand in place of a single value that pydantic refused."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind not in SIZES and not (number and kind == "float_type"):  # the latter: of 400 digits
        return f"it must be {KINDS[limits.kind]}"
    if limits.high is None and kind in ("int_parsing_size", "float_type"):
        return "so large a number cannot be used"
    finite = "a finite number" if limits.high is None and kind == "finite_number" else ""
    example = f", for example {limits.examples[0]:g}" if limits.examples else ""
    return f"it must be {', '.join(filter(None, (finite, words)))}{example}"


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


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
        elif origin in (types.UnionType, typing.Union):
            hint = next(each for each in args if each is not types.NoneType)
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


def _bare(hint: Any) -> Any:
    """A type without None and without what is annotated."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        args = tuple(each for each in args if each is not types.NoneType)
        return _bare(args[0]) if len(args) == 1 else hint
    return _bare(args[0]) if typing.get_origin(hint) is Annotated else hint


def _inside(hint: Any, key: bool = False) -> Any:
    """What a list or a mapping holds; a mapping's keys with `key`."""
    args = typing.get_args(_bare(hint))
    return args[0 if key or _is(hint, tuple) else 1]


def _is(hint: Any, container: type) -> bool:
    """Whether a type, or `X | None`, is such a container."""
    return typing.get_origin(_bare(hint)) is container


def _holds_parts(hint: Any) -> bool:
    return (isinstance(hint, type) and is_dataclass(hint)) or any(
        map(_holds_parts, typing.get_args(hint))
    )


def _figure(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
