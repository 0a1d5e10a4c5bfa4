"""A preset: a solver, its CMI, a sampler and a number of steps, as a small TOML file.

format = "cmidiff preset 1"
steps = 50

[solver]                                # a name as of --solver, and its options; those left out have their defaults
name = "dps"
scale = { start = 6.0, end = 2.5 }      # a number, or a `Ramp`

[cmi]                                   # left out: the base solver
eta = 0.1

[sampler]
name = "ancestral"

[provenance]                            # where it comes from: text and figures, for the reader
prior = "natural-64"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic.dataclasses
import tomli_w
from pydantic import Field

from cmidiff import files
from cmidiff.config import STRICT, build, read_toml
from cmidiff.information import CMI
from cmidiff.registry import SAMPLERS, SOLVERS, configure, spell_options
from cmidiff.solvers import Solver
from cmidiff.step import Sampler

FORMAT = "cmidiff preset 1"


@dataclass(frozen=True)
class Preset:
    """Settings of `cmidiff.restore` that belong together.

    Attributes:
        solver, cmi, sampler, steps: as in `cmidiff.restore`; without a sampler, that of the solver.
        provenance: how they were found, JSON values by name.
    """

    solver: Solver
    cmi: CMI | None = None
    sampler: Sampler | None = None
    steps: int = 25
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def solver_name(self) -> str:
        """The solver's name in the registry."""
        return SOLVERS.spell(self.solver)["name"]

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `cmidiff.restore`: ``restore(y, physics, prior, **preset.options)``."""
        return {"solver": self.solver, "cmi": self.cmi, "sampler": self.process, "steps": self.steps}

    @property
    def process(self) -> Sampler:
        """The sampler in use."""
        return self.solver.sampler if self.sampler is None else self.sampler


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class _File:
    """The tables of a preset's file."""

    format: Literal["cmidiff preset 1"]
    solver: dict[str, Any]
    steps: Annotated[int, Field(ge=1)] = 25
    cmi: dict[str, Any] | None = None
    sampler: dict[str, Any] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def load_preset(path: str | Path) -> Preset:
    """Read a preset.

    Raises:
        ValueError: no such file, no TOML, another format, an unknown name, or a value that the solver, CMI or sampler
            refuses.
    """
    try:
        content = read_toml(Path(path))
    except OSError as error:
        raise ValueError(f"cannot read the preset {path} ({error.strerror}): make one with cmidiff tune") from error
    try:
        tables = build(_File, content, "the file")
        cmi = None if tables.cmi is None else configure(CMI(), tables.cmi, "[cmi]")
        solver = SOLVERS.read(tables.solver)
        sampler = solver.sampler if tables.sampler is None else SAMPLERS.read(tables.sampler)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the preset {path}: {error}") from error
    return Preset(solver, cmi, sampler, tables.steps, tables.provenance)


def save_preset(path: str | Path, preset: Preset) -> None:
    """Write a preset; every option of the solver, CMI and sampler is written out.

    Raises:
        OSError: the file cannot be written.
        ValueError: a field that no file can hold: a function, or an object that is no part of this library.
    """
    tables: dict[str, Any] = {"format": FORMAT, "steps": preset.steps}
    tables["solver"] = SOLVERS.spell(preset.solver, whole=True)
    if preset.cmi is not None:
        tables["cmi"] = spell_options(preset.cmi)
    tables["sampler"] = SAMPLERS.spell(preset.process, whole=True)
    tables["provenance"] = dict(preset.provenance)
    files.write(Path(path), tomli_w.dumps(tables).encode(), "tune")
