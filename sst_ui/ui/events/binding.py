"""Events with typed handlers: what a handler reads is declared once, beside its components.

Gradio sends the values of an event as one flat list. `call` takes a handler and what it reads, and
returns the arguments of Gradio's listener: a function that makes the handler's arguments from the
list, the list of components, and a validator that says what is wrong at which component.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sst_ui.ui.services.errors import guarded
from sst_ui.ui.services.roles import asks, sender

# Of the screen's own events. Progress is shown on no component: else the page writes every output's
# state again, and those of all earlier events, whenever the server says a word of how it goes.
PRIVATE: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "show_progress_on": [],
}
# How many events of a kind Gradio calls at a time. What takes long waits in `services.job_queue`,
# which tells everybody their place; Gradio's own line would hold it up before it can say anything.
MANY = 64
SPECIAL = (gr.Request, gr.EventData, gr.OAuthToken | None)  # Gradio fills these in by annotation


@dataclass(frozen=True)
class Reads:
    """Components that are read together, and what is made of their values, in that order."""

    components: Sequence[Any]
    make: Callable[..., Any]


def together(components: Sequence[Any]) -> Reads:
    """Components whose values are handed on as one tuple."""
    return Reads(components, lambda *values: values)


def call(
    handler: Callable[..., Any],
    *reads: Any,
    check: Callable[..., Mapping[Any, str]] | None = None,
    may: str = "look",
) -> dict[str, Any]:
    """The arguments `fn`, `inputs` and `validator` of a listener that calls a handler.

    Gradio gives every function a queue of its own, unless told otherwise: listeners that are given
    one result of `call` wait for each other.

    An error of the handler ends in a message in the visitor's language, and the components that it
    would have written keep what they show.

    Args:
        handler: takes a value for each of `reads`, and by name whatever has one of the annotations
            `SPECIAL`; a function or a generator, or `functools.partial` of one with the components
            and the engine that it works on.
        reads: single components, whose values are handed on, and `Reads`. The first component of
            all is the language. One that stands in several is sent once.
        check: takes the same values and returns what is wrong: component -> message.
        may: what it does, in the words of `services.roles.MAY`; asked before anything else.
    """
    parts = [each if isinstance(each, Reads) else Reads([each], _same) for each in reads]
    inputs = list(dict.fromkeys(c for part in parts for c in part.components))
    parameters = inspect.signature(handler).parameters.values()
    special = {p.name: p.annotation for p in parameters if p.annotation in SPECIAL}
    asked = len(special)

    def made(values: Sequence[Any]) -> list[Any]:
        sent = dict(zip(inputs, values, strict=True))
        return [part.make(*(sent[c] for c in part.components)) for part in parts]

    def arguments(language: Any, values: Sequence[Any]) -> functools.partial:
        named = dict(zip(special, values[:asked], strict=True))
        return functools.partial(handler, *made([language, *values[asked:]]), **named)

    if inspect.isgeneratorfunction(handler):

        def event(language: Any, *values: Any) -> Any:
            yield from _lasting(arguments(language, values)())
    else:

        def event(language: Any, *values: Any) -> Any:
            return _something(arguments(language, values)())

    def sound(*values: Any) -> list[Any]:
        wrong = check(*made(values)) if check else {}
        return [gr.validate(c not in wrong, wrong.get(c, "")) for c in inputs]

    _name(event, handler, special)
    return {
        "fn": guarded(asks(may, sender)(event)),
        "inputs": inputs,
        "validator": sound if check else None,
    }


def _lasting(steps: Iterator[Any]) -> Iterator[Any]:
    """The steps of a generator, each with what the ones before it said of what is to be seen.

    Gradio sends the difference between two steps, and its page takes it out of the very object that
    it may not have drawn yet: of two steps in a moment, a button that the first one shows and the
    second one does not name is never shown.
    """
    said: dict[Any, Any] = {}
    for step in steps:
        if not isinstance(step, dict) or "__type__" in step:
            yield step
            continue
        for component, update in step.items():
            if (
                isinstance(update, dict)
                and update.get("__type__") == "update"
                and "value" not in update
            ):
                said[component] = update
            else:
                said.pop(component, None)
        yield _something({**said, **step})


def _something(update: Any) -> Any:
    """A handler's update; one that writes to no component, which Gradio takes for too few values,
    leaves all of them."""
    return gr.skip() if isinstance(update, dict) and not update else update


def _same(value: Any) -> Any:
    return value


def _name(event: Any, handler: Callable, special: Mapping[str, Any]) -> None:
    """Let the event be called as its handler is, and let Gradio see what it has to fill in."""
    functools.update_wrapper(event, inspect.unwrap(_plain(handler)))
    del event.__wrapped__  # its signature is the event's own
    kind = inspect.Parameter
    event.__signature__ = inspect.Signature(
        [
            kind("language", kind.POSITIONAL_OR_KEYWORD),
            *(kind(n, kind.POSITIONAL_OR_KEYWORD, annotation=a) for n, a in special.items()),
            kind("values", kind.VAR_POSITIONAL),
        ]
    )
    event.__annotations__ = dict(special)


def _plain(handler: Callable) -> Callable:
    return handler.func if isinstance(handler, functools.partial) else handler
