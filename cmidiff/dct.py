"""The orthonormal discrete cosine transform (DCT-II) over all axes of a signal.

It nearly diagonalises the covariance of natural images, whose statistics hardly depend on the place. Unlike the Fourier
transform, it does not join opposite borders (Ahmed, Natarajan, Rao, "Discrete Cosine Transform", 1974). Over the three
colour channels it is close to the luminance and two opponent colours.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def dct(x: Tensor) -> Tensor:
    """Coefficients of ``x`` of shape (B, ...) along every axis but the first."""
    for axis in range(1, x.ndim):
        x = _along(x, axis, _matrix(x.shape[axis], x.dtype, x.device))
    return x


def idct(c: Tensor) -> Tensor:
    """The signal of coefficients ``c`` of shape (B, ...): the inverse and the transpose of `dct`."""
    for axis in range(1, c.ndim):
        c = _along(c, axis, _matrix(c.shape[axis], c.dtype, c.device).mT)
    return c


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    if len(matrix) == 1:
        return x
    if axis == x.ndim - 1:
        return x @ matrix.mT
    if axis == x.ndim - 2:
        return matrix @ x
    return torch.movedim(torch.movedim(x, axis, -1) @ matrix.mT, -1, axis)


@lru_cache(maxsize=32)
def _matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The transform of length ``n``, shape (n, n); made in float64 on the CPU, once."""
    k, i = (
        torch.arange(n, dtype=torch.float64, device="cpu")[:, None],
        torch.arange(n, dtype=torch.float64, device="cpu"),
    )
    matrix = torch.cos(math.pi / n * (i + 0.5) * k) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype).to(device)
