"""A limit of uploads for each visitor, so that nobody's files push out those of the others.

Gradio saves an upload before any event of ours, and sends no window with it: it is counted here, in
front of the route. Who signed in is known by name; of the others nothing but their address is.
"""

import ipaddress
import logging
import os

import gradio as gr
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sst_ui import disk
from sst_ui.ui.services import roles
from sst_ui.ui.services.allowance import Allowance, Spent
from sst_ui.ui.services.roles import Actor, Role

DAY = 86400.0  # seconds; then Gradio removes the files
ROUTE = "/upload"  # the others hand a film to ffmpeg, or leave files where nobody looks
FULL = "Try again later, or tell whoever runs this studio."
log = logging.getLogger(__name__)
NETWORK = 64  # bits of an IPv6 address that belong to one household


class Uploads:
    """ASGI middleware that refuses uploads beyond what their sender may have in a day.

    Gradio has three routes that take files; this page needs one, and the others are closed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._allowance = Allowance(DAY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it in place of the route."""
        if scope["type"] != "http" or not _files(scope):
            return await self._app(scope, receive, send)
        if (refusal := self._refusal(Request(scope))) is not None:
            return await refusal(scope, receive, send)
        try:
            await self._app(scope, receive, send)
        except OSError as error:  # Gradio would say that something went wrong
            if (code := disk.refusal(error)) is None:
                raise
            log.warning("an upload could not be saved: %s", error)
            why = f"The upload could not be saved: {os.strerror(code)}. {FULL}"
            await PlainTextResponse(why, 507)(scope, receive, send)

    def _refusal(self, request: Request) -> PlainTextResponse | None:
        """What to answer in place of the route; None where the upload may go on.

        What is let through counts, even if it is too large or breaks off: what was read of it lies
        on the disk.
        """
        actor = sender(request)
        limit = actor.limits.uploads
        if limit is None:
            return None
        if not request.url.path.rstrip("/").endswith(ROUTE):
            return PlainTextResponse("Not found.", 404)
        size = request.headers.get("content-length", "")
        if not (size.isascii() and size.isdigit()):
            return PlainTextResponse("An upload must say its size (Content-Length).", 411)
        try:
            self._allowance.take(f"{actor.role} {actor.name}", int(size), limit)
        except Spent as spent:
            return PlainTextResponse(_why(actor, limit, spent), 429)
        return None


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
