"""The measurement as it is given, checked and brought into the units of the prior.

Images outside are in ``value_range``, [0, 1] by default, and ``noise_std`` in its units; inside, in the prior's own
range. The map between them is affine, so for a linear physics the measurement ``y = A x + n`` becomes ``y' = A x' +
n'`` with ``y' = (y - A offset) / gain`` and noise ``noise_std / gain``. The stated sigma is the real sigma. A physics
that is not linear is composed with the map.

The noise of photons, ``y = g Poisson(A x / g)``, has the variance ``g A x``, which ``y`` itself estimates. Inside,
``y`` and ``A`` are divided by its square root, entry by entry, so that one noise level is left. These are the weights
of DPS for Poisson noise (Chung et al. 2023, https://arxiv.org/abs/2209.14687). Two approximations: a Gaussian for the
Poisson law, and ``max(y, g)`` for its mean, so that no entry's noise is less than that of one photon.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from deepinv.physics import Denoising, Inpainting, LinearPhysics, Physics
from torch import Tensor

from cmidiff.measurement import Measurement
from cmidiff.physics import known_entries, noise_of
from cmidiff.physics.parts import split
from cmidiff.prior.base import Denoiser
from cmidiff.result import RestorationWarning

GRAY, ROUNDING = 255, 1 / math.sqrt(12)  # levels of 8 bits, and the standard deviation of a number rounded to them
AMPLIFIED = 4.0  # factor on noise from where rounding matters


@dataclass(frozen=True)
class Intake:
    """The measurement in the prior's units, and the way back.

    Attributes:
        measurement: on the prior's canvas.
        seeds: what identifies the random numbers of each image.
        gain, offset: an image outside is ``gain x + offset``.
        exact: measured pixels without noise, shape of an image, and where they are: the result keeps them bit for bit.
    """

    measurement: Measurement
    seeds: list[str]
    gain: float
    offset: float
    exact: tuple[Tensor, Tensor] | None = None

    def outside(self, x: Tensor) -> Tensor:
        """Images (N, ...) as they are outside."""
        return self.gain * self.measurement.crop(x) + self.offset

    def keep(self, images: Tensor, rows: Sequence[int]) -> Tensor:
        """Results (N, ...) of images ``rows``, with the pixels that were measured without noise as they were."""
        if self.exact is None:
            return images
        pixels, known = (t[list(rows)] if len(t) > 1 else t for t in self.exact)
        return torch.where(known, pixels, images)


def take(
    y: Tensor,
    physics: Physics,
    prior: Denoiser,
    noise_std: float | None,
    value_range: tuple[float, float] | None,
    seed: int | Sequence[int],
) -> Intake:
    """Check the arguments of `cmidiff.restore` and bring the measurement into the prior's units."""
    if not isinstance(y, Tensor) or y.ndim < 2 or y.numel() == 0:
        raise ValueError(
            f"y must be a non-empty tensor (B, ...), received {_seen(y)}: add a batch dimension with y[None]"
        )
    if not (y.is_floating_point() or y.is_complex()):
        raise TypeError(
            f"y must hold floating-point numbers in units of value_range, received {y.dtype}: convert it first, e.g. "
            "y.float() / 255 for 8-bit images in [0, 1]"
        )
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y must be finite, received NaN or infinity: remove bad pixels with an inpainting mask")
    if not isinstance(physics, Physics):
        raise TypeError(
            f"physics must be a deepinv physics, received {type(physics).__name__}: see cmidiff.physics.from_callable"
        )
    seeds = _seeds(seed, len(y))
    image = _image_shape(y, physics)
    canvas = _canvas(image, prior)
    gain, offset = _affine(value_range, prior)
    of_offset = _measure_constant(y, physics, image, offset)
    exact, given = _exact(y, physics, noise_std), y
    y, std, weight = _white(y, physics, noise_std, value_range)
    if y.is_complex():
        of_offset = None if of_offset is None else torch.view_as_real(of_offset)
        y, physics, std = torch.view_as_real(y), split(physics), std / math.sqrt(2)
    inside, affine = _inside(y, physics, of_offset, gain, offset)
    inside = inside if weight is None else weight * inside
    state = canvas if prior.decoder is None else prior.decoder.latent_shape(canvas)
    measurement = Measurement(inside, physics, std / gain, state, image, affine, weight, prior.decoder)
    if value_range is not None:
        measurement = _with_rounding(measurement, given, value_range, gain)
    return Intake(measurement, seeds, gain, offset, exact)


def _with_rounding(measurement: Measurement, y: Tensor, value_range: tuple[float, float], gain: float) -> Measurement:
    """The measurement with at least the noise of rounding, where ``y`` is rounded to 8 bits and this matters."""
    least = (value_range[1] - value_range[0]) * ROUNDING / GRAY
    std = gain * measurement.noise_std
    if std >= least or not measurement.linear or not any(rounded := _is_rounded(y, value_range)):
        return measurement
    amplified = (replace(measurement, noise_std=0.0).amplify() > AMPLIFIED).tolist()
    matters = [r and a for r, a in zip(rounded, amplified, strict=True)]
    if any(matters) != all(matters):
        raise ValueError(
            f"noise_std is {std:.2g}, and rounding to 8 bits is more noise in some images of y, but not in all: pass "
            f"noise_std={least:.2g} or more, or restore them one by one"
        )
    if not all(matters):
        return measurement
    warnings.warn(
        f"y is rounded to 8 bits, which inverting this physics amplifies: noise_std={least:.2g}, the noise of "
        f"rounding, is taken in place of {std:.2g}",
        RestorationWarning,
        stacklevel=5,
    )
    return replace(measurement, noise_std=least / gain)


def _is_rounded(y: Tensor, value_range: tuple[float, float]) -> list[bool]:
    """Whether all numbers of each image are grey levels of 8 bits, and more than two of them occur."""
    if y.is_complex():
        return [False] * len(y)
    levels = GRAY * (y.double().cpu() - value_range[0]) / (value_range[1] - value_range[0])
    near = ((levels - levels.round()).abs() < 1e-3).flatten(1).all(1)
    return [bool(n) and len(row.round().unique()) > 2 for n, row in zip(near, levels, strict=True)]


def _seeds(seed: int | Sequence[int], batch: int) -> list[str]:
    """What identifies the random numbers of each image: the first image of a batch has those of the seed itself."""
    if isinstance(seed, int):
        return [str(seed) if i == 0 else f"{seed}+{i}" for i in range(batch)]
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        raise TypeError(f"seed must be an integer or a list of integers, received {seed!r}")
    seeds = list(seed)
    if len(seeds) != batch or not all(isinstance(s, int) for s in seeds):
        raise ValueError(
            f"seed must be one integer or one for each of the {batch} measurements, received {len(seeds)} values"
        )
    return [str(s) for s in seeds]


def _exact(y: Tensor, physics: Physics, noise_std: float | None) -> tuple[Tensor, Tensor] | None:
    """Pixels that were measured without noise, and where they are, both shaped like images."""
    if not isinstance(physics, Inpainting | Denoising) or (noise_std or _stated_noise(physics)) != 0:
        return None
    known = known_entries(physics, y)
    return y.clone(), torch.ones_like(y, dtype=torch.bool) if known is None else known != 0


def _stated_noise(physics: Physics) -> float | None:
    """The noise level of the physics; None if it states none."""
    sigma = getattr(physics.noise_model, "sigma", None)
    return None if sigma is None else float(torch.as_tensor(sigma).max())


def _seen(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _white(
    y: Tensor, physics: Physics, noise_std: float | None, value_range: tuple[float, float] | None
) -> tuple[Tensor, float, Tensor | None]:
    """``y`` in units of ``A x``, the standard deviation of its noise, and the weights that make it one number. Weights
    are 1 where ``A x`` is the middle of the range, for all images alike. The scales of DPS, MCG and DSG mean what they
    mean with Gaussian noise. No image's result depends on another.
    """
    noise = noise_of(physics) if noise_std is None else None
    if noise is None or not bool((noise.gain > 0).any()):
        return y, _noise_std(physics, noise_std), None
    if y.is_complex():
        raise ValueError(f"photons are counted in real numbers, received y of {y.dtype}: state noise_std instead")
    sigma, gain = _single("sigma", noise.sigma), _single("gain", noise.gain)
    counted = y * gain if noise.counts else y
    middle = 0.5 if value_range is None else 0.5 * (value_range[1] - value_range[0])
    typical = math.sqrt(sigma**2 + gain * middle)
    return counted, typical, typical * (sigma**2 + gain * counted.clamp_min(gain)).rsqrt()


def _noise_std(physics: Physics, noise_std: float | None) -> float:
    if noise_std is None:
        sigma = getattr(physics.noise_model, "sigma", None)
        if sigma is None:
            raise ValueError(
                "noise_std is not known: the physics has no Gaussian noise model; pass noise_std=, "
                "in units of value_range"
            )
        noise_std = _single("noise_std", torch.as_tensor(sigma).flatten())
    if not (0 <= noise_std < math.inf):
        raise ValueError(f"noise_std must be a finite number >= 0, received {noise_std}")
    return noise_std


def _single(name: str, values: Tensor) -> float:
    values = values.unique()
    if len(values) != 1:
        raise ValueError(
            f"one {name} for all measurements is needed, the physics has {len(values)}: restore them one by one"
        )
    return float(values)


def _image_shape(y: Tensor, physics: Physics) -> tuple[int, ...]:
    if isinstance(physics, LinearPhysics):
        try:
            return tuple(physics.A_adjoint(y).shape[1:])
        except RuntimeError as error:
            raise ValueError(f"y of shape {tuple(y.shape)} does not fit {type(physics).__name__}: {error}") from error
    shape = getattr(physics, "img_size", None)
    if shape is None:
        raise ValueError(
            f"{type(physics).__name__} is not linear and has no img_size: set physics.img_size = (C, H, W)"
        )
    measured = physics.A(torch.zeros(1, *shape, dtype=y.real.dtype, device=y.device))
    _check_type(y, measured)
    expected = measured.shape[1:]
    if y.shape[1:] != expected:
        raise ValueError(
            f"y of shape {tuple(y.shape)} does not fit {type(physics).__name__}, which measures (B, "
            f"{', '.join(map(str, expected))}) of images of {tuple(shape)}"
        )
    return tuple(shape)


def _measure_constant(y: Tensor, physics: Physics, image: tuple[int, ...], value: float) -> Tensor | None:
    """``A`` of images of one value, shape of ``y``; None for a physics that is not linear, which does not need it."""
    if not isinstance(physics, LinearPhysics):
        return None
    measured = physics.A(torch.full((len(y), *image), value, dtype=y.real.dtype, device=y.device))
    _check_type(y, measured)
    return measured


def _check_type(y: Tensor, measured: Tensor) -> None:
    if measured.is_complex() != y.is_complex():
        raise ValueError(f"y is of {y.dtype} and A(x) of {measured.dtype}: both must be real, or both complex")


def _canvas(image: tuple[int, ...], prior: Denoiser) -> tuple[int, ...]:
    if prior.channels is None:
        return image
    decoder = prior.decoder
    channels, factor = (prior.channels, 1) if decoder is None else (decoder.image_channels, decoder.factor)
    if len(image) != 3 or image[0] not in (1, channels):
        raise ValueError(
            f"the prior is for images of {channels} channels (or 1), the physics is on signals of shape {image}"
        )
    multiple = factor * prior.multiple
    return (channels, *(-(-n // multiple) * multiple for n in image[1:]))


def _affine(value_range: tuple[float, float] | None, prior: Denoiser) -> tuple[float, float]:
    """``(gain, offset)`` with the user's image = gain x + offset."""
    if value_range is None or prior.value_range is None:
        return 1.0, 0.0
    (low, high), (inner_low, inner_high) = value_range, prior.value_range
    if not high > low:
        raise ValueError(f"value_range must be (low, high) with low < high, received {value_range}")
    gain = (high - low) / (inner_high - inner_low)
    return gain, low - gain * inner_low


def _inside(
    y: Tensor, physics: Physics, of_offset: Tensor | None, gain: float, offset: float
) -> tuple[Tensor, tuple[float, float]]:
    """``y`` in the prior's units, and the affine map that is left to the measurement."""
    if offset == 0.0 and gain == 1.0:
        return _measured(y, physics), (1.0, 0.0)
    if of_offset is None:
        return y / gain, (gain, offset)
    return _measured((y - of_offset) / gain, physics), (1.0, 0.0)


def _measured(y: Tensor, physics: Physics) -> Tensor:
    """A copy of ``y`` without what a mask hides: noise or a scratch there would rescale the steps of DPS."""
    known = known_entries(physics, y)
    return y.clone() if known is None else y * known
