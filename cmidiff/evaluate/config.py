"""What a benchmark is, as one TOML file::

    images = "photographs"          # a folder or a tar archive, relative to this file; or --images
    prior = "natural-64"
    size = 64                       # crop the square in the middle and shrink it to this side
    samples = 2

    [[tasks]]
    task = "super-resolution"       # of cmidiff.physics.TASKS; what else it takes, it takes here
    factor = 4

    [[solvers]]
    solver = "dps"                  # of cmidiff.registry.SOLVERS, and its options
    scale = 4.0
    eta = [0.1]                     # strength of CMI for this solver

    [[settings]]                    # above both: what holds for one task and one solver
    task = "super-resolution"
    solver = "dps"
    scale = 2.0                     # or preset = "FILE" of cmidiff tune: solver, CMI and sampler

Everything that decides a result is in it; how the work is done (device, batch, engine) is not.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cmidiff.evaluate.database import Cell, RunError
from cmidiff.registry import SOLVERS, describe

if TYPE_CHECKING:
    from cmidiff.information import CMI
    from cmidiff.solvers import Solver
    from cmidiff.step import Sampler
    from cmidiff.tuning.preset import Preset

PRESETS = Path(__file__).resolve().parent / "presets"
CURVE_STEPS = (20, 50, 100, 250, 1000)
CURVE_ETA = (0.03, 0.1, 0.3)
_LABEL = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class TaskChoice:
    """A task: its name in `cmidiff.physics.TASKS`, its parameters, and how the tables call it."""

    task: str
    label: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SolverChoice:
    """A solver: its name in `cmidiff.registry.SOLVERS`, its options (above those of a preset of `cmidiff tune`), its
    own strengths of CMI, and how the tables call it."""

    solver: str
    label: str = ""
    preset: Path | None = None
    eta: tuple[float, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Options of one solver for one task (both by label), above those of the solver."""

    task: str
    solver: str
    preset: Path | None = None
    eta: tuple[float, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """Every choice that decides a result.

    Args:
        images: folder or tar archive.
        name: of the benchmark, for the report.
        prior: name or folder.
        size: side in pixels: the square in the middle of each image is shrunk to it; None: images as they are.
        offset, limit: which images, by their sorted names; no limit takes all.
        tasks, solvers, settings: see the classes.
        cmi: ``off`` (the base solver), ``on``, or both.
        eta: strengths of CMI, dimensionless; a solver or a setting may have its own. Without any, CMI's default.
        cmi_options: other fields of `cmidiff.CMI`.
        steps: of the sampler; several make a curve.
        seeds: of mask, noise and sampler; a unit each.
        samples: K posterior samples for each unit.
        noise_std: standard deviation of the measurement noise, for pictures in [0, 1]. A task may have its own.
        lpips: network of LPIPS: alex, vgg or squeeze.

    Raises:
        RunError: a value that cannot be meant.
    """

    images: Path | None = None
    name: str = "benchmark"
    prior: str = "natural-64"
    size: int | None = None
    offset: int = 0
    limit: int | None = None
    tasks: tuple[TaskChoice, ...] = ()
    solvers: tuple[SolverChoice, ...] = ()
    settings: tuple[Setting, ...] = ()
    cmi: tuple[str, ...] = ("off", "on")
    eta: tuple[float, ...] = ()
    cmi_options: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0,)
    samples: int = 1
    noise_std: float = 0.05
    lpips: str = "alex"

    def __post_init__(self) -> None:
        for wrong, message in self._complaints():
            if wrong:
                raise RunError(message)

    def _complaints(self) -> Iterable[tuple[bool, str]]:
        yield not self.tasks, "no task: give --tasks, or [[tasks]] in the configuration"
        yield not self.solvers, "no solver: give --solvers, or [[solvers]] in the configuration"
        for what, labels in (("task", self.task_labels), ("solver", self.solver_labels)):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            yield bool(twice), f"{what} {', '.join(twice)} is there twice: give one of them another label"
            bad = [label for label in labels if not _LABEL.fullmatch(label)]
            yield bool(bad), f"the label {bad[:1]} of a {what} may hold letters, digits, '.', '_' and '-' only"
        for s in self.settings:
            known = s.task in self.task_labels and s.solver in self.solver_labels
            yield not known, f"[[settings]] of task {s.task!r} and solver {s.solver!r}: the run has no such pair"
        bad_cmi = not self.cmi or not set(self.cmi) <= {"off", "on"} or len(set(self.cmi)) < len(self.cmi)
        yield bad_cmi, f"cmi must be off, on, or both, received {', '.join(self.cmi) or 'nothing'}"
        for name in ("steps", "seeds", "eta"):
            values = getattr(self, name)
            wrong = len(set(values)) < len(values) or (not values and name != "eta")
            yield wrong, f"{name} needs values, each once, received {list(values)}"
        for name, values, least in (("steps", self.steps, 1), ("seeds", self.seeds, 0)):
            wrong = any(not least <= n < 2**63 for n in values)
            yield wrong, f"{name} must be whole numbers from {least} to 2^63 - 1, received {list(values)}"
        zero = "on" in self.cmi and any(eta == 0 or not math.isfinite(eta) for eta in self.eta)
        yield zero, f"eta must be finite and not 0 (that is cmi off), received {list(self.eta)}"
        for name, least in (("size", 1), ("limit", 1), ("samples", 1), ("offset", 0)):
            value = getattr(self, name)
            wrong = value is not None and not least <= value < 2**63
            yield wrong, f"{name} must be a whole number from {least} to 2^63 - 1, received {value}"
        good = math.isfinite(self.noise_std) and self.noise_std >= 0
        yield not good, f"noise_std must be a number >= 0, received {self.noise_std}"
        nets = ("alex", "vgg", "squeeze")
        yield self.lpips not in nets, f"lpips must be one of {', '.join(nets)}, received {self.lpips!r}"

    @property
    def task_labels(self) -> list[str]:
        return [task.label for task in self.tasks]

    @property
    def solver_labels(self) -> list[str]:
        return [solver.label for solver in self.solvers]

    def task(self, label: str) -> TaskChoice:
        return next(task for task in self.tasks if task.label == label)

    def cells(self) -> list[Cell]:
        """The grid less images and seeds, task by task and solver by solver, each base before its CMI forms."""
        return [
            Cell(task, solver, eta is not None, eta or 0.0, steps)
            for task in self.task_labels
            for solver in self.solver_labels
            for steps in self.steps
            for eta in self._etas(task, solver)
        ]

    def setup(self, cell: Cell) -> Setup:
        """What restores the units of a cell.

        Raises:
            ValueError, TypeError: unknown names, options that are refused, or a preset of another solver or number of
                steps.
        """
        choice, settings = self._solver(cell.solver), self._settings(cell.task, cell.solver)
        options = {**choice.options, **{key: value for s in settings for key, value in s.options.items()}}
        solver = SOLVERS.make(choice.solver, options)
        preset = self._preset(cell.task, cell.solver)
        if preset is None:
            return Setup(solver, self._correction(cell, {}), solver.sampler)
        if type(preset.solver) is not type(solver) or preset.steps not in self.steps:
            raise ValueError(
                f"the preset of {cell.solver} is for {type(preset.solver).__name__} at {preset.steps} steps, the run "
                f"takes {type(solver).__name__} at {list(self.steps)}: tune for these, or change the run"
            )
        named = {name: getattr(solver, name) for name in options}
        tuned = {} if preset.cmi is None else {f.name: getattr(preset.cmi, f.name) for f in fields(preset.cmi)}
        return Setup(replace(cast(Any, preset.solver), **named), self._correction(cell, tuned), preset.process)

    def _correction(self, cell: Cell, tuned: Mapping[str, Any]) -> CMI | None:
        from cmidiff.information import CMI

        if not cell.cmi:
            return None
        known = [f.name for f in fields(CMI) if f.name != "eta"]
        for option in self.cmi_options:
            if option not in known:
                raise ValueError(f"[cmi_options]: unknown option {option!r}; it has {', '.join(known)}")
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.cmi_options.items()}
        return CMI(**{**tuned, **options, "eta": cell.eta})

    def _preset(self, task: str, solver: str) -> Preset | None:
        from cmidiff.tuning.preset import load_preset

        paths = [self._solver(solver).preset, *(s.preset for s in self._settings(task, solver))]
        given = [path for path in paths if path is not None]
        return load_preset(given[-1]) if given else None

    def _solver(self, label: str) -> SolverChoice:
        return next(solver for solver in self.solvers if solver.label == label)

    def _settings(self, task: str, solver: str) -> list[Setting]:
        return [s for s in self.settings if (s.task, s.solver) == (task, solver)]

    def _etas(self, task: str, solver: str) -> list[float | None]:
        """None is the base solver."""
        base: list[float | None] = [None] if "off" in self.cmi else []
        return base + (list(self._strengths(task, solver)) if "on" in self.cmi else [])

    def _strengths(self, task: str, solver: str) -> tuple[float, ...]:
        from cmidiff.information import CMI

        own = [self._solver(solver).eta, *(s.eta for s in self._settings(task, solver))]
        given = [eta for eta in own if eta is not None]
        if given:
            return given[-1]
        preset = self._preset(task, solver)
        if preset is not None and preset.cmi is not None:
            return (preset.cmi.eta,)
        return self.eta or (CMI().eta,)


class Setup(NamedTuple):
    """What restores the units of a cell."""

    solver: Solver
    correction: CMI | None
    sampler: Sampler


def resolved(config: Config) -> dict[str, Any]:
    """All that decides the results, with every default written out: JSON values.

    Raises:
        RunError: an unknown task, solver or option.
    """
    plain = json.loads(json.dumps(asdict(config), default=str))
    plain["tasks"] = [{"label": t.label, "task": t.task, **_parameters(config, t)} for t in config.tasks]
    plain["solvers"] = [{"label": s.label, "solver": s.solver} for s in config.solvers]
    del plain["settings"], plain["cmi_options"]
    plain["cells"] = {}
    try:
        for cell in config.cells():
            setup = config.setup(cell)
            plain["cells"][_name(cell)] = {
                "solver": _fields(setup.solver),
                "cmi": None if setup.correction is None else _fields(setup.correction),
                "sampler": _fields(setup.sampler),
            }
    except (ValueError, TypeError) as error:
        raise RunError(str(error)) from error
    return plain


def _name(cell: Cell) -> str:
    return f"{cell.task}, {cell.solver}, {f'cmi {cell.eta:g}' if cell.cmi else 'base'}, {cell.steps} steps"


def _fields(thing: Any) -> dict[str, Any]:
    return {"is": type(thing).__name__} | describe(thing)


def _parameters(config: Config, choice: TaskChoice) -> dict[str, Any]:
    """The parameters of a task with their defaults; its seed is each image's own."""
    from cmidiff.physics import TASKS

    if choice.task not in TASKS:
        raise RunError(unknown("task", choice.task, TASKS))
    signature = inspect.signature(TASKS[choice.task]).parameters.values()
    taken = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    for name in ("dtype", "device", "seed"):
        taken.pop(name, None)
    for name in choice.parameters:
        if name not in taken:
            raise RunError(f"task {choice.task} has no parameter {name!r}: it has {', '.join(taken)}")
    return json.loads(json.dumps(taken | {"noise_std": config.noise_std} | choice.parameters))


def unknown(what: str, received: str, names: Iterable[str]) -> str:
    """What to say of a name that is not in a table, the nearest ones first."""
    names = list(names)
    near = difflib.get_close_matches(received.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}"
    return f"unknown {what} {received!r}: {hint}"


def difference(before: Mapping[str, Any], now: Mapping[str, Any], *, grown: bool = False) -> list[str]:
    """What tells two resolved configurations apart, a line each.

    Where the images and the prior lie does not count: what they are is compared elsewhere.

    Args:
        grown: tasks, solvers, cells and seeds that are new do not count either.
    """
    left_out = {"images", "prior", "name"} | ({"offset", "limit", "cmi", "eta", "steps"} if grown else set())
    old, new = ({k: v for k, v in c.items() if k not in left_out} for c in (before, now))
    return list(_differences(old, new, "", grown))


def _differences(old: Any, new: Any, path: str, grown: bool) -> Iterable[str]:
    if grown and path == "seeds":
        old, new = dict.fromkeys(map(str, old)), dict.fromkeys(map(str, new))
    old, new = _by_label(old), _by_label(new)
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if old != new:
            yield f"{path}: {old} -> {new}"
        return
    yield from _membership(path, "without", [key for key in old if key not in new])
    if not grown:
        yield from _membership(path, "with", [key for key in new if key not in old])
    for key in new:
        if key in old:
            yield from _differences(old[key], new[key], f"{path}.{key}" if path else key, grown)


def _by_label(value: Any) -> Any:
    labelled = isinstance(value, list) and value and all(isinstance(v, Mapping) and "label" in v for v in value)
    return {part["label"]: part for part in value} if labelled else value


def _membership(path: str, word: str, names: list[str]) -> Iterable[str]:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{path} {word} {', '.join(names[:3])}{more}".strip()


# from text


def load(source: str | Path) -> Config:
    """A configuration from a TOML file, or a preset by its name.

    Raises:
        RunError: no such file or preset, not TOML, an unknown key, or a value of a wrong type or that cannot be meant.
    """
    path = find(source)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not valid TOML: {error}") from error
    try:
        return from_table(table, path.parent)
    except RunError as error:
        raise RunError(f"{path}: {error}") from error


def find(source: str | Path) -> Path:
    """The file of a configuration, given by path or as the name of a preset."""
    path = Path(source)
    if path.is_file():
        return path
    names = sorted(p.stem for p in PRESETS.glob("*.toml"))
    name = str(source).removeprefix("presets/").removesuffix(".toml")
    if name not in names:
        raise RunError(f"no configuration {str(source)!r}: neither a file nor a preset ({', '.join(names)})")
    return PRESETS / f"{name}.toml"


def from_table(table: Mapping[str, Any], folder: Path) -> Config:
    """A configuration from the values of a TOML file in ``folder``."""
    values = _checked(table, Config, "the configuration")
    if "images" in values:
        values["images"] = folder / values["images"]
    for key, kind in (("tasks", TaskChoice), ("solvers", SolverChoice), ("settings", Setting)):
        values[key] = tuple(_entry(entry, kind, folder) for entry in values.get(key, ()))
    return Config(**values)


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "Path | None": (lambda v: isinstance(v, str), "a path"),
    "str": (lambda v: isinstance(v, str), "a text"),
    "int": (lambda v: type(v) is int, "a whole number"),
    "int | None": (lambda v: type(v) is int, "a whole number"),
    "float": (lambda v: type(v) in (int, float), "a number"),
    "tuple[int, ...]": (lambda v: all(type(n) is int for n in v), "a list of whole numbers"),
    "tuple[float, ...]": (lambda v: all(type(n) in (int, float) for n in v), "a list of numbers"),
    "tuple[float, ...] | None": (lambda v: all(type(n) in (int, float) for n in v), "a list of numbers"),
    "tuple[str, ...]": (lambda v: all(isinstance(n, str) for n in v), "a list of texts"),
    "dict[str, Any]": (lambda v: isinstance(v, dict), "a table"),
}


def _checked(table: Mapping[str, Any], kind: type, where: str, rest: str | None = None) -> dict[str, Any]:
    """The fields of a dataclass, of the right types; other keys go into the field ``rest``, or are refused."""
    known = {f.name: str(f.type) for f in fields(kind) if f.name != rest}
    values: dict[str, Any] = {} if rest is None else {rest: {}}
    for key, value in table.items():
        if key not in known:
            if rest is None:
                raise RunError(f"unknown key {key!r} in {where}; it may have {', '.join(known)}")
            values[rest][key] = value
        else:
            values[key] = _typed(key, value, known[key], where)
    return values


def _typed(key: str, value: Any, kind: str, where: str) -> Any:
    if kind not in _TYPES:  # a list of tables
        if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
            raise RunError(f"{key} in {where} must be tables, as [[{key}]], received {value!r}")
        return value
    fits, described = _TYPES[kind]
    if kind.startswith("tuple"):
        value = value if isinstance(value, list) else [value]
    if not fits(value):
        raise RunError(f"{key} in {where} must be {described}, received {value!r}")
    if kind.startswith("tuple[float"):
        value = map(float, value)
    return tuple(value) if kind.startswith("tuple") else float(value) if kind == "float" else value


def _entry(table: Mapping[str, Any], kind: type, folder: Path) -> Any:
    """An entry of [[tasks]], [[solvers]] or [[settings]]; what is no field of it is an option."""
    where, needed, rest = _ENTRIES[kind]
    for name in needed:
        if name not in table:
            raise RunError(f"an entry of {where} has no {name!r}: add it")
    values = _checked(table, kind, where, rest)
    if "preset" in values:
        values["preset"] = folder / values["preset"]
    if kind is not Setting:
        values.setdefault("label", table[needed[0]])
    return kind(**values)


_ENTRIES: dict[type, tuple[str, tuple[str, ...], str]] = {
    TaskChoice: ("[[tasks]]", ("task",), "parameters"),
    SolverChoice: ("[[solvers]]", ("solver",), "options"),
    Setting: ("[[settings]]", ("task", "solver"), "options"),
}


def choice(text: str, kind: type[TaskChoice] | type[SolverChoice]) -> Any:
    """A task or a solver in one word: ``super-resolution:factor=4``, ``dps:scale=2:label=dps-2``.

    Raises:
        RunError: not of this form.
    """
    name, *given = text.strip().split(":")
    table: dict[str, Any] = {"task" if kind is TaskChoice else "solver": name}
    for part in given:
        key, equals, value = part.partition("=")
        if not equals:
            raise RunError(f"{text!r} must be NAME or NAME:option=value, received the part {part!r}")
        table[key] = _value(value)
    return _entry(table, kind, Path())


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def override(config: Config | None, given: Mapping[str, Any]) -> Config:
    """A configuration with some fields replaced. A task or solver given by a label of the configuration is that one.

    Args:
        config: None to start from the defaults.
        given: fields; ``tasks`` and ``solvers`` as words (see `choice`).

    Raises:
        RunError: what the configuration refuses.
    """
    values = dict(given)
    for key, kind in (("tasks", TaskChoice), ("solvers", SolverChoice)):
        if key in values:
            there = {c.label: c for c in (getattr(config, key) if config else ())}
            values[key] = tuple(there.get(word.strip()) or choice(word, kind) for word in values[key])
            _check_names(values[key], kind)
    if config is None:
        return Config(**values)
    tasks = {t.label for t in values.get("tasks", config.tasks)}
    solvers = {s.label for s in values.get("solvers", config.solvers)}
    kept = tuple(s for s in config.settings if s.task in tasks and s.solver in solvers)
    return replace(config, **values, settings=kept)


def _check_names(choices: Iterable[Any], kind: type) -> None:
    for given in choices:
        if kind is SolverChoice and given.solver not in SOLVERS:
            raise RunError(unknown("solver", given.solver, SOLVERS))


def as_curve(config: Config, steps: tuple[int, ...] | None, eta: tuple[float, ...] | None) -> Config:
    """The configuration swept over steps and eta."""
    solvers = tuple(replace(s, eta=None) for s in config.solvers)
    settings = tuple(replace(s, eta=None) for s in config.settings)
    return replace(config, steps=steps or CURVE_STEPS, eta=eta or CURVE_ETA, solvers=solvers, settings=settings)
