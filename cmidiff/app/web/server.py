"""The process behind the page: its address and its own temporary folder.

Everything that is written is under one temporary folder, which is removed with the process. It holds what browsers send
and fetch in ``cache``, a folder of each visitor in ``work``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cmidiff.app.web.controls import Limits
from cmidiff.loading import Loading

QUEUE = 200  # events that may wait, runs not counted


@contextmanager
def own_folder() -> Iterator[Path]:
    """Give a temporary folder in which everything that this process writes goes, and which goes with it."""
    before, directory = dict(os.environ), tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="cmidiff-", ignore_cleanup_errors=True) as name:
        root = Path(name).resolve()
        for part in ("cache", "examples", "work"):
            (root / part).mkdir()
        os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_EXAMPLES_CACHE"] = str(root / "cache"), str(root / "examples")
        os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["TMPDIR"] = "False", str(root)
        tempfile.tempdir = str(root)
        try:
            yield root
        finally:
            tempfile.tempdir = directory
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def serving(
    limits: Limits,
    *,
    priors: Sequence[str] = (),
    device: str = "cpu",
    host: str = "127.0.0.1",
    port: int = 7860,
    loading: Loading | None = None,
) -> Iterator[tuple[str, Path]]:
    """Serve the page until the block ends, and yield its address and the folder in which all is written.

    Args:
        port: 0 for any that is free.
        priors: names of priors, loaded at once; without any, ``photo``, and all on this machine are offered.
    """
    port = _find_port(host, port)
    with own_folder() as root:
        try:
            from starlette.middleware import Middleware

            from cmidiff.app.web.guard import Guard
            from cmidiff.app.web.look import CSS, theme
            from cmidiff.app.web.page import Page
            from cmidiff.app.web.priors import Priors
        except ModuleNotFoundError as error:
            if error.name not in ("gradio", "starlette"):
                raise
            raise ValueError("the page needs Gradio: pip install 'cmidiff[app]'") from error
        page = Page(limits, Priors(priors, device, loading), root / "work")
        page.blocks.queue(max_size=QUEUE, default_concurrency_limit=4, api_open=False)
        page.blocks.launch(
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
            app_kwargs={"middleware": [Middleware(Guard, page=page, cache=root / "cache")]},  # pyright: ignore[reportArgumentType]
            theme=theme(),
            css=CSS,
        )
        try:
            yield f"http://{'localhost' if host in ('127.0.0.1', 'localhost') else host}:{port}", root
        finally:
            page.close()


def _find_port(host: str, port: int) -> int:
    """The port, if it can be had; any for 0."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on {host}, port {port} ({reason}): give another --port or --host") from error


def serve(
    limits: Limits, *, priors: Sequence[str], device: str, host: str, port: int, open_browser: bool, loading: Loading
) -> None:
    """Serve until interrupted."""
    over = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: over.set())
    # Without a screen, a browser would take the terminal.
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    try:
        with serving(limits, priors=priors, device=device, host=host, port=port, loading=loading) as (address, _):
            print(f"{address}  (stop with Ctrl-C)", flush=True)
            if open_browser and screen:
                webbrowser.open(address)
            over.wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
