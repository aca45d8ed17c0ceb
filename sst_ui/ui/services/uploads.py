"""A limit of uploads for each visitor, so that nobody's files push out those of the others.

Gradio saves an upload before any event of ours, and sends no window with it: it is counted here, in
front of the route. Who signed in is known by name; of the others nothing but their address is.
"""

import ipaddress
from typing import Any

import gradio as gr
from fastapi import Request
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sst_ui.ui.services import roles
from sst_ui.ui.services.allowance import Allowance, Spent
from sst_ui.ui.services.roles import Actor, Role

DAY = 86400.0  # seconds; then Gradio removes the files
RECORDING = "/process_recording"  # of Gradio's: hands a film to ffmpeg, for a button we do not show
NETWORK = 64  # bits of an IPv6 address that belong to one household


class Uploads:
    """ASGI middleware that refuses uploads beyond what their sender may have in a day.

    Every body of files counts, whatever route takes it: Gradio has three of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._allowance = Allowance(DAY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it in place of the route."""
        if scope["type"] != "http" or not _files(scope):
            return await self._app(scope, receive, send)
        request = Request(scope)
        actor = sender(request)
        limit = actor.limits.uploads
        if limit is None:
            return await self._app(scope, receive, send)
        if scope["path"].rstrip("/").endswith(RECORDING):
            return await PlainTextResponse("Not found.", 404)(scope, receive, send)
        size = request.headers.get("content-length", "")
        if not (size.isascii() and size.isdigit()):
            refusal = PlainTextResponse("An upload must say its size (Content-Length).", 411)
            return await refusal(scope, receive, send)
        name = f"{actor.role} {actor.name}"
        try:
            self._allowance.take(name, int(size), limit)
        except Spent as spent:
            return await PlainTextResponse(_why(actor, limit, spent), 429)(scope, receive, send)
        kept = False

        async def heard(message: Message) -> None:
            nonlocal kept
            kept = kept or message.get("status") == 200
            await send(message)

        try:
            await self._app(scope, receive, heard)
        finally:
            if not kept:  # too large, not signed in, broken off
                self._allowance.give_back(name, int(size))


def limited() -> dict[str, Any]:
    """What `Blocks.launch` needs for it, as `app_kwargs`."""
    return {"middleware": [Middleware(Uploads)]}


def sender(request: Request) -> Actor:
    """Who sends an upload; a visitor who did not sign in is named by where they send it from."""
    app = request.scope["app"]
    tokens = (f"access-token{sort}-{app.cookie_id}" for sort in ("", "-unsecure"))
    signed_in = (app.tokens.get(request.cookies.get(each)) for each in tokens)
    said = gr.Request(request, next(filter(None, signed_in), None), _place(request))
    known = roles.of(said, endpoint=True)
    return roles.of(said) if known.role is Role.STRANGER else known


def _place(request: Request) -> str:
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(ipaddress.ip_network((int(address), NETWORK), strict=False))


def _files(scope: Scope) -> bool:
    """Whether a request may carry files."""
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return scope["method"] == "POST" and b"multipart" in kind.lower()


def _why(actor: Actor, limit: int, spent: Spent) -> str:
    return (
        f"A {actor.role} of this shared studio may upload {limit // 10**6:,} MB in a day, and "
        f"{spent.used / 10**6:,.0f} are used. Upload less, or again in {spent.minutes} minutes."
    )
