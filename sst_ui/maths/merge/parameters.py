"""The rows of a registry of methods: a function, its facts, and controls read from its signature.

A parameter is annotated with a `Dial` (a number with a range) or with `Words` (a choice among
literals):

    def sst(module: Module, mu: Annotated[float, Dial(0, 1e6, 0.1, "price of utility")] = 10.0): ...
"""

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sst_ui.errors import UserError, shown, unknown

NEEDS = {
    "moments": (("safety", "utility"), "the Fisher moments of both tasks; run the Fisher pass"),
    "unaligned": (
        ("unaligned", "percentile"),
        "the weights of an unaligned checkpoint beside the base",
    ),
    "losses": (("stakes",), "the losses of both adapters on held-out prompts"),
}


@dataclass(frozen=True)
class Dial:
    """A number: its range, the step of its control, and what it is."""

    low: float
    high: float
    step: float
    what: str
    log: bool = False


@dataclass(frozen=True)
class Words:
    """A choice among the literals of the annotated type, and what it is."""

    what: str


@dataclass(frozen=True)
class Parameter:
    """One control of a method.

    Attributes:
        kind: `int`, `float` or `choice`.
        low, high, step, log: of a number.
        choices: of a choice.
    """

    name: str
    kind: str
    default: Any
    what: str
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """The value, as the method takes it.

        Raises:
            UserError: not one of the choices, not a number, not whole, or out of range.
        """
        if self.kind == "choice":
            if value not in self.choices:
                raise unknown(self.name, value, self.choices)
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not self.low <= value <= self.high:
            raise UserError(
                f"{self.name} is {shown(value)}; it must be a number from {self.low:g} to "
                f"{self.high:g}."
            )
        if self.kind == "int" and value != int(value):
            raise UserError(f"{self.name} is {value}; it must be a whole number.")
        return int(value) if self.kind == "int" else float(value)


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    Attributes:
        what: the first line of the function's docstring.
        paper: where it comes from.
        needs: what a module must bring beside its core, names of `NEEDS`.
        parameters: read from the function's signature.
        run: (module, **parameters) -> change.
    """

    name: str
    title: str
    what: str
    paper: str
    needs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    run: Callable[..., Any]

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, defaults filled in.

        Raises:
            UserError: a name that the method does not have, or a value it cannot take.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                raise unknown(f"parameter of {self.name}", name, known)
        return {name: row.check(given.get(name, row.default)) for name, row in known.items()}

    def require(self, module: Any) -> None:
        """Raises UserError if the module lacks something that the method needs."""
        for need in self.needs:
            fields, words = NEEDS[need]
            if any(getattr(module, field) is None for field in fields):
                raise UserError(f"method {self.name} needs {words}; {module.name} has none.")


def described(
    run: Callable[..., Any], name: str, title: str, paper: str, needs: tuple[str, ...]
) -> Method:
    """A function (module, **parameters) as a row of the registry."""
    what = inspect.cleandoc(run.__doc__ or "").split("\n")[0]
    return Method(name, title, what, paper, needs, _parameters(run), run)


def _parameters(run: Callable) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(run, include_extras=True)
    rows = []
    for name, parameter in list(inspect.signature(run).parameters.items())[1:]:
        base, about = typing.get_args(hints[name])
        default = parameter.default
        if isinstance(about, Words):
            choices = typing.get_args(base)
            rows.append(Parameter(name, "choice", default, about.what, choices=choices))
        else:
            span = (about.low, about.high, about.step, about.log)
            rows.append(Parameter(name, base.__name__, default, about.what, *span))
    return tuple(rows)
