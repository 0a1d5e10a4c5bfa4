"""The options of the command line: what they are called, and from their text to what they mean.

Nothing heavy is imported at the top: help must be instant.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Context, Option

from cmidiff.app.errors import BadInput, unknown
from cmidiff.solvers import SOLVERS, make_solver

if TYPE_CHECKING:
    from cmidiff.app.problem import Problem, Task
    from cmidiff.app.run import Settings
    from cmidiff.information import CMI
    from cmidiff.tuning.preset import Preset

MEASUREMENT_SUFFIX = ".safetensors"

TASK_HELP = (
    "How the picture was degraded: denoise, inpaint-box, inpaint-random, inpaint-scratches, deblur-gaussian, "
    "deblur-motion, super-resolution, colorize, compressed-sensing, phase-retrieval, hdr or nonlinear-blur."
)


def _option(*names: str, text: str, **settings: Any) -> Any:
    return Option(*names, help=text, show_default=False, **settings)


Picture = Annotated[Path, Argument(help="A picture: PNG, JPEG, TIFF, ...", show_default=False)]
Measured = Annotated[
    Path, Argument(help="A file made by cmidiff degrade, or any degraded picture.", show_default=False)
]
TaskName = Annotated[str | None, _option("--task", text=TASK_HELP)]
Factor = Annotated[
    int | None, _option("--factor", text="super-resolution: by how much sides are divided; hdr: contrast.")
]
Size = Annotated[int | None, _option("--size", text="inpaint-box: side of the hole in pixels.")]
Position = Annotated[
    tuple[int, int] | None, _option("--position", text="inpaint-box: top and left of the hole.", metavar="TOP LEFT")
]
Hidden = Annotated[float | None, _option("--hidden", text="inpaint-random, -scratches: fraction of hidden pixels.")]
KernelSize = Annotated[int | None, _option("--kernel-size", text="deblur-*: side of the kernel in pixels, odd.")]
Std = Annotated[float | None, _option("--std", text="deblur-gaussian: width of the blur in pixels.")]
Intensity = Annotated[float | None, _option("--intensity", text="deblur-motion: 0 is a line, 1 a tangle.")]
Padding = Annotated[str | None, _option("--padding", text="deblur-*: what lies beyond the border.")]
Photons = Annotated[
    float | None,
    _option("--poisson", text="Noise of photons instead, each worth this much: 0.01 is 100 of them in a white pixel."),
]
Ratio = Annotated[float | None, _option("--ratio", text="compressed-sensing: measurements per pixel.")]
MaskFile = Annotated[Path | None, _option("--mask", text="A picture, bright where pixels were seen.")]
KernelFile = Annotated[Path | None, _option("--kernel", text="A picture of the blur kernel.")]
Resize = Annotated[
    str | None, _option("--resize", text="First crop and shrink the picture to N x N, or to WxH pixels.")
]
Noise = Annotated[float, Option("--noise-std", help="Noise, for pictures from 0 (black) to 1 (white).")]
NoiseOrNot = Annotated[
    float | None,
    _option("--noise-std", text="Noise of a picture, black to white being 1. Without it, 0.02 is assumed."),
]
Output = Annotated[Path, Option("--output", "-o", help="Where to write.")]
OutputOrNot = Annotated[
    Path | None, _option("--output", "-o", text="File to write; IMAGE-TASK.safetensors without it.")
]
Truth = Annotated[Path | None, _option("--truth", text="The undegraded picture, to measure quality.")]
Eta = Annotated[float | None, _option("--eta", text="Strength of CMI, which it turns on.")]
Cmi = Annotated[
    bool | None, _option("--cmi/--no-cmi", text="Correct every step with the CMI gradient; off unless asked for.")
]
Solver = Annotated[str, Option("--solver", help=f"{', '.join(SOLVERS)}.")]
Samples = Annotated[int, Option("--samples", help="How many posterior samples to draw.")]
Steps = Annotated[int, Option("--steps", help="Steps of the sampler.")]
Batch = Annotated[int, Option("--batch", help="Samples drawn at once: more for a GPU, one is finished soonest.")]
Seed = Annotated[int, Option("--seed", help="Seed of all that is random.")]
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
    Option("--tile", help="Side of the tiles in which a large picture is seen; off: as a whole; auto: if it is large."),
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace another run in the folder.")]
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
) -> Problem:
    """The problem in a measurement file, or in a picture and the options that say how it was degraded.

    Raises:
        BadInput: what cannot be used.
    """
    from cmidiff.app.pictures import read_picture
    from cmidiff.app.problem import check_noise_std, from_degraded_picture, load_problem

    if path.suffix == MEASUREMENT_SUFFIX:
        superfluous = given(task=task, mask=mask, kernel=kernel, noise_std=noise_std) | options
        if superfluous:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in superfluous)
            raise BadInput(f"{path} says itself how it was degraded: leave out {names}")
        return load_problem(path)
    if noise_std is not None:
        check_noise_std(noise_std)
    return from_degraded_picture(read_picture(path), task, options, noise_std, mask, kernel)


def settings_of(
    *,
    solver: str,
    cmi: bool | None,
    eta: float | None,
    prior: str,
    steps: int,
    samples: int,
    seed: int,
    batch: int,
    device: str,
    tile: str = "auto",
    preset: Preset | None = None,
    explicit: Container[str] = (),
) -> Settings:
    """The resolved options of a run.

    Args:
        preset: replaces the options that are not explicit.
        explicit: names of the options that the user gave.

    Raises:
        BadInput: an unknown name, or a number out of its range.
    """
    from cmidiff.app.run import Settings

    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    for name, value in (("--steps", steps), ("--samples", samples), ("--batch", batch)):
        if value < 1:
            raise BadInput(f"{name} must be a whole number >= 1, received {value}")
    if eta is not None and cmi is False:
        raise BadInput("--eta is the strength of CMI, which --no-cmi turns off: leave one of them out")
    check_prior(prior)
    correction = correction_of(cmi, eta, None if preset is None else preset.cmi)
    guidance, kernel = make_solver(solver), None
    if preset is not None:
        kernel = preset.kernel
        steps = steps if "steps" in explicit else preset.steps
        if "solver" not in explicit:
            solver, guidance = preset.solver_name, preset.solver
    return Settings(
        solver, guidance, correction, prior, steps, samples, seed, batch, device_of(device), kernel, tile_of(tile)
    )


def tile_of(text: str) -> int | Literal["auto"] | None:
    """What ``--tile`` means.

    Raises:
        BadInput: no side of a tile.
    """
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"--tile must be a number of pixels, auto or off, received {text!r}")
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
    from cmidiff.prior.known import PRIORS
    from cmidiff.prior.pipeline import HUB, hub_repository
    from cmidiff.prior.weights import SUFFIXES

    if prior.startswith(HUB):
        try:
            hub_repository(prior)
        except ValueError as error:
            raise BadInput(str(error)) from error
    elif prior in PRIORS:
        info = PRIORS[prior]
        if info.where() is None and info.url is None:
            raise BadInput(f"the weights of the prior {prior} are not on this machine: they belong at {info.expected}")
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
