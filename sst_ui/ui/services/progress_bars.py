"""The bars of running jobs, which the page asks for by itself.

Whatever a handler yields costs Gradio's page a look at many of its components, a tenth of a second
on a slow machine. So a handler yields a place for its bar once, with a name that nobody can guess,
and `assets/studio.js` fills it as long as it is on the page: twice a second, one request for all.
"""

import time
from collections.abc import Callable
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sst_ui.errors import UserError
from sst_ui.lru import Memory
from sst_ui.progress import Progress
from sst_ui.ui.services import leaving
from sst_ui.ui.widgets.html import Clock

ROUTE = "/progress-bars"
PACE = 0.5  # seconds between two states of a bar; studio.js asks as often
MOST = 16  # bars of one request
_latest: Memory[str] = Memory(1024)  # name of a bar -> its HTML


class Stopped(UserError):
    """Nobody waits for the job any more: the visitor asked it to stop, or has left."""


class Bar:
    """The bar of one job.

    Args:
        limit: seconds after which the job ends in any case, or None.
        left: whether whoever waits for the job has left; that of the event unless given.
    """

    def __init__(
        self, language: str, limit: float | None = None, left: Callable[[], bool] | None = None
    ) -> None:
        self._language, self._clock = language, Clock(limit)
        self._name, self._begun, self._shown = uuid4().hex, False, 0.0
        self._left = left or leaving.watch()

    def place(self, progress: Progress) -> str | None:
        """Take a step of the job in; what to put on the page, the first time.

        Raises:
            Stopped: whoever waits for the job has left.
        """
        now = time.monotonic()
        if self._begun and now - self._shown < PACE:
            return None
        self._shown = now
        if self._left():
            raise Stopped("left")
        bar = self._clock.bar(self._language, progress)
        _latest.put(self._name, bar)
        if self._begun:
            return None
        self._begun = True
        return self.html

    @property
    def html(self) -> str:
        """What to put on a page that comes later; '' before the first step."""
        bar = _latest.get(self._name)
        return "" if bar is None else f'<div data-progress="{self._name}">{bar}</div>'


class ProgressBars:
    """ASGI middleware that answers the page's question how far its jobs are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer it, or let another request through."""
        if scope["type"] != "http" or not scope["path"].endswith(ROUTE):
            return await self._app(scope, receive, send)
        names = Request(scope).query_params.get("of", "").split(",")[:MOST]
        found = {name: _latest.get(name) for name in names}
        known = {name: bar for name, bar in found.items() if bar is not None}
        await JSONResponse(known, headers={"cache-control": "no-store"})(scope, receive, send)
