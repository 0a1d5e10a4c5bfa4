"""The options of the command line: what they are called, and from their text to what they mean.

Nothing heavy is imported at the top: help must be instant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Context, Option

from cmidiff.app.errors import BadInput, unknown
from cmidiff.registry import PRIORS, SOLVERS, TASKS

if TYPE_CHECKING:
    from cmidiff.app.problem import Problem, Task
    from cmidiff.app.run import Settings
    from cmidiff.information import CMI
    from cmidiff.solvers import Solver as _Solver
    from cmidiff.tuning.preset import Preset

MEASUREMENT_SUFFIX = ".safetensors"
LARGEST_RESIZE = 64_000_000  # pixels: what --resize makes at most

TASK_HELP = f"How the image was degraded: {', '.join(TASKS)}."
RESTORE_HELP = f"{TASK_HELP[:-1]}; jpeg: a compressed photograph. Without it: jpeg or denoise, by the image."


def _option(*names: str, text: str, **settings: Any) -> Any:
    return Option(*names, help=text, show_default=False, **settings)


def whole(low: int, high: int) -> dict[str, Any]:
    """Settings of an option that is a whole number from ``low`` to ``high``."""
    return {"parser": _number_parser(int, low, high), "metavar": "N"}


def number(low: float, high: float) -> dict[str, Any]:
    """Settings of an option that is a number from ``low`` to ``high``."""
    return {"parser": _number_parser(float, low, high), "metavar": "X"}


def _number_parser(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    name = "a whole number" if kind is int else "a number"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise BadParameter(f"must be {name} from {low} to {high}, received {text}")
        return value

    return parse


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (-math.inf < low < high < math.inf):
        raise BadParameter(f"must be two numbers with a comma and the lower one first, as 0,255, received {text}")
    return low, high


MOST = 10**6  # of what is counted: samples, trials, steps
WIDEST = 65536  # pixels of what is a length in an image

ImageFile = Annotated[Path, Argument(help="An image: PNG, JPEG, TIFF, ...", show_default=False)]
Measured = Annotated[Path, Argument(help="A file made by cmidiff degrade, or any degraded image.", show_default=False)]
TaskName = Annotated[str | None, _option("--task", text=TASK_HELP)]
RestoreTask = Annotated[str | None, _option("--task", text=RESTORE_HELP)]
Factor = Annotated[
    int | None,
    _option("--factor", text="super-resolution: by how much sides are divided; hdr: contrast.", **whole(1, 64)),
]
Size = Annotated[int | None, _option("--size", text="inpaint-box: side of the hole in pixels.", **whole(1, WIDEST))]
Position = Annotated[
    tuple[int, int] | None,
    _option("--position", text="inpaint-box: top and left of the hole.", **whole(0, WIDEST) | {"metavar": "TOP LEFT"}),
]
Hidden = Annotated[
    float | None, _option("--hidden", text="inpaint-random, -scratches: fraction of hidden pixels.", **number(0, 1))
]
KernelSize = Annotated[
    int | None, _option("--kernel-size", text="deblur-*: side of the kernel in pixels, odd.", **whole(1, 4095))
]
Std = Annotated[float | None, _option("--std", text="deblur-gaussian: width of the blur in pixels.", **number(0, 1000))]
Intensity = Annotated[
    float | None, _option("--intensity", text="deblur-motion: 0 is a line, 1 a tangle.", **number(0, 1))
]
Padding = Annotated[str | None, _option("--padding", text="deblur-*: what lies beyond the border.")]
Photons = Annotated[
    float | None,
    _option(
        "--poisson",
        text="Noise of photons instead, each worth this much: 0.01 is 100 of them in a white pixel.",
        **number(0, 100),
    ),
]
Ratio = Annotated[
    float | None, _option("--ratio", text="compressed-sensing: measurements per pixel.", **number(0, 100))
]
MaskFile = Annotated[
    Path | None,
    _option("--mask", text="An image of the damage: paint on black, on transparency or on a copy of the photograph."),
]
SeenFile = Annotated[Path | None, _option("--seen", text="An image that is bright where pixels were measured.")]
KernelFile = Annotated[
    Path | None,
    _option(
        "--kernel", text="The blur: an image of it, or gaussian:STD, disk:RADIUS or motion:LENGTH,ANGLE, in pixels."
    ),
]
ValueRange = Annotated[
    Any,
    _option(
        "--range",
        text="Values of the image file that are black and white, as 0,255: for floating-point files.",
        parser=_range,
        metavar="LOW,HIGH",
    ),
]
Resize = Annotated[str | None, _option("--resize", text="First crop and shrink the image to N x N, or to WxH pixels.")]
Noise = Annotated[float, Option("--noise-std", help="Noise, for images from 0 (black) to 1 (white).", **number(0, 100))]
NoiseOrNot = Annotated[
    float | None,
    _option(
        "--noise-std",
        text="Noise of an image, black to white being 1. Without it, it is estimated from the image.",
        **number(0, 100),
    ),
]
Output = Annotated[Path, Option("--output", "-o", help="Where to write.")]
OutputOrNot = Annotated[
    Path | None, _option("--output", "-o", text="File to write; IMAGE-TASK.safetensors without it.")
]
Truth = Annotated[Path | None, _option("--truth", text="The undegraded image, to measure quality.")]
Eta = Annotated[float | None, _option("--eta", text="Strength of CMI, which it turns on.", **number(-1e6, 1e6))]
Cmi = Annotated[
    bool | None, _option("--cmi/--no-cmi", text="Correct every step with the CMI gradient; off unless asked for.")
]
RestoreAll = Annotated[
    bool,
    Option("--restore-all", help="Restore the pixels that --mask leaves unpainted, too; without it, they are kept."),
]
Solver = Annotated[str, Option("--solver", help=f"{', '.join(SOLVERS)}.")]
SolverOrNot = Annotated[
    str | None,
    _option(
        "--solver",
        text=f"Draw samples with {', '.join(SOLVERS)}; restored.png is their mean. Without it: the best estimate by "
        "dpir, and samples by cadps.",
    ),
]
Samples = Annotated[
    int | None,
    _option(
        "--samples",
        text="How many posterior samples to draw; none without it, and 1 with --solver.",
        **whole(0, MOST),
    ),
]
Steps = Annotated[int, Option("--steps", help="Steps of the sampler.", **whole(1, MOST))]
StepsOrNot = Annotated[
    int | None, _option("--steps", text="Steps of the solver; its own number without it.", **whole(1, MOST))
]
Batch = Annotated[
    int, Option("--batch", help="Samples drawn at once: more for a GPU, one is finished soonest.", **whole(1, MOST))
]
Seed = Annotated[int, Option("--seed", help="Seed of all that is random.", **whole(0, 2**63 - 1))]
Device = Annotated[str, Option("--device", help="auto, cpu, cuda or mps.")]
Prior = Annotated[
    str, Option("--prior", help="Name (see cmidiff priors), hf:OWNER/NAME, folder, or .pt or .safetensors file.")
]
PresetFile = Annotated[
    Path | None,
    _option("--preset", text="A file of cmidiff tune; what is given beside it replaces what it says."),
]
Tile = Annotated[
    str,
    Option("--tile", help="Side of the tiles in which a large image is seen; off: as a whole; auto: if it is large."),
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace files of another origin, but never an input.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check the input, print the resolved options, stop.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def pixel_size(text: str) -> tuple[int, int]:
    """(width, height) of ``--resize``."""
    width, _, height = text.lower().partition("x")
    height = height or width
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise BadInput(f"--resize must be a size as 128 or 160x120 (width x height), received {text!r}")
    if int(width) * int(height) > LARGEST_RESIZE:
        raise BadInput(f"--resize makes at most {LARGEST_RESIZE / 1e6:.0f} million pixels, received {text!r}: use less")
    return int(width), int(height)


def measurement_path(output: Path | None, image: Path, task: Task) -> Path:
    """Where a measurement goes: the user may name the file, its PNG, or its folder."""
    default = f"{image.stem}-{task.name}{MEASUREMENT_SUFFIX}"
    if output is None:
        return Path(default)
    if output.is_dir():
        return output / default
    if output.suffix not in ("", ".png", MEASUREMENT_SUFFIX):
        raise BadInput(f"--output must end in {MEASUREMENT_SUFFIX}, received {output}: rename it")
    return output.with_suffix(MEASUREMENT_SUFFIX)


def problem_of(
    path: Path,
    task: str | None,
    options: dict[str, Any],
    mask: Path | None,
    kernel: Path | None,
    noise_std: float | None,
    seen: Path | None = None,
    value_range: tuple[float, float] | None = None,
    *,
    restore_all: bool = False,
) -> Problem:
    """The problem in a measurement file, or in an image and the options that say how it was degraded.

    Args:
        restore_all: whether the pixels that ``mask`` leaves are restored, too; otherwise results keep them.

    Raises:
        ValueError: what cannot be used.
    """
    from cmidiff.app.masks import seen_of
    from cmidiff.app.problem import from_degraded_image, load_problem
    from cmidiff.images import read_image

    if path.suffix == MEASUREMENT_SUFFIX:
        superfluous = given(task=task, mask=mask, seen=seen, kernel=kernel, noise_std=noise_std, range=value_range)
        superfluous |= options | ({"restore_all": True} if restore_all else {})
        if superfluous:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in superfluous)
            raise BadInput(f"{path} says itself how it was degraded: leave out {names}")
        return load_problem(path)
    if restore_all and mask is None:
        raise BadInput("--restore-all is for --mask, which keeps the pixels that are not painted: leave it out")
    image = read_image(path, value_range=value_range)
    measured = seen_of(mask, seen, image)
    keep = mask is not None and not restore_all
    return from_degraded_image(image, task, options, noise_std, measured, kernel, source=path, keep=keep)


def settings_of(
    *,
    solver: str | None,
    cmi: bool | None,
    eta: float | None,
    prior: str,
    steps: int | None,
    samples: int | None,
    seed: int,
    batch: int,
    device: str,
    tile: str = "auto",
    preset: Preset | None = None,
    explicit: Container[str] = (),
) -> Settings:
    """The resolved options of a run.

    Args:
        solver: None for the best estimate, and samples beside it.
        samples: None for those that a solver needs: one where it draws samples, none otherwise.
        preset: replaces the options that are not explicit.
        explicit: names of the options that the user gave.

    Raises:
        BadInput: an unknown name, or a number out of its range.
    """
    from cmidiff.app.run import Settings

    if solver is not None and solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    for name, value in (("--steps", steps), ("--batch", batch)):
        if value is not None and value < 1:
            raise BadInput(f"{name} must be a whole number >= 1, received {value}")
    if eta is not None and cmi is False:
        raise BadInput("--eta is the strength of CMI, which --no-cmi turns off: leave one of them out")
    check_prior(prior)
    correction = correction_of(cmi, eta, None if preset is None else preset.cmi)
    made, sampler = None if solver is None else SOLVERS.make(solver), None
    if preset is not None:
        sampler = preset.sampler
        steps = steps if "steps" in explicit else preset.steps
        if "solver" not in explicit:
            solver, made = preset.solver_name, preset.solver
    count = _samples(samples, made, solver)
    if correction is not None and count == 0:
        raise BadInput("CMI corrects samples of the posterior, and none are drawn: add --samples 4")
    return Settings(
        solver, made, correction, prior, steps, count, seed, batch, device_of(device), sampler, tile_of(tile)
    )


def _samples(samples: int | None, solver: _Solver | None, name: str | None) -> int:
    """How many samples are drawn."""
    draws = solver is not None and not solver.point
    if samples is None:
        return int(draws)
    if draws and samples < 1:
        raise BadInput(
            f"--solver {name} draws samples, at least 1, received --samples {samples}: leave one of them out"
        )
    if solver is not None and solver.point and samples > 0:
        raise BadInput(
            f"--solver {name} gives one estimate and no samples: leave --solver out for an estimate with samples"
        )
    return samples


def tile_of(text: str) -> int | Literal["auto"] | None:
    """What ``--tile`` means.

    Raises:
        BadInput: no side of a tile.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    if not (text.isdecimal() and 1 <= int(text) <= WIDEST):
        raise BadInput(f"--tile must be a number of pixels up to {WIDEST}, auto or off, received {text!r}")
    return int(text)


def correction_of(cmi: bool | None, eta: float | None, before: CMI | None = None) -> CMI | None:
    """The CMI that ``--cmi`` and ``--eta`` make of the one before them.

    Raises:
        BadInput: a strength that CMI refuses.
    """
    from dataclasses import replace

    import cmidiff

    if cmi is False:
        return None
    try:
        correction = cmidiff.CMI() if before is None and (cmi or eta is not None) else before
        return correction if correction is None or eta is None else replace(correction, eta=eta)
    except ValueError as error:
        raise BadInput(str(error)) from error


def preset_of(path: Path | None) -> Preset | None:
    """The preset in a file.

    Raises:
        BadInput: it cannot be used.
    """
    if path is None:
        return None
    from cmidiff.tuning.preset import load_preset

    try:
        return load_preset(path)
    except ValueError as error:
        raise BadInput(str(error)) from error


def notes_on(preset: Preset | None, prior: str) -> list[str]:
    """What a user should know who takes a preset to another prior."""
    before = None if preset is None else preset.provenance.get("prior")
    return [f"the preset was chosen for the prior {before}"] if before and before != prior else []


def explicit(context: Context) -> set[str]:
    """Names of the options that were given, and are not at their defaults for want of them."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def check_prior(prior: str) -> None:
    """Whether a prior can be loaded, without loading or fetching it.

    Raises:
        BadInput: an unknown name, no such file, or one that holds no weights.
    """
    from cmidiff.prior.known import info_of
    from cmidiff.prior.pipeline import HUB, hub_repository
    from cmidiff.prior.weights import SUFFIXES

    if prior.startswith(HUB):
        try:
            hub_repository(prior)
        except ValueError as error:
            raise BadInput(str(error)) from error
    elif prior in PRIORS:
        info = info_of(prior)
        if info.where() is None and info.url is None and info.fallback is None:
            raise BadInput(f"the prior {prior} {info.remedy}")
    elif not Path(prior).exists():
        if Path(prior).suffix in SUFFIXES or "/" in prior:
            raise BadInput(f"there is no prior at {prior}: --prior takes a file of weights or a folder of diffusers")
        raise unknown("prior", prior, PRIORS)
    elif Path(prior).is_file() and Path(prior).suffix.lower() not in SUFFIXES:
        raise BadInput(f"--prior takes a file of weights that ends in one of {', '.join(SUFFIXES)}, received {prior}")


def device_of(name: str) -> str:
    """The device that a name means here.

    Raises:
        BadInput: an unknown name, or a device that this machine lacks.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in present.items() if there)
    if name not in present:
        raise unknown("device", name, ("auto", *present))
    if not present[name]:
        raise BadInput(f"--device {name} is not available on this machine: use --device auto or --device cpu")
    return name
