"""The process behind the page: its address, its own temporary folder, and what it refuses before the page sees it.

Everything that is written is under one temporary folder, which goes with the process: what browsers send and fetch in
``cache``, a folder of each visitor in ``work``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmidiff.app.errors import BadInput
from cmidiff.app.web.inputs import Limits

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cmidiff.app.web.page import Page

API = "/gradio_api"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
READ = ("/assets/", "/static/", *(f"{API}/{name}" for name in ("heartbeat/", "file=", "queue/data", "upload_progress")))
READ += (f"{API}/startup-events", f"{API}/theme.css", f"{API}/info")
JOIN = f"{API}/queue/join"
WRITE = tuple(f"{API}/{name}" for name in ("queue/join", "cancel", "reset", "upload"))
QUEUE = 200  # events that may wait, runs not counted
MESSAGE_BYTES = 2**20  # of a request that carries no file
ENVELOPE = 2**16  # bytes that a form adds to its file
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'self'"
)


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder in which everything that this process writes goes, and which goes with it."""
    names = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_EXAMPLES_CACHE", "TMPDIR")
    before, directory = {name: os.environ.get(name) for name in names}, tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="cmidiff-", ignore_cleanup_errors=True) as name:
        root = Path(name).resolve()
        folders = {part: root / part for part in ("cache", "examples", "work")}
        for folder in folders.values():
            folder.mkdir()
        values = (str(folders["cache"]), "False", str(folders["examples"]), str(root))
        os.environ.update(zip(names, values, strict=True))
        tempfile.tempdir = str(root)
        try:
            yield root
        finally:
            tempfile.tempdir = directory
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


class Guard:
    """Refuses what the page never sends: other routes, large bodies, and files by a path that is no upload's."""

    def __init__(self, app: ASGIApp, page: Page, cache: Path) -> None:
        self.app, self.page, self.limits, self.cache = app, page, page.limits, cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refused, receive = await self._judge(scope, receive)
        if refused is None:
            await self.app(scope, receive, _with_policy(send))
        else:
            await _answer(send, *refused)

    async def _judge(self, scope: Scope, receive: Receive) -> tuple[tuple[int, str] | None, Receive]:
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD"):
            return self._reading(path), receive
        if method != "POST" or path.rstrip("/") not in WRITE:
            return (404, "There is nothing here."), receive
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            return (411, "Say how long it is: Content-Length is missing."), receive
        form = headers.get("content-type", "").startswith("multipart/form-data")
        if int(length) > (self.limits.file_bytes + ENVELOPE if form else MESSAGE_BYTES):
            return (413, f"This is too large: at most {self.limits.file_bytes / 2**20:.0f} MB can be taken."), receive
        return (None, receive) if form else await self._message(path, receive)

    def _reading(self, path: str) -> tuple[int, str] | None:
        if path not in PAGES and not path.startswith(READ):
            return 404, "There is nothing here."
        _, found, name = path.partition(f"{API}/file=")
        return (403, "This is no file of this server.") if found and not self._inside(name) else None

    async def _message(self, path: str, receive: Receive) -> tuple[tuple[int, str] | None, Receive]:
        """Read a JSON body as a whole, judge it, and pass it on as it was."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False) and len(body) <= MESSAGE_BYTES
        try:
            content = json.loads(body or b"{}")
            paths = list(_paths(content))
        except (ValueError, RecursionError):
            return (400, "The body must be JSON."), receive
        if not all(self._inside(path) for path in paths):
            return (403, "Files are given by uploading them, not by a path."), receive
        if path.startswith(JOIN) and (wrong := self._wrong(content)):
            return (400, wrong), receive
        return None, _replay(body, receive)

    def _wrong(self, content: Any) -> str:
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


def _paths(value: Any) -> Iterator[str]:
    """Every path of a file in a message."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "path" and isinstance(inner, str):
                yield inner
            else:
                yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_policy(send: Send) -> Send:
    """Answers that forbid the browser to ask any other host."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
            message["headers"] = [*message["headers"], *own]
        await send(message)

    return sending


async def _answer(send: Send, code: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


@contextmanager
def serving(
    limits: Limits, *, prior: str = "natural-64", device: str = "cpu", host: str = "127.0.0.1", port: int = 7860
) -> Iterator[tuple[str, Path]]:
    """The page at its address, until the block ends.

    Args:
        port: 0 for any that is free.

    Yields:
        the address, and the folder in which all is written.

    Raises:
        BadInput: Gradio is not installed, the prior cannot be loaded, the address cannot be had.
    """
    port = _free_port(host, port)
    with own_folder() as root:
        page, guard = _page(limits, prior, device, root)
        _launch(page.blocks, guard, limits, host, port)
        try:
            yield f"http://{'localhost' if host in ('127.0.0.1', 'localhost') else host}:{port}", root
        finally:
            page.close()


def _page(limits: Limits, prior: str, device: str, root: Path) -> tuple[Page, Any]:
    try:
        from starlette.middleware import Middleware

        from cmidiff.app.web.page import Page
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "starlette"):
            raise
        raise BadInput("the page needs Gradio: pip install 'cmidiff[app]'") from error
    from cmidiff import load_prior

    try:
        network = load_prior(prior, device=device)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    page = Page(limits, network, prior, device, root / "work")
    guard = Middleware(Guard, page=page, cache=root / "cache")  # pyright: ignore[reportArgumentType]
    return page, guard


def _launch(blocks: Blocks, guard: Any, limits: Limits, host: str, port: int) -> None:
    from cmidiff.app.web.look import CSS, theme

    blocks.queue(max_size=QUEUE, default_concurrency_limit=4, api_open=False)
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        num_workers=0,
        max_file_size=limits.file_bytes,
        app_kwargs={"middleware": [guard]},
        theme=theme(),
        css=CSS,
    )


def _free_port(host: str, port: int) -> int:
    """The port, if it can be had; any for 0."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot listen on {host}, port {port} ({reason}): give another --port or --host") from error


def serve(limits: Limits, *, prior: str, device: str, host: str, port: int, open_browser: bool) -> None:
    """Serve until interrupted."""
    over = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: over.set())
    try:
        with serving(limits, prior=prior, device=device, host=host, port=port) as (address, _):
            print(f"{address}  (stop with Ctrl-C)", flush=True)
            if open_browser and _has_screen():
                webbrowser.open(address)
            over.wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _has_screen() -> bool:
    """Whether a browser would have a window: in a terminal alone it would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
