r"""A dense matrix as a physics, with its singular value decomposition declared.

``A = U diag(s) V^T`` is computed once, in double precision. Everything a solver needs is then a product with ``U`` and
``V``: ``A``, ``A^T``, ``prox_l2``, and the functions of ``A A^T`` that `cmidiff.measurement.Measurement` uses in closed
form instead of conjugate gradients.
"""

import math
from typing import Any

import torch
from deepinv.physics import DecomposablePhysics, GaussianNoise
from torch import Tensor

from cmidiff.physics.check import Shape, checked_dtype, checked_signal
from cmidiff.physics.operators import gaussian_noise


class DenseMatrix(DecomposablePhysics):
    """``A x = matrix x.flatten()``; see ``from_matrix``.

    Args:
        matrix: ``(m, d)``.
        img_size: shape of one signal, with ``d`` entries.
        noise_model: added to ``A x``.
        dtype: ``torch.float32`` or ``torch.float64``.
    """

    left: Tensor
    right: Tensor
    mask: Tensor

    def __init__(
        self, matrix: Tensor, img_size: tuple[int, ...], noise_model: GaussianNoise, dtype: torch.dtype
    ) -> None:
        u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
        singular_values: Any = s.to(dtype)  # a tensor, annotated as float by deepinv
        super().__init__(mask=singular_values, img_size=img_size, noise_model=noise_model)
        self.register_buffer("left", u.to(dtype).contiguous())
        self.register_buffer("right", vt.to(dtype).contiguous())

    def V_adjoint(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.right.T

    def V(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        size: Any = self.img_size
        return (x @ self.right).reshape(len(x), *size)

    def U(self, x: Tensor) -> Tensor:
        return x @ self.left.T

    def U_adjoint(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return x @ self.left

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: Any, **kwargs: Any) -> Tensor:
        """``z + V (gamma s (U^T y - s V^T z) / (1 + gamma s^2))``: what ``A`` does not see of ``z`` stays."""
        start = z if isinstance(z, Tensor) else torch.full_like(self.A_adjoint(y), float(z or 0))
        if isinstance(gamma, Tensor) and gamma.ndim:
            gamma = gamma.reshape(-1, 1)
        gap = self.U_adjoint(y) - self.mask * self.V_adjoint(start)
        return start + self.V(gamma * self.mask * gap / (1 + gamma * self.mask**2))


def from_matrix(
    matrix: Tensor,
    shape: Shape,
    *,
    noise_std: float = 0.05,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> DenseMatrix:
    """Make a physics from a dense real matrix: ``y = matrix x.flatten() + n``.

    The singular value decomposition is computed here, once, so every solver has a closed form. It costs
    ``O(m d min(m, d))``: a second for 1000 x 4000, minutes from about 10,000 x 10,000. Use ``from_callable`` beyond.

    Args:
        matrix: ``(m, d)``, real.
        shape: of one signal without its batch dimension, with ``d`` entries: ``(C, H, W)``, ``(C, L)``, ...
        noise_std: standard deviation of the noise, in the units of ``y``.
        dtype: ``torch.float32`` or ``torch.float64``.
        device: of the physics.

    Returns:
        A physics from ``(B, *shape)`` to ``(B, m)``.

    Raises:
        ValueError: for a matrix that is not two-dimensional, real and finite, is all zero, or whose number of columns
            is not the number of entries of ``shape``.
    """
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.numel() == 0 or matrix.is_complex():
        got = f"{tuple(matrix.shape)} of {matrix.dtype}" if isinstance(matrix, Tensor) else type(matrix).__name__
        raise ValueError(
            f"The matrix must be a real tensor (m, d); got {got}. Convert an array by torch.from_numpy; stack the real "
            "and imaginary rows of a complex matrix."
        )
    size = checked_signal(shape)
    if matrix.shape[1] != math.prod(size):
        raise ValueError(
            f"The matrix must have one column for each of the {math.prod(size)} entries of a signal of {size}; got "
            f"{tuple(matrix.shape)}. Transpose it, or pass the shape of the signal it belongs to."
        )
    if not bool(matrix.isfinite().all()) or not bool(matrix.any()):
        raise ValueError("The matrix must be finite and not all zero; got NaN, infinity or only zeros.")
    return DenseMatrix(matrix, size, gaussian_noise(noise_std, dtype), checked_dtype(dtype)).to(device)
