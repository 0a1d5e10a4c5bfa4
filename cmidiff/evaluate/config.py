"""What a benchmark is, as one TOML file::

    images = "photographs"          # a folder or a tar archive, relative to this file; or --images
    prior = "natural-64"
    size = 64                       # crop the square in the middle and shrink it to this side
    samples = 2

    [[tasks]]
    task = "super-resolution"       # of cmidiff.physics.TASKS; its parameters follow
    factor = 4

    [[solvers]]
    solver = "dps"                  # of cmidiff.registry.SOLVERS; its options follow
    scale = 4.0
    eta = [0.1]                     # strength of CMI for this solver

    [[settings]]                    # above both: what holds for one task and one solver
    task = "super-resolution"
    solver = "dps"
    scale = 2.0                     # or preset = "FILE" of cmidiff tune: solver, CMI and sampler

Everything that decides a result is in it; how the work is done (device, batch, engine) is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from cmidiff.config import STRICT, File, Several, build, check_options, read_toml
from cmidiff.evaluate.records import Cell
from cmidiff.loading import Loading
from cmidiff.tuning.preset import Preset, load_preset

PRESETS = Path(__file__).resolve().parent / "presets"
CURVE_STEPS = (20, 50, 100, 250, 1000)
CURVE_ETA = (0.03, 0.1, 0.3)
LABEL = re.compile(r"[A-Za-z0-9._-]+")


def _load(value: Any, info: ValidationInfo) -> Any:
    """A preset, read once: later changes of its file change no run."""
    if isinstance(value, str | Path):
        return load_preset((info.context or Path()) / value)
    if value is None or isinstance(value, Preset):
        return value
    raise PydanticCustomError("path", "a path")


Read = PlainValidator(_load)


@dataclass(frozen=True, config=STRICT)
class TaskChoice:
    """A task: its name in `cmidiff.physics.TASKS`, its label in the tables, by default the name, and its parameters."""

    task: str
    label: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.task)


@dataclass(frozen=True, config=STRICT)
class SolverChoice:
    """A solver: its name in `cmidiff.registry.SOLVERS`, its label in the tables (by default the name), its strengths of
    CMI, and its options. The options replace those of a preset of `cmidiff tune`."""

    solver: str
    label: str = ""
    preset: Annotated[Preset | None, Read] = None
    eta: Several[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.solver)


@dataclass(frozen=True, config=STRICT)
class Setting:
    """Options of one solver for one task (both by label), above those of the solver."""

    task: str
    solver: str
    preset: Annotated[Preset | None, Read] = None
    eta: Several[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _read(cls: type, entry: Any, rest: str, info: ValidationInfo) -> Any:
    """An entry of a list of tables, or one in a word; keys that are no fields go into the field ``rest``."""
    if isinstance(entry, cls):
        return entry
    where = f"an entry of [[{info.field_name}]]"
    if isinstance(entry, str):
        entry = read_word(entry, str(info.field_name).removesuffix("s"))
    if not isinstance(entry, Mapping):
        raise ValueError(f"{info.field_name} must be tables, as [[{info.field_name}]], received {entry!r}")
    own = {f.name for f in fields(cls)} - {rest}
    others = {key: value for key, value in entry.items() if key not in own}
    return build(cls, {k: v for k, v in entry.items() if k in own} | {rest: others}, where, info.context)


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"need values, each once, received {list(values)}")
    return values


def _load_options(value: Any) -> Loading:
    if isinstance(value, Loading):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"prior_options must be a table, received {value!r}")
    check_options(Loading, value, [f.name for f in fields(Loading)], "[prior_options]")
    return Loading(**value)


Tasks = Several[Annotated[TaskChoice, BeforeValidator(lambda v, info: _read(TaskChoice, v, "parameters", info))]]
Solvers = Several[Annotated[SolverChoice, BeforeValidator(lambda v, info: _read(SolverChoice, v, "options", info))]]
Settings = Several[Annotated[Setting, BeforeValidator(lambda v, info: _read(Setting, v, "options", info))]]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Once = AfterValidator(_unique)
Some = Field(min_length=1)


@dataclass(frozen=True, config=STRICT)
class Config:
    """Every choice that decides a result.

    Args:
        images: folder or tar archive.
        name: of the benchmark, for the report.
        prior: name or folder.
        prior_options: how it is loaded: its precision, the prompt of a latent prior (`cmidiff.loading.Loading`).
        size: side in pixels: the square in the middle of each image is shrunk to it; None: images as they are.
        offset, limit: which images, by their sorted names; no limit takes all.
        tasks, solvers, settings: see the classes.
        cmi: ``off`` (the base solver), ``on``, or both.
        eta: strengths of CMI, dimensionless; a solver or a setting may have its own. Without any, CMI's default.
        cmi_options: other fields of `cmidiff.CMI`.
        steps: of the sampler; several make a curve.
        seeds: of mask, noise and sampler; a unit each.
        samples: K posterior samples for each unit.
        noise_std: standard deviation of the measurement noise, for images in [0, 1]. A task may have its own.
        lpips: network of LPIPS.

    Raises:
        ValueError: a value that is refused.
    """

    images: File | None = None
    name: str = "benchmark"
    prior: str = "natural-64"
    prior_options: Annotated[Loading, PlainValidator(_load_options)] = Loading()
    size: Count | None = None
    offset: Natural = 0
    limit: Count | None = None
    tasks: Tasks = ()
    solvers: Solvers = ()
    settings: Settings = ()
    cmi: Annotated[Several[Literal["off", "on"]], Once, Some] = ("off", "on")
    eta: Annotated[Several[float], Once] = ()
    cmi_options: dict[str, Any] = field(default_factory=dict)
    steps: Annotated[Several[Count], Once, Some] = (100,)
    seeds: Annotated[Several[Natural], Once, Some] = (0,)
    samples: Count = 1
    noise_std: Annotated[float, Field(ge=0)] = 0.05
    lpips: Literal["alex", "vgg", "squeeze"] = "alex"

    def __post_init__(self) -> None:
        for what, choices in (("task", self.tasks), ("solver", self.solvers)):
            labels = [choice.label for choice in choices]
            if not labels:
                raise ValueError(f"no {what}: give --{what}s, or [[{what}s]] in the configuration")
            if twice := sorted({label for label in labels if labels.count(label) > 1}):
                raise ValueError(f"{what} {', '.join(twice)} is there twice: give one of them another label")
            if bad := [label for label in labels if not LABEL.fullmatch(label)]:
                raise ValueError(f"the label {bad[0]!r} of a {what} may hold letters, digits, '.', '_' and '-' only")
        for s in self.settings:
            if s.task not in self.task_labels or s.solver not in self.solver_labels:
                raise ValueError(f"[[settings]] of task {s.task!r} and solver {s.solver!r}: the run has no such pair")
        if "on" in self.cmi and 0 in self.eta:
            raise ValueError(f"eta must be finite and not 0 (that is cmi off), received {list(self.eta)}")

    @property
    def task_labels(self) -> list[str]:
        return [task.label for task in self.tasks]

    @property
    def solver_labels(self) -> list[str]:
        return [solver.label for solver in self.solvers]

    def choices(self, cell: Cell) -> tuple[SolverChoice, list[Setting]]:
        """What is stated for a cell: of its solver, and of its solver and task."""
        solver = next(solver for solver in self.solvers if solver.label == cell.solver)
        return solver, [s for s in self.settings if (s.task, s.solver) == (cell.task, cell.solver)]


def load(source: str | Path) -> Config:
    """A configuration from a TOML file, or a preset by its name."""
    path = find(source)
    return build(Config, read_toml(path), f"{path}: the configuration", path.parent)


def find(source: str | Path) -> Path:
    """The file of a configuration, given by path or as the name of a preset."""
    path = Path(source)
    if path.is_file():
        return path
    names = sorted(p.stem for p in PRESETS.glob("*.toml"))
    name = str(source).removeprefix("presets/").removesuffix(".toml")
    if name not in names:
        raise ValueError(f"no configuration {str(source)!r}: neither a file nor a preset ({', '.join(names)})")
    return PRESETS / f"{name}.toml"


def read_word(text: str, kind: str) -> dict[str, Any]:
    """The table of a task or a solver in one word: ``super-resolution:factor=4``, ``dps:scale=2:label=dps-2``."""
    name, *given = text.strip().split(":")
    table: dict[str, Any] = {kind: name}
    for part in given:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r} must be NAME or NAME:option=value, received the part {part!r}")
        try:
            table[key] = json.loads(value)
        except json.JSONDecodeError:
            table[key] = value
    return table


def override(config: Config | None, given: Mapping[str, Any]) -> Config:
    """A configuration with some fields replaced. A task or solver given by a label of the configuration is that one.

    Args:
        config: None to start from the defaults.
        given: fields; ``tasks`` and ``solvers`` as words (see `read_word`).
    """
    values = {} if config is None else {f.name: getattr(config, f.name) for f in fields(Config)}
    for key, value in given.items():
        there = {choice.label: choice for choice in values.get(key, ())} if key in ("tasks", "solvers") else {}
        values[key] = [there.get(word.strip(), word) for word in value] if key in ("tasks", "solvers") else value
    made = build(Config, values | {"settings": ()}, "the configuration")
    remaining = (s for s in values.get("settings", ()) if s.task in made.task_labels and s.solver in made.solver_labels)
    return replace(made, settings=tuple(remaining))


def as_curve(config: Config, steps: tuple[int, ...] | None, eta: tuple[float, ...] | None) -> Config:
    """The configuration swept over steps and eta."""
    solvers = tuple(replace(s, eta=None) for s in config.solvers)
    settings = tuple(replace(s, eta=None) for s in config.settings)
    return replace(config, steps=steps or CURVE_STEPS, eta=eta or CURVE_ETA, solvers=solvers, settings=settings)
