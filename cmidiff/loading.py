"""How the prior of a run is loaded: the options of `cmidiff.load_prior` that the command line has."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from cmidiff.config import unknown

if TYPE_CHECKING:
    from cmidiff.prior.base import Denoiser

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Loading:
    """Options of a prior; see `cmidiff.load_prior`.

    Raises:
        ValueError: an unknown precision.
    """

    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float = 1.0
    offload: bool = False
    dtype: str = "float32"
    checkpointing: bool = False
    max_batch: int | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(unknown("dtype", self.dtype, DTYPES))

    def describe(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def of_images(self) -> Loading:
        """The same for a prior of images, which has no text and no autoencoder."""
        return replace(self, prompt="", negative_prompt="", guidance_scale=1.0, offload=False)

    @property
    def words(self) -> list[str]:
        """The same as words of a command line."""
        named = {f"--{name.replace('_', '-')}": value for name, value in self.describe().items()}
        return [word for name, value in named.items() for word in ([name] if value is True else [name, str(value)])]

    def load(self, name: str, device: str) -> Denoiser:
        """The prior of a name on a device."""
        import torch

        import cmidiff

        options = self.describe()  # what is not stated is left to the prior
        if "dtype" in options:
            options["dtype"] = getattr(torch, self.dtype)
        return cmidiff.load_prior(name, device=device, **options)
