r"""Linear physics with declared singular values, ``A = U diag(s) V^T``: a dense matrix, bicubic reduction, and grey.

Solvers rely on ``prox_l2``, the one primitive of PiGDM and of every covariance-aware likelihood,
``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2``. It is exact here, and it keeps what ``A`` does not see of ``z``:

    z + V (gamma s (U^T y - s V^T z) / (1 + gamma s^2))
"""

import math
from typing import Any

import torch
from deepinv.physics import Decolorize, DecomposablePhysics, GaussianNoise
from deepinv.physics.functional import imresize_matlab
from torch import Tensor
from torch.nn.functional import pad

from cmidiff.physics.check import Device, Shape, check_dtype, check_signal
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
        """``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2``."""
        start, gamma = _start(self, z, y, gamma)
        gap = self.U_adjoint(y) - self.mask * self.V_adjoint(start)
        return start + self.V(gamma.flatten(1) * self.mask * gap / (1 + gamma.flatten(1) * self.mask**2))


def from_matrix(
    matrix: Tensor, shape: Shape, *, noise_std: float = 0.05, dtype: torch.dtype = torch.float32, device: Device = "cpu"
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
        ValueError: the matrix is not two-dimensional, real and finite, is all zero, or its columns are not as many as
            the entries of ``shape``.
    """
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or matrix.numel() == 0 or matrix.is_complex():
        got = f"{tuple(matrix.shape)} of {matrix.dtype}" if isinstance(matrix, Tensor) else type(matrix).__name__
        raise ValueError(
            f"The matrix must be a real tensor (m, d); got {got}. Convert an array by torch.from_numpy; stack the real "
            "and imaginary rows of a complex matrix."
        )
    size = check_signal(shape)
    if matrix.shape[1] != math.prod(size):
        raise ValueError(
            f"The matrix must have one column for each of the {math.prod(size)} entries of a signal of {size}; got "
            f"{tuple(matrix.shape)}. Transpose it, or pass the shape of the signal it belongs to."
        )
    if not bool(matrix.isfinite().all()) or not bool(matrix.any()):
        raise ValueError("The matrix must be finite and not all zero; got NaN, infinity or only zeros.")
    return DenseMatrix(matrix, size, gaussian_noise(noise_std, dtype), check_dtype(dtype)).to(device)


class Luminance(Decolorize):
    """Grey by the weights of ITU-R BT.601, ``y = sum_c w_c x_c``, with a ``prox_l2`` that is right everywhere.

    Args:
        img_size: ``(3, H, W)``.
        noise_model: added to the grey image.
        dtype: ``torch.float32`` or ``torch.float64``.
    """

    srf: Tensor
    mask: Tensor

    def __init__(
        self, img_size: tuple[int, int, int], noise_model: GaussianNoise, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(channels=3, srf="rec601", noise_model=noise_model, img_size=img_size)
        self.srf = self.srf.to(dtype)
        self.mask = torch.linalg.vector_norm(self.srf, dim=1, keepdim=True)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: Any, **kwargs: Any) -> Tensor:
        """``argmin_x gamma/2 |A x - y|^2 + 1/2 |x - z|^2``; deepinv's own drops ``z`` on the null space of ``A``."""
        start, gamma = _start(self, z, y, gamma)
        return start + self.A_adjoint(y - self.A(start)) * gamma / (1 + gamma * self.mask**2)


def _start(physics: DecomposablePhysics, z: Tensor | float | None, y: Tensor, gamma: Any) -> tuple[Tensor, Tensor]:
    """``z`` as a signal, and ``gamma`` so that it multiplies each image of a batch."""
    start = z if isinstance(z, Tensor) else torch.full_like(physics.A_adjoint(y), float(z or 0))
    return start, torch.as_tensor(gamma, dtype=y.dtype, device=y.device).reshape(-1, 1, 1, 1)


class BicubicResize(DecomposablePhysics):
    r"""Bicubic reduction with antialiasing and symmetric borders: deepinv's ``DownsamplingMatlab``, the resizer of the
    DPS code, in closed form. The original runs a backward pass for each ``A^T`` and conjugate gradients for each
    ``prox_l2``.

    ``A x = R_h x R_w^T`` with ``R = U diag(s) V^T`` of deepinv's ``imresize_matlab`` for each side, hence
    ``A = (U_h x U_w) diag(s_h s_w^T) (V_h x V_w)^T``. Both ``V`` are square, so that ``prox_l2`` keeps what ``A`` does
    not see.

    Args:
        img_size: ``(C, H, W)``, both sides divisible by ``factor``.
        factor: whole reduction factor.
        noise_model: added to the reduced image.
        dtype: ``torch.float32`` or ``torch.float64``.
    """

    U_h: Tensor
    V_h: Tensor
    U_w: Tensor
    V_w: Tensor

    def __init__(
        self,
        img_size: tuple[int, int, int],
        factor: int,
        noise_model: GaussianNoise,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        spectra = []
        bases = {}
        for name, side in (("h", img_size[1]), ("w", img_size[2])):
            columns = torch.eye(side, dtype=torch.float64)[:, None, :, None]
            resize = imresize_matlab(columns, sizes=(side // factor, 1))[:, 0, :, 0].T
            u, s, vt = torch.linalg.svd(resize)
            bases |= {f"U_{name}": u, f"V_{name}": vt.T}
            spectra.append(pad(s, (0, side - len(s))))
        singular_values: Any = torch.outer(*spectra)[None, None].to(dtype)  # a tensor, annotated as float by deepinv
        super().__init__(mask=singular_values, img_size=img_size, noise_model=noise_model)
        self.factor = factor
        for name, basis in bases.items():
            self.register_buffer(name, basis.to(dtype).contiguous())

    def V_adjoint(self, x: Tensor) -> Tensor:
        return self.V_h.mT @ x @ self.V_w

    def V(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.V_h @ x @ self.V_w.mT

    def U(self, x: Tensor) -> Tensor:
        return self.U_h @ x[..., : len(self.U_h), : len(self.U_w)] @ self.U_w.mT

    def U_adjoint(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        inside = self.U_h.mT @ x @ self.U_w
        rows, columns = len(self.V_h) - len(self.U_h), len(self.V_w) - len(self.U_w)
        return pad(inside, (0, columns, 0, rows))
