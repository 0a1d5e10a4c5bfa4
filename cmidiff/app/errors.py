"""What the user has to mend: one clear line, exit code 2."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

FAILED, BAD_INPUT, DIVERGED, UNWRITABLE, INTERRUPTED = 1, 2, 3, 4, 130  # exit codes


TRACEBACK = "CMIDIFF_TRACEBACK"  # a variable of the environment that, if set, lets unforeseen errors through
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BadInput(ValueError):
    """An input that cannot be used; the message says what was wrong, what was received and what to do."""


def unknown(what: str, received: str, names: Iterable[str]) -> BadInput:
    """The error for a name that is not in a table of names, the nearest ones first."""
    names = list(names)
    near = get_close_matches(received.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}"
    return BadInput(f"unknown {what} {received!r}: {hint}")


def bad_input(error: Exception) -> BadInput:
    """The error of a library as one of the command line."""
    if isinstance(error, OSError) and error.filename is not None:
        return BadInput(f"cannot read {error.filename} ({error.strerror})")
    return BadInput(str(error))


def say(message: object) -> None:
    """One line on standard error, whatever is in the message."""
    print(" ".join(str(message).split()), file=sys.stderr)


def report(error: Exception) -> int:
    """Say in one line what went wrong, and return the exit code for it."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, ValueError):
        say(f"cmidiff: {error}")
        return BAD_INPUT
    if isinstance(error, OSError) and error.errno is None:  # one of ours, as FileNotFoundError("no weights at ...")
        say(f"cmidiff: {error}")
        return BAD_INPUT
    if isinstance(error, OSError):
        full = "make room, and give the same command again" if error.errno in FULL else "no file is left in part"
        say(f"cmidiff: cannot write or read {error.filename or 'a file'} ({error.strerror or message}): {full}")
        return UNWRITABLE
    if "disk is full" in message:  # of a database
        say("cmidiff: the disk is full: make room, and give the same command again")
        return UNWRITABLE
    if isinstance(error, MemoryError) or "memory" in message:
        say(f"cmidiff: this does not fit into memory: use a smaller image, --tile or a lower --batch ({message})")
        return FAILED
    say(
        f"cmidiff: {type(error).__name__}: {message} (an error of cmidiff; {TRACEBACK}=1 shows where: please report it)"
    )
    return FAILED


class CommandLine(TyperGroup):
    """A group of commands whose errors are one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *place: say(f"note: {message}")
                code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except TyperException as error:
            say(f"cmidiff: {error.format_message()} (--help lists what there is)")
            code = BAD_INPUT
        except typer.Abort:
            code = INTERRUPTED
        except BrokenPipeError:  # the reader of the output has gone, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILED
        except Exception as error:
            if os.environ.get(TRACEBACK) and not isinstance(error, BadInput):
                raise
            code = report(error)
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code
