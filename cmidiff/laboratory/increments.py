"""Increments of Lévy processes: density, characteristic function, draws, and the mixture of Gaussians that each is.

Every distribution here is a scale mixture, ``u | tau ~ N(0, tau)``, which is what Gibbs sampling needs:

    Gaussian           tau = variance
    Laplace            tau ~ Exp(mean 2 s^2);  1 / tau | u ~ IG(mean 1 / (s |u|), shape 1 / s^2), s the scale
    Student            tau ~ InvGamma(nu / 2, nu / 2);  tau | u ~ InvGamma((nu + 1) / 2, (nu + u^2) / 2)
    Bernoulli-Laplace  u = 0 with probability `Increments.atom`, otherwise Laplace

Sources: Andrews, Mallows, "Scale Mixtures of Normal Distributions", 1974; Park, Casella, "The Bayesian Lasso", 2008
(the conditional of the Laplace); Bohra, del Aguila Pla, Giovannelli, Unser, "A Statistical Framework to Investigate the
Optimality of Signal-Reconstruction Methods", 2022, https://arxiv.org/abs/2203.09920.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaln, kv
from torch import Tensor

TINY = 1e-12  # least |u| of a conditional draw: the density of tau | u = 0 is the limit


class Increments(ABC):
    """One distribution, symmetric about zero.

    Attributes:
        atom: probability of exactly zero.
    """

    atom: float = 0.0

    @property
    @abstractmethod
    def variance(self) -> float:
        """Of an increment; infinity where it has none."""

    @property
    @abstractmethod
    def quiet(self) -> float:
        """Variance of its centre: how narrow ``p(x_0 | x_t)`` can be between large jumps."""

    @property
    def tail(self) -> float:
        """``t`` such that a sum of ``d`` increments exceeds ``7 sqrt(d variance) + t`` with a probability below 1e-10;
        infinity where no such number is of use."""
        return math.inf

    @abstractmethod
    def log_density(self, u: Tensor) -> Tensor:
        """The logarithm of the density away from the atom."""

    @abstractmethod
    def characteristic(self, omega: np.ndarray) -> np.ndarray:
        """``E exp(i omega u)``, with the atom."""

    @abstractmethod
    def scales(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws of ``tau``, float64, of an increment that is not zero."""

    @abstractmethod
    def scales_given(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """Draws of ``tau`` given increments that are not zero."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws of ``u``, float64."""
        u = self.scales(shape, generator).sqrt() * normal(shape, generator)
        return u if self.atom == 0 else torch.where(uniform(shape, generator) < self.atom, 0.0, u)


@dataclass(frozen=True)
class Gaussian(Increments):
    """``N(0, size)``.

    Args:
        size: the variance.
    """

    size: float = 0.25

    @property
    def variance(self) -> float:
        return self.size

    @property
    def tail(self) -> float:
        return 0.0

    @property
    def quiet(self) -> float:
        return self.variance

    def log_density(self, u: Tensor) -> Tensor:
        return -0.5 * (u**2 / self.variance + math.log(2 * math.pi * self.variance))

    def characteristic(self, omega: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * self.variance * omega**2)

    def scales(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.full(shape, self.variance, dtype=torch.float64)

    def scales_given(self, u: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(u, self.variance)


@dataclass(frozen=True)
class Laplace(Increments):
    """Density ``exp(-|u| / scale) / (2 scale)``."""

    scale: float = 1.0

    @property
    def variance(self) -> float:
        return 2 * self.scale**2

    @property
    def quiet(self) -> float:
        return self.scale**2

    @property
    def tail(self) -> float:
        return 20 * self.scale

    def log_density(self, u: Tensor) -> Tensor:
        return -u.abs() / self.scale - math.log(2 * self.scale)

    def characteristic(self, omega: np.ndarray) -> np.ndarray:
        return 1 / (1 + (self.scale * omega) ** 2)

    def scales(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return -2 * self.scale**2 * uniform(shape, generator).clamp_min(1e-300).log()

    def scales_given(self, u: Tensor, generator: torch.Generator) -> Tensor:
        return 1 / inverse_gaussian(1 / (self.scale * u.abs().clamp_min(TINY)), self.scale**-2, generator)


@dataclass(frozen=True)
class Student(Increments):
    """Student's t with ``nu`` degrees of freedom."""

    nu: float = 3.0

    @property
    def variance(self) -> float:
        return self.nu / (self.nu - 2) if self.nu > 2 else math.inf

    @property
    def quiet(self) -> float:
        return 0.5

    def log_density(self, u: Tensor) -> Tensor:
        n = self.nu
        constant = float(gammaln((n + 1) / 2) - gammaln(n / 2)) - 0.5 * math.log(n * math.pi)
        return constant - (n + 1) / 2 * (u**2 / n).log1p()

    def characteristic(self, omega: np.ndarray) -> np.ndarray:
        z, half = math.sqrt(self.nu) * np.abs(omega), self.nu / 2
        safe = np.where(z > 0, z, 1.0)
        found = kv(half, safe) * safe**half * math.exp(-float(gammaln(half)) - (half - 1) * math.log(2))
        return np.where(z > 0, found, 1.0)

    def scales(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return self.nu / 2 / gamma(torch.full(shape, self.nu / 2, dtype=torch.float64), generator)

    def scales_given(self, u: Tensor, generator: torch.Generator) -> Tensor:
        return (self.nu + u**2) / 2 / gamma(torch.full_like(u, (self.nu + 1) / 2), generator)


@dataclass(frozen=True)
class BernoulliLaplace(Laplace):
    """Zero with probability ``atom``, Laplace otherwise: piecewise constant signals."""

    atom: float = 0.9

    @property
    def variance(self) -> float:
        return (1 - self.atom) * super().variance

    @property
    def quiet(self) -> float:
        return 0.0

    def log_density(self, u: Tensor) -> Tensor:
        return math.log1p(-self.atom) + super().log_density(u)

    def characteristic(self, omega: np.ndarray) -> np.ndarray:
        return self.atom + (1 - self.atom) * super().characteristic(omega)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal draws, float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws from [0, 1), float64."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from Gamma(shape, 1)."""
    return torch._standard_gamma(shape, generator=generator)  # pyright: ignore[reportPrivateImportUsage]


def inverse_gaussian(mean: Tensor, shape: float, generator: torch.Generator) -> Tensor:
    """Draws from the inverse Gaussian of this mean and shape.

    Source: Michael, Schucany, Haas, "Generating Random Variates Using Transformations with Multiple Roots", 1976. The
    smaller root is written as a quotient without cancellation.
    """
    y = mean * normal(mean.shape, generator) ** 2 / shape
    root = 2 / (2 + y + (4 * y + y**2).sqrt())  # of the smaller solution, over the mean
    smaller = uniform(mean.shape, generator) <= 1 / (1 + root)
    return mean * torch.where(smaller, root, 1 / root)
