"""What a training run is, as one TOML file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic.dataclasses
from pydantic import Field

from cmidiff.config import STRICT, File, Several, build, read_toml

Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """Every choice of a training run. Paths are relative to the folder of the TOML file.

    Args:
        name: of the prior, for the card.
        out: folder for checkpoints, loss curve and images.
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
        detail: extra weight, times ``sigma_t^2``, of the error within the blocks of the pixel-unshuffle. It removes
            patterns of the blocks' period and leaves the minimum of the loss where it is.
        uniform_share: fraction of each batch with ``t`` uniform; the others have ``log(sigma_t/alpha_t)`` normal.
        log_sigma_mean, log_sigma_std: mean and standard deviation of that normal.
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
    out: File
    export_to: File
    cache: File
    images: Several[File]
    photographs: Several[File] = ()
    validation: File | None = None
    licence: str = "unstated"
    data: str = "unstated"
    machine: str = "unstated"
    size: Whole = 64
    initial: File | None = None
    teacher: File | None = None
    sides: Several[Whole] = ()
    crop_share: Share = 0.15
    patch_size: Whole = 2
    channels: Annotated[Several[Whole], Field(min_length=1)] = (64, 128, 192)
    layers: Whole = 1
    groups: Whole = 16
    batch: Whole = 16
    steps: Count = 0
    seconds: Amount = 0.0
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup: Count = 300
    cooldown: Share = 1.0
    optimiser: Literal["adamw", "muon"] = "adamw"
    weight_decay: Amount = 0.01
    clip: Amount = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    detail: Amount = 0.0
    uniform_share: Share = 0.3
    log_sigma_mean: float = -1.0
    log_sigma_std: Amount = 1.4
    seed: int = 0
    threads: Count = 0
    device: str = "cpu"
    bfloat16: bool = True
    compile: bool = False
    checkpoint_seconds: Amount = 240.0
    validation_seconds: Amount = 900.0
    validation_images: Whole = 64

    def __post_init__(self) -> None:
        multiple, sides = self.multiple, list(self.sides)
        if not self.images and not self.photographs:
            raise ValueError("images names no archive; list at least one tar file")
        if self.size % multiple or any(side % multiple for side in sides):
            raise ValueError(
                f"size and every entry of sides must be divisible by {multiple}, received {self.size}, {sides}"
            )
        if any(side > self.size for side in sides) and not self.photographs:
            raise ValueError(f"sides {sides} has an entry above size {self.size}, but photographs names no archive")
        if any(width % self.groups for width in self.channels):
            raise ValueError(
                f"every entry of channels must be divisible by groups = {self.groups}, received {list(self.channels)}"
            )
        if self.crop_share > 0 and not self.photographs:
            raise ValueError("crop_share is positive but photographs names no archive; set crop_share = 0")

    @property
    def multiple(self) -> int:
        """Sides of an image must be divisible by this."""
        return self.patch_size * 2 ** (len(self.channels) - 1)

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> TrainConfig:
        """Read a configuration from a TOML file; ``overrides`` replace its fields."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no training configuration at {path}; give the path of a TOML file")
        return build(cls, read_toml(path) | overrides, f"the training configuration {path}", path.parent)

    def choices(self) -> dict[str, Any]:
        """Return the fields that are not at their defaults, without paths and what the card states elsewhere."""
        named = ("name", "out", "export_to", "cache", "images", "photographs", "validation", "initial", "teacher")
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in named}
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in values.items() if value != defaults[name]}
