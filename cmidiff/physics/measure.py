"""``y = A x + n``, drawn reproducibly, and how many numbers of ``y`` were really measured."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from deepinv.physics import MRI, GaussianNoise, Inpainting, LinearPhysics, MultiCoilMRI
from torch import Tensor

from cmidiff.physics.check import checked_noise_std


def measure(x: Tensor, physics: LinearPhysics, *, seed: int | Sequence[int] = 0) -> Tensor:
    """The noisy measurement ``y = A x + n`` of each image of a batch; ``x`` is left as it is.

    The noise of an image is drawn by a generator of its own, so it depends on the image's seed alone: not on the batch,
    nor on torch's global state, nor on the precision. With one seed for a whole batch, all its images receive the same
    draw; pass one seed per image for independent ones. Where a mask hides an entry of ``y`` there is no noise.

    Args:
        x: clean images in [0, 1], ``(B, C, H, W)``, float.
        physics: carries a ``deepinv.physics.GaussianNoise``; its sigma is in units of an image in [0, 1].
        seed: one for all images, or one per image.

    Returns:
        ``y``, ``(B, ...)``, of the dtype of ``A x``.

    Raises:
        ValueError: for images that are no floats, not finite, empty or of a size the physics is not for; for another
            number of seeds than images; for a physics without Gaussian noise.
    """
    _check_images(x, physics)
    seeds = _seeds(seed, len(x))
    sigma = _sigma(physics, len(x))
    with torch.no_grad():
        clean = physics.A(x)
    noise = torch.stack([_standard_normal(clean[0], s) for s in seeds])
    noise = noise * sigma.to(device=noise.device, dtype=noise.real.dtype).reshape(-1, *(1,) * (clean.ndim - 1))
    known = known_entries(physics, clean)
    return clean + (noise if known is None else noise * known)


def known_entries(physics: LinearPhysics, y: Tensor) -> Tensor | None:
    """Which entries of ``y`` carry a measurement: 1 where they do, 0 where a mask hides them; ``None`` if all do.

    Args:
        physics: ``Inpainting`` and ``MRI`` of deepinv keep hidden entries in ``y``, as zeros.
        y: measurement, ``(B, ...)``.

    Returns:
        A tensor that broadcasts to ``y``, or ``None``.
    """
    if not isinstance(physics, Inpainting | MRI | MultiCoilMRI):
        return None
    mask: Any = physics.mask
    known = (mask != 0).to(y.real.dtype)
    return known[:, :, None] if isinstance(physics, MultiCoilMRI) else known


def measured_count(physics: LinearPhysics, y: Tensor) -> Tensor:
    """``m``, the number of measured entries of each image, hidden ones not counted: ``(B,)``, float64."""
    known = known_entries(physics, y)
    if known is None:
        return torch.full((len(y),), y[0].numel(), dtype=torch.float64, device=y.device)
    return known.expand(y.shape).flatten(1).sum(1, dtype=torch.float64)


def _check_images(x: Tensor, physics: LinearPhysics) -> None:
    if not x.is_floating_point() or x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"x must be a batch of images (B, C, H, W) of floats in [0, 1]; got {tuple(x.shape)} of {x.dtype}. "
            "Convert 8-bit images by x.float() / 255; add the batch dimension by x[None]."
        )
    if not bool(x.isfinite().all()):
        raise ValueError(
            f"x must be finite; got {int((~x.isfinite()).sum())} NaN or infinite values. Clean the images."
        )
    expected = physics.img_size
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
    return [operator.index(seed)] * images


def _sigma(physics: LinearPhysics, images: int) -> Tensor:
    if not isinstance(physics.noise_model, GaussianNoise):
        raise ValueError(
            f"The physics must carry Gaussian noise; its noise_model is {type(physics.noise_model).__name__}. Set "
            "physics.noise_model = deepinv.physics.GaussianNoise(sigma)."
        )
    sigma = torch.as_tensor(physics.noise_model.sigma).flatten()
    if len(sigma) not in (1, images):
        raise ValueError(f"There must be one noise level, or one per image; got {len(sigma)} for {images} images.")
    for value in sigma.tolist():
        checked_noise_std(value)
    return sigma


def _standard_normal(like: Tensor, seed: int) -> Tensor:
    """White noise of variance 1, drawn in double precision on the CPU so that it is the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    double = torch.complex128 if like.is_complex() else torch.float64
    return torch.randn(like.shape, generator=generator, dtype=double).to(device=like.device, dtype=like.dtype)
