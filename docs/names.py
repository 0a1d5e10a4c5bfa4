"""Docstrings that describe several names in one line, ``a, b: directions``, are read as one entry with their types."""

from __future__ import annotations

import re
from typing import Any

import griffe

SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+)(?=: )", re.MULTILINE)
THIN_SPACE = "\u2009"  # the parser takes what follows a plain one for a type


class SeveralNames(griffe.Extension):
    """Joins such names, with the types of all, before the docstring is parsed.

    Left to itself the parser gives an entry of several names the type of the entry before.
    """

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Called for every function."""
        _join(func, {parameter.name: parameter.annotation for parameter in func.parameters})

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Called for every class, once its attributes are known."""
        _join(cls, {name: attribute.annotation for name, attribute in cls.attributes.items()})


def _join(described: griffe.Object, annotations: dict[str, Any]) -> None:
    def joined(line: re.Match[str]) -> str:
        names = line[2].split(", ")
        types = dict.fromkeys(str(annotations[name]) for name in names if annotations.get(name) is not None)
        return line[1] + f",{THIN_SPACE}".join(names) + (f" ({'; '.join(types)})" if types else "")

    if described.docstring is not None:
        described.docstring.value = SEVERAL.sub(joined, described.docstring.value)
