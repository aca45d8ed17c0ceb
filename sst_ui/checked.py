"""Types for the fields of dataclasses that `schema.build` fills from a file, a link or a browser.

pydantic checks them; each type here refuses what pydantic would let pass and we do not want. A
number may be written as text, as YAML reads 1e-5, but true and false are not numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from sst_ui.errors import shown

LARGEST = 2**53  # whole numbers beyond it are not exact in JSON, nor in a browser
Key = TypeVar("Key")
Item = TypeVar("Item")


class Checked:
    """A dataclass for `build`: an unknown key is an error, an empty one keeps its default."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        own = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # of a subclass
        return {key: item for key, item in data.items() if item is not None or key not in own}


def _number(value: Any) -> Any:
    try:
        if isinstance(value, str):
            return _read(value)
    except ValueError:
        raise PydanticKnownError("float_type") from None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise PydanticKnownError("float_type")
    return value


def _read(text: str) -> float:
    """A number as Python reads it, in the digits of any script."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _exact(number: int) -> int:
    if abs(number) > LARGEST:
        raise PydanticKnownError("int_parsing_size")
    return number


def _storable(text: str) -> str:
    """Text that can be stored, hashed and given to the system as the name of a file."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"is {shown(text)}, with half of a character (a lone surrogate)") from None
    if "\0" in text:
        raise ValueError(f"is {shown(text)}, with a zero character; leave it out")
    return text


def _listed(value: Any) -> Any:
    if not isinstance(value, list | tuple):  # a set has no order
        raise PydanticKnownError("tuple_type")
    return value


def _once(value: Any, read: Callable[[Any], dict[Any, Any]]) -> dict[Any, Any]:
    """Refuse 2 beside "2": two keys of YAML and one layer, of which the last would win."""
    found = read(value)
    if len(found) < len(value):
        names = [next(iter(read({key: item}))) for key, item in value.items()]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has {shown(twice)} twice; keep one of them")
    return found


Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), AfterValidator(_storable)]
Whole = Annotated[int, BeforeValidator(_number), AfterValidator(_exact)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Several = Annotated[tuple[Item, ...], BeforeValidator(_listed)]
Table = Annotated[Mapping[Key, Item], WrapValidator(_once)]
