"""What the server refuses before the page sees it: other routes, large bodies, and files by a path of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cmidiff.app.web.page import Page

API = "/gradio_api"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
READ = ("/assets/", "/static/", *(f"{API}/{name}" for name in ("heartbeat/", "file=", "queue/data", "upload_progress")))
READ += (f"{API}/startup-events", f"{API}/theme.css", f"{API}/info")
JOIN = f"{API}/queue/join"
WRITE = tuple(f"{API}/{name}" for name in ("queue/join", "cancel", "reset", "upload"))
MESSAGE_BYTES = 2**20  # of a request that carries no file
ENVELOPE = 2**16  # bytes that a form adds to its file
POLICY = (  # forbids the browser to ask any other host
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'self'"
)


class Refused(Exception):
    """A request that is answered with a code and a line, and goes no further."""


class Guard:
    """A layer before the application.

    Args:
        app: the application.
        page: its events and limits.
        cache: the folder of uploads and of results that may be fetched.
    """

    def __init__(self, app: ASGIApp, page: Page, cache: Path) -> None:
        self.app, self.page, self.limits, self.cache = app, page, page.limits, cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                receive = await self._check(scope, receive)
            except Refused as refused:
                code, text = refused.args
                await PlainTextResponse(text, code, {"connection": "close"})(scope, receive, send)
                return
            await self.app(scope, receive, _add_policy(send))

    async def _check(self, scope: Scope, receive: Receive) -> Receive:
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        if method in ("GET", "HEAD"):
            self._check_read(path)
            return receive
        if method != "POST" or path.rstrip("/") not in WRITE:
            raise Refused(404, "There is nothing here.")
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise Refused(411, "Say how long it is: Content-Length is missing.")
        form = headers.get("content-type", "").startswith("multipart/form-data")
        if int(length) > (self.limits.file_bytes + ENVELOPE if form else MESSAGE_BYTES):
            raise Refused(413, f"This is too large: at most {self.limits.file_bytes / 2**20:.0f} MB can be taken.")
        return receive if form else await self._check_message(path, scope, receive)

    def _check_read(self, path: str) -> None:
        if path not in PAGES and not path.startswith(READ):
            raise Refused(404, "There is nothing here.")
        _, found, name = path.partition(f"{API}/file=")
        if found and not self._inside(name):
            raise Refused(403, "This is no file of this server.")

    async def _check_message(self, path: str, scope: Scope, receive: Receive) -> Receive:
        """Read a JSON body as a whole, check it, and return what gives it again."""
        try:
            body = await Request(scope, receive).body()
            content = json.loads(body or b"{}")
            paths = list(_find_paths(content))
        except (ValueError, RecursionError, ClientDisconnect):
            raise Refused(400, "The body must be JSON.") from None
        if not all(self._inside(path) for path in paths):
            raise Refused(403, "Files are given by uploading them, not by a path.")
        if path.startswith(JOIN) and (wrong := self._find_fault(content)):
            raise Refused(400, wrong)
        rest = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again() -> Message:
            return next(rest, None) or await receive()

        return again

    def _find_fault(self, content: Any) -> str:
        """Return what is wrong with the values of an event, before Gradio reads them."""
        index, data = (content.get(key) for key in ("fn_index", "data")) if isinstance(content, dict) else (None, None)
        event = self.page.blocks.fns.get(index) if type(index) is int else None
        if event is None:
            return f"fn_index must be the number of an event of the page, received {str(index)[:40]}."
        if not isinstance(data, list) or len(data) != len(event.inputs):
            found = f"{len(data)} values" if isinstance(data, list) else str(data)[:40]
            return f"data must be a list of {len(event.inputs)} values, received {found}."
        for block, value in zip(event.inputs, data, strict=True):
            model = getattr(block, "data_model", None)
            try:
                _ = None if model is None or value is None else model.model_validate(value)
            except ValueError:
                return f"{block.elem_id} must be an uploaded file, received {str(value)[:40]}."
        return ""

    def _inside(self, path: str) -> bool:
        try:
            return Path(path).resolve().is_relative_to(self.cache)
        except (OSError, ValueError):
            return False


def _find_paths(value: Any) -> Iterator[str]:
    """Every path of a file in a message."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from _find_paths(inner)


def _add_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"], headers["x-content-type-options"] = POLICY, "nosniff"
        await send(message)

    return sending
