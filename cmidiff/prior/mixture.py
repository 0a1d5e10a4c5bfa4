"""A Gaussian-mixture prior: the one case in which everything is known in closed form.

``p(x_0) = sum_k w_k N(mu_k, C_k)`` gives ``p(x_t) = sum_k w_k N(alpha mu_k, S_k)`` with ``S_k = alpha^2 C_k + sigma^2
I``, so with the responsibilities ``r_k(x_t)``

    E[x_0 | x_t]   = sum_k r_k m_k,   m_k = mu_k + alpha C_k S_k^-1 (x_t - alpha mu_k)
    Cov(x_0 | x_t) = sum_k r_k (C_k - alpha^2 C_k S_k^-1 C_k + m_k m_k^T) - x_hat x_hat^T

and the posterior ``p(x_0 | y)`` of a linear measurement is a mixture again. It is the reference for every solver in
this library.
"""

from __future__ import annotations

import copy
import math
from functools import cached_property
from typing import Self

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from cmidiff.dct import dct
from cmidiff.moments import SecondMoments
from cmidiff.prior.base import Prediction, Prior, digest, levels
from cmidiff.schedule import DDPM, Schedule

DENSE = 4096  # numbers of a signal up to which its second moments are computed


class GaussianMixture(Prior):
    """The exact denoiser of ``sum_k w_k N(mu_k, C_k)``.

    Args:
        weights: shape (K,), positive; normalised here.
        means: shape (K, ...): any signal shape, flattened to d inside.
        covariances: shape (K, d, d), symmetric and positive semi-definite, or (K, ...) like ``means`` for diagonal ones
            (variances).
        schedule: perturbation kernel; the DDPM linear grid by default.

    Raises:
        ValueError: for shapes that do not fit, non-finite numbers, negative weights or covariances.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, schedule: Schedule | None = None) -> None:
        self.shape = tuple(means.shape[1:])
        self.schedule: Schedule = DDPM.linear() if schedule is None else schedule
        k, d = means.shape[0], math.prod(self.shape)
        _check(weights, means, covariances, k, d)
        self.weights = weights / weights.sum()
        self.means = means.reshape(k, d)
        if covariances.shape == means.shape:
            self.eigenvalues, self.basis = covariances.reshape(k, d), None
        else:
            self.eigenvalues, self.basis = torch.linalg.eigh(covariances)
        if float(self.eigenvalues.min()) < -1e-6 * float(self.eigenvalues.max()):
            raise ValueError(
                f"covariances must be positive semi-definite, smallest eigenvalue is "
                f"{float(self.eigenvalues.min()):.3g}"
            )
        self.eigenvalues = self.eigenvalues.clamp_min(0.0)

    @property
    def device(self) -> torch.device | None:
        return self.means.device

    @property
    def second_moments(self) -> SecondMoments | None:
        return self._moments

    @cached_property
    def _moments(self) -> SecondMoments | None:
        """The exact ones, of the signal's shape; None for signals too large for their dense covariance."""
        if self.d > DENSE:
            return None
        mean, covariance = self.moments()
        columns = dct(covariance.reshape(self.d, *self.shape).double()).reshape(self.d, self.d)
        diagonal = dct(columns.mT.reshape(self.d, *self.shape)).reshape(self.d, self.d).diagonal()
        return SecondMoments(mean.double().cpu(), diagonal.reshape(self.shape).cpu())

    @property
    def fingerprint(self) -> str:
        tensors = self.weights, self.means, self.eigenvalues, self.basis
        return digest(type(self).__name__, levels(self.schedule), *tensors)

    def to(self, device: torch.device | str) -> Self:
        other = copy.copy(self)
        other.weights, other.means = self.weights.to(device), self.means.to(device)
        other.eigenvalues = self.eigenvalues.to(device)
        other.basis = None if self.basis is None else self.basis.to(device)
        return other

    @property
    def d(self) -> int:
        return self.means.shape[1]

    def covariance_matrices(self) -> Tensor:
        """``C_k``, dense, shape (K, d, d)."""
        if self.basis is None:
            return torch.diag_embed(self.eigenvalues)
        return (self.basis * self.eigenvalues[:, None, :]) @ self.basis.mT

    def _rotate(self, v: Tensor) -> Tensor:
        """(B, K, d) into each component's eigenbasis."""
        return v if self.basis is None else torch.einsum("kij,bki->bkj", self.basis, v)

    def _rotate_back(self, v: Tensor) -> Tensor:
        return v if self.basis is None else torch.einsum("kij,bkj->bki", self.basis, v)

    def _components(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """log of ``w_k N(x_t; alpha mu_k, S_k)`` (B, K); the residual in the eigenbasis (B, K, d); spectra of ``S_k``
        (K, d)."""
        alpha_t, sigma_t = self.schedule(t)
        residual = self._rotate(x_t.reshape(len(x_t), 1, self.d) - alpha_t * self.means)
        spectrum = alpha_t**2 * self.eigenvalues + sigma_t**2
        quadratic = (residual**2 / spectrum + spectrum.log()).sum(-1)
        return self.weights.log() - 0.5 * (quadratic + self.d * math.log(2 * math.pi)), residual, spectrum

    def _component_means(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Responsibilities ``r_k`` (B, K) and ``m_k`` (B, K, d)."""
        log_p, residual, spectrum = self._components(x_t, t)
        gain = self.schedule(t)[0] * self.eigenvalues / spectrum
        return torch.softmax(log_p, dim=1), self.means + self._rotate_back(gain * residual)

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """``E[x_0 | x_t]``; ``x_t`` has shape (B, ...)."""
        r, m = self._component_means(x_t, t)
        return Prediction(torch.einsum("bk,bkd->bd", r, m).reshape(x_t.shape))

    def log_prob(self, x_t: Tensor, t: float) -> Tensor:
        """``log p_t(x_t)`` in nats, shape (B,)."""
        return torch.logsumexp(self._components(x_t, t)[0], dim=1)

    def score(self, x_t: Tensor, t: float) -> Tensor:
        """``grad log p_t(x_t)`` from the components (not through Tweedie's formula), shape of ``x_t``."""
        log_p, residual, spectrum = self._components(x_t, t)
        return -torch.einsum("bk,bkd->bd", torch.softmax(log_p, 1), self._rotate_back(residual / spectrum)).reshape(
            x_t.shape
        )

    def covariance(self, x_t: Tensor, t: float) -> Tensor:
        """``Cov(x_0 | x_t)``, dense, shape (B, d, d), from the components (no derivative of the denoiser)."""
        alpha_t, sigma_t = self.schedule(t)
        r, m = self._component_means(x_t, t)
        shrunk = self.eigenvalues * sigma_t**2 / (alpha_t**2 * self.eigenvalues + sigma_t**2)
        within = torch.diag_embed(shrunk) if self.basis is None else (self.basis * shrunk[:, None, :]) @ self.basis.mT
        centred = m - torch.einsum("bk,bkd->bd", r, m)[:, None]
        return torch.einsum("bk,kij->bij", r, within) + torch.einsum("bk,bki,bkj->bij", r, centred, centred)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``count`` draws of ``x_0``, shape (count, ...)."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.d, generator=generator, dtype=self.means.dtype) * self.eigenvalues[which].sqrt()
        if self.basis is not None:
            z = torch.einsum("bij,bj->bi", self.basis[which], z)
        return (self.means[which] + z).reshape(count, *self.shape)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean, of the signal's shape, and covariance (d, d) of ``x_0``."""
        mean = self.weights @ self.means
        centred = self.means - mean
        spread = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return mean.reshape(self.shape), torch.einsum("k,kij->ij", self.weights, self.covariance_matrices()) + spread

    def posterior(self, y: Tensor, physics: LinearPhysics | Tensor, noise_std: float) -> GaussianMixture:
        """The exact ``p(x_0 | y)`` of ``y = A x_0 + n``, ``n ~ N(0, noise_std^2 I)``: a mixture with the same number of
        components.

        Args:
            y: one measurement, shape (1, ...).
            physics: linear physics on signals of this shape, or its matrix (m, d).
            noise_std: sigma_y > 0, units of ``y``.
        """
        if not noise_std > 0:
            raise ValueError(f"the exact posterior needs noise_std > 0, received {noise_std}")
        matrix = physics if isinstance(physics, Tensor) else dense(physics, self.shape, self.means.dtype)
        residual = y.reshape(1, -1) - self.means @ matrix.mT
        cov = self.covariance_matrices()
        gain = cov @ matrix.mT
        s = matrix @ gain + noise_std**2 * torch.eye(len(matrix), dtype=cov.dtype)
        factor = torch.linalg.cholesky(s)
        solved = torch.cholesky_solve(residual[..., None], factor)
        log_w = (
            self.weights.log()
            - 0.5 * (residual * solved[..., 0]).sum(-1)
            - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        )
        means = self.means + (gain @ solved)[..., 0]
        cov = cov - gain @ torch.cholesky_solve(gain.mT, factor)
        return GaussianMixture(
            torch.softmax(log_w, 0).clamp_min(torch.finfo(log_w.dtype).tiny),
            means.reshape(-1, *self.shape),
            0.5 * (cov + cov.mT),
            self.schedule,
        )


def dense(physics: LinearPhysics, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """The matrix (m, d) of a linear physics on signals of ``shape``, column by column; for small d."""
    columns = torch.eye(math.prod(shape), dtype=dtype).reshape(-1, 1, *shape)
    return torch.stack([physics.A(column).flatten() for column in columns], dim=1)


def _check(weights: Tensor, means: Tensor, covariances: Tensor, k: int, d: int) -> None:
    if weights.shape != (k,) or k == 0 or d == 0:
        raise ValueError(f"weights must have shape ({k},) to match {k} means, received {tuple(weights.shape)}")
    if covariances.shape not in ((k, d, d), means.shape):
        raise ValueError(
            f"covariances must have shape {(k, d, d)} or {tuple(means.shape)}, received {tuple(covariances.shape)}"
        )
    for name, value in (("weights", weights), ("means", means), ("covariances", covariances)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, received NaN or infinity")
    if covariances.shape != means.shape:
        gap = float((covariances - covariances.mT).abs().max())
        if gap > 1e-5 * float(covariances.abs().max()):
            raise ValueError(f"covariances must be symmetric, they differ from their transposes by up to {gap:.3g}")
    if float(weights.min()) <= 0:
        raise ValueError(f"weights must be positive, the smallest is {float(weights.min())}")
