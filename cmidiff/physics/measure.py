"""``y = A(x) + n``, drawn reproducibly, and how many numbers of ``y`` were really measured.

Noise is Gaussian, or that of counted photons, ``y = gain N`` with ``N ~ Poisson(A(x) / gain)``: one photon is worth
``gain``, and the variance of ``y`` is ``gain A(x)``; or both.
"""

import operator
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from deepinv.physics import (
    MRI,
    ComposedPhysics,
    GaussianNoise,
    Inpainting,
    LinearPhysics,
    MultiCoilMRI,
    Physics,
    PoissonGaussianNoise,
    PoissonNoise,
)
from torch import Tensor

from cmidiff.physics.check import check_finite, check_gain, check_noise_std
from cmidiff.physics.parts import Parts


class Noise(NamedTuple):
    """What is known of a physics' noise: ``Var y = sigma^2 + gain A(x)``, each of shape (1,) or (B,)."""

    sigma: Tensor
    gain: Tensor
    counts: bool
    """Whether ``y`` is in photons, ``Poisson(A(x) / gain)``, instead of in units of ``A(x)``."""


def noise_of(physics: Physics) -> Noise | None:
    """The noise that the physics declares; None if it is neither Gaussian nor Poisson."""
    model: Any = physics.noise_model
    none = torch.zeros(1)
    match model:
        case GaussianNoise():
            return Noise(torch.as_tensor(model.sigma).flatten(), none, False)
        case PoissonNoise():
            return Noise(none, torch.as_tensor(model.gain).flatten(), not bool(model.normalize))
        case PoissonGaussianNoise():
            return Noise(torch.as_tensor(model.sigma).flatten(), torch.as_tensor(model.gain).flatten(), False)
        case _:
            return None


def measure(x: Tensor, physics: Physics, *, seed: int | Sequence[int] = 0) -> Tensor:
    """The noisy measurement ``y = A(x) + n`` of each image of a batch; ``x`` is left as it is.

    The noise of an image is drawn by a generator of its own. It does not depend on the other images, on torch's global
    state or on the precision. With one seed, the noise of image i depends on the seed and on i, and image 0 has that of
    the seed itself. With several, image i depends on ``seed[i]`` alone. Where a mask hides an entry of ``y`` there is
    no noise. Half of the variance of a complex number's noise is in its real part, as in deepinv.

    Args:
        x: clean images in [0, 1], ``(B, C, H, W)``, float.
        physics: carries a ``deepinv.physics.GaussianNoise``, ``PoissonNoise`` or ``PoissonGaussianNoise``. Sigma is in
            units of an image in [0, 1]. The gain is the value of one photon; where ``A(x)`` is negative there are none.
        seed: one for all images, or one per image.

    Returns:
        ``y``, ``(B, ...)``, of the dtype of ``A(x)``.

    Raises:
        ValueError: the images are no floats, not finite, empty or of a size the physics is not for. Or the number of
            seeds is not that of the images, or the physics has other noise.
    """
    _check_images(x, physics)
    generators = [torch.Generator().manual_seed(s) for s in _seeds(seed, len(x))]
    with torch.no_grad():
        clean = physics.A(x)
    if not isinstance(clean, Tensor):
        raise ValueError(
            f"A(x) must be one tensor; {type(physics).__name__} returns a {type(clean).__name__}. Join the parts: "
            "from_callable(lambda x: torch.cat([p.A(x).flatten(1) for p in parts], 1), shape)."
        )
    noise = _check_noise(physics, len(x))
    known = known_entries(physics, clean)
    sigma, gain = (_per_image(value, clean) for value in (noise.sigma, noise.gain))
    y = clean
    if bool((noise.gain > 0).any()):
        photons = torch.stack([_draw_photons(a, g) for a, g in zip(clean / gain, generators, strict=True)])
        y = photons if noise.counts else photons * gain
    if bool((noise.sigma > 0).any()):
        normal = torch.stack([_draw_normal(a, g) for a, g in zip(clean, generators, strict=True)]) * sigma
        y = y + (normal if known is None else normal * known)
    return y.clone() if y is clean else y


def view_measurement(y: Tensor, physics: Physics) -> Tensor:
    """A measurement (1, ...) as an image (1 | 3, h, w): itself, or its back-projection stretched to [0, 1]."""
    if y.ndim == 4 and y.shape[1] in (1, 3) and not y.is_complex():
        return y[0]
    back = physics.A_adjoint(y)[0] if isinstance(physics, LinearPhysics) else y.abs().reshape(1, 1, -1)
    low, high = back.min(), back.max()
    return (back - low) / (high - low).clamp_min(1e-12)


def known_entries(physics: Physics, y: Tensor) -> Tensor | None:
    """Which entries of ``y`` carry a measurement: 1 where they do, 0 where a mask hides them; ``None`` if all do.

    Args:
        physics: ``Inpainting`` and ``MRI`` of deepinv keep hidden entries in ``y``, as zeros. So does a composition
            whose last operator is one of them, as ``mask * blur``, because the noise of a composition is added last. So
            do the `cmidiff.physics.parts` of all these.
        y: measurement, ``(B, ...)``.

    Returns:
        A tensor that broadcasts to ``y``, or ``None``.
    """
    if isinstance(physics, ComposedPhysics):
        last: Any = physics.physics_list[-1]
        return known_entries(last, y)
    if isinstance(physics, Parts):
        known = known_entries(physics.whole, torch.view_as_complex(y.contiguous()))
        return None if known is None else known[..., None]
    if not isinstance(physics, Inpainting | MRI | MultiCoilMRI):
        return None
    mask: Any = physics.mask
    known = (mask != 0).to(y.real.dtype)
    return known[:, :, None] if isinstance(physics, MultiCoilMRI) else known


def measured_count(physics: Physics, y: Tensor) -> Tensor:
    """``m``, the number of measured entries of each image, hidden ones not counted: ``(B,)``, of the real dtype of
    ``y``."""
    known = known_entries(physics, y)
    if known is None:
        return torch.full((len(y),), y[0].numel(), dtype=y.real.dtype, device=y.device)
    return known.expand(y.shape).flatten(1).sum(1)


def _check_images(x: Tensor, physics: Physics) -> None:
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"x must be a batch of images (B, C, H, W) of floats in [0, 1]; got {tuple(x.shape)} of {x.dtype}. "
            "Convert 8-bit images by x.float() / 255; add the batch dimension by x[None]."
        )
    check_finite("x", x)
    expected = getattr(physics, "img_size", None)
    if not isinstance(expected, tuple | list | torch.Size) or len(expected) != x.ndim - 1:
        return
    if any(want not in (1, got) for want, got in zip(expected, x.shape[1:], strict=True)):
        raise ValueError(
            f"This physics is for images of {tuple(expected)}; got {tuple(x.shape[1:])}. Resize the images, or build "
            "the physics for their shape."
        )


def _seeds(seed: int | Sequence[int], images: int) -> list[int]:
    if isinstance(seed, Sequence):
        if len(seed) != images:
            raise ValueError(f"There must be one seed, or one per image; got {len(seed)} seeds for {images} images.")
        return [operator.index(s) for s in seed]
    first = operator.index(seed)
    return [first, *(int(sha256(f"{first}+{i}".encode()).hexdigest()[:15], 16) for i in range(1, images))][:images]


def _check_noise(physics: Physics, images: int) -> Noise:
    noise = noise_of(physics)
    if noise is None:
        raise ValueError(
            "The physics must carry Gaussian noise or that of photons; its noise_model is "
            f"{type(physics.noise_model).__name__}. Set physics.noise_model = deepinv.physics.GaussianNoise(sigma)."
        )
    if len(noise.sigma) not in (1, images) or len(noise.gain) not in (1, images):
        got = max(len(noise.sigma), len(noise.gain))
        raise ValueError(f"There must be one noise level, or one per image; got {got} for {images} images.")
    for value in noise.sigma.tolist():
        check_noise_std(value)
    for value in noise.gain.tolist() if not isinstance(physics.noise_model, GaussianNoise) else ():
        check_gain(value)
    return noise


def _per_image(value: Tensor, like: Tensor) -> Tensor:
    return value.to(device=like.device, dtype=like.real.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def _draw_photons(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson counts, drawn in double precision on the CPU."""
    if rate.is_complex():
        raise ValueError("Photons need a real measurement; A(x) is complex. Use GaussianNoise.")
    counts = torch.poisson(rate.detach().cpu().double().clamp_min(0.0), generator=generator)
    return counts.to(device=rate.device, dtype=rate.dtype)


def _draw_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of variance 1, drawn in double precision on the CPU so that it is the same everywhere."""
    double = torch.complex128 if like.is_complex() else torch.float64
    return torch.randn(like.shape, generator=generator, dtype=double).to(device=like.device, dtype=like.dtype)
