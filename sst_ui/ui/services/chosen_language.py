"""The language that a visitor chose by the switch, for Gradio's page, which asks the browser alone.

It asks once, when its scripts begin, and before it reads anything that `launch` can hand it. So the
page itself says what was chosen, in its first line.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sst_ui.ui.widgets.texts import chosen

HEAD = b"<head>"
SCRIPT = """<script>
  Object.defineProperty(navigator, "language", { get: () => "%s" });
  Object.defineProperty(navigator, "languages", { get: () => ["%s"] });
</script>"""


class ChosenLanguage:
    """ASGI middleware that writes it into the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        language = chosen(Headers(scope=scope)) if scope["type"] == "http" else ""
        if not language:
            await self._app(scope, receive, send)
            return
        script, page = (SCRIPT % (language, language)).encode(), False

        async def told(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                page = headers.get("content-type", "").startswith("text/html")
                if page and "content-length" in headers:
                    del headers["content-length"]
            elif page and HEAD in message.get("body", b""):
                message["body"] = message["body"].replace(HEAD, HEAD + script, 1)
                page = False
            await send(message)

        await self._app(scope, receive, told)
