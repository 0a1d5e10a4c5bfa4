"""What a run is made of, built once: prior, measurement, sampler and random numbers, for all of its rows.

A row of the batch is one sample of one image. Solvers whose samples interact see them as a `Group`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmidiff.draws import Draws
from cmidiff.measurement import Measurement
from cmidiff.prior.base import IMAGE_VARIANCE, Denoiser
from cmidiff.step.sampler import Sampler


@dataclass(frozen=True)
class Problem:
    """What a run is made of, built once.

    Attributes:
        prior: the denoiser.
        measurement: ``y`` and its physics, on the prior's canvas.
        sampler: the reverse process.
        draws: random numbers.
        images: index of the image that each row of the batch belongs to.
        clip: range to which the denoised image is clipped inside the sampler, or None.
        linearise: whether a step sees the measurement linearised at its denoised state, as solvers that need a linear
            operator do with a latent prior.
        initial: an image (B, ...) that a solver may start from, or None.
        common: random numbers that all rows of an image share; None: those of its first row.
    """

    prior: Denoiser
    measurement: Measurement
    sampler: Sampler
    draws: Draws
    images: tuple[int, ...]
    clip: tuple[float, float] | None = None
    initial: Tensor | None = None
    common: Draws | None = None
    linearise: bool = False

    def least_squares(self) -> Tensor:
        """A state that explains ``y``, of zero mean and the variance of the prior where nothing was measured.

        With a decoder it is the encoded image, which is grey where nothing was measured. Zero without an encoder, or
        for a physics that is not linear.
        """
        measurement, decoder, z = self.measurement.of_image, self.prior.decoder, self.like()
        if not measurement.linear or (decoder is not None and decoder.encode is None):
            return z
        if decoder is None or self.prior.value_range is None:
            return self.prior.encode(measurement.prox(z.new_zeros(len(z), *measurement.shape), self.prior.variance))
        low, high = self.prior.value_range
        grey = z.new_full((len(z), *measurement.shape), 0.5 * (low + high))
        return self.prior.encode(measurement.prox(grey, IMAGE_VARIANCE * (0.5 * (high - low)) ** 2))

    def like(self) -> Tensor:
        """Zeros of the shape (B, ...), dtype and device of a state."""
        return self.measurement.y.real.new_zeros(len(self.images), *self.measurement.shape)

    @property
    def unit(self) -> float:
        """The standard deviation of the prior's signals, relative to that of images in [-1, 1]."""
        return math.sqrt(self.prior.variance / IMAGE_VARIANCE)

    @property
    def half_range(self) -> float:
        """Half the range of the states, to which noise levels are relative; their standard deviation where they have no
        range, as latents."""
        found = self.prior.value_range if self.prior.decoder is None else None
        return math.sqrt(self.prior.variance) if found is None else (found[1] - found[0]) / 2

    @property
    def noisiest(self) -> float:
        """The largest ``sigma / alpha`` of the prior's grid."""
        alpha, sigma = self.prior.schedule(self.prior.schedule.grid(1)[0])
        return sigma / alpha

    def uniform(self, stream: str, index: int, inner: int = 0) -> Tensor:
        """One uniform random number in (0, 1) for each row, shape (B,)."""
        like = self.measurement.y.real.new_zeros(len(self.images), 1)
        return torch.special.ndtr(self.draws.normal(stream, index, like, inner=inner)[:, 0])

    def shared(self, stream: str, index: int, like: Tensor) -> Tensor:
        """Standard normal numbers like `Draws.normal`, the same for all rows of an image."""
        if self.common is not None:
            return self.common.normal(stream, index, like)
        first = {image: row for row, image in reversed(list(enumerate(self.images)))}
        return self.draws.normal(stream, index, like)[[first[image] for image in self.images]]


@dataclass(frozen=True)
class Group:
    """The rows of a run that may interact: all samples of its images, in parts that are computed one after another.

    Attributes:
        parts: problems that differ in their rows alone.
        index, last: number of the step after which they interact, and whether it is the last one.
    """

    parts: tuple[Problem, ...]
    index: int
    last: bool

    @property
    def rows(self) -> Tensor:
        """Indices of the rows of each image, shape (images, K); rows are numbered through all parts."""
        owners = torch.tensor([image for part in self.parts for image in part.images], device="cpu")
        return owners.argsort(stable=True).reshape(len(owners.unique()), -1)

    def uniform(self, stream: str) -> Tensor:
        """One uniform random number in (0, 1) for each image, shape (images,), float64 on the CPU."""
        z = [part.shared(stream, self.index, part.like().flatten(1)[:, :1]) for part in self.parts]
        return torch.special.ndtr(torch.cat(z).cpu().double())[self.rows[:, 0], 0]
