"""``Sigma = W^T diag(variance) W``: the diagonal of the covariance in an orthonormal wavelet basis.

The errors of a denoiser at neighbouring pixels are correlated, which a diagonal in the pixels cannot express. In the
wavelet basis the covariance is nearer to diagonal. Coarse coefficients are known better than fine ones, and fine ones
better in smooth regions than at edges. The diagonal ``diag(W Sigma W^T)`` is the one of the greatest likelihood among
all of this form. It is estimated from products of the Jacobian with random signs in the wavelet domain, and averaged
over neighbouring coefficients of a band. The paper trains a second head of the network for it.

Sources: Peng, Zheng, Dai, Xiao, Li, Zou, Xiong, "Improving Diffusion Models for Inverse Problems Using Optimal
Posterior Covariance", 2024, https://arxiv.org/abs/2402.02149 ("DWT-Var"); Haar, 1910 (the basis).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmidiff.covariance.base import Covariance, Iterated
from cmidiff.covariance.diagonal import ITERATIONS, draw_signs, slope, smooth
from cmidiff.covariance.isotropic import isotropic_variance
from cmidiff.step import Step


@dataclass(frozen=True)
class Wavelet(Covariance):
    """The diagonal of the Jacobian in the Haar basis.

    Args:
        levels: of the transform; sides that are odd at a level are transformed no further.
        probes: random probes, averaged; each is one evaluation of the denoiser.
        window: side of the square of coefficients over which a band is averaged, odd; 1 for none.
        floor: lower bound of the variance as a multiple of ``r_t^2`` (see `isotropic_variance`).

    Raises:
        ValueError: fewer than one level or probe, an even window, or a floor that is not in (0, 1].
    """

    levels: int = 3
    probes: int = 2
    window: int = 3
    floor: float = 0.1

    def __post_init__(self) -> None:
        if min(self.levels, self.probes, self.window) < 1 or self.window % 2 == 0 or not 0 < self.floor <= 1:
            raise ValueError(
                "Wavelet: need levels >= 1, probes >= 1, an odd window >= 1 and floor in (0, 1], received "
                f"{self.levels}, {self.probes}, {self.window} and {self.floor}"
            )

    def at(self, step: Step) -> BoundWavelet:
        total = torch.zeros_like(step.x_t.detach())
        for k in range(self.probes):
            signs = draw_signs(step, k)
            total = total + signs * haar(slope(step, inverse_haar(signs, self.levels)), self.levels)
        for band in bands(tuple(total.shape), self.levels):
            total[band] = smooth(total[band] / self.probes, self.window)
        variance = (step.covariance_gain * total).clamp(self.floor * isotropic_variance(step), step.ratio**2)
        return BoundWavelet(step, ITERATIONS, variance, self.levels)


@dataclass(frozen=True)
class BoundWavelet(Iterated):
    """``Sigma = W^T diag(variance) W``, ``variance`` of the shape of ``x_t``."""

    variance: Tensor
    levels: int

    def product(self, v: Tensor) -> Tensor:
        return inverse_haar(self.variance * haar(v, self.levels), self.levels)

    def inverse(self, v: Tensor) -> Tensor:
        return inverse_haar(haar(v, self.levels) / self.variance, self.levels)


def haar(x: Tensor, levels: int) -> Tensor:
    """Orthonormal Haar coefficients over the image axes (the last axis of other signals), in the shape of ``x``. Each
    level has the means first, then the differences."""
    x = x.clone()
    for corner in _corners(tuple(x.shape), levels):
        part = x[corner]
        for axis in _axes(x.ndim):
            even, odd = part.unfold(axis, 2, 2).unbind(-1)
            part = torch.cat([even + odd, even - odd], axis) / math.sqrt(2)
        x[corner] = part
    return x


def inverse_haar(c: Tensor, levels: int) -> Tensor:
    """The signal of coefficients ``c``: the inverse and the transpose of `haar`."""
    c = c.clone()
    for corner in reversed(_corners(tuple(c.shape), levels)):
        part = c[corner]
        for axis in _axes(c.ndim):
            mean, half = part.chunk(2, axis)
            part = torch.stack([mean + half, mean - half], axis + 1).flatten(axis, axis + 1) / math.sqrt(2)
        c[corner] = part
    return c


def bands(shape: tuple[int, ...], levels: int) -> list[tuple[slice, ...]]:
    """Where the bands of the coefficients lie in a tensor of ``shape``."""
    found, whole = [], tuple(slice(None) for _ in shape)
    corners, axes = _corners(shape, levels), _axes(len(shape))
    for corner in corners:
        halves = [(slice(0, corner[a].stop // 2), slice(corner[a].stop // 2, corner[a].stop)) for a in axes]
        for choice in list(itertools.product(*halves))[1:]:
            found.append(_placed(whole, axes, choice))
    last = [slice(0, corners[-1][a].stop // 2) if corners else slice(None) for a in axes]
    return [*found, _placed(whole, axes, last)]


def _corners(shape: tuple[int, ...], levels: int) -> list[tuple[slice, ...]]:
    """The part of the tensor that each level transforms."""
    axes, whole = _axes(len(shape)), tuple(slice(None) for _ in shape)
    sizes, found = [shape[a] for a in axes], []
    while len(found) < levels and all(n % 2 == 0 for n in sizes):
        found.append(_placed(whole, axes, [slice(0, n) for n in sizes]))
        sizes = [n // 2 for n in sizes]
    return found


def _axes(ndim: int) -> range:
    return range(ndim - 2 if ndim == 4 else ndim - 1, ndim)


def _placed(whole: tuple[slice, ...], axes: range, parts: Sequence[slice]) -> tuple[slice, ...]:
    return (*whole[: axes.start], *parts)
