"""``Sigma = diag(variance)``: the diagonal of the Jacobian, or its row sums, from finite differences of the denoiser.

One random probe of signs ``z`` gives ``z * J z``. Its expectation is the diagonal, and its error is as large as the
off-diagonal entries of its row. `Diagonal` therefore averages over several probes and over a window of neighbours,
whose variances are alike. The paper's rule (`of_paper`) takes one probe as it is.

Sources: Hamidi, Yang, "Enhancing Diffusion Models for Inverse Problems with Covariance-Aware Posterior Sampling", 2024,
https://arxiv.org/abs/2412.20045; Bekas, Kokiopoulou, Saad, "An estimator for the diagonal of a matrix", 2007 (probes);
Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", 2023, https://arxiv.org/abs/2310.06721 (row
sums).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cmidiff.config import Share
from cmidiff.covariance.base import Covariance, Iterated, difference_size, precision
from cmidiff.covariance.isotropic import isotropic_variance
from cmidiff.step import Step

ITERATIONS = 100  # of conjugate gradients; no network in these products


@dataclass(frozen=True)
class Diagonal(Covariance):
    """The diagonal of the Jacobian.

    Args:
        probes: random probes, averaged; each is one evaluation of the denoiser.
        window: side of the square of pixels over which the diagonal is averaged, odd; 1 for none. Signals that are no
            images are not averaged.
        floor: lower bound of the variance as a multiple of ``r_t^2`` (see `isotropic_variance`).

    Raises:
        ValueError: fewer than one probe, an even window, or a floor that is not in (0, 1].
    """

    probes: int = 2
    window: int = 5
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.probes < 1 or self.window < 1 or self.window % 2 == 0 or not 0 < self.floor <= 1:
            raise ValueError(
                "Diagonal: need probes >= 1, an odd window >= 1 and floor in (0, 1], received "
                f"{self.probes}, {self.window} and {self.floor}"
            )

    def at(self, step: Step) -> BoundDiagonal:
        total = torch.zeros_like(step.x_t.detach())
        for k in range(self.probes):
            z = draw_signs(step, k)
            total = total + z * slope(step, z)
        return bounded(step, smooth(total / self.probes, self.window), self.floor)


def draw_signs(step: Step, inner: int) -> Tensor:
    """Return independent random signs, shape of ``x_t``: probe number ``inner`` of the step."""
    x_t = step.x_t.detach()
    return torch.where(step.draws.normal("covariance", step.index, x_t, inner=inner) < 0, -1.0, 1.0).to(x_t)


def of_paper() -> Diagonal:
    """The paper's rule: one probe, not averaged, bounded below by 1e-4 of ``r_t^2`` alone."""
    return Diagonal(probes=1, window=1, floor=1e-4)


@dataclass(frozen=True)
class RowSum(Covariance):
    """The sums of the Jacobian's rows, from one probe of ones: the variances of TMPD.

    Args:
        floor: lower bound, as in `Diagonal`.
    """

    floor: Share = 0.1

    def at(self, step: Step) -> BoundDiagonal:
        return bounded(step, slope(step, torch.ones_like(step.x_t)), self.floor)


@dataclass(frozen=True)
class BoundDiagonal(Iterated):
    """``Sigma = diag(variance)``, ``variance`` of the shape of ``x_t``."""

    variance: Tensor

    def product(self, v: Tensor) -> Tensor:
        return self.variance * v

    def inverse(self, v: Tensor) -> Tensor:
        return v / self.variance

    def scatter(self, scale: float) -> Tensor:
        scaled = replace(self, variance=scale * self.variance)
        return scaled.given(scaled.variance.sqrt() * self.step.normal("posterior"))


def slope(step: Step, z: Tensor, size: float | None = None) -> Tensor:
    """``J z`` by one forward difference of the denoiser, shape of ``x_t``.

    Args:
        z: direction with entries of size one.
        size: ``h / sigma_t``; by default `difference_size`.
    """
    x_t, x_hat = step.x_t.detach(), step.x_hat.detach()
    h = step.level_t[1] * (difference_size(precision(step), 1) if size is None else size)
    with torch.no_grad():
        return (step.denoise(x_t + h * z) - x_hat) / h


def bounded(step: Step, diagonal: Tensor, floor: float) -> BoundDiagonal:
    """``(sigma_t^2 / alpha_t) diagonal``, limited to between ``floor`` times ``r_t^2`` and ``sigma_t^2 / alpha_t^2``,
    which bounds the variance of a log-concave ``p(x_0)``."""
    variance = (step.covariance_gain * diagonal).clamp(floor * isotropic_variance(step), step.ratio**2)
    return BoundDiagonal(step, ITERATIONS, variance)


def smooth(diagonal: Tensor, window: int) -> Tensor:
    """The mean over the neighbours in an image, (B, C, H, W); other signals are returned as they are."""
    if window == 1 or diagonal.ndim != 4:
        return diagonal
    return avg_pool2d(diagonal, window, stride=1, padding=window // 2, count_include_pad=False)
