"""One validator for all that comes from files and options: presets, benchmarks, training runs, settings of the page.

A configuration is a dataclass of pydantic with `STRICT`, whose annotations state types and bounds; `build` makes one
from a table. The options of a solver, a sampler or a covariance, plain dataclasses, are checked by `check_options`.
Both report what is wrong in one line, and names that are not known with the nearest ones that are.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import math
import numbers
import tomllib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, ConfigDict, ValidationError, ValidationInfo, create_model
from pydantic_core import ArgsKwargs, PydanticCustomError

T = TypeVar("T")
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def _beside(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str | Path):
        raise PydanticCustomError("path", "a path")
    return (info.context or Path()) / value


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


File = Annotated[Path, BeforeValidator(_beside)]
"""A path, relative to the folder of the configuration file."""
Several = Annotated[tuple[T, ...], BeforeValidator(_several)]
"""A list; a single value is a list of one."""


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def build(cls: type[T], table: Mapping[str, Any], where: str, folder: Path | None = None) -> T:
    """A configuration from a table.

    Args:
        cls: a dataclass of pydantic.
        table: values by field.
        where: what the table is, for messages.
        folder: to which paths are relative; the working directory by default.

    Raises:
        ValueError: an unknown or missing field, or a value that is refused.
    """
    _check_names(table, [field.name for field in dataclasses.fields(cls) if field.init], where)  # pyright: ignore[reportArgumentType]
    try:
        made = object.__new__(cls)
        validator = cls.__pydantic_validator__  # pyright: ignore[reportAttributeAccessIssue]
        validator.validate_python(ArgsKwargs((), dict(table)), self_instance=made, context=folder)
        return made
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error)}") from error


def check_options(cls: type, options: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Check options, values of fields of a dataclass, against its annotations; ``known`` are the fields that are
    options, and ``where`` says what has them."""
    _check_names(options, list(known), where)
    try:
        hints = get_type_hints(cls)
    except NameError:  # annotations of a foreign class that exist for type checkers alone
        return
    kinds: dict[str, Any] = {name: (hints[name], ...) for name in options}
    try:
        create_model(cls.__name__, __config__=ConfigDict(strict=True, arbitrary_types_allowed=True), **kinds)(**options)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error)}") from error


WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a table",
    "callable_type": "a ramp { start = ..., end = ... }",
    "missing": "longer",
}
"""What is expected, by the type of an error of pydantic, where its own words are not those of a reader of TOML."""


def explain(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    name = first["loc"][0]
    if first["type"] in ("missing", "missing_argument") and len(first["loc"]) == 1:
        return f"{name} is missing: add it"
    wrong = [
        WORDS.get(one["type"], one["msg"].removeprefix("Input should be ")) for one in errors if name in one["loc"]
    ]
    return f"{name} must be {' or '.join(dict.fromkeys(wrong))}, received {first['input']!r}"


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Names like one that is not known, or all names."""
    known = list(known)
    near = difflib.get_close_matches(wrong.lower(), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"


def unknown(kind: str, wrong: str, known: Iterable[str]) -> str:
    """The message for a name that is not known."""
    return f"unknown {kind} {wrong!r}: {suggest(wrong, known)}"


def _check_names(table: Mapping[str, Any], known: list[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise ValueError(f"{where} has no option {name!r}: {suggest(name, known) if known else 'it has none'}")


@dataclasses.dataclass(frozen=True)
class Bound:
    """The range of an option, in its annotation: ``Annotated[float, Bound(...)]``.

    Attributes:
        words: what the number must be, for messages.
        holds: whether a number is in the range.
    """

    words: str
    holds: collections.abc.Callable[[Any], bool]


Positive = Annotated[float, Bound("a number > 0", lambda value: 0 < value < math.inf)]
NotNegative = Annotated[float, Bound("a number >= 0", lambda value: 0 <= value < math.inf)]
Fraction = Annotated[float, Bound("in [0, 1]", lambda value: 0 <= value <= 1)]
Share = Annotated[float, Bound("in (0, 1]", lambda value: 0 < value <= 1)]
Count = Annotated[int, Bound("a whole number >= 1", lambda value: value >= 1)]
Natural = Annotated[int, Bound("a whole number >= 0", lambda value: value >= 0)]
Iterations = Annotated[int, Bound("at least 1", lambda value: value >= 1)]


class Checked:
    """A dataclass whose options are checked against its annotations when it is made.

    Booleans, numbers with their `Bound`, texts, `Literal`, functions and tuples of these are checked. Any other
    annotation is left to the ``__post_init__`` of the class, which comes after.

    Raises:
        ValueError: a value of another kind or out of its range, or NaN.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("__post_init__")
        if own is not None:

            @functools.wraps(own)
            def checked(self: Any) -> None:
                check_fields(self)
                own(self)

            cls.__post_init__ = checked

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(thing: Any) -> None:
    """Check the fields of a dataclass against its annotations; see `Checked`."""
    for name, kinds in _annotations(type(thing)).items():
        value = getattr(thing, name)
        if not any(_fits(kind, value) in (True, None) for kind in kinds):
            wanted = " or ".join(dict.fromkeys(_words(kind) for kind in kinds))
            raise ValueError(f"{type(thing).__name__}: {name} must be {wanted}, received {value!r}")
    for name, kinds in _annotations(type(thing)).items():
        value = getattr(thing, name)
        bounds = [bound for kind in kinds if _fits(kind, value) for bound in _bounds(kind)]
        if bounds and not any(bound.holds(value) for bound in bounds):
            wanted = " or ".join(bound.words for bound in bounds)
            raise ValueError(f"{type(thing).__name__}: {name} must be {wanted}, received {value!r}")


@functools.cache
def _annotations(cls: type) -> dict[str, tuple[Any, ...]]:
    """The alternatives that are allowed for each field."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError:  # annotations that exist for type checkers alone
        return {}
    fields = [f.name for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else []
    union = (Union, types.UnionType)
    return {name: get_args(hints[name]) if get_origin(hints[name]) in union else (hints[name],) for name in fields}


def _fits(kind: Any, value: Any) -> bool | None:
    """Whether a value is of a kind; None for a kind that is not checked."""
    kind = _plain(kind)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return number and isinstance(value, numbers.Integral)
    if kind is float:
        return number and not math.isnan(value)
    if kind in (str, types.NoneType):
        return isinstance(value, kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) is collections.abc.Callable:
        return callable(value)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, tuple):
            return False
        each = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(value) == len(each) and all(_fits(k, v) in (True, None) for k, v in zip(each, value, strict=True))
    return None


def _bounds(kind: Any) -> list[Bound]:
    return [bound for bound in getattr(kind, "__metadata__", ()) if isinstance(bound, Bound)]


def _plain(kind: Any) -> Any:
    """A kind without its bounds."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _words(kind: Any) -> str:
    kind = _plain(kind)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return f"one of {', '.join(choices)}" if isinstance(choices[0], str) else " or ".join(map(str, choices))
    if get_origin(kind) is tuple:
        return f"a tuple ({', '.join('...' if part is ... else _words(part) for part in get_args(kind))})"
    named = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", types.NoneType: "None"}
    return named.get(kind, "a function")
