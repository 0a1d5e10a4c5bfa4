"""Checks of arguments at the public entries of this package, and the dot test of an operator and its adjoint.

A refused argument is a `ValueError` that says what was wrong, what was received and what to do.
"""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

Shape = Sequence[int]
Device = str | torch.device


def check_signal(shape: Shape) -> tuple[int, ...]:
    """Return the shape of one signal without its batch dimension, of any number of dimensions."""
    sizes = tuple(shape)
    if not sizes or not all(isinstance(n, Integral) and n > 0 for n in sizes):
        raise ValueError(
            "The shape must be of positive integers, three positive integers (channels, height, width) for images; got "
            f"{sizes}. Of a batch x, pass x.shape[1:]."
        )
    return tuple(int(n) for n in sizes)


def check_shape(shape: Shape) -> tuple[int, int, int]:
    """Return ``shape`` as ``(C, H, W)``, the shape of one image without its batch dimension."""
    sizes = check_signal(shape)
    if len(sizes) != 3:
        raise ValueError(
            f"The image shape must be three positive integers (channels, height, width); got {sizes}. "
            "Of a batch x, pass x.shape[1:]."
        )
    return sizes[0], sizes[1], sizes[2]


def check_images(name: str, x: Tensor, smallest: int) -> Tensor:
    """Return images ``(C, H, W)`` or ``(B, C, H, W)`` as a batch on the CPU."""
    if not x.is_floating_point() or x.ndim not in (3, 4) or min(x.shape[-2:]) < smallest:
        raise ValueError(
            f"{name} must be images (C, H, W) or (B, C, H, W) of floats, of at least {smallest}x{smallest} pixels; got "
            f"{tuple(x.shape)} of {x.dtype}. Convert 8-bit images by {name}.float() / 255."
        )
    check_finite(name, x)
    return (x if x.ndim == 4 else x[None]).detach().cpu()


def check_finite(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` for values that are not finite."""
    if not bool(x.isfinite().all()):
        raise ValueError(
            f"{name} must be finite; got {int((~x.isfinite()).sum())} NaN or infinite values. Clean the images."
        )


def check_noise_std(noise_std: float) -> float:
    """Return ``noise_std`` as a float, in units of an image in [0, 1]."""
    if not isinstance(noise_std, Real) or not math.isfinite(noise_std) or noise_std < 0:
        raise ValueError(
            f"noise_std must be a finite number of at least 0, in units of an image in [0, 1]; got {noise_std!r}. "
            "For noise given in 0..255 units, divide by 255; in [-1, 1] units, by 2."
        )
    return float(noise_std)


def check_gain(gain: float) -> float:
    """Return ``gain`` of counted photons as a float: what one of them is worth, in units of an image in [0, 1]."""
    if not isinstance(gain, Real) or not math.isfinite(gain) or gain <= 0:
        raise ValueError(
            f"The gain of Poisson noise must be a positive number, what one photon is worth; got {gain!r}. "
            "For 100 photons in a white pixel, use 0.01."
        )
    return float(gain)


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return ``dtype``, which must be ``torch.float32`` or ``torch.float64``."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"A physics is built in torch.float32 or torch.float64; got {dtype}. Cast its outputs instead."
        )
    return dtype


def check_fraction(name: str, value: float, *, least: float, most: float, open_end: bool = False) -> float:
    """Return ``value`` as a float in ``[least, most]``, or in ``[least, most)`` with ``open_end``."""
    inside = isinstance(value, Real) and least <= value <= most and not (open_end and value == most)
    if not inside:
        bracket = ")" if open_end else "]"
        raise ValueError(f"{name} must lie in [{least}, {most}{bracket}; got {value!r}. Choose a value in that range.")
    return float(value)


def make_generator(seed: int) -> torch.Generator:
    """Return a generator on the CPU; torch's global one is never used."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise ValueError(f"seed must be an integer; got {seed!r}. Any integer will do, 0 included.")
    return torch.Generator().manual_seed(int(seed))


def inner(u: Tensor, v: Tensor) -> Tensor:
    """The real inner product of each row of a batch, ``Re <u_b, v_b>``, shape ``(B,)``."""
    return (u.conj() * v).real.flatten(1).sum(1)


def adjoint_error(
    physics: LinearPhysics,
    shape: Shape,
    *,
    batch: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: Device = "cpu",
) -> float:
    r"""Compute the dot test ``|<A u, v> - <u, A^T v>| / (|A u| |v|)`` at random ``u`` and ``v``: the largest.

    Args:
        physics: any linear physics.
        shape: of one image, ``(C, H, W)`` or the shape that the physics takes after the batch dimension.
        batch: number of independent pairs, passed through the physics together.
        seed: of the draws.
        dtype: of the draws; the physics must be built in the same.
        device: of the physics; the draws are made on the CPU.

    Returns:
        A dimensionless number, of the order of the precision of ``dtype`` for a true adjoint.
    """
    generator = make_generator(seed)
    u = torch.randn((batch, *shape), generator=generator, dtype=dtype).to(device)
    a_u = physics.A(u)
    v = torch.randn(a_u.shape, generator=generator, dtype=a_u.dtype).to(device)
    gap = (inner(a_u, v) - inner(u, physics.A_adjoint(v))).abs()
    scale = (inner(a_u, a_u) * inner(v, v)).sqrt()
    return float((gap / scale.clamp_min(torch.finfo(dtype).tiny)).max())
