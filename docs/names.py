"""Docstrings that describe several names in one line, ``a, b: directions``, are read as one entry."""

from __future__ import annotations

import re
from typing import Any

import griffe

SEVERAL = re.compile(r"^ +\w+(?:, \w+)+(?=: )", re.MULTILINE)
THIN_SPACE = "\u2009"  # the parser takes what follows a plain one for a type


class SeveralNames(griffe.Extension):
    """Joins such names before the docstring is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class and function."""
        if obj.docstring is not None:
            obj.docstring.value = SEVERAL.sub(
                lambda names: names[0].replace(", ", "," + THIN_SPACE), obj.docstring.value
            )
