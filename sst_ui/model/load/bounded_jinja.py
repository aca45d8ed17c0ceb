"""Jinja as chat templates get it: what an expression builds is counted before it is built.

One call into C cannot be interrupted: `'a' * 10**10`, `'x' | center(10**9)`, `9 ** 9**9`. Jinja
evaluates constant ones while it compiles, and the sandbox lets them all through. Here every
operator, filter and method that makes more of what it gets is weighed first (`step_limit.spend`),
and so is whatever is compared or looked up: of two nests of lists, each holding the one before
twice, a comparison sees every item of every item.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, operators
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sst_ui.model.load.step_limit import flood, spend

LARGEST = 100_000  # that a width or a count may be, as of the sandbox's `range`
BITS = 100_000  # of a whole number
PART = 100_000  # characters that are counted before they are spent
NODE = 16  # characters that an item of a list counts for
NUMBER, STAR = re.compile(r"\d+"), re.compile(r"%[^%a-zA-Z]*\*")
NESTED = re.compile(r"\{[^{}]*\{")  # a width that is an argument itself
# filters and methods of which a number says how much they build
WIDE = {
    "batch", "center", "expandtabs", "indent", "ljust", "lipsum", "rjust", "round", "slice",
    "to_bytes", "tojson", "wordwrap", "zfill",
}  # fmt: skip
COMPARING = {"dictsort", "groupby", "max", "min", "sort", "unique"}  # filters that compare items
# filters that do not write the items of what they get
SHALLOW = {
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last",
    "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select",
    "selectattr", "slice", "sort", "sum", "unique",
}  # fmt: skip


def install() -> None:
    """Let transformers compile chat templates in this environment from now on."""
    from transformers.utils import chat_template_utils

    chat_template_utils.ImmutableSandboxedEnvironment = Bounded


def size(value: Any) -> int:
    """Letters of a text, items of a list; 0 for anything without a length."""
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set) else 0


def weigh(*values: Any) -> None:
    """Count what it takes to write values, items within items included.

    Raises:
        UserError: it is too much.
    """
    rest, counted = list(values), 0
    while rest:
        value = rest.pop()
        counted += NODE
        if isinstance(value, str | bytes):
            counted += len(value)
        elif isinstance(value, dict):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            rest += value
        if counted > PART:  # a call for each item would take most of the time
            spend(counted)
            counted = 0
    spend(counted)


def _formatted(text: str, values: Iterable[Any]) -> None:
    """Weigh a text with places for values, each of which may be written at every place."""
    if STAR.search(text) or NESTED.search(text.replace("{{", "")):
        raise flood()
    if any(len(each) > 6 for each in NUMBER.findall(text)):
        raise flood()
    places = text.count("%") + text.count("{")
    longest = max(map(size, values := list(values)), default=0)
    spend(len(text) + sum(map(int, NUMBER.findall(text))) + places * longest)
    weigh(*values)


def _foresee(name: str, given: list[Any], more: Mapping[str, Any]) -> None:
    """Weigh what a filter or method will build of a value and its arguments.

    Args:
        given: the value, and the arguments by position; a stream of items becomes a list.
    """
    value, *rest = given or [""]
    rest += more.values()
    numbers = [abs(each) for each in rest if isinstance(each, int)]
    if name in WIDE:
        if max(numbers, default=0) > LARGEST:
            raise flood()
        lines = str(value).count("\n") + str(value).count("\t") + 1 if size(value) else 1
        spend(lines * (sum(numbers) + sum(map(size, rest))))
    text = value if isinstance(value, str | bytes) else ""
    if name == "replace" and len(rest) > 1 and isinstance(rest[0], type(text)):
        spend(len(text) + text.count(rest[0]) * size(rest[1]))  # type: ignore[arg-type]
    elif name == "join":
        items, glue = (0, rest[:1]) if not text or len(given) < 2 else (1, [text])
        if not isinstance(given[items], str | Mapping):
            given[items] = list(given[items])
        spend(size(given[items]) * max(map(size, glue), default=0))
        weigh(given[items])
    elif name == "format":
        _formatted(str(text), rest)
    elif name == "translate":
        tables = (each.values() for each in rest if isinstance(each, dict))
        spend(len(text) * max((size(v) for table in tables for v in table), default=1))
    elif name == "wordwrap":
        spend(len(text) * (1 + max(map(size, rest), default=0)))


class _Filters(dict[str, Callable[..., Any]]):
    """Filters, each of which weighs what it gets and gives."""

    def __setitem__(self, name: str, filter: Callable[..., Any]) -> None:
        skip = int(hasattr(filter, "jinja_pass_arg"))  # its first argument is Jinja's own

        @functools.wraps(filter)
        def bounded(*args: Any, **more: Any) -> Any:
            given = list(args[skip:])
            if given and not isinstance(given[0], str):
                if name in COMPARING:
                    given[0] = _held(given[0])
                if name in COMPARING or name not in SHALLOW:
                    weigh(given[0])
            _foresee(name, given, more)
            found = filter(*args[:skip], *given, **more)
            spend(size(found))
            return found

        super().__setitem__(name, bounded)


class _Tests(dict[str, Callable[..., Any]]):
    """Tests (`is eq`, `is in`), each of which weighs what it may compare."""

    def __setitem__(self, name: str, test: Callable[..., Any]) -> None:
        @functools.wraps(test)
        def bounded(*args: Any, **more: Any) -> Any:
            for value in args:
                weighed(value)
            return test(*args, **more)

        super().__setitem__(name, bounded)


def _held(values: Any) -> Any:
    """A stream of items as a list, so that they can be weighed and still be there."""
    return values if isinstance(values, Collection) else list(values)


def weighed(value: Any) -> Any:
    """A value that is about to be compared or looked up."""
    if isinstance(value, list | tuple | dict | set | frozenset):
        weigh(value)
    return value


class _Code(CodeGenerator):
    """Jinja's compiler, in which `~` and comparisons ask the environment like other operators."""

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(environment.weighed(")
        self.visit(node.expr, frame)
        self.write(")")
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:
        self.write(f" {operators[node.op]} environment.weighed(")
        self.visit(node.expr, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("{")
        for place, pair in enumerate(node.items):
            self.write(", " if place else "")
            self.write("environment.weighed(")
            self.visit(pair.key, frame)
            self.write("): ")
            self.visit(pair.value, frame)
        self.write("}")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Bounded(ImmutableSandboxedEnvironment):
    """The sandbox of chat templates, with an end to what they build."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "*", "**", "%"})  # these are not computed in advance

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        filters, self.filters = self.filters, _Filters()
        for name, filter in filters.items():
            self.filters[name] = filter
        tests: dict[str, Any] = _Tests()
        for name, test in self.tests.items():
            tests[name] = test
        self.tests = tests
        self.finalize = self.written

    weighed = staticmethod(weighed)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """What is looked up, where the key can be hashed soon."""
        return super().getitem(obj, weighed(argument))

    def written(self, value: Any) -> Any:
        """A value that is about to be printed."""
        if not isinstance(value, str):
            weigh(value)
        return value

    def joined(self, parts: Iterable[Any]) -> str:
        """What parts are as one text."""
        texts = []
        for part in parts:
            if isinstance(part, str):  # nearly always
                spend(NODE + len(part))
            else:
                weigh(part)
            texts.append(str(part))
        return "".join(texts)

    concat = joined  # of what a block, macro or template wrote

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own `format` of a text, where what it builds is not too much."""
        format = super().wrap_str_format(value)
        if format is None:
            return None

        @functools.wraps(format)
        def bounded(*args: Any, **more: Any) -> str:
            named = [each for given in args if isinstance(given, dict) for each in given.values()]
            _formatted(str(value.__self__), [*args, *named, *more.values()])
            return format(*args, **more)

        return bounded

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, where what it builds is not too much."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length(), right.bit_length()
            if operator == "**" and right > 0 and bits[0] * right > BITS:
                raise flood()
            if operator == "*" and sum(bits) > BITS:
                raise flood()
        elif operator == "*":
            spend(max(size(left), size(right)) * max(_count(left), _count(right)))
        elif operator == "+":
            spend(size(left) + size(right))
        elif operator == "%" and isinstance(left, str | bytes):
            named = right.values() if isinstance(right, dict) else ()
            _formatted(str(left), [*(right if isinstance(right, tuple) else [right]), *named])
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **more: Any) -> Any:
        """A call of a method or function, where what it builds is not too much."""
        name = "lipsum" if __obj is __self.globals.get("lipsum") else _name(__obj)
        owner = getattr(__obj, "__self__", None)
        given = [owner, *args] if isinstance(owner, str | bytes | int) else ["", *args]
        _foresee(name, given, more)
        if not isinstance(__obj, Macro) and not isinstance(owner, str | bytes | int):
            # a macro reads on in the template; these are in C and may compare or hash
            weigh(*given[1:], *more.values(), *([owner] if name in ("index", "count") else []))
        found = super().call(__context, __obj, *given[1:], **more)
        spend(size(found))
        return found


def _name(called: Any) -> str:
    return str(getattr(called, "__name__", ""))


def _count(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0
