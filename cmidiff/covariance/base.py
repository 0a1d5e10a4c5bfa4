"""Products with ``Sigma = Cov(x_0 | x_t)`` and with what the measurement makes of it.

With ``S = sigma_y^2 I + A Sigma A^T``, solvers and CMI need these products at a step, each a method of a `Bound`:

    product(v) = Sigma v          solve(e) = A^T S^-1 e
    inverse(v) = Sigma^-1 v       whiten(z) = A^T S^-1/2 z
    move(w)                       what x_hat moves by, for w = A^T S^-1 (y - A x_hat)

A `Covariance` is the choice, a `Bound` that choice at one step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cmidiff.config import Checked
from cmidiff.krylov import conjugate_gradient, lanczos_apply
from cmidiff.registry import COVARIANCES
from cmidiff.step import Step

NOISE_FLOOR = 4e-3  # least sigma_y wherever S^-1 is found by iterations: a half grey level of images in [-1, 1]


class Bound(ABC):
    """A covariance at one step; signals have the shape of ``x_t``, measurements that of ``y``."""

    step: Step

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """``Sigma v``."""

    @abstractmethod
    def inverse(self, v: Tensor) -> Tensor:
        """``Sigma^-1 v``."""

    @abstractmethod
    def solve(self, e: Tensor) -> Tensor:
        """``A^T S^-1 e``."""

    @abstractmethod
    def whiten(self, z: Tensor) -> Tensor:
        """``A^T S^-1/2 z``."""

    def scatter(self, scale: float) -> Tensor | None:
        """A draw of ``N(0, Cov(x_0 | x_t, y))`` with ``scale Sigma`` as the covariance before the measurement, shape of
        ``x_t``; None where it cannot be drawn."""
        return None

    def given(self, d: Tensor) -> Tensor:
        """A draw of ``N(0, Cov(x_0 | x_t, y))``, shape of ``x_t``, from a draw ``d`` of ``N(0, Sigma)``.

        Matheron's rule: with ``n ~ N(0, sigma_y^2 I)``, ``d - Sigma A^T S^-1 (A d + n)``.
        """
        step, m = self.step, self.step.measurement
        n = step.draws.normal("posterior", step.index, m.y, inner=1)
        return d - self.product(self.solve(m.A(d) + m.noise_std * n))

    def move(self, w: Tensor, *, last: bool = True) -> Tensor:
        """``Sigma w`` with the Jacobian as ``Sigma``: the gradient of the likelihood times ``sigma_t^2 / alpha_t``.

        Args:
            w: ``A^T S^-1 e``.
            last: no other product with the Jacobian follows.
        """
        return self.step.covariance_gain * self.step.vjp(w, last=last)


def isotropic_variance(step: Step, data_variance: float | None = None) -> float:
    """``r_t^2 = sigma_t^2 v / (sigma_t^2 + alpha_t^2 v)``: the posterior variance if ``x_0 ~ N(0, v I)``.

    Args:
        step: the noise level.
        data_variance: ``v``; None: that of the prior.
    """
    alpha_t, sigma_t = step.level_t
    v = step.prior.variance if data_variance is None else data_variance
    return sigma_t**2 * v / (sigma_t**2 + alpha_t**2 * v)


class Covariance(Checked, ABC):
    """A choice of ``Sigma``, stated before the run."""

    @abstractmethod
    def at(self, step: Step) -> Bound:
        """Return the covariance at a step."""

    @property
    def start(self) -> float:
        """The noise level ``sigma_t / alpha_t`` at which a run may begin with a draw of the Gaussian posterior of the
        second moments; infinity: at pure noise."""
        return math.inf

    @property
    def memory(self) -> int:
        """How many earlier calls of the denoiser it uses (see `Step.past`)."""
        return 0

    def needs_graph(self, ratio: float) -> bool:
        """Whether `Bound.move` differentiates the denoiser at the noise level ``ratio`` (`Step.relative_ratio`)."""
        return True

    def needs_graph_inside(self, ratio: float) -> bool:
        """Whether `Bound.product` does, and with it `solve` and `whiten`."""
        return False


@dataclass(frozen=True)
class Iterated(Bound):
    """``S^-1`` and ``S^-1/2`` by Krylov iterations with products of ``Sigma``."""

    step: Step
    iterations: int

    def _s(self, v: Tensor) -> Tensor:
        measurement = self.step.measurement
        return self.noise**2 * v + measurement.A(self.product(measurement.At(v)))

    @property
    def noise(self) -> float:
        return self.step.measurement.noise_std or NOISE_FLOOR

    def inverse(self, v: Tensor) -> Tensor:
        return conjugate_gradient(self.product, v, iterations=self.iterations).x

    def solve(self, e: Tensor) -> Tensor:
        measurement, r2 = self.step.measurement, isotropic_variance(self.step)

        def precondition(r: Tensor) -> Tensor:
            found = measurement.inverse(r, r2)
            return r if found is None else found

        found = conjugate_gradient(
            self._s, e, iterations=self.iterations, curvature=self.noise**2, precondition=precondition
        )
        self.step.record.residuals.append(found.residual)
        return self.step.measurement.At(found.x)

    def whiten(self, z: Tensor) -> Tensor:
        floor = self.noise**2
        root = lanczos_apply(self._s, z, lambda w: w.clamp_min(floor).rsqrt(), iterations=self.iterations)
        return self.step.measurement.At(root)


def make_covariance(choice: Covariance | str | type[Covariance], owner: str) -> Covariance:
    """The covariance of a name; an object is returned as it is.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a covariance.
    """
    made = COVARIANCES.resolve(choice)
    if not isinstance(made, Covariance):
        raise TypeError(
            f"{owner}: covariance must be a name or an object of cmidiff.covariance such as Exact(), "
            f"received {choice!r}"
        )
    return made


def precision(step: Step) -> float:
    """Machine epsilon of the output of the denoiser: of the network's type if it is coarser than the state's."""
    own = step.prior.dtype or step.x_t.dtype
    return max(torch.finfo(own).eps, torch.finfo(step.x_t.dtype).eps)


def difference_size(eps: float, order: Literal[1, 2]) -> float:
    """Step of the central difference for a first or second derivative, relative to the scale of the argument.

    Rounding costs about ``eps / h`` and ``4 eps / h^2``, truncation ``h^2 / 6`` and ``h^2 / 12`` of the derivatives two
    orders higher. For the first derivative of a trained network truncation is about ``7 h^2`` (``docs/cost-256.md``):
    the step is the cube root of ``eps / 20``. That of the second is ``(48 eps)^(1/4)``.

    Args:
        eps: relative error of the function, see `precision`.
        order: of the derivative.
    """
    return (eps / 20) ** (1 / 3) if order == 1 else (48 * eps) ** (1 / 4)
