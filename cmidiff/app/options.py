"""The options that several commands share, and how their text is read. Nothing heavy is imported: help is instant."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, BadParameter, Option

from cmidiff.loading import Loading
from cmidiff.registry import SOLVERS, TASKS

MOST = 10**6  # of what is counted: samples, trials, steps
WIDEST = 65536  # pixels of what is a length in an image
LARGEST_RESIZE = 64_000_000  # pixels: what --resize makes at most
TASK_HELP = f"How the image was degraded: {', '.join(TASKS)}."
RESTORE_HELP = f"{TASK_HELP[:-1]}; jpeg: a compressed photograph. Without it: jpeg or denoise, by the image."
KERNEL_HELP = (
    "The blur: an image of it, or gaussian:STD, disk:RADIUS or motion:LENGTH,ANGLE, in pixels; gaussian:auto finds its "
    "width in the photograph."
)
SOLVER_HELP = (
    f"Draw samples with {', '.join(SOLVERS)}; restored.png is their mean. Without it: the best estimate by dpir, and "
    "samples by cadps."
)


def whole(low: int, high: int) -> dict[str, Any]:
    """Settings of an option that is a whole number from ``low`` to ``high``."""
    return {"parser": _number_parser(int, low, high), "metavar": "N"}


def number(low: float, high: float) -> dict[str, Any]:
    """Settings of an option that is a number from ``low`` to ``high``."""
    return {"parser": _number_parser(float, low, high), "metavar": "X"}


def numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an option that is a list of such numbers, with commas."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(settings["parser"](part.strip()) for part in text.split(","))
        except BadParameter as error:
            raise BadParameter(f"each {error.message}") from error

    return {"parser": parse, "metavar": f"{settings['metavar']},..."}


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


def _size(text: str) -> tuple[int, int]:
    """(width, height)."""
    width, _, height = text.lower().partition("x")
    height = height or width
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise BadParameter(f"must be a size as 128 or 160x120 (width x height), received {text!r}")
    if int(width) * int(height) > LARGEST_RESIZE:
        raise BadParameter(f"makes at most {LARGEST_RESIZE / 1e6:.0f} million pixels, received {text!r}: use less")
    return int(width), int(height)


def _tile(text: str) -> int | str:
    """A side, 0 for no tiles, or ``auto``."""
    if text == "auto" or (text.isdecimal() and 1 <= int(text) <= WIDEST):
        return text if text == "auto" else int(text)
    if text != "off":
        raise BadParameter(f"must be a number of pixels up to {WIDEST}, auto or off, received {text!r}")
    return 0


def option(*names: str, text: str, **settings: Any) -> Any:
    """An option that shows no default."""
    return Option(*names, help=text, show_default=False, **settings)


ImageFile = Annotated[Path, Argument(help="An image: PNG, JPEG, TIFF, ...", show_default=False)]
TaskName = Annotated[str | None, option("--task", text=TASK_HELP)]
PaintFile = Annotated[
    Path | None,
    option("--mask", text="An image of the damage: paint on black, on transparency or on a copy of the photograph."),
]
SeenFile = Annotated[Path | None, option("--seen", text="An image that is bright where pixels were measured.")]
KernelFile = Annotated[Path | None, option("--kernel", text=KERNEL_HELP)]
ValueRange = Annotated[
    Any,
    option(
        "--range",
        text="Values of the image file that are black and white, as 0,255: for floating-point files.",
        parser=_range,
        metavar="LOW,HIGH",
    ),
]
RESIZE_HELP = "First crop and shrink the image to N x N, or to WxH pixels."
Resize = Annotated[Any, option("--resize", text=RESIZE_HELP, parser=_size, metavar="SIZE")]
Noise = Annotated[float, Option("--noise-std", help="Noise, for images from 0 (black) to 1 (white).", **number(0, 100))]
NOISE_HELP = "Noise of an image, black to white being 1. Without it, it is estimated from the image."
NoiseOrNot = Annotated[float | None, option("--noise-std", text=NOISE_HELP, **number(0, 100))]
Output = Annotated[Path, Option("--output", "-o", help="Where to write.")]
Steps = Annotated[int, Option("--steps", help="Steps of the sampler.", **whole(1, MOST))]
Seed = Annotated[int, Option("--seed", help="Seed of all that is random.", **whole(0, 2**63 - 1))]
Device = Annotated[str, Option("--device", help="auto, cpu, cuda or mps.")]
Prior = Annotated[
    str, Option("--prior", help="Name (see cmidiff priors), hf:OWNER/NAME, folder, or .pt or .safetensors file.")
]
PRIORS_HELP = (
    "A prior that the page offers, fetched first if it is not here; may be given several times. Without it: photo, and "
    "all that are on this machine."
)
Priors = Annotated[list[str] | None, option("--prior", text=PRIORS_HELP)]
POISSON_HELP = "Noise of photons instead, each worth this much: 0.01 is 100 of them in a white pixel."
TILE_HELP = "Side of the tiles in which a large image is seen; off: as a whole; auto: if it is large."
Tile = Annotated[Any, Option("--tile", help=TILE_HELP, parser=_tile, metavar="SIDE")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace files of another origin, but never an input.")]
DryRun = Annotated[bool, Option("--dry-run", help="Check the input, print the resolved options, stop.")]

TASK_OPTIONS: dict[str, Any] = {
    name: Annotated[kind | None, option(f"--{name.replace('_', '-')}", text=text, **settings)]
    for name, kind, text, settings in (
        ("factor", int, "super-resolution: by how much sides are divided; hdr: contrast.", whole(1, 64)),
        ("size", int, "inpaint-box: side of the hole in pixels.", whole(1, WIDEST)),
        (
            "position",
            tuple[int, int],
            "inpaint-box: top and left of the hole.",
            whole(0, WIDEST) | {"metavar": "TOP LEFT"},
        ),
        ("hidden", float, "inpaint-random, -scratches: fraction of hidden pixels.", number(0, 1)),
        ("kernel_size", int, "deblur-*: side of the kernel in pixels, odd.", whole(1, 4095)),
        ("std", float, "deblur-gaussian: width of the blur in pixels.", number(0, 1000)),
        ("intensity", float, "deblur-motion: 0 is a line, 1 a tangle.", number(0, 1)),
        ("padding", str, "deblur-*: what lies beyond the border.", {}),
        ("ratio", float, "compressed-sensing: measurements per pixel.", number(0, 100)),
        ("poisson", float, POISSON_HELP, number(0, 100)),
    )
}
"""The parameters of tasks that the command line can state."""

LOADING_HELP: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("Of a latent prior: what the image shows, in words.", {"show_default": False}),
    "negative_prompt": ("Of a latent prior: what it does not show.", {"show_default": False}),
    "guidance_scale": ("Of a latent prior: how much --prompt counts; 1: no guidance.", number(0, 999)),
    "offload": ("Of a latent prior: keep the weights of its autoencoder on the CPU.", {}),
    "dtype": ("Precision of the networks: float32, bfloat16, float16 or float64.", {}),
    "checkpointing": ("Less memory for gradients, at the cost of one more evaluation.", {}),
    "max_batch": ("At most this many images are in a network at once.", whole(1, MOST)),
    "channels_last": ("The memory layout that convolutions prefer on GPUs.", {}),
}
"""The options of `Loading` in words."""
LOADING_OPTIONS = {
    f.name: inspect.Parameter(
        f.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=f.default,
        annotation=Annotated[kind, Option(f"--{f.name.replace('_', '-')}", help=text, **settings)],
    )
    for f in fields(Loading)
    for kind, (text, settings) in [(get_type_hints(Loading)[f.name], LOADING_HELP[f.name])]
}
"""The options of `cmidiff.load_prior` that the command line has."""


def task_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add options of `TASK_OPTIONS` to a command, which receives those that were given as ``parameters``."""
    added = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=TASK_OPTIONS[n]) for n in names
    ]

    def given(stated: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in stated.items() if value is not None}

    return lambda command: _with_options(command, "parameters", added, given)


def loading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `LOADING_OPTIONS` to a command, which receives them as ``loading``."""
    return _with_options(command, "loading", list(LOADING_OPTIONS.values()), lambda stated: Loading(**stated))


def _with_options(
    command: Callable[..., None],
    receiver: str,
    added: list[inspect.Parameter],
    collect: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    """A command with further options, which receives them together as one argument."""

    @wraps(command)
    def call(**options: Any) -> None:
        stated = {p.name: options.pop(p.name) for p in added}
        command(**options, **{receiver: collect(stated)})

    signature = inspect.signature(command, eval_str=True)
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != receiver]
    call.__signature__ = signature.replace(parameters=[*own, *added])  # pyright: ignore[reportAttributeAccessIssue]
    return call
