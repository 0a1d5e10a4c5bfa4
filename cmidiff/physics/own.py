"""A user's own linear map as a physics, tested before it is used."""

from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from deepinv.physics.forward import adjoint_function
from torch import Tensor

from cmidiff.physics.check import Device, Shape, adjoint_error, check_dtype, check_signal
from cmidiff.physics.operators import gaussian_noise


def from_callable(
    A: Callable[[Tensor], Tensor],
    shape: Shape,
    *,
    adjoint: Callable[[Tensor], Tensor] | None = None,
    noise_std: float = 0.05,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
) -> LinearPhysics:
    """Make a physics from a linear map, which is tested.

    Tested on random images: ``A(0) = 0``, ``A(u + v) = A u + A v``, each image treated on its own, and
    ``<A u, v> = <u, A^T v>``.

    Args:
        A: from ``(B, C, H, W)`` to ``(B, ...)``, any batch size.
        shape: ``(C, H, W)`` of the images, or the shape of any other signal.
        adjoint: ``A^T``, from ``(B, ...)`` to ``(B, C, H, W)``; ``None``: by reverse differentiation of ``A``.
        noise_std: standard deviation of the noise, in units of an image in [0, 1].
        dtype: ``torch.float32`` or ``torch.float64``: of the images that ``A`` takes.
        device: of the images that ``A`` takes.

    Raises:
        ValueError: if ``A`` is not linear, mixes the images of a batch, or ``adjoint`` is not its adjoint.
        TypeError: if ``A`` or ``adjoint`` is no function, or ``A`` cannot be differentiated and ``adjoint`` is missing.
    """
    if not callable(A) or not (adjoint is None or callable(adjoint)):
        raise TypeError(
            f"A and adjoint must be functions of one tensor; got {type(A).__name__}, {type(adjoint).__name__}."
        )
    image = check_signal(shape)
    _check_linear(A, image, check_dtype(dtype), device)

    def transpose(y: Tensor) -> Tensor:
        return adjoint_function(A, (y.shape[0], *image), device=str(y.device), dtype=dtype)(y)

    noise: Any = gaussian_noise(noise_std, dtype)  # deepinv takes the type of the default, ZeroNoise, for the only one
    physics = LinearPhysics(A=A, A_adjoint=adjoint or transpose, img_size=image, noise_model=noise, device=device)
    advice = (
        "Correct it, or leave it out: A is then differentiated."
        if adjoint
        else "Pass adjoint=..., or write A in torch."
    )
    who = "adjoint" if adjoint else "A's reverse derivative"
    try:
        error = adjoint_error(physics, image, dtype=dtype, device=device)
    except Exception as cause:
        raise TypeError(f"{who} could not be evaluated for images of {image}: {cause} {advice}") from cause
    if not error <= _tolerance(dtype):
        raise ValueError(
            f"{who} is not the adjoint of A: <A u, v> and <u, A^T v> differ by {error:.2g} of |A u| |v|, where "
            f"{_tolerance(dtype):.0e} is allowed. {advice}"
        )
    return physics


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype == torch.float32 else 1e-9


def _check_linear(A: Callable[[Tensor], Tensor], image: tuple[int, ...], dtype: torch.dtype, device: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 2, *image, generator=generator, dtype=dtype).to(device)
    a_u, a_v, a_sum, a_zero, a_alone = A(u), A(v), A(u + v), A(torch.zeros_like(u)), A(u[1:])
    if not isinstance(a_u, Tensor) or a_u.ndim < 2 or a_u.shape[0] != 2 or a_alone.shape[0] != 1:
        got = tuple(a_u.shape) if isinstance(a_u, Tensor) else type(a_u).__name__
        raise ValueError(f"A must map a batch (B, *{image}) to a tensor (B, ...); for B = 2 it returned {got}.")
    size = float(a_u.abs().max() + a_v.abs().max())
    facts = {
        "A(0) is not 0": a_zero,
        "A(u + v) is not A(u) + A(v)": a_sum - a_u - a_v,
        "A treats an image differently in a batch than alone": a_alone - a_u[1:],
    }
    for fault, gap in facts.items():
        worst = float(gap.abs().max())
        if not worst <= _tolerance(dtype) * size:
            raise ValueError(
                f"A must be linear, image by image, but {fault}: they differ by {worst:.2g}, where A's outputs are of "
                f"size {size:.2g}. Take constants, clipping, noise and batch statistics out of A."
            )
