"""Reference samples of ``p(x_0 | y)`` for a Lévy process and a linear measurement with Gaussian noise.

With ``x = L u`` (a cumulative sum), ``M = A L`` and the scales ``tau`` of `cmidiff.laboratory.increments`, all
conditionals are known and are drawn from exactly:

    u | tau, y     Gaussian, by Matheron's rule: u' + tau M^T S^-1 (y - M u' - n),  S = M diag(tau) M^T + sigma_y^2 I
    tau | u        independent, one for each increment

A Gaussian process needs no iterations. Where an increment may be zero, ``b_i`` says whether it is not. Each ``b_i`` is
drawn given ``tau`` and the other ``b`` with ``u`` integrated out. With ``G = M^T S^-1 M`` and ``g = M^T S^-1 y``
without increment ``i``, the odds of ``b_i = 1`` are

    (1 - atom) / atom  (1 + tau_i G_ii)^-1/2  exp( tau_i g_i^2 / (2 (1 + tau_i G_ii)) )

and ``G`` and ``g`` change by one rank with each ``b_i``.

Sources: Bohra et al., 2022, https://arxiv.org/abs/2203.09920 (the Gibbs samplers); Doucet, "A Note on Efficient
Conditional Simulation of Gaussian Distributions", 2010 (Matheron's rule); Gelman et al., "Bayesian Data Analysis", 3rd
edition, 2013, section 11.4 (split R-hat).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmidiff.laboratory.increments import Gaussian, Increments, normal, uniform

CHAINS = 2


@dataclass(frozen=True)
class Reference:
    """Samples of the posteriors of P measurements.

    Attributes:
        x: shape (P, N, d), float64; the chains one after the other.
        r_hat: split R-hat of the worst number of each signal, shape (P,); 1 for independent samples.
    """

    x: Tensor
    r_hat: Tensor


@dataclass(frozen=True)
class Model:
    """P measurements of signals with one matrix.

    Attributes:
        increments: their distribution.
        matrix: ``A``, shape (m, d), float64.
        y: shape (P, m), float64.
        noise_std: sigma_y.
    """

    increments: Increments
    matrix: Tensor
    y: Tensor
    noise_std: float

    def sample(self, count: int, generator: torch.Generator, *, burn_in: int = 500, thin: int = 2) -> Reference:
        """Draw from the posteriors.

        Args:
            count: N, samples of each signal over both chains.
            generator: random numbers.
            burn_in: iterations of each chain that are left out.
            thin: iterations for each sample.
        """
        if isinstance(self.increments, Gaussian):
            y = self.y.repeat_interleave(count, 0)
            tau = self.increments.scales((len(y), self.matrix.shape[1]), generator)
            x = self._increments(tau, y, generator).cumsum(1).reshape(len(self.y), count, -1)
            return Reference(x, torch.ones(len(self.y), dtype=torch.float64))
        y = self.y.repeat_interleave(CHAINS, 0)  # rows p CHAINS + c
        shape = (len(y), self.matrix.shape[1])
        tau, kept = self.increments.scales(shape, generator), []
        on = uniform(shape, generator) >= self.increments.atom
        for iteration in range(burn_in + thin * count // CHAINS):
            if self.increments.atom > 0:
                on = self._switch(on, tau, y, generator)
            u = self._increments(torch.where(on, tau, 0.0), y, generator)
            tau = torch.where(on, self.increments.scales_given(u, generator), self.increments.scales(shape, generator))
            if iteration >= burn_in and (iteration - burn_in) % thin == thin - 1:
                kept.append(u.cumsum(1))
        chains = torch.stack(kept, 1).reshape(len(self.y), CHAINS, -1, shape[1])
        return Reference(chains.flatten(1, 2), split_r_hat(chains).amax(1))

    @property
    def mixing(self) -> Tensor:
        """``M = A L``, shape (m, d)."""
        return self.matrix.flip(1).cumsum(1).flip(1)

    def _cholesky(self, tau: Tensor) -> Tensor:
        """Of ``S``, shape (R, m, m)."""
        m = self.mixing
        eye = torch.eye(len(m), dtype=m.dtype)
        return torch.linalg.cholesky((m * tau[:, None]) @ m.mT + self.noise_std**2 * eye)

    def _increments(self, tau: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Draws of ``u | tau, y``, shape (R, d)."""
        m = self.mixing
        u = tau.sqrt() * normal(tuple(tau.shape), generator)
        gap = y - u @ m.mT - self.noise_std * normal(tuple(y.shape), generator)
        return u + tau * (torch.cholesky_solve(gap[..., None], self._cholesky(tau))[..., 0] @ m)

    def _switch(self, on: Tensor, tau: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Draws of all ``b_i``, one after the other, in a random order; shape (R, d)."""
        m, atom, on = self.mixing, self.increments.atom, on.clone()
        solved = torch.cholesky_solve(
            torch.cat([m.expand(len(y), -1, -1), y[..., None]], 2), self._cholesky(torch.where(on, tau, 0.0))
        )
        big, small = m.mT @ solved[..., :-1], (m.mT @ solved[..., -1:])[..., 0]
        for i in torch.randperm(on.shape[1], generator=generator).tolist():
            t, g = tau[:, i], big[:, i, i]
            left = torch.where(on[:, i], 1 / (1 - t * g).clamp_min(1e-12), 1.0)  # without increment i
            s, q = t * g * left, small[:, i] * left
            log_odds = math.log((1 - atom) / atom) - 0.5 * s.log1p() + 0.5 * t * q**2 / (1 + s)
            drawn = uniform((len(on),), generator) < torch.sigmoid(log_odds)
            rows = (drawn != on[:, i]).nonzero()[:, 0]
            if len(rows):
                sign = torch.where(drawn[rows], 1.0, -1.0)
                weight = sign * t[rows] / (1 + sign * t[rows] * g[rows]).clamp_min(1e-12)
                column = big[rows, :, i]
                small[rows] -= column * (weight * small[rows, i])[:, None]
                big[rows] -= weight[:, None, None] * column[:, :, None] * column[:, None]
                on[rows, i] = drawn[rows]
        return on


def split_r_hat(chains: Tensor) -> Tensor:
    """The potential scale reduction of chains (P, C, N, d), each cut in two, shape (P, d); 1 where nothing varies."""
    n = chains.shape[2] // 2
    halves = torch.cat([chains[:, :, :n], chains[:, :, n : 2 * n]], 1)
    within = halves.var(2).mean(1)
    between = halves.mean(2).var(1)
    moving = within > 1e-12 * (1 + between)
    return torch.where(moving, ((n - 1) / n + between / torch.where(moving, within, 1.0)).sqrt(), 1.0)
