"""One registry for all that has a name: solvers, samplers, covariances, tasks and priors.

A name means the same everywhere: in `cmidiff.restore`, at the command line, in evaluations and presets, on the web
page. Another package adds names by entry points of the group `cmidiff.solvers`, `cmidiff.samplers`,
`cmidiff.covariances`, `cmidiff.tasks` or `cmidiff.priors`. What an entry point refers to is called without arguments
and returns the solver, sampler, covariance or prior. A task is called with the shape of the images and its parameters,
as those of `cmidiff.physics` are. Nothing is imported before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from cmidiff.config import check_options, unknown

KINDS = (  # of solvers, in the order of lists and menus
    *("point estimate", "posterior mean", "posterior draw", "move of the state"),
    *("optimisation", "latent priors", "particles", "prior alone"),
)


class Registry(Mapping[str, Callable[..., Any]]):
    """Names of one kind, and what makes the thing of each.

    Args:
        kind: what is registered, for messages.
        group: of the entry points.
        builtin: the names of this package, and where each is found (``module:attribute``).
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group, self.builtin = kind, group, dict(builtin)

    @cached_property
    def _all(self) -> dict[str, str]:
        foreign = {point.name: point.value for point in entry_points(group=self.group)}
        return {**foreign, **self.builtin}  # a name of this package is not taken by another

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """What makes the thing of a name.

        Raises:
            ValueError: an unknown name, or a registration that leads nowhere.
        """
        if name not in self._all:
            raise ValueError(unknown(self.kind, name, self._all))
        module, _, path = self._all[name].partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as error:  # whatever the code of another package raises when it is imported
            raise ValueError(
                f"the {self.kind} {name!r} is registered as {self._all[name]} and cannot be loaded: {error}"
            ) from error
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def loadable(self) -> list[str]:
        """The names whose registration leads somewhere."""
        found = []
        for name in self:
            with contextlib.suppress(ValueError):
                self[name]
                found.append(name)
        return found

    def by_kind(self) -> dict[str, list[str]]:
        """The loadable names of solvers, grouped by `cmidiff.solvers.base.Solver.kind`, in the order of `KINDS`."""
        kinds = {name: self[name]().kind for name in self.loadable()}
        order = [*KINDS, *dict.fromkeys(kind for kind in kinds.values() if kind not in KINDS)]
        groups = {kind: [name for name, own in kinds.items() if own == kind] for kind in order}
        return {kind: names for kind, names in groups.items() if names}

    def options(self, name: str) -> dict[str, Any]:
        """The options of a name and their defaults; functions cannot be given as options."""
        return _options(self[name]())

    def make(self, name: str, options: Mapping[str, Any] | None = None) -> Any:
        """The thing of a name.

        Args:
            name: as registered.
            options: JSON values by field, as ``{"scale": 1.0}``. ``{"start": 6.0, "end": 2.0}`` is a `Ramp`;
                ``{"name": "exact", "iterations": 8}`` a covariance.

        Raises:
            ValueError, TypeError: an unknown name or option (the known ones are listed), or a value that is refused.
        """
        return configure(self[name](), options or {}, f"{self.kind} {name!r}")

    def read(self, table: Mapping[str, Any]) -> Any:
        """The thing that a table with its name and options describes, as `spell` returns it.

        Raises:
            ValueError, TypeError: no name, or what `make` refuses.
        """
        if "name" not in table:
            raise ValueError(f"a {self.kind} needs a name, one of {', '.join(self)}; received {dict(table)}")
        return self.make(str(table["name"]), {k: v for k, v in table.items() if k != "name"})

    def spell(self, thing: object, *, whole: bool = False) -> dict[str, Any]:
        """The name of a thing and its options, as `read` takes them.

        Args:
            thing: a solver, a sampler, ...
            whole: whether options that the name implies are written, too.

        Raises:
            ValueError: nothing like it is registered, or an option is a function.
        """
        own, spelled = spell_options(thing), []
        for name in self:
            with contextlib.suppress(ValueError):  # a registration that leads nowhere spells nothing
                made = self[name]()
                if type(made) is type(thing):
                    implied = spell_options(made)
                    different = {k: v for k, v in own.items() if v != implied.get(k)}
                    spelled.append((len(different), {"name": name} | (own if whole else different)))
        if not spelled:
            raise ValueError(f"the {self.kind} must be one of {', '.join(self)} to be stored, received {thing!r}")
        return min(spelled, key=lambda found: found[0])[1]

    def resolve(self, choice: Any) -> Any:
        """The thing itself of a name, a class or a thing.

        Raises:
            ValueError: an unknown name.
        """
        if isinstance(choice, str):
            return self.make(choice)
        return choice() if isinstance(choice, type) else choice


def configure(thing: Any, options: Mapping[str, Any], where: str) -> Any:
    """A copy of a thing with other options.

    Args:
        thing: a solver, a sampler, a covariance or CMI.
        options: JSON values by field, as in `Registry.make`.
        where: what has the options, for messages.

    Raises:
        ValueError: an unknown option, or a value that is refused.
    """
    if not options:
        return thing
    values = {name: _value(value) for name, value in options.items()}
    check_options(type(thing), values, _options(thing), where)
    return dataclasses.replace(thing, **values)


def spell_options(thing: object) -> dict[str, Any]:
    """The options of a thing as `configure` takes them, without those that are None.

    Raises:
        ValueError: an option is a function, and not the default one.
    """
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) and not isinstance(thing, type) else ()
    values = {f.name: getattr(thing, f.name) for f in fields if f.init and getattr(thing, f.name) is not None}
    functions = {f.name for f in fields if callable(values.get(f.name)) and values[f.name] is f.default}
    return {name: _spelled(name, value) for name, value in values.items() if name not in functions}


def _options(thing: object) -> dict[str, Any]:
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    options = [f.name for f in fields if f.init and f.metadata.get("option", True)]
    return {name: getattr(thing, name) for name in options if not callable(getattr(thing, name))}


def _value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return tuple(value) if isinstance(value, list) else value
    if "name" in value:
        return COVARIANCES.read(value)
    if set(value) != {"start", "end"}:
        raise ValueError(
            f"a table must be a ramp, with start and end, or a covariance, with a name and options; received {value}"
        )
    return importlib.import_module("cmidiff.solvers").Ramp(**value)


def _spelled(name: str, value: Any) -> Any:
    """An option as `Registry.make` takes it."""
    if type(value).__name__ == "Ramp":
        return dataclasses.asdict(value)
    if dataclasses.is_dataclass(value):
        return COVARIANCES.spell(value)
    if callable(value):
        raise ValueError(f"{name} cannot be stored, received {value!r}: use a number or a Ramp")
    return list(value) if isinstance(value, tuple) else value


def describe(thing: object) -> dict[str, Any]:
    """The fields of a solver, a sampler or CMI as JSON holds them, alike in every process. Functions are stored by
    their name, nested objects with the name of their class."""

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
        "psld": "cmidiff.solvers:PSLD",
        "resample": "cmidiff.solvers:ReSample",
        "daps": "cmidiff.solvers:DAPS",
        "pnp-dm": "cmidiff.solvers:PnPDM",
        "ddrm": "cmidiff.solvers:DDRM",
        "repaint": "cmidiff.solvers:RePaint",
        "red-diff": "cmidiff.solvers:REDDiff",
        "tds": "cmidiff.solvers:TDS",
        "mcgdiff": "cmidiff.solvers:MCGDiff",
        "fps": "cmidiff.solvers:FPS",
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
TASKS = Registry(
    "task",
    "cmidiff.tasks",
    {
        "denoise": "cmidiff.physics:denoise",
        "inpaint-box": "cmidiff.physics:inpaint_box",
        "inpaint-random": "cmidiff.physics:inpaint_random",
        "inpaint-scratches": "cmidiff.physics:inpaint_scratches",
        "deblur-gaussian": "cmidiff.physics:deblur_gaussian",
        "deblur-motion": "cmidiff.physics:deblur_motion",
        "super-resolution": "cmidiff.physics:super_resolution",
        "colorize": "cmidiff.physics:colorize",
        "compressed-sensing": "cmidiff.physics:compressed_sensing",
        "phase-retrieval": "cmidiff.physics:phase_retrieval",
        "hdr": "cmidiff.physics:hdr",
        "nonlinear-blur": "cmidiff.physics:nonlinear_blur",
    },
)
PRIORS = Registry(
    "prior",
    "cmidiff.priors",
    {
        "photo": "cmidiff.prior.known:PHOTO",
        "natural-64": "cmidiff.prior.known:NATURAL_64",
        "cats-64": "cmidiff.prior.known:CATS_64",
        "drunet": "cmidiff.prior.known:DRUNET",
        "ffhq-256": "cmidiff.prior.known:FFHQ_256",
        "imagenet-256": "cmidiff.prior.known:IMAGENET_256",
    },
)
