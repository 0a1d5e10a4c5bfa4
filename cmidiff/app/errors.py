"""What went wrong, in one line, and the exit code for it.

A `ValueError` is an input that the user has to correct; every other exception is unforeseen.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

FAILED, BAD_INPUT, DIVERGED, UNWRITABLE, INTERRUPTED = 1, 2, 3, 4, 130  # exit codes
TRACEBACK = "CMIDIFF_TRACEBACK"  # a variable of the environment that, if set, lets unforeseen errors through
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHRINK = "use a smaller image, --tile, a lower --batch, --checkpointing or --dtype bfloat16"
FILL = "make room, and give the same command again"


def say(message: object) -> None:
    """Print one line on standard error, for every message."""
    print(" ".join(str(message).split()), file=sys.stderr)


def explain(error: Exception) -> tuple[str, int]:
    """Return what went wrong, and the exit code for it."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, ValueError | ModuleNotFoundError) or (isinstance(error, OSError) and error.errno is None):
        return str(error), BAD_INPUT  # an OSError without a number is one of this package
    if isinstance(error, OSError):
        advice = FILL if error.errno in FULL else "no file is left in part"
        return f"cannot write or read {error.filename or 'a file'} ({error.strerror or message}): {advice}", UNWRITABLE
    if "disk is full" in message:  # of a database
        return f"the disk is full: {FILL}", UNWRITABLE
    if isinstance(error, MemoryError) or "memory" in message:
        return f"this does not fit into memory: {SHRINK} ({message})", FAILED
    advice = f"an error of cmidiff; {TRACEBACK}=1 shows where: please report it"
    return f"{type(error).__name__}: {message} ({advice})", FAILED


class CommandLine(TyperGroup):
    """A group of commands whose errors are one line."""

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run a command, and exit with its code."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *place: say(f"note: {message}")
                code = super().main(*args, standalone_mode=False, **options)
        except TyperException as error:
            say(f"cmidiff: {error.format_message()} (--help lists what there is)")
            code = BAD_INPUT
        except typer.Abort:
            code = INTERRUPTED
        except BrokenPipeError:  # the reader of the output has gone, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = FAILED
        except Exception as error:
            if os.environ.get(TRACEBACK) and not isinstance(error, ValueError):
                raise
            message, code = explain(error)
            say(f"cmidiff: {message}")
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code
