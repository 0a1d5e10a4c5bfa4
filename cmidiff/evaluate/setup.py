"""From a configuration to its cells: the solver, CMI and sampler of each, and all of it written out for the record."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, NamedTuple

from cmidiff.config import suggest
from cmidiff.evaluate.config import Config, TaskChoice
from cmidiff.evaluate.records import Cell
from cmidiff.information import CMI
from cmidiff.physics import TASKS
from cmidiff.registry import SOLVERS, configure, describe
from cmidiff.solvers import Solver
from cmidiff.step import Sampler
from cmidiff.tuning.preset import Preset


class Setup(NamedTuple):
    """What restores the units of a cell."""

    solver: Solver
    correction: CMI | None
    sampler: Sampler


def list_cells(config: Config) -> list[Cell]:
    """The grid less images and seeds, task by task and solver by solver, each base before its CMI forms."""
    found = []
    for task in config.task_labels:
        for solver in config.solver_labels:
            base = Cell(task, solver, False, 0.0, 0)
            etas = _etas(config, base) if "on" in config.cmi else ()
            for steps in config.steps:
                found += [base._replace(steps=steps)] if "off" in config.cmi else []
                found += [Cell(task, solver, True, eta, steps) for eta in etas]
    return found


def setup(config: Config, cell: Cell) -> Setup:
    """What restores the units of a cell."""
    choice, settings = config.choices(cell)
    options = choice.options | {key: value for s in settings for key, value in s.options.items()}
    solver, preset, tuned = SOLVERS.make(choice.solver, options), _preset(config, cell), CMI()
    sampler = solver.sampler
    if preset is not None:
        if type(preset.solver) is not type(solver) or preset.steps not in config.steps:
            raise ValueError(
                f"the preset of {cell.solver} is for {type(preset.solver).__name__} at {preset.steps} steps, the run "
                f"takes {type(solver).__name__} at {list(config.steps)}: tune for these, or change the run"
            )
        solver, tuned, sampler = configure(preset.solver, options, choice.solver), preset.cmi or tuned, preset.process
    correction = configure(tuned, config.cmi_options, "[cmi_options]")
    return Setup(solver, replace(correction, eta=cell.eta) if cell.cmi else None, sampler)


def _preset(config: Config, cell: Cell) -> Preset | None:
    choice, settings = config.choices(cell)
    given = [preset for preset in (choice.preset, *(s.preset for s in settings)) if preset is not None]
    return given[-1] if given else None


def _etas(config: Config, cell: Cell) -> tuple[float, ...]:
    """Strengths of CMI, by the most particular statement."""
    choice, settings = config.choices(cell)
    given = [eta for eta in (choice.eta, *(s.eta for s in settings)) if eta is not None]
    if given:
        return given[-1]
    preset = _preset(config, cell)
    if preset is not None and preset.cmi is not None:
        return (preset.cmi.eta,)
    return config.eta or (CMI().eta,)


def resolve(config: Config) -> dict[str, Any]:
    """All that decides the results, with every default written out: JSON values."""
    apart = ("prior_options", "tasks", "solvers", "settings", "cmi_options")
    plain = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in apart}
    plain = json.loads(json.dumps(plain, default=str))
    plain["prior_options"] = asdict(config.prior_options)
    plain["tasks"] = [{"label": t.label, "task": t.task, **_parameters(config, t)} for t in config.tasks]
    plain["solvers"] = [{"label": s.label, "solver": s.solver} for s in config.solvers]
    plain["cells"] = {}
    for cell in list_cells(config):
        name = f"{cell.task}, {cell.solver}, {f'cmi {cell.eta:g}' if cell.cmi else 'base'}, {cell.steps} steps"
        parts = dict(zip(("solver", "cmi", "sampler"), setup(config, cell), strict=True))
        plain["cells"][name] = {
            key: None if part is None else {"is": type(part).__name__} | describe(part) for key, part in parts.items()
        }
    return plain


def _parameters(config: Config, choice: TaskChoice) -> dict[str, Any]:
    """The parameters of a task with their defaults; its seed is each image's own."""
    if choice.task not in TASKS:
        raise ValueError(f"unknown task {choice.task!r}: {suggest(choice.task, TASKS)}")
    signature = inspect.signature(TASKS[choice.task]).parameters.values()
    taken = {
        p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY and p.name not in ("dtype", "device", "seed")
    }
    for name in choice.parameters:
        if name not in taken:
            raise ValueError(f"task {choice.task} has no parameter {name!r}: {suggest(name, taken)}")
    return json.loads(json.dumps(taken | {"noise_std": config.noise_std} | choice.parameters))


def compare(before: Mapping[str, Any], now: Mapping[str, Any], *, grown: bool = False) -> list[str]:
    """The differences of two resolved configurations, a line each.

    Where the images and the prior lie does not count: what they are is compared elsewhere.

    Args:
        before, now: as `resolve` returns them.
        grown: tasks, solvers, cells and seeds that are new do not count either.
    """
    left_out = {"images", "prior", "name"} | ({"offset", "limit", "cmi", "eta", "steps"} if grown else set())
    old, new = ({k: v for k, v in c.items() if k not in left_out} for c in (before, now))
    return list(_differences(old, new, "", grown))


def _differences(old: Any, new: Any, path: str, grown: bool) -> Iterator[str]:
    old, new = (_by_key(value, path) if grown or path != "seeds" else value for value in (old, new))
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if old != new:
            yield f"{path}: {old} -> {new}"
        return
    for word, keys in (("without", old.keys() - new.keys()), ("with", () if grown else new.keys() - old.keys())):
        names = [key for key in (*old, *new) if key in keys]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"{path} {word} {', '.join(names[:3])}{more}".strip()
    for key in new:
        if key in old:
            yield from _differences(old[key], new[key], f"{path}.{key}" if path else key, grown)


def _by_key(value: Any, path: str) -> Any:
    """A list of labelled tables, or of seeds, as a mapping."""
    if path == "seeds":
        return dict.fromkeys(map(str, value))
    labelled = isinstance(value, list) and value and all(isinstance(v, Mapping) and "label" in v for v in value)
    return {part["label"]: part for part in value} if labelled else value
