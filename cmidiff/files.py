"""Output files: each appears as a whole or not at all, and none replaces an input or a file of another origin.

``.cmidiff-files`` in an output folder lists what commands wrote there, one line per file: SHA-256, command and name. A
file that has no line in the list, or that has changed since, is not replaced without the user's consent.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

LIST = ".cmidiff-files"


def write(path: Path, data: bytes, command: str = "") -> None:
    """Write a file through a temporary file in the same folder.

    Args:
        path: the file; missing folders are created, and a symbolic link is followed.
        data: its content.
        command: the name under which the folder's list records the file; "" for a file that nobody has to recognise.

    Raises:
        OSError: as when the disk is full; an earlier file of this name is unchanged then, and nothing is left behind.
    """
    target = _target(path)
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise OSError(None, "it is no regular file")
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if command:
            _record(target, data, command)
        part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def check_outputs(
    outputs: Iterable[Path], inputs: Iterable[Path | None] = (), *, command: str, overwrite: bool = False
) -> None:
    """Check that files may be written, before any computation.

    Args:
        outputs: what will be written.
        inputs: files and folders that the command reads; None is skipped. They are never replaced.
        command: as in `write`: its own files may be replaced.
        overwrite: whether other files may be replaced, too.

    Raises:
        ValueError: an output is an input (by any path, symbolic or hard link), is a folder, or lies where nothing can
            be written. Without ``overwrite``, also if it exists and was not written by this command.
    """
    outputs = list(outputs)
    read = [path for path in inputs if path is not None]
    for output in outputs:
        for one in read:
            if _same(output, one) or (one.is_dir() and _inside(output, one) and not is_own(output, command)):
                raise ValueError(f"{output} would replace the input {one}: give another --output")
        if output.is_dir():
            raise ValueError(f"{output} is a folder: give another --output")
        if output.exists() and not overwrite and not is_own(output, command):
            raise ValueError(
                f"{output} exists and cmidiff {command} did not write it (or it was changed since): "
                "give another --output, or --overwrite to replace it"
            )
    for folder, output in {_target(output).parent: output for output in outputs}.items():
        probe = folder / f".{secrets.token_hex(8)}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"cannot write {output} ({error.strerror}): give another --output") from error


def is_own(path: Path, command: str) -> bool:
    """Whether a command wrote a file, and nobody has changed it since."""
    target = _target(path)
    written = target.parent / LIST
    if not target.is_file() or not written.is_file():
        return False
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _line(digest, command, target) in written.read_text(encoding="utf-8").splitlines()


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _record(target: Path, data: bytes, command: str) -> None:
    with (target.parent / LIST).open("a", encoding="utf-8") as file:
        file.write(_line(hashlib.sha256(data).hexdigest(), command, target) + "\n")


def _line(digest: str, command: str, target: Path) -> str:
    return f"{digest} {command} {target.name!a}"


def _same(output: Path, one: Path) -> bool:
    return output.samefile(one) if output.exists() and one.exists() else _target(output) == _target(one)


def _inside(output: Path, folder: Path) -> bool:
    return output.exists() and _target(output).is_relative_to(_target(folder))
