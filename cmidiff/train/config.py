"""What a training run is, as one TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

OPTIMISERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a training run. Paths are taken relative to the folder of the TOML file.

    Args:
        name: of the prior, for the card.
        out: folder for checkpoints, loss curve and pictures.
        export_to: folder of the exported prior, in diffusers' format.
        cache: folder for the decoded images.
        images: tar archives of images of at least ``size`` pixels a side, each image cropped at its centre if larger.
        photographs: tar archives of photographs; random crops of them at random scales are used.
        validation: tar archive of images never trained on.
        licence: terms on which the images, and so the weights, may be used (goes on the card).
        data: one line that names the training images (goes on the card).
        machine: kind of machine (goes on the card).
        initial: folder of an exported prior whose weights the run starts from; None starts from random weights.
        teacher: file of FFDNet's weights for colour images; its output replaces the clean image as the target between
            6/255 and 75/255. None trains on the clean images alone.
        size: side of the training images in pixels.
        sides: sides of the squares that the steps are trained on, one of them drawn for each step; repeat a side to
            draw it more often. By default ``size`` alone. Sides above ``size`` take photographs only.
        crop_share: fraction of the squares that are crops of photographs, for sides up to ``size``.
        patch_size: side of the pixel-unshuffle before the network.
        channels: of the network's levels, from fine to coarse; attention at the coarsest only.
        layers: residual blocks per level.
        groups: of the group normalisation.
        batch: images per step at side ``size``; the number of pixels per step is the same for every side.
        steps: steps of the whole run. 0 sets no limit.
        seconds: wall time of the whole run, over all resumed parts. 0 sets no limit.
        learning_rate: its constant value between the warm-up and the cool-down.
        warmup: steps of linear warm-up.
        cooldown: last fraction of the run in which the learning rate falls linearly to zero.
        optimiser: ``adamw``, or ``muon`` (with AdamW for vectors and for the first and the last layer).
        weight_decay: of the optimiser.
        clip: largest norm of a gradient.
        ema: largest decay of the exponential moving average of the weights.
        detail: extra weight, times ``sigma_t^2``, of the error within the blocks of the pixel-unshuffle; it removes
            patterns of the blocks' period and leaves the minimum of the loss where it is.
        uniform_share: fraction of each batch with ``t`` uniform; the others have ``log(sigma_t/alpha_t)`` normal.
        log_sigma_mean: mean of that normal.
        log_sigma_std: its standard deviation.
        seed: of weights, noise and order of the images.
        threads: of torch; 0 leaves them alone.
        device: of torch, where the network is trained: cpu, cuda, ...
        bfloat16: run the network in bfloat16 autocast (weights, loss and optimiser stay float32).
        compile: fuse with torch.compile.
        checkpoint_seconds: time between checkpoints.
        validation_seconds: time between validations.
        validation_images: how many images of the archive are used.

    Raises:
        ValueError: a value that cannot be trained with.
    """

    name: str
    out: Path
    export_to: Path
    cache: Path
    images: tuple[Path, ...]
    photographs: tuple[Path, ...] = ()
    validation: Path | None = None
    licence: str = "unstated"
    data: str = "unstated"
    machine: str = "unstated"
    size: int = 64
    initial: Path | None = None
    teacher: Path | None = None
    sides: tuple[int, ...] = ()
    crop_share: float = 0.15
    patch_size: int = 2
    channels: tuple[int, ...] = (64, 128, 192)
    layers: int = 1
    groups: int = 16
    batch: int = 16
    steps: int = 0
    seconds: float = 0.0
    learning_rate: float = 5e-4
    warmup: int = 300
    cooldown: float = 1.0
    optimiser: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    detail: float = 0.0
    uniform_share: float = 0.3
    log_sigma_mean: float = -1.0
    log_sigma_std: float = 1.4
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    bfloat16: bool = True
    compile: bool = False
    checkpoint_seconds: float = 240.0
    validation_seconds: float = 900.0
    validation_images: int = 64
    source: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for wrong, message in self._complaints():
            if wrong:
                raise ValueError(f"training configuration {self.name!r}: {message}")

    def _complaints(self) -> list[tuple[bool, str]]:
        multiple = self.multiple
        return [
            (not self.images and not self.photographs, "images names no archive; list at least one tar file"),
            (self.steps < 0, f"steps must be at least 0, received {self.steps}"),
            (self.seconds < 0, f"seconds must be at least 0, received {self.seconds}"),
            (self.batch < 1, f"batch must be at least 1, received {self.batch}"),
            (not self.channels, "channels is empty; give one width per level"),
            (self.layers < 1, f"layers must be at least 1, received {self.layers}"),
            (self.size % multiple != 0, f"size must be divisible by {multiple}, received {self.size}"),
            (
                any(side < 1 or side % multiple for side in self.sides),
                f"every entry of sides must be divisible by {multiple}, received {list(self.sides)}",
            ),
            (
                any(side > self.size for side in self.sides) and not self.photographs,
                f"sides {list(self.sides)} has an entry above size {self.size}, but photographs names no archive",
            ),
            (self.optimiser not in OPTIMISERS, f"optimiser must be one of {OPTIMISERS}, received {self.optimiser!r}"),
            (not 0 <= self.cooldown <= 1, f"cooldown must be in [0, 1], received {self.cooldown}"),
            (
                any(c % self.groups for c in self.channels),
                f"every entry of channels must be divisible by groups = {self.groups}, received {list(self.channels)}",
            ),
            (not 0 <= self.crop_share <= 1, f"crop_share must be in [0, 1], received {self.crop_share}"),
            (
                self.crop_share > 0 and not self.photographs,
                "crop_share is positive but photographs names no archive; set crop_share = 0",
            ),
            (not 0 <= self.uniform_share <= 1, f"uniform_share must be in [0, 1], received {self.uniform_share}"),
            (self.learning_rate <= 0, f"learning_rate must be positive, received {self.learning_rate}"),
            (self.detail < 0, f"detail must be at least 0, received {self.detail}"),
            (not 0 <= self.ema < 1, f"ema must be in [0, 1), received {self.ema}"),
        ]

    @property
    def multiple(self) -> int:
        """Sides of an image must be divisible by this."""
        return self.patch_size * 2 ** max(len(self.channels) - 1, 0)

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> TrainConfig:
        """Reads a configuration.

        Args:
            path: the TOML file.
            overrides: fields that replace the file's.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not TOML, an unknown or missing field, a field of the wrong type, or a value that cannot be
                trained with.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no training configuration at {path}; give the path of a TOML file")
        try:
            table = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from error
        return cls(**_typed({**table, **overrides}, path))


def _typed(table: dict[str, Any], path: Path) -> dict[str, Any]:
    known = {f.name: f for f in fields(TrainConfig) if f.name != "source"}
    if unknown := sorted(set(table) - set(known)):
        raise ValueError(f"{path}: unknown field {unknown[0]!r}; the fields are {', '.join(known)}")
    required = ("name", "out", "export_to", "cache", "images")
    if missing := [name for name in required if name not in table]:
        raise ValueError(f"{path}: the field {missing[0]!r} is missing; add it")
    hints = get_type_hints(TrainConfig)
    values = {name: _convert(name, value, hints[name], path) for name, value in table.items()}
    return {**values, "source": {k: str(v) if isinstance(v, Path) else v for k, v in table.items()}}


def _convert(name: str, value: Any, hint: Any, path: Path) -> Any:
    wrong = ValueError(f"{path}: the field {name!r} must be {_describe(hint)}, received {value!r}")
    match hint:
        case _ if hint == tuple[Path, ...]:
            if not isinstance(value, (list, tuple)) or not all(isinstance(v, (str, Path)) for v in value):
                raise wrong
            return tuple(path.parent / v for v in value)
        case _ if hint == tuple[int, ...]:
            if not isinstance(value, (list, tuple)) or not all(type(v) is int for v in value):
                raise wrong
            return tuple(value)
        case _ if hint in (Path, Path | None):
            if not isinstance(value, (str, Path)):
                raise wrong
            return path.parent / value
        case _ if hint is float:
            if type(value) not in (int, float):
                raise wrong
            return float(value)
        case _:
            if type(value) is not hint:
                raise wrong
            return value


def _describe(hint: Any) -> str:
    names = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        Path: "a path",
        Path | None: "a path",
    }
    return names.get(hint, "a list of paths" if hint == tuple[Path, ...] else "a list of whole numbers")
