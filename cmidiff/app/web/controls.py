"""The controls of the page: what a person may ask, in everyday words, and their values as checked numbers.

A case is a wish in everyday words, or an experiment on a clean image. Behind each is a task of the command line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmidiff.app.problem import JPEG
from cmidiff.physics import TASKS
from cmidiff.registry import SOLVERS

LEAST = 8  # shorter side of what is restored, in pixels


@dataclass(frozen=True)
class Limits:
    """What one person may ask of a server.

    Attributes:
        file_bytes, pixels: of an uploaded image.
        side: longer side of what is computed, in pixels.
        steps, samples: of the sampler.
        seconds: of a run; the samples that are finished by then are shown.
        jobs: runs at a time; the others wait.
        waiting: runs that may wait.
        away: seconds after which a run stops if no browser asks for it.
    """

    file_bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    side: int = 1024
    steps: int = 200
    samples: int = 8
    seconds: float = 300.0
    jobs: int = 1
    waiting: int = 40
    away: float = 60.0


@dataclass(frozen=True)
class Strength:
    """The number of a case: its name, the parameter of the task, and its range."""

    label: str
    option: str
    low: float
    high: float
    value: float
    step: float


@dataclass(frozen=True)
class Case:
    """A wish, or an experiment.

    Attributes:
        label: in everyday words.
        task: of the command line; None for a painted mask.
        strength: its number, or None.
        hint: what the person has to do or to know.
    """

    label: str
    task: str | None
    strength: Strength | None = None
    hint: str = ""


_SHAKE = Strength("Length of the shake (pixels)", "kernel_size", 3, 31, 11, 2)

WISHES: dict[str, Case] = {
    "scratches": Case(
        "Remove scratches",
        None,
        hint="Paint over everything that is to be replaced, and begin each stroke inside the photograph. Only the "
        "painted pixels change.",
    ),
    "small": Case("Enlarge", "super-resolution", Strength("Enlarge so many times", "factor", 2, 8, 4, 2)),
    "blurred": Case(
        "Sharpen",
        "deblur-gaussian",
        Strength("Width of the blur (pixels of the result; 0: found in the photograph)", "std", 0, 5, 0, 0.1),
        hint="The width of the blur is found in the photograph. If rings appear, state a lower one.",
    ),
    "grainy": Case("Remove noise", "denoise"),
    "blocks": Case("Repair JPEG", JPEG, hint="Give the JPEG file itself: it says how strongly it was compressed."),
    "grey": Case("Add colour", "colorize"),
}
"""What a person wants of a photograph."""

_EXPERIMENTS = {
    "inpaint-random": Strength("Fraction to hide", "hidden", 0.1, 0.98, 0.8, 0.02),
    "inpaint-box": Strength("Side of the box (fraction)", "size", 0.1, 0.8, 0.4, 0.05),
    "super-resolution": Strength("Shrink so many times", "factor", 2, 8, 4, 2),
    "deblur-gaussian": Strength("Width of the blur (pixels)", "std", 0.5, 5, 1, 0.1),
    "deblur-motion": _SHAKE,
    "compressed-sensing": Strength("Measurements for each pixel", "ratio", 0.05, 0.9, 0.25, 0.05),
    "hdr": Strength("Contrast", "factor", 1.2, 4, 2, 0.2),
    "nonlinear-blur": _SHAKE,
}
EXPERIMENTS = {name: Case(name.replace("-", " "), name, _EXPERIMENTS.get(name)) for name in TASKS}
"""How a clean image can be degraded: every task of the command line."""

EXPERIMENT = "experiment"  # instead of a wish
CASES: Mapping[str, Case] = WISHES | EXPERIMENTS


def number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> float:
    """Return a number of a control."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{name} must be {kind} from {low:g} to {high:g}, received {_shorten(value)}")
    return int(value) if whole else float(value)


def parse_number(text: Any) -> Any:
    """Return the number that was typed, None where nothing was, and anything else as it is."""
    if not isinstance(text, str):
        return text
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def choice(name: str, value: Any, names: Collection[str]) -> str:
    """Return one of several names."""
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, received {_shorten(value)}")
    return value


def file_of(name: str, value: Any) -> Path | None:
    """Return the path of an uploaded file, or None where there is none."""
    path = value.get("path") if isinstance(value, dict) else value
    if path is not None and (value is path or not isinstance(path, str)):
        raise ValueError(f"{name} must be an uploaded file, received {_shorten(value)}")
    return None if path is None else Path(path)


def _shorten(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:40]


@dataclass(frozen=True)
class Ask:
    """What is to be restored, and how.

    Attributes:
        case: key of `CASES`.
        strength: of the case; 0 where it has none.
        noise_std: in units of a [0, 1] image; None to estimate it.
        side: longer side of what is computed, in pixels.
        whole: for a repair: whether the pixels outside of the paint are denoised, too.
        solver: of the result.
        steps: of the solver; None for its default.
    """

    case: str
    strength: float = 0.0
    noise_std: float | None = None
    side: int = 128
    whole: bool = False
    solver: str = "dpir"
    steps: int | None = None
    seed: int = 0

    @property
    def enlarge(self) -> int:
        """How many times larger the result is than what is measured."""
        return int(self.strength) if self.case == "small" else 1

    @property
    def multiple(self) -> int:
        """What the sides of the image must be divisible by."""
        return int(self.strength) if self.case == "super-resolution" else 1

    @classmethod
    def read(cls, values: Mapping[str, Any], limits: Limits) -> Ask:
        """Check the values of the controls."""
        wished = choice("case", values["case"], [*WISHES, EXPERIMENT])
        case = choice("experiment", values["experiment"], EXPERIMENTS) if wished == EXPERIMENT else wished
        scale, noise, steps = CASES[case].strength, parse_number(values["noise"]), parse_number(values["steps"])
        return cls(
            case,
            0.0 if scale is None else number("strength", values["strength"], scale.low, scale.high),
            None if noise is None else number("noise", noise, 0, 1),
            int(number("side", values["side"], LEAST, limits.side, whole=True)),
            choice("whole", str(values["whole"]), ("True", "False")) == "True",
            choice("solver", values["solver"], SOLVERS),
            None if steps is None else int(number("steps", steps, 2, limits.steps, whole=True)),
            int(number("seed", values["seed"], 0, 2**31 - 1, whole=True)),
        )
