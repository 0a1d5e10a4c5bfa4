"""Fetching one large file: with progress, going on where it stopped, and checked.

What has arrived is in ``FILE.part`` until it is whole. A second attempt asks the server for the rest alone, and
for the file it began with: the server's validator (ETag) is stored beside it.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

Progress = Callable[[int, int | None], None]
CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30.0  # seconds without a byte


class _Incomplete(Exception):
    """The connection ended before the file did."""


def fetch(
    url: str, path: Path, *, size: int | None = None, sha256: str | None = None, progress: Progress | None = None
) -> Path:
    """Fetch ``url`` to ``path``; the file appears there only when it is whole and right.

    Args:
        size, sha256: bytes and hash that it must have, if known.
        progress: called with the bytes that are here and their final number (None if the server does not say).
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not path.is_file():  # another process may have been first
                _fetch_part(url, part, path, size, progress)
                _check(part, url, size, sha256)
                part.replace(path)
                _validator(part).unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def _fetch_part(url: str, part: Path, path: Path, size: int | None, progress: Progress | None) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise _unreachable(url, path, f"only http and https are fetched, not {urlsplit(url).scheme}")
    for attempt in range(ATTEMPTS):
        before = _length(part)
        try:
            return _request(url, part, size, progress)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise _unreachable(url, path, f"the server answers {error.code} {error.reason}") from error
            part.unlink(missing_ok=True)  # what is here is longer than the file
        except (_Incomplete, http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
            # A connection that brings something each time is worth another try.
            if _length(part) <= before or attempt == ATTEMPTS - 1:
                reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())
                raise _unreachable(url, path, reason, _length(part)) from error
    raise _unreachable(url, path, "the server sends no such part of it")


def _unreachable(url: str, path: Path, reason: str, arrived: int = 0) -> FileNotFoundError:
    kept = f" ({arrived:,} bytes have arrived and are kept)" if arrived else ""
    return FileNotFoundError(
        f"{path.name} is not on this machine and could not be fetched from {url}: {reason}{kept}; try again, or fetch "
        f"it elsewhere (curl -L -o {path.name} {url}) and put the file at {path}"
    )


def _request(url: str, part: Path, size: int | None, progress: Progress | None) -> None:
    """Ask for what is missing, and write what comes."""
    start, validator = _length(part), _validator(part)
    if start == size:
        return
    headers = {"User-Agent": "cmidiff", "Accept-Encoding": "identity"}
    if start and (size is not None or validator.is_file()):
        headers["Range"] = f"bytes={start}-"
        headers |= {"If-Range": validator.read_text()} if validator.is_file() else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = re.fullmatch(rf"bytes {start}-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if found is None:
                raise urllib.error.URLError("the server sent another part of the file than it was asked for")
            length = found[1]
        else:
            start, length = 0, response.headers.get("Content-Length") or ""
        total = int(length) if length.isdecimal() else None
        tag, free = response.headers.get("ETag", ""), shutil.disk_usage(part.parent).free
        validator.unlink(missing_ok=True)
        if tag and not tag.startswith("W/"):  # a weak one does not promise the same bytes
            validator.write_text(tag)
        if total is not None and total - start > free:
            raise ValueError(f"{part.parent} has {free:,} bytes free, and {total - start:,} are to come: make room")
        with part.open("ab" if start else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                start += len(chunk)
                if progress is not None:
                    progress(start, total)
    if total is not None and start < total:
        raise _Incomplete(f"the connection ended at byte {start:,} of {total:,}")


def _check(part: Path, url: str, size: int | None, sha256: str | None) -> None:
    """Whether the file is the one that was meant; it is discarded if not."""
    wrong = ""
    if size is not None and part.stat().st_size != size:
        wrong = f"must have {size:,} bytes, received {part.stat().st_size:,}"
    elif sha256 is not None and (found := hash_of(part)) != sha256:
        wrong = f"must have the sha256 {sha256}, received {found}"
    if wrong:
        part.unlink()
        _validator(part).unlink(missing_ok=True)
        raise ValueError(f"the file from {url} {wrong}: it is not the one that was meant, and was discarded")


def hash_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _validator(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def announce(what: str) -> None:
    """Say on standard error what is fetched, before it is."""
    from rich.console import Console

    Console(stderr=True).print(f"fetching {what}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bar(name: str, what: str = "") -> Iterator[Progress]:
    """A progress bar on standard error for `fetch`, after a line that says ``what`` is fetched."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    console = Console(stderr=True)
    if what:
        console.print(f"fetching {what}", highlight=False, markup=False)
    with Bar(*columns, TimeRemainingColumn(), console=console) as shown:
        task = shown.add_task(f"fetching {name}", total=None)
        yield lambda have, total: shown.update(task, completed=have, total=total)
