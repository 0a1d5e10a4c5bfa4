"""A preset: a solver, its CMI, a sampler and a number of steps, as a small TOML file.

    format = "cmidiff preset 1"
    steps = 50

    [solver]                                # a name as of --solver, and its fields; those left out have their defaults
    name = "dps"
    scale = { start = 6.0, end = 2.5 }      # a number, or a `Ramp`

    [cmi]                                   # left out: the base solver
    eta = 0.1

    [sampler]
    name = "ancestral"

    [provenance]                            # where it comes from: free text and figures, for the reader
    prior = "natural-64"

What is not known, or has another type, is refused with the list of what is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cmidiff import files
from cmidiff.covariance import Covariance
from cmidiff.information import CMI
from cmidiff.registry import COVARIANCES, SAMPLERS, SOLVERS, Registry
from cmidiff.samplers import Ancestral
from cmidiff.solvers import Ramp, Solver
from cmidiff.step import Sampler

FORMAT = "cmidiff preset 1"
TABLES = ("format", "steps", "solver", "cmi", "sampler", "provenance")


@dataclass(frozen=True)
class Preset:
    """Settings of `cmidiff.restore` that belong together.

    Attributes:
        solver, cmi, sampler, steps: as in `cmidiff.restore`.
        provenance: how they were found, JSON values by name.
    """

    solver: Solver
    cmi: CMI | None = None
    sampler: Sampler = field(default_factory=Ancestral)
    steps: int = 25
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def solver_name(self) -> str:
        """The solver's name in the table of solvers."""
        return SOLVERS.spell(self.solver)["name"]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `cmidiff.restore`: ``restore(y, physics, prior, **preset.options)``."""
        return {"solver": self.solver, "cmi": self.cmi, "sampler": self.sampler, "steps": self.steps}


def load_preset(path: str | Path) -> Preset:
    """Read a preset.

    Raises:
        ValueError: no such file, no TOML, another format, an unknown name, or a value that the solver, CMI or sampler
            refuses.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the preset {path} ({error.strerror}): make one with cmidiff tune") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the preset {path} is not a text file: make one with cmidiff tune") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the preset {path} is not valid TOML: {error}") from error
    try:
        return _preset(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the preset {path}: {error}") from error


def save_preset(path: str | Path, preset: Preset) -> None:
    """Write a preset; every field of the solver, CMI and sampler is written out.

    Raises:
        OSError: the file cannot be written.
        ValueError: a field that no file can hold: a function, or an object that is no part of this library.
    """
    tables: dict[str, Mapping[str, Any]] = {"solver": _named(preset.solver, SOLVERS)}
    if preset.cmi is not None:
        tables["cmi"] = _fields(preset.cmi)
    tables["sampler"] = _named(preset.sampler, SAMPLERS)
    if preset.provenance:
        tables["provenance"] = preset.provenance
    lines = [f'format = "{FORMAT}"', f"steps = {preset.steps}"]
    for title, table in tables.items():
        lines += ["", f"[{title}]", *(f"{_key(name)} = {_toml(name, value)}" for name, value in table.items())]
    files.write(Path(path), ("\n".join(lines) + "\n").encode(), "tune")


def _preset(content: dict[str, Any]) -> Preset:
    _refuse_unknown("the file", content, TABLES)
    if content.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}, received {content.get('format')!r}: make it again")
    if "solver" not in content:
        raise ValueError(f"the table [solver] is missing: give it with a name, one of {', '.join(SOLVERS)}")
    steps = content.get("steps", 25)
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps must be a whole number >= 1, received {steps!r}")
    tables = {name: content.get(name, {}) for name in ("solver", "cmi", "sampler", "provenance")}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{name} must be a table [{name}], received {table!r}")
    sampler = tables["sampler"] or {"name": "ancestral"}
    return Preset(
        _made("solver", tables["solver"], SOLVERS),
        _filled(CMI, tables["cmi"], "[cmi]") if "cmi" in content else None,
        _made("sampler", sampler, SAMPLERS),
        steps,
        tables["provenance"],
    )


def _refuse_unknown(where: str, table: Mapping[str, Any], known: tuple[str, ...] | list[str]) -> None:
    for name in table:
        if name not in known:
            raise ValueError(f"{where} has an unknown entry {name!r}: it may hold {', '.join(known)}")


# reading


def _made(title: str, table: dict[str, Any], known: Registry) -> Any:
    name = str(table.get("name", "none"))
    if name not in known:
        raise ValueError(f"[{title}] needs a name, one of {', '.join(known)}; received {name!r}")
    made = known.make(name)
    own = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}
    given = _read(type(made), {k: v for k, v in table.items() if k != "name"}, f"[{title}] {name}")
    return type(made)(**(own | given))


def _filled(cls: type, table: Mapping[str, Any], where: str) -> Any:
    required = [f.name for f in dataclasses.fields(cls) if f.init and f.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in table]:
        raise ValueError(f"{where} lacks {' and '.join(missing)}: give a number")
    return cls(**_read(cls, table, where))


def _read(cls: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of fields of a class."""
    hints = get_type_hints(cls)
    storable = [f.name for f in dataclasses.fields(cls) if f.init and _storable(hints[f.name])]
    _refuse_unknown(where, table, storable)
    return {name: _converted(value, hints[name], f"{where}: {name}") for name, value in table.items()}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _storable(hint: Any) -> bool:
    return any(one is Covariance or _description(one) for one in _alternatives(hint))


def _description(hint: Any) -> str:
    """What a file may hold for a type, in words; "" if nothing."""
    plain = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} numbers"
    return ""


def _converted(value: Any, hint: Any, where: str) -> Any:
    alternatives = _alternatives(hint)
    for one in alternatives:
        if one is Covariance and isinstance(value, str) and value in COVARIANCES:
            return COVARIANCES.make(value)
        if one is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        named = one in (int, bool, str) and type(value) is one and Covariance not in alternatives
        if named or (get_origin(one) is Literal and value in get_args(one)):
            return value
        if get_origin(one) is tuple and isinstance(value, list) and len(value) == len(get_args(one)):
            return tuple(_converted(part, kind, where) for part, kind in zip(value, get_args(one), strict=True))
    if Covariance in alternatives and isinstance(value, dict):
        return _made("covariance", value, COVARIANCES)
    takes_ramp = Covariance not in alternatives and any(
        callable(one) and not isinstance(one, type) and not _description(one) for one in alternatives
    )
    if takes_ramp and isinstance(value, dict):
        return _filled(Ramp, value, f"{where}: a ramp")
    words = [_description(one) for one in alternatives if _description(one)]
    if Covariance in alternatives:
        words = [f"a covariance, by name ({', '.join(COVARIANCES)}) or as a table {{ name = ... }}"]
    words += ["a ramp { start = ..., end = ... }"] if takes_ramp else []
    raise ValueError(f"{where} must be {' or '.join(words)}, received {value!r}")


# writing


def _named(thing: object, known: Registry) -> dict[str, Any]:
    """The name of a thing, and all of its fields."""
    return {"name": known.spell(thing)["name"]} | _fields(thing)


def _fields(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass, without those that are at their default and that no file can hold."""
    hints = get_type_hints(type(thing))
    values = {f.name: (getattr(thing, f.name), f.default) for f in dataclasses.fields(thing) if f.init}
    return {
        name: value
        for name, (value, default) in values.items()
        if value is not None and (_storable(hints[name]) or value is not default)
    }


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text)


def _toml(name: str, value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float() if not math.isfinite(value):
            return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(_toml(name, part) for part in value)}]"
        case Covariance():
            return _toml(name, _named(value, COVARIANCES))
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _toml(name, dataclasses.asdict(value))
        case Mapping():
            return "{ " + ", ".join(f"{_key(key)} = {_toml(name, part)}" for key, part in value.items()) + " }"
    raise ValueError(f"{name} cannot be stored in a preset, received {value!r}: use a number or a Ramp")
