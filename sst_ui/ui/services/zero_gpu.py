"""ZeroGPU: on such a Space a GPU is lent for one call at a time, and to a fork of this process.

The package `spaces` forks, sends the arguments there and each step back, pickled. The fork has what
this process had when it forked; whatever it changes is lost, a generator's return value too, and of
an error only the kind comes back. So a method marked with `on_gpu` is called there by name on the
engine that the fork inherited, and sends home its steps, its result or its error, what callbacks
were told, and what the engine's memories learned. The model stays on the CPU here; each fork takes
its copy to the GPU.

A visitor's state, and whether a job was told to stop, are kept and asked here, between two steps;
closing the generator ends the fork's work at its next step. Elsewhere the mark has no effect.
"""

import functools
import inspect
import os
import pickle
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.lru import Memory
from sst_ui.progress import finish
from sst_ui.ui.services.roles import Actor, Role, become

Method = TypeVar("Method", bound=Callable[..., Any])
Lender = Callable[..., Any]  # spaces.GPU

# class name -> who has marked methods; a fork finds them here
_owners: "WeakValueDictionary[str, Any]" = WeakValueDictionary()
_lent: Callable[[bytes, float], Generator[bytes, None, None]] | None = None
_there = False  # whether this is such a fork
_home = threading.local()  # `own` is set where work stays in this process


@dataclass(frozen=True)
class _Call:
    """What is to be done there; `known` are the names that the memories here hold."""

    owner: str
    method: str
    args: tuple[Any, ...]
    more: Mapping[str, Any]
    known: Mapping[tuple[str, str], frozenset[Any]]


@dataclass(frozen=True)
class _Callback:
    """Stands for a function among the arguments, which cannot be sent."""

    name: int | str


def lend(gpu: Lender | None) -> None:
    """From now on marked methods run where this decorator takes them; None for here."""
    global _lent
    _lent = None if gpu is None else gpu(duration=lambda packed, seconds: seconds)(_steps)


def lent() -> bool:
    """Whether this program has a GPU only while a call is lent one."""
    return _lent is not None


def serve(owner: Any) -> None:
    """Marked methods of this class are those of this object; `owner.LEARNT` names its memories."""
    _owners[type(owner).__name__] = owner


@contextmanager
def at_home() -> Iterator[None]:
    """What this thread does meanwhile stays in this process, on the CPU."""
    _home.own = True
    try:
        yield
    finally:
        _home.own = False


def on_gpu(seconds: float) -> Callable[[Method], Method]:
    """Mark a method that needs the GPU, for so long at most.

    Where one is lent, its arguments must be data, or functions that return nothing.
    """

    def mark(method: Method) -> Method:
        steps = inspect.isgeneratorfunction(method)

        @functools.wraps(method)
        def call(self: Any, *args: Any, **more: Any) -> Any:
            if _lent is None or _there or getattr(_home, "own", False):
                return method(self, *args, **more)
            job = _away(self, method.__name__, seconds, args, more)
            return job if steps else finish(job)

        return cast(Method, call)

    return mark


def _away(
    owner: Any, method: str, seconds: float, args: tuple[Any, ...], more: dict[str, Any]
) -> Generator[Any, None, Any]:
    """Drive a method in a fork; its steps, and its result."""
    assert _lent is not None  # asked by who calls this
    asked: dict[int | str, Any] = dict(enumerate(args))
    asked.update(more)
    sent = {name: _Callback(name) if callable(v) else v for name, v in asked.items()}
    known = {place: frozenset(name for name, _ in m.items()) for place, m in _memories()}
    call = _Call(
        type(owner).__name__, method, tuple(sent[n] for n in range(len(args))),
        {name: sent[name] for name in more}, known,
    )  # fmt: skip
    result, ended = None, False
    try:
        with closing(_lent(pickle.dumps(call), seconds)) as packets:
            for packed in packets:
                kind, what = pickle.loads(packed)
                if kind == "step":
                    yield what
                elif kind == "said":
                    name, words = what
                    asked[name](*words)
                elif kind == "error":
                    raise what
                else:
                    (result, learnt), ended = what, True
                    _learn(learnt)
    except gr.Error as error:  # of `spaces`: no GPU is free, or the visitor's quota is used up
        raise UserError(str(error.message)) from error
    if not ended:
        raise UserError("the GPU was taken away before the work was done; try again.")
    return result


def _steps(packed: bytes, seconds: float) -> Iterator[bytes]:
    """A call, in the fork: every step that it sends home."""
    global _there
    _there = True
    become(Actor(Role.OWNER))  # who may do this was asked at home
    try:
        yield from _done(pickle.loads(packed))
    except Exception as error:
        yield _wrong(error)


def _done(call: _Call) -> Iterator[bytes]:
    for each in _owners.values():
        each.arrive()
    said: list[tuple[int | str, tuple[Any, ...]]] = []

    def given(value: Any) -> Any:
        if not isinstance(value, _Callback):
            return value
        return lambda *words: said.append((value.name, words))

    owner = _owners[call.owner]
    args, more = map(given, call.args), {name: given(v) for name, v in call.more.items()}
    found = getattr(owner, call.method)(*args, **more)
    if isinstance(found, Generator):
        result: list[Any] = []
        with closing(_ending(found, result)) as steps:
            for step in steps:
                yield from _told(said)
                yield pickle.dumps(("step", step))
        (found,) = result
    yield from _told(said)
    learnt = {
        place: {name: value for name, value in m.items() if name not in call.known[place]}
        for place, m in _memories()
    }
    yield pickle.dumps(("end", (found, learnt)))


def _ending(job: Generator[Any, Any, Any], result: list[Any]) -> Generator[Any, Any, None]:
    """The steps of a job, and then its result in a list."""
    result.append((yield from job))


def _told(said: list[tuple[int | str, tuple[Any, ...]]]) -> Iterator[bytes]:
    """What callbacks were told since, in order."""
    while said:
        yield pickle.dumps(("said", said.pop(0)))


def _wrong(error: Exception) -> bytes:
    """An error as it can be sent: as it is, with where it happened, or as its words."""
    if not isinstance(error, UserError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        packed = pickle.dumps(("error", error))
        pickle.loads(packed)
    except Exception:
        kind = UserError if isinstance(error, UserError) else RuntimeError
        packed = pickle.dumps(("error", kind(f"{error}")))
    return packed


def _memories() -> list[tuple[tuple[str, str], Memory[Any]]]:
    """Every memory whose content may be sent, by owner and name."""
    return [
        ((who, name), getattr(owner, name))
        for who, owner in _owners.items()
        for name in owner.LEARNT
    ]


def _learn(learnt: Mapping[tuple[str, str], Mapping[Any, Any]]) -> None:
    """Keep what a fork's memories learned."""
    memories = dict(_memories())
    for place, values in learnt.items():
        for name, value in values.items():
            memories[place].put(name, value)


if os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true") and find_spec("spaces"):
    import spaces

    spaces.disable_gradio_auto_wrap()  # of whole handlers, which do not need a GPU
    lend(spaces.GPU)
