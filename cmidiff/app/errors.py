"""What the user has to mend: one clear line, exit code 2."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

FAILED, BAD_INPUT, DIVERGED, UNWRITABLE, INTERRUPTED = 1, 2, 3, 4, 130  # exit codes


class BadInput(Exception):
    """An input that cannot be used; the message says what was wrong, what was received and what to do."""


def unknown(what: str, received: str, names: Iterable[str]) -> BadInput:
    """The error for a name that is not in a table of names, the nearest ones first."""
    names = list(names)
    near = get_close_matches(received.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}"
    return BadInput(f"unknown {what} {received!r}: {hint}")


def say(message: object) -> None:
    """One line on standard error, whatever is in the message."""
    print(" ".join(str(message).split()), file=sys.stderr)


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
        except BadInput as error:
            say(f"cmidiff: {error}")
            code = BAD_INPUT
        except TyperException as error:
            say(f"cmidiff: {error.format_message()} (--help lists what there is)")
            code = BAD_INPUT
        except typer.Abort:
            code = INTERRUPTED
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code
