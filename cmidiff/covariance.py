"""Products with ``Sigma_post = Cov(x_0 | x_t) = (sigma_t^2 / alpha_t) J`` and with what the measurement makes of it.

With ``S = sigma_y^2 I + A Sigma A^T``, guidance and information need four products, each a method of a `Covariance`:

    product(v) = Sigma v          solve(e) = A^T S^-1 e
    inverse(v) = Sigma^-1 v       whiten(z) = A^T S^-1/2 z

`Isotropic` takes ``Sigma = r^2 I`` (PiGDM), `Diagonal` the diagonal of ``J`` from finite differences of the denoiser
(CA-DPS), `Exact` the
Jacobian itself, one vector-Jacobian product of the network for each product. Scores and Jacobians of a network are
approximate: its ``J`` is neither symmetric nor
positive. Conjugate gradients therefore stop a sample where the curvature falls below that of the noise alone, which
``S`` must exceed.

Sources: Song et al., "Pseudoinverse-Guided Diffusion Models", 2023, https://openreview.net/forum?id=9_gsMA8MRKQ;
Hamidi, Yang, "Enhancing Diffusion
Models for Inverse Problems with Covariance-Aware Posterior Sampling", 2024, https://arxiv.org/abs/2412.20045.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cmidiff.krylov import conjugate_gradient, lanczos_apply
from cmidiff.step import Step

CovarianceName = Literal["isotropic", "diagonal", "exact"]
NOISE_FLOOR = 1e-3  # sigma_y of a noise-free measurement wherever S^-1 is found by iterations


class Covariance(Protocol):
    """Products with ``Sigma`` at one step; signals have the shape of ``x_t``, measurements that of ``y``."""

    def product(self, v: Tensor) -> Tensor: ...
    def inverse(self, v: Tensor) -> Tensor: ...
    def solve(self, e: Tensor) -> Tensor: ...
    def whiten(self, z: Tensor) -> Tensor: ...


def isotropic_variance(step: Step, data_variance: float = 1.0) -> float:
    """``r_t^2 = sigma_t^2 v / (sigma_t^2 + alpha_t^2 v)``: the posterior variance if ``x_0 ~ N(0, v I)``."""
    alpha_t, sigma_t = step.level_t
    return sigma_t**2 * data_variance / (sigma_t**2 + alpha_t**2 * data_variance)


@dataclass(frozen=True)
class Isotropic:
    """``Sigma = r^2 I``."""

    step: Step
    r2: float

    def product(self, v: Tensor) -> Tensor:
        return self.r2 * v

    def inverse(self, v: Tensor) -> Tensor:
        return v / self.r2

    def solve(self, e: Tensor) -> Tensor:
        return self.step.measurement.solve(e, self.r2)

    def whiten(self, z: Tensor) -> Tensor:
        return self.step.measurement.whiten(z, self.r2)


@dataclass(frozen=True)
class _Iterated(ABC):
    """``S^-1`` and ``S^-1/2`` by Krylov iterations with products of ``Sigma``."""

    step: Step
    iterations: int

    @abstractmethod
    def product(self, v: Tensor) -> Tensor: ...

    def _s(self, v: Tensor) -> Tensor:
        measurement = self.step.measurement
        return self._noise**2 * v + measurement.A(self.product(measurement.At(v)))

    @property
    def _noise(self) -> float:
        return self.step.measurement.noise_std or NOISE_FLOOR

    def inverse(self, v: Tensor) -> Tensor:
        return conjugate_gradient(self.product, v, iterations=self.iterations)

    def solve(self, e: Tensor) -> Tensor:
        u = conjugate_gradient(
            self._s, e, iterations=self.iterations, tolerance=_tolerance(e), curvature=self._noise**2
        )
        return self.step.measurement.At(u)

    def whiten(self, z: Tensor) -> Tensor:
        floor = self._noise**2
        root = lanczos_apply(self._s, z, lambda w: w.clamp_min(floor).rsqrt(), iterations=self.iterations)
        return self.step.measurement.At(root)


@dataclass(frozen=True)
class Diagonal(_Iterated):
    """``Sigma = diag(variance)``, ``variance`` of the shape of ``x_t``."""

    variance: Tensor

    def product(self, v: Tensor) -> Tensor:
        return self.variance * v

    def inverse(self, v: Tensor) -> Tensor:
        return v / self.variance


@dataclass(frozen=True)
class Exact(_Iterated):
    """``Sigma = (sigma_t^2 / alpha_t) J^T``, products by the denoiser's graph."""

    def product(self, v: Tensor) -> Tensor:
        return self.step.covariance_gain * self.step.vjp(v)


def precision(step: Step) -> float:
    """Machine epsilon of what comes out of the denoiser: of the network's type if it is coarser than the state's."""
    own = getattr(step.prior, "dtype", None) or step.x_t.dtype
    return max(torch.finfo(own).eps, torch.finfo(step.x_t.dtype).eps)


def difference_size(eps: float, order: Literal[1, 2]) -> float:
    """Step of the central difference for a first or second derivative, relative to the scale of the argument.

    Rounding costs about ``eps / h`` and ``4 eps / h^2``, truncation ``h^2 / 6`` and ``h^2 / 12`` of the derivatives two
    orders higher: of the first, whose optimum is flat, the cube root of ``eps``; of the second ``(48 eps)^(1/4)``.

    Args:
        eps: relative error of the function, see `precision`.
        order: of the derivative.
    """
    return eps ** (1 / 3) if order == 1 else (48 * eps) ** (1 / 4)


def diagonal_variance(
    step: Step, *, probe: Literal["rademacher", "ones"] = "rademacher", size: float | None = None
) -> Tensor:
    """``(sigma_t^2 / alpha_t) diag J`` by one finite difference of the denoiser, shape of ``x_t``.

    Args:
        probe: direction ``z`` of the difference ``z * (x_hat(x_t + h z) - x_hat(x_t)) / h``: random signs, whose
            expectation is the diagonal (Bekas,
            Kokiopoulou, Saad 2007), or ones, which gives the row sums of ``J``.
        size: ``h / sigma_t``; by default `difference_size`.

    The result is kept between ``1e-4`` and 1 times ``sigma_t^2 / alpha_t^2``, which bounds the variance of a
    log-concave ``p(x_0)``.
    """
    x_t, x_hat = step.x_t.detach(), step.x_hat.detach()
    z = step.draws.normal("covariance", step.index, x_t).sign() if probe == "rademacher" else torch.ones_like(x_t)
    h = step.level_t[1] * (difference_size(precision(step), 1) if size is None else size)
    with torch.no_grad():
        slope = z * (step.denoise(x_t + h * z) - x_hat) / h
    return (step.covariance_gain * slope).clamp(1e-4 * step.ratio**2, step.ratio**2)


def bind(name: CovarianceName, step: Step, *, iterations: int = 20, data_variance: float = 1.0) -> Covariance:
    """The covariance called ``name`` at ``step``."""
    match name:
        case "isotropic":
            return Isotropic(step, isotropic_variance(step, data_variance))
        case "diagonal":
            return Diagonal(step, max(iterations, 100), diagonal_variance(step))  # no network in these products
        case "exact":
            return Exact(step, iterations)
        case _:
            raise ValueError(f"covariance must be 'isotropic', 'diagonal' or 'exact', received {name!r}")


def _tolerance(e: Tensor) -> float:
    return math.sqrt(torch.finfo(e.dtype).eps)
