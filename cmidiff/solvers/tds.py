"""Twisted diffusion sampling: particles of the sampler, guided by a likelihood and corrected by their weights.

With the twisting function ``psi_t(x_t) = exp(-(y - A x_hat)^T S^-1 (y - A x_hat) / 2)``, ``S = sigma_y^2 I + A Sigma_t
A^T``, particles move by the sampler with ``x_hat' = x_hat + (sigma_t^2 / alpha_t) J^T A^T S^-1 (y - A x_hat)``, and

    log w += log psi_s(x_s) - log psi_t(x_t) + log p(x_s | x_t) - log q(x_s | x_t)

``p`` is the sampler's own step and ``q`` the guided one. The last step replaces ``psi`` by the likelihood of ``x_0``
itself. For every ``Sigma_t`` the weighted particles tend to the posterior of the sampler's prior as their number
grows. An approximate likelihood costs effective samples and no bias. With the exact covariance of the prior the
proposal is that of CA-DPS and MMPS.

Wu, Trippe, Naesseth, Blei, Cunningham, "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
2023, https://arxiv.org/abs/2306.17775
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from cmidiff.config import NotNegative
from cmidiff.covariance import NOISE_FLOOR, Covariance, make_covariance
from cmidiff.krylov import dot
from cmidiff.solvers.particles import Cloud, Particles, log_likelihood
from cmidiff.step import Step


@dataclass(frozen=True)
class TDS(Particles):
    """Twisted diffusion sampling, for linear physics and samplers with noise.

    Args:
        threshold: see `Particles`.
        covariance: ``Sigma_t`` of the twisting function, by name or as an object of `cmidiff.covariance`; the paper
            takes ``isotropic``. ``exact`` needs far fewer particles where the posterior of the prior is structured.
        scale: power of the likelihood: 1 is the posterior, 0 the unconditional sampler.
        even: spread the noise of each step evenly among the particles, which halves the error of the modes' weights
            (see `cmidiff.solvers.particles.stratified`). The paper draws it independently.

    Raises:
        ValueError: an option that has no meaning.
    """

    covariance: Covariance | str = "isotropic"
    scale: NotNegative = 1.0
    even: bool = True

    default_steps: ClassVar[int] = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "covariance", make_covariance(self.covariance, "TDS"))

    @property
    def sigma(self) -> Covariance:
        """The covariance in use."""
        assert isinstance(self.covariance, Covariance)
        return self.covariance

    @property
    def stratify(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.even and self.scale > 0

    @property
    def needs_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.scale > 0

    @property
    def needs_graph(self) -> bool:
        return self.scale > 0

    @property
    def memory(self) -> int:
        return self.sigma.memory

    def needs_graph_at(self, ratio: float) -> bool:
        return self.needs_graph and self.sigma.needs_graph(ratio)

    def step(self, step: Step, carry: Cloud) -> tuple[Tensor, Cloud]:
        x_hat = step.x_hat.detach()
        if step.last:
            x_0 = step.mean(x_hat)
            gain = carry.gain + self.scale * log_likelihood(step, x_0)
            return x_0, carry._replace(gain=gain, noise=torch.zeros_like(x_0), shift=x_0.new_zeros(len(x_0), 0))
        mean, twist, shift = step.mean(x_hat), torch.zeros_like(carry.gain), torch.zeros_like(x_hat)
        guess = x_hat
        std = step.std if isinstance(step.std, Tensor) else torch.full_like(carry.std, step.std)
        if self.scale > 0:
            move, twist = self.twisted(step, x_hat)
            guess = x_hat + move
            guided = self.guided(step, guess)
            shift, mean = (guided - mean) / std, guided
        gain = carry.gain + twist
        return mean, carry._replace(gain=gain, std=std, noise=step.z, shift=shift, twist=twist, guess=guess)

    def guided(self, step: Step, x_hat: Tensor) -> Tensor:
        """The mean of the proposal."""
        return step.mean(x_hat)

    def twisted(self, step: Step, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        """The move of ``x_hat`` and ``log psi_t``, shape (B,)."""
        m = replace(step.measurement, noise_std=step.measurement.noise_std or NOISE_FLOOR)
        bound = self.sigma.at(replace(step, problem=replace(step.problem, measurement=m)))
        residual = m.residual(x_hat)
        w = bound.solve(residual)
        spread = m.A(bound.product(w))  # A Sigma A^T S^-1 r = r - sigma_y^2 S^-1 r
        fit = (dot(residual, residual) - dot(residual, spread)) / m.noise_std**2
        return self.scale * bound.move(w), -0.5 * self.scale * fit.clamp_min(0.0)
