"""What `tune` looks for: the strength of the guidance and of CMI, and how both change with the noise level.

The guidance. DPS, MCG (and CA-DPS as released) have a step size. ``scale`` and ``tilt`` make the `Ramp` from ``scale
sqrt(tilt)`` at pure noise to ``scale / sqrt(tilt)`` at the clean image. ``scale`` is searched over a factor of 8 either
way of the solver's own, ``tilt`` over a factor of 16. The others have a factor on the guidance, the variance of the
data (PiGDM, CA-DPS), or a rate (DSG). Of any other solver, also of another package, the field ``scale`` is searched.

CMI. On or off; ``eta = most u |u|`` with u in [-1, 1], finer near zero; its weight; and the upper end of its window in
``sigma / alpha``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol

from cmidiff.information import CMI
from cmidiff.solvers import CADPS, DPS, DSG, MCG, CADPSReleased, PiGDM, Ramp, Solver

WEIGHTS = ("reverse-sde", "snr")
VARIANCE = 0.3  # about that of images in [-1, 1]: where the search of a variance starts
WINDOW_ENDS = (0.3, 30.0)


class Trial(Protocol):
    """What proposes values; Optuna's trials are."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@dataclass(frozen=True)
class Setting:
    """A candidate."""

    solver: Solver
    cmi: CMI | None = None

    def __str__(self) -> str:
        if self.cmi is None:
            return f"{_short(self.solver)}, no CMI"
        cmi = self.cmi
        return f"{_short(self.solver)}, CMI eta {cmi.eta:.3g}, {cmi.weight}, window to {cmi.window[1]:.3g}"


def _short(solver: Solver) -> str:
    """The class and the numbers that are not at their defaults."""
    assert is_dataclass(solver)
    values = [(f.name, getattr(solver, f.name), f.default) for f in fields(solver)]
    words = [f"{name} {_words(value)}" for name, value, default in values if value != default or name == "scale"]
    return " ".join([type(solver).__name__, ", ".join(words)]).strip()


def _words(value: object) -> str:
    if isinstance(value, Ramp):
        return f"{value.start:.3g} to {value.end:.3g}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Space:
    """The settings that are searched.

    Args:
        base: the solver as it is without tuning.
        most: the largest ``|eta|``.
        only_eta: search the strength of CMI alone. The guidance is the base's, and CMI's other options have their
            defaults.
    """

    base: Solver
    most: float = 1.0
    only_eta: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.most < math.inf:
            raise ValueError(f"the largest |eta| must be a number > 0, received {self.most!r}")

    def first(self) -> list[dict[str, Any]]:
        """The parameters that are tried before any search, so that it cannot end below them: the solver alone, and the
        solver with the default CMI."""
        guidance = {name: start for name, start, *_ in self._strengths()[0]}
        default = CMI()
        u = math.copysign(math.sqrt(min(abs(default.eta) / self.most, 1.0)), default.eta)
        weight = default.weight if default.weight in WEIGHTS else WEIGHTS[0]
        high = min(max(default.window[1], WINDOW_ENDS[0]), WINDOW_ENDS[1])
        with_cmi = guidance | {"cmi": True, "u": u}
        return [guidance | {"cmi": False}, with_cmi | ({} if self.only_eta else {"weight": weight, "window": high})]

    def propose(self, trial: Trial) -> Setting:
        """The setting of a trial."""
        axes, make = self._strengths()
        values = {
            name: _neat(trial.suggest_float(name, low, high, log=log), start) for name, start, low, high, log in axes
        }
        solver = make(values)
        if not trial.suggest_categorical("cmi", (False, True)):
            return Setting(solver)
        u = trial.suggest_float("u", -1.0, 1.0)
        if self.only_eta:
            return Setting(solver, CMI(eta=_neat(self.most * u * abs(u))))
        weight = trial.suggest_categorical("weight", WEIGHTS)
        high = _neat(trial.suggest_float("window", *WINDOW_ENDS, log=True))
        return Setting(solver, replace(CMI(), eta=_neat(self.most * u * abs(u)), weight=weight, window=(0.0, high)))

    def _strengths(self) -> tuple[list[tuple[str, float, float, float, bool]], Callable[[dict[str, float]], Solver]]:
        """The axes (name, start, low, high, logarithmic), and the solver at a point."""
        base = self.base
        if self.only_eta:
            return [], lambda v: base
        match base:
            case DPS() | MCG():
                scale = _number(base.scale)
                axes = [_around("scale", scale, 8.0), _around("tilt", 1.0, 16.0)]
                return axes, lambda v: replace(base, scale=ramp(v["scale"], v["tilt"]))
            case PiGDM() if base.covariance is None:
                variance = VARIANCE if base.data_variance is None else base.data_variance
                axes = [_around("scale", base.scale, 3.0), _around("data_variance", variance, 10.0)]

                def make(v: dict[str, float]) -> Solver:
                    found = v["data_variance"]
                    return replace(
                        base, scale=v["scale"], data_variance=base.data_variance if found == variance else found
                    )

                return axes, make
            case PiGDM() | CADPS():
                return [_around("scale", base.scale, 3.0)], lambda v: replace(base, scale=v["scale"])
            case CADPSReleased():
                return [_around("scale", _number(base.scale), 8.0)], lambda v: replace(base, scale=v["scale"])
            case DSG():
                return [("rate", base.rate, 0.0, 1.0, False)], lambda v: replace(base, rate=v["rate"])
            case Solver(scale=float() as scale) if is_dataclass(base):  # pyright: ignore[reportAttributeAccessIssue]
                return [_around("scale", _number(scale), 8.0)], lambda v: replace(base, scale=v["scale"])
        raise ValueError(
            f"{base!r} has no strength to tune, which is a field scale > 0: choose dps, pigdm, mcg, dsg or cadps"
        )


def ramp(scale: float, tilt: float) -> float | Ramp:
    """``Ramp(scale sqrt(tilt), scale / sqrt(tilt))``, or the number where it is level."""
    return scale if tilt == 1.0 else Ramp(_neat(scale * math.sqrt(tilt)), _neat(scale / math.sqrt(tilt)))


def _neat(value: float, start: float | None = None) -> float:
    """Four digits of a value, which a person can read in a preset; the start of an axis as it is."""
    return value if value == start else float(f"{value:.4g}")


def _around(name: str, start: float, factor: float) -> tuple[str, float, float, float, bool]:
    return name, start, start / factor, start * factor, True


def _number(scale: object) -> float:
    if isinstance(scale, (int, float)) and scale > 0:
        return float(scale)
    raise ValueError(f"the search starts from a step size that is a number > 0, received {scale!r}: give one")
