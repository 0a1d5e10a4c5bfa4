"""Fetching from a server on this machine that can break off, change its file, or lie."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cmidiff.prior import fetch as fetching
from cmidiff.prior.fetch import fetch

CONTENT = bytes(i * 7 % 251 for i in range(100_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does: ``cuts`` says after how many bytes each answer breaks off (None: never)."""

    content: bytes = CONTENT
    tag: str | None = '"first"'
    ranges: bool = True
    cuts: list[int | None] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    status: int = 200
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.asked.append(asked)
        if self.status != 200:
            handler.send_error(self.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start and handler.headers.get("If-Range", self.tag) != self.tag:
            start = 0
        if start > len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.tag is not None:
            handler.send_header("ETag", self.tag)
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        body = self.content[start:]
        handler.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "CHUNK", 10_000)
    plan = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            plan.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        plan.url = f"http://127.0.0.1:{httpd.server_address[1]}/weights.pt"
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield plan
        httpd.shutdown()
        thread.join()


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"weights.pt.lock"}


def test_a_file_arrives_whole_with_its_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(
        server.url,
        tmp_path / "new" / "weights.pt",
        size=len(CONTENT),
        sha256=SHA256,
        progress=lambda have, total: seen.append((have, total)),
    )
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [have for have, _ in seen] == sorted({have for have, _ in seen})
    assert leftovers(path.parent) == {"weights.pt"}
    fetch(server.url, path)
    assert len(server.asked) == 1, "what is here is not fetched again"


def test_a_cut_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cuts = [30_000, 50_000]
    path = fetch(server.url, tmp_path / "weights.pt", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=30000-", "bytes=80000-"]


def test_what_arrived_is_kept_for_the_next_attempt(server: Server, tmp_path: Path) -> None:
    server.cuts = [30_000, 0]
    with pytest.raises(
        FileNotFoundError, match=r"30,000 bytes have arrived and are kept.*put the file at .*weights\.pt"
    ):
        fetch(server.url, tmp_path / "weights.pt", sha256=SHA256)
    assert (tmp_path / "weights.pt.part").stat().st_size == 30_000
    assert not (tmp_path / "weights.pt").exists()
    fetch(server.url, tmp_path / "weights.pt", sha256=SHA256)
    assert (tmp_path / "weights.pt").read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=30000-"


@pytest.mark.parametrize("case", ["changed", "no ranges", "no validator", "shorter"])
def test_another_file_is_never_appended(server: Server, tmp_path: Path, case: str) -> None:
    server.cuts = [60_000, 0]
    if case == "no validator":
        server.tag = None
    with pytest.raises(FileNotFoundError, match="connection ended"):
        fetch(server.url, tmp_path / "weights.pt")
    other = CONTENT[::-1][: 40_000 if case == "shorter" else None]
    if case in ("changed", "no validator"):
        server.content, server.tag = other, '"second"'
    if case == "shorter":
        server.content = other
    server.ranges = case != "no ranges"
    fetch(server.url, tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == server.content


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"sha256": "0" * 64}, f"must have the sha256 0+, received {SHA256}"),
        ({"size": 5}, "must have 5 bytes, received"),
    ],
)
def test_the_wrong_file_is_discarded(server: Server, tmp_path: Path, facts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(server.url, tmp_path / "weights.pt", **facts)  # pyright: ignore[reportArgumentType]
    assert leftovers(tmp_path) == set()


def test_an_answer_other_than_the_file_is_said(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(FileNotFoundError, match="the server answers 404"):
        fetch(server.url, tmp_path / "weights.pt")


def test_no_room_is_said_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(ValueError, match=r"1,000 bytes free, and 100,000 are to come"):
        fetch(server.url, tmp_path / "weights.pt")


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/weights.pt"
    with pytest.raises(FileNotFoundError) as caught:
        fetch(url, tmp_path / "weights.pt")
    message = str(caught.value)
    assert url in message
    assert str(tmp_path / "weights.pt") in message
    assert "\n" not in message


def test_only_the_web_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(FileNotFoundError, match="only http and https"):
        fetch((tmp_path / "secret").as_uri(), tmp_path / "weights.pt")
