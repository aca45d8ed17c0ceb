"""Who may do what, and how much of it: two tables, asked by every event, endpoint and job.

On one's own machine whoever is at the page is its owner. Where others can come in (see
`run_store.shared`) nobody is: the owner decides when the program is started. A visitor who signed
in, with a password of the owner's, with a key or with a Hub account, is known by name.

An event runs as somebody (`acting`), and what it calls asks about them (`ask`, `asks`): also the
engine, so that a handler that forgets to ask opens nothing.
"""

import functools
import hmac
import inspect
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import gradio as gr
from gradio.context import LocalContext

from sst_ui.errors import UserError, shown
from sst_ui.recipe import ModelSpec
from sst_ui.ui.state.run_store import shared


class Role(StrEnum):
    """Who somebody is to the studio."""

    OWNER = "owner"
    SIGNED_IN = "signed-in visitor"
    VISITOR = "visitor"
    STRANGER = "caller without a key"


Work = TypeVar("Work", bound=Callable[..., Any])
Result = TypeVar("Result")

EVERYBODY = frozenset({Role.OWNER, Role.SIGNED_IN, Role.VISITOR})
KNOWN = frozenset({Role.OWNER, Role.SIGNED_IN})
OWNER = frozenset({Role.OWNER})

MAY: dict[str, frozenset[Role]] = {
    "look": EVERYBODY,  # settings, figures, one's own variants, results and runs
    "upload": EVERYBODY,
    "chat": EVERYBODY,
    "measure": EVERYBODY,  # directions, filters, rounds, merges, metrics
    "search": EVERYBODY,
    "export": EVERYBODY,
    "call": EVERYBODY,  # the endpoints; where there are keys a caller without one is a stranger
    "push": KNOWN,
    "change the model": OWNER,
    "name files of the machine": OWNER,  # see `sst_ui.reach`
    "keep runs in the program": OWNER,
}


@dataclass(frozen=True)
class Limits:
    """How much one of a role may ask for; None for as much as they like.

    Attributes:
        jobs: running or waiting at the same time.
        chats: answers that come at the same time.
        answer: tokens of one answer in the chat.
        job: tokens that one evaluation or search may have generated, as it is asked for.
        hour: tokens of all that in an hour.
        export: bytes of one export.
        uploads: bytes of all uploads in a day.
    """

    jobs: int | None = None
    chats: int | None = None
    answer: int | None = None
    job: int | None = None
    hour: int | None = None
    export: int | None = None
    uploads: int | None = None


LIMITS: Mapping[Role, Limits] = {
    Role.OWNER: Limits(),
    Role.SIGNED_IN: Limits(4, 8, 2048, 2_000_000, 4_000_000, 20 * 10**9, 500 * 10**6),
    Role.VISITOR: Limits(2, 3, 512, 500_000, 1_000_000, 2 * 10**9, 100 * 10**6),
    Role.STRANGER: Limits(0, 0, 0, 0, 0, 0, 0),
}


class Refused(UserError):
    """Somebody asked for what their role may not do."""


@dataclass(frozen=True)
class Actor:
    """Somebody at work.

    Attributes:
        name: a signed-in visitor's, else their window's; '' for the program itself.
    """

    role: Role
    name: str = ""

    @property
    def limits(self) -> Limits:
        """How much they may ask for."""
        return LIMITS[self.role]


_now: ContextVar[Actor | None] = ContextVar("actor", default=None)
_keys: tuple[str, ...] = ()
_models: tuple[str, ...] = ()  # that visitors may open too; HUB stands for all of the Hub
HUB = "hub"


def keys(given: tuple[str, ...]) -> None:
    """From now on the endpoints want one of these; none for no key."""
    global _keys
    _keys = given


def models(given: tuple[str, ...]) -> None:
    """From now on visitors may open these models too; none for none, `HUB` for any of the Hub."""
    global _models
    _models = given


def current() -> Actor:
    """Who is at work in this thread; without anybody the least that there may be."""
    return _now.get() or Actor(Role.VISITOR if shared() else Role.OWNER)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Run as somebody."""
    before = _now.set(actor)
    try:
        yield
    finally:
        _now.reset(before)


def become(actor: Actor) -> None:
    """Run as somebody from now on, in this thread: in a process made for one call."""
    _now.set(actor)


def sender(endpoint: bool = False) -> Actor:
    """Who sent what Gradio is calling us for; outside of that, who is at work.

    Args:
        endpoint: it is a program's call, not an event of the page.
    """
    request = LocalContext.request.get(None)
    return current() if request is None else of(request, endpoint)


def of(request: gr.Request, endpoint: bool = False) -> Actor:
    """Who sent a request, see `sender`."""
    window = getattr(request, "session_hash", None) or ""
    place = _key(request) if endpoint and _keys else None
    if endpoint and _keys and place is None:
        return Actor(Role.STRANGER)
    if not shared():
        return Actor(Role.OWNER, window)
    if place is not None:
        return Actor(Role.SIGNED_IN, f"key {place}")
    name = getattr(request, "username", None) or _hub_name(request)
    return Actor(Role.SIGNED_IN, name) if name else Actor(Role.VISITOR, window)


def _key(request: gr.Request) -> int | None:
    """Which key a request carries, counted from 1; None for none of ours."""
    said = dict(getattr(request, "headers", None) or {}).get("authorization", "")
    word = said.removeprefix("Bearer ").strip().encode()
    same = [n for n, key in enumerate(_keys, 1) if hmac.compare_digest(word, key.encode())]
    return same[0] if same else None


def _hub_name(request: gr.Request) -> str:
    """The Hub account that signed in on a Space; '' for none."""
    scope = getattr(getattr(request, "request", None), "scope", None) or {}
    signed = (scope.get("session") or {}).get("oauth_info") or {}
    if signed.get("expires_at", math.inf) <= time.time():
        return ""
    return str((signed.get("userinfo") or {}).get("preferred_username") or "")


def may(action: str) -> bool:
    """Whether who is at work may do that."""
    if action == "change the model" and _models:
        return current().role in EVERYBODY
    return current().role in MAY[action]


def ask(action: str) -> None:
    """Refuse what who is at work may not do.

    Raises:
        Refused: it is not theirs.
    """
    if may(action):
        return
    if current().role is Role.STRANGER:
        raise Refused("this studio wants a key: send it as the header 'Authorization: Bearer KEY'.")
    if action == "change the model":
        raise Refused(
            "this studio is shared, so its model is its owner's choice; run your own copy to open "
            "another one."
        )
    known = "sign in, or " if Role.SIGNED_IN in MAY[action] else ""
    raise Refused(
        f"this studio is shared, and a {current().role} may not {action}; {known}run your own copy."
    )


def ask_model(spec: ModelSpec) -> None:
    """Refuse a model that who is at work may not open.

    Raises:
        Refused: it is not theirs to choose, not one of those, or would run code of its own.
    """
    ask("change the model")
    if current().role is Role.OWNER:
        return
    if spec.trust_remote_code:
        raise Refused("a shared studio runs no code that comes with a model; switch that off.")
    if spec.id not in _models and HUB not in _models:
        names = ", ".join(shown(each).strip("'") for each in _models[:8])
        raise Refused(f"visitors of this studio may open {names}, and not {shown(spec.id)}.")


def asks(action: str, who: Callable[[], Actor] = current) -> Callable[[Work], Work]:
    """A function or generator that runs as somebody, who may do this, and else does nothing.

    Args:
        who: says as whom, when it is called.
    """
    assert action in MAY

    def wrapped(work: Any) -> Any:
        if inspect.isgeneratorfunction(work):

            @functools.wraps(work)
            def stepwise(*args: Any, **more: Any) -> Generator[Any, Any, Any]:
                actor = who()
                with acting(actor):
                    ask(action)
                return (yield from _acting(actor, work(*args, **more)))

            stepwise.asks = action  # type: ignore[attr-defined]
            return stepwise

        @functools.wraps(work)
        def call(*args: Any, **more: Any) -> Any:
            with acting(who()):
                ask(action)
                return work(*args, **more)

        call.asks = action  # type: ignore[attr-defined]
        return call

    return wrapped


def _acting(actor: Actor, steps: Generator[Any, Any, Result]) -> Generator[Any, Any, Result]:
    """A generator whose every step runs as somebody: Gradio takes each in a context of its own."""
    try:
        while True:
            with acting(actor):
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
            yield step
    finally:
        with acting(actor):
            steps.close()


def within(what: str, limit: int | None, wanted: float) -> None:
    """Refuse more than who is at work may ask for.

    Args:
        what: it is, in words: "tokens of an answer".

    Raises:
        Refused: it is more.
    """
    if limit is not None and wanted > limit:
        raise Refused(
            f"{wanted:,.0f} {what}: a {current().role} of this shared studio may ask for "
            f"{limit:,.0f}. Ask for less, or run your own copy."
        )
