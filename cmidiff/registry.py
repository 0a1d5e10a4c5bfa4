"""One registry for all that has a name: solvers, samplers, covariances, tasks and priors.

A name means the same everywhere: in `cmidiff.restore`, at the command line, in evaluations and presets, on the web
page. Another package adds names by entry points of the group `cmidiff.solvers`, `cmidiff.samplers`,
`cmidiff.covariances`, `cmidiff.tasks` or `cmidiff.priors`; what an entry point refers to is called without arguments.
Nothing is imported before it is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any


class Registry(Mapping[str, str]):
    """Names of one kind, and where each is found (``module:attribute``).

    Args:
        kind: what is registered, for messages.
        group: of the entry points.
        builtin: the names of this package.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group, self.builtin = kind, group, dict(builtin)

    @cached_property
    def _all(self) -> dict[str, str]:
        foreign = {point.name: point.value for point in entry_points(group=self.group)}
        return {**foreign, **self.builtin}  # a name of this package is not taken by another

    def __getitem__(self, name: str) -> str:
        if name not in self._all:
            raise ValueError(f"unknown {self.kind} {name!r}: {suggest(name, self._all)}")
        return self._all[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def find(self, name: str) -> Callable[..., Any]:
        """What makes the thing of a name.

        Raises:
            ValueError: an unknown name, or a registration that leads nowhere.
        """
        module, _, path = self[name].partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"the {self.kind} {name!r} is registered as {self[name]} and cannot be loaded: {error}"
            ) from error
        return found

    def options(self, name: str) -> dict[str, Any]:
        """The options of a name and their defaults; functions cannot be given as options."""
        made = self.find(name)()
        fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
        return {f.name: getattr(made, f.name) for f in fields if f.init and not callable(getattr(made, f.name))}

    def make(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """The thing of a name.

        Args:
            name: as registered.
            options: JSON values by field, as ``{"scale": 1.0}``. ``{"start": 6.0, "end": 2.0}`` is a `Ramp`;
                ``{"name": "exact", "iterations": 8}`` a covariance.

        Raises:
            ValueError, TypeError: an unknown name or option (the known ones are listed), or a value that is refused.
        """
        made = self.find(name)()
        known = self.options(name)
        for option in options or {}:
            if option not in known:
                hint = suggest(option, known) if known else "it has none"
                raise ValueError(f"{self.kind} {name!r} has no option {option!r}: {hint}")
        return dataclasses.replace(made, **{k: _value(v) for k, v in options.items()}) if options else made

    def spell(self, thing: object) -> dict[str, Any]:
        """The name of a thing, and its options that are not those of the name, as `make` takes them.

        Raises:
            ValueError: nothing like it is registered.
        """
        spelled = []
        for name in self:
            with contextlib.suppress(ValueError):  # a registration that leads nowhere spells nothing
                made = self.find(name)()
                if type(made) is type(thing):
                    known = describe(made)
                    own = {k: _spelled(getattr(thing, k), v) for k, v in describe(thing).items() if v != known[k]}
                    spelled.append({"name": name} | own)
        if not spelled:
            raise ValueError(f"the {self.kind} must be one of {', '.join(self)} to be stored, received {thing!r}")
        return min(spelled, key=len)

    def resolve(self, choice: Any) -> Any:
        """The thing itself of a name, a class or a thing.

        Raises:
            ValueError: an unknown name.
        """
        if isinstance(choice, str):
            return self.make(choice)
        return choice() if isinstance(choice, type) else choice


def suggest(wrong: str, known: Mapping[str, Any] | list[str]) -> str:
    """What to say of a name that is not known: names like it, or all names."""
    near = difflib.get_close_matches(wrong.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"


def _value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, list) else value
    if "name" in value:
        return COVARIANCES.make(value["name"], {k: v for k, v in value.items() if k != "name"})
    return importlib.import_module("cmidiff.solvers").Ramp(**value)


def _spelled(value: object, described: Any) -> Any:
    """An option as `Registry.make` takes it."""
    if not isinstance(described, Mapping):
        return described
    if type(value).__name__ == "Ramp":
        return {k: v for k, v in described.items() if k != "class"}
    return COVARIANCES.spell(value)


def describe(thing: object) -> dict[str, Any]:
    """The fields of a solver, a sampler or CMI as JSON holds them, alike in every process: functions by their name,
    nested objects with the name of their class."""

    def plain(value: object) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {"class": type(value).__name__} | describe(value)
        name = getattr(value, "__qualname__", None)
        return str(value) if name is None else f"{getattr(value, '__module__', '')}.{name}"

    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return {}
    values = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return json.loads(json.dumps(values, default=plain))


SOLVERS = Registry(
    "solver",
    "cmidiff.solvers",
    {
        "dpir": "cmidiff.solvers:DPIR",
        "cadps": "cmidiff.solvers:CADPS",
        "cadps-diagonal": "cmidiff.solvers.cadps:diagonal",
        "cadps-isotropic": "cmidiff.solvers.cadps:isotropic",
        "cadps-exact": "cmidiff.solvers.cadps:exact",
        "cadps-paper": "cmidiff.solvers.cadps:paper",
        "cadps-released": "cmidiff.solvers:CADPSReleased",
        "pigdm": "cmidiff.solvers:PiGDM",
        "free-hunch": "cmidiff.solvers.cadps:free_hunch",
        "mmps": "cmidiff.solvers:MMPS",
        "tmpd": "cmidiff.solvers:TMPD",
        "diffpir": "cmidiff.solvers:DiffPIR",
        "ddnm": "cmidiff.solvers:DDNM",
        "sitcom": "cmidiff.solvers:SITCOM",
        "dps": "cmidiff.solvers:DPS",
        "mcg": "cmidiff.solvers:MCG",
        "dsg": "cmidiff.solvers:DSG",
        "unconditional": "cmidiff.solvers:Unconditional",
    },
)
SAMPLERS = Registry(
    "sampler",
    "cmidiff.samplers",
    {
        "ancestral": "cmidiff.samplers:Ancestral",
        "ddim": "cmidiff.samplers:DDIM",
        "probability-flow": "cmidiff.samplers:ProbabilityFlow",
        "dpm-solver": "cmidiff.samplers:DPMSolver",
        "renoise": "cmidiff.samplers:Renoise",
    },
)
COVARIANCES = Registry(
    "covariance",
    "cmidiff.covariances",
    {
        "hybrid": "cmidiff.covariance:Hybrid",
        "moments": "cmidiff.covariance:SecondMoments",
        "exact": "cmidiff.covariance:Exact",
        "diagonal": "cmidiff.covariance:Diagonal",
        "diagonal-paper": "cmidiff.covariance.diagonal:of_paper",
        "row-sum": "cmidiff.covariance:RowSum",
        "isotropic": "cmidiff.covariance:Isotropic",
        "analytic": "cmidiff.covariance:Analytic",
        "convert": "cmidiff.covariance:Convert",
        "wavelet": "cmidiff.covariance:Wavelet",
        "free-hunch": "cmidiff.covariance:FreeHunch",
    },
)
