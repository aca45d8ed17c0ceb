"""What Gradio's page must know before its own scripts begin, in the first line of its head.

Gradio asks the browser for the language once, before it reads anything that `launch` can hand it:
what was chosen by the switch must be there by then. And it counts the seconds of whatever is
loading at every frame, those of its own start for as long as the page is open; a frame in which
nothing is seen to change costs a browser as much as any other, so they are counted four times a
second here. And the page's own scripts must know what its controls are, in the visitor's language.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sst_ui.ui.widgets import definitions
from sst_ui.ui.widgets.texts import chosen, spoken

HEAD = b"<head>"
COUNTERS = r"""<script>
{ // names of its own, which no other script can run into
  const frame = window.requestAnimationFrame.bind(window);
  const counter = /performance\.now\(\)\s*-[^]*\/\s*1e3/;
  window.requestAnimationFrame = (callback) =>
    counter.test(callback) ? setTimeout(() => frame(callback), 250) : frame(callback);
}
</script>"""
LANGUAGE = """<script>
  Object.defineProperty(navigator, "language", { get: () => "%s" });
  Object.defineProperty(navigator, "languages", { get: () => ["%s"] });
</script>"""
DEFINITIONS = '<script id="definitions" type="application/json">%s</script>'


class PageHead:
    """ASGI middleware that writes it into every page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        language, page = chosen(headers), False
        script = COUNTERS + (LANGUAGE % (language, language) if language else "")

        async def told(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                answered = MutableHeaders(raw=message["headers"])
                page = answered.get("content-type", "").startswith("text/html")
                if page and "content-length" in answered:
                    del answered["content-length"]
            elif page and HEAD in message.get("body", b""):
                first = script + DEFINITIONS % definitions.head(spoken(headers))
                message["body"] = message["body"].replace(HEAD, HEAD + first.encode(), 1)
                page = False
            await send(message)

        await self._app(scope, receive, told)
