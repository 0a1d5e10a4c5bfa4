"""Mixtures of Gaussians with diagonal covariances, whose posterior is known in any number of dimensions.

    p(x_0) = sum_k w_k N(mu_k, diag V_k),    y = A x_0 + n,    n ~ N(0, sigma_y^2 I)

The responsibilities need only the squared distances ``sum_j (x_j - alpha mu_kj)^2 / S_kj``, which two matrix products
give. With one ``V`` for all components a single one, because ``x^2`` then cancels. `Problems` holds P measurements of
such a prior, each with its own ``A``. Each has C chains that run together as the rows ``p C + c`` of one batch.

Exact samples of the posterior (Matheron's rule, no d x d matrix): draw k with probability ``w_k N(y; A mu_k, S_k)``,
``S_k = sigma_y^2 I + A V_k A^T``, then ``x ~ N(mu_k, V_k)`` and ``x + V_k A^T S_k^-1 (y - A x - n)``.

The exact posterior mean ``E[x_0 | x_t, y]`` is the same update of the components of ``p(x_0 | x_t)``. It turns any
sampler into a sampler of the posterior: `ExactPosterior`, the reference row of every table.

Sources: Cardoso et al., "Monte Carlo guided Diffusion for Bayesian linear inverse problems", 2023,
https://arxiv.org/abs/2308.07983 (the 25 components); Doucet, "A Note on Efficient Conditional Simulation of Gaussian
Distributions", 2010 (Matheron's rule).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from deepinv.physics import DecomposablePhysics, GaussianNoise
from torch import Tensor

from cmidiff.measurement import Measurement
from cmidiff.prior.base import Prediction, Prior, digest, levels
from cmidiff.schedule import DDPM, Schedule
from cmidiff.solvers import PosteriorMean
from cmidiff.step import Step

Family = Literal["gaussian", "mixture-25", "two-modes", "heavy-tails"]
FAMILIES = get_args(Family)
NOISE_STD = 0.05
BLIND = 0.9  # share of the difference of the two modes that is taken out of what is measured


@dataclass(frozen=True, eq=False)  # hashed by identity: second moments are measured once a prior
class DiagonalMixture(Prior):
    """The exact denoiser of ``sum_k w_k N(mu_k, diag V_k)``.

    Attributes:
        weights: shape (K,), positive, of sum 1.
        means: shape (K, d).
        variances: shape (K, d), or (1, d) for one that all components share; positive.
        schedule: perturbation kernel.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    schedule: Schedule

    @property
    def fingerprint(self) -> str:
        return digest(type(self).__name__, levels(self.schedule), self.weights, self.means, self.variances)

    @property
    def dtype(self) -> torch.dtype:
        return self.means.dtype

    @property
    def d(self) -> int:
        return self.means.shape[1]

    def in_precision(self, dtype: torch.dtype) -> DiagonalMixture:
        return DiagonalMixture(self.weights.to(dtype), self.means.to(dtype), self.variances.to(dtype), self.schedule)

    def responsibilities(self, x_t: Tensor, t: float) -> Tensor:
        """log of ``w_k N(x_t; alpha mu_k, S_k)`` up to a constant of each row, shape (B, K)."""
        alpha_t, sigma_t = self.schedule(t)
        spectrum = alpha_t**2 * self.variances + sigma_t**2
        pull = alpha_t * self.means / spectrum
        constant = self.weights.log() - 0.5 * ((alpha_t * self.means * pull).sum(1) + spectrum.log().sum(1))
        logits = x_t @ pull.mT + constant
        return logits if len(self.variances) == 1 else logits - 0.5 * x_t**2 @ (1 / spectrum).mT

    def gain(self, t: float) -> Tensor:
        """``alpha V_k / S_k``, shape (K or 1, d): ``E[x_0 | x_t, k] = mu_k + gain (x_t - alpha mu_k)``."""
        alpha_t, sigma_t = self.schedule(t)
        return alpha_t * self.variances / (alpha_t**2 * self.variances + sigma_t**2)

    def mean_of(self, r: Tensor, x_t: Tensor, t: float) -> Tensor:
        """``sum_k r_k E[x_0 | x_t, k]`` for given responsibilities (B, K)."""
        gain = self.gain(t)
        own = gain if len(gain) == 1 else r @ gain
        return own * x_t + r @ (self.means * (1 - self.schedule(t)[0] * gain))

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """``E[x_0 | x_t]``, shape (B, d)."""
        return Prediction(self.mean_of(torch.softmax(self.responsibilities(x_t, t), 1), x_t, t))

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of ``x_0``, shape (count, d)."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return self._around(which, generator)

    def _around(self, which: Tensor, generator: torch.Generator) -> Tensor:
        variances = self.variances.expand(len(self.means), -1)[which]
        z = torch.randn(variances.shape, generator=generator, dtype=variances.dtype)
        return self.means[which] + variances.sqrt() * z


class Blocks(DecomposablePhysics):
    """A matrix ``(m, d)`` for each problem, applied to the rows ``p C + c`` of a batch.

    Args:
        matrices: shape (P, m, d).
        chains: C.
        noise_std: sigma_y.
    """

    left: Tensor
    right: Tensor

    def __init__(self, matrices: Tensor, chains: int, noise_std: float) -> None:
        u, s, vt = (part.to(matrices) for part in torch.linalg.svd(matrices.double(), full_matrices=False))
        noise: Any = GaussianNoise(noise_std)
        values: Any = s.repeat_interleave(chains, 0)  # a tensor, annotated as float by deepinv
        super().__init__(mask=values, img_size=(matrices.shape[2],), noise_model=noise)
        self.register_buffer("left", u)
        self.register_buffer("right", vt)

    def _rows(self, v: Tensor, blocks: Tensor) -> Tensor:
        return (v.reshape(len(blocks), -1, v.shape[1]) @ blocks).flatten(0, 1)

    def V_adjoint(self, x: Tensor) -> Tensor:
        return self._rows(x, self.right.mT)

    def V(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._rows(x, self.right)

    def U(self, x: Tensor) -> Tensor:
        return self._rows(x, self.left.mT)

    def U_adjoint(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._rows(x, self.left)


@dataclass(frozen=True)
class Problems:
    """P measurements of one prior.

    Attributes:
        prior: the mixture.
        matrices: ``A`` of each, shape (P, m, d).
        y: shape (P, m).
        noise_std: sigma_y, in units of ``y``.
    """

    prior: DiagonalMixture
    matrices: Tensor
    y: Tensor
    noise_std: float

    def __len__(self) -> int:
        return len(self.y)

    def to(self, dtype: torch.dtype) -> Problems:
        return Problems(self.prior.in_precision(dtype), self.matrices.to(dtype), self.y.to(dtype), self.noise_std)

    def take(self, which: slice) -> Problems:
        return Problems(self.prior, self.matrices[which], self.y[which], self.noise_std)

    def grouped(self, rows: Tensor) -> Tensor:
        """Rows of the batch (P C, ...) by problem, (P, C, ...)."""
        return rows.reshape(len(self), -1, *rows.shape[1:])

    def measurement(self, chains: int) -> Measurement:
        """The measurement of all rows."""
        d = self.prior.d
        return Measurement(
            self.y.repeat_interleave(chains, 0),
            Blocks(self.matrices, chains, self.noise_std),
            self.noise_std,
            (d,),
            (d,),
        )

    @cached_property
    def projected(self) -> Tensor:
        """``A V_k A^T``, shape (P, K or 1, m, m)."""
        return torch.einsum("pmd,kd,pnd->pkmn", self.matrices, self.prior.variances, self.matrices)

    def update(self, variances: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihoods and corrections of Gaussian components ``N(m_k, diag V_k)`` by ``y``.

        Args:
            variances: ``V_k``, shape (K or 1, d).
            measured: ``A m_k`` for C states of each problem, shape (P, C, K, m).

        Returns:
            ``log N(y; A m_k, S_k)`` up to a constant (P, C, K), and ``S_k^-1 (y - A m_k)`` (P, C, K, m).
        """
        eye = torch.eye(self.y.shape[1], dtype=self.y.dtype)
        s = torch.einsum("pmd,kd,pnd->pkmn", self.matrices, variances, self.matrices) + self.noise_std**2 * eye
        residual = self.y[:, None, None] - measured
        solved = torch.einsum("pkmn,pckn->pckm", torch.linalg.inv(s).expand(-1, measured.shape[2], -1, -1), residual)
        return -0.5 * ((residual * solved).sum(-1) + torch.linalg.slogdet(s)[1][:, None]), solved

    def mode_weights(self) -> Tensor:
        """Posterior weights of the components, shape (P, K)."""
        measured = torch.einsum("pmd,kd->pkm", self.matrices, self.prior.means)[:, None]
        likelihood = self.update(self.prior.variances, measured)[0][:, 0]
        return torch.softmax(self.prior.weights.log() + likelihood, 1)

    def posterior_samples(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact samples, shape (P, count, d)."""
        prior, p = self.prior, len(self)
        which = torch.multinomial(self.mode_weights(), count, replacement=True, generator=generator)
        x = prior._around(which.flatten(), generator).reshape(p, count, prior.d)
        n = self.noise_std * torch.randn(p, count, self.y.shape[1], generator=generator, dtype=x.dtype)
        residual = self.y[:, None] - x @ self.matrices.mT - n
        variances = prior.variances.expand(len(prior.means), -1)[which]
        s = self.projected + self.noise_std**2 * torch.eye(self.y.shape[1], dtype=x.dtype)
        inverse = torch.linalg.inv(s).expand(-1, len(prior.means), -1, -1)
        own = torch.stack([inverse[i, which[i]] for i in range(p)])
        solved = torch.einsum("pcmn,pcn->pcm", own, residual)
        return x + variances * (solved @ self.matrices)

    def modes(self, x: Tensor) -> Tensor:
        """Share of the samples (P, C, d) that belong to each component, shape (P, K)."""
        nearest = self.prior.responsibilities(x.flatten(0, 1), self.prior.schedule.end).argmax(1)
        return torch.nn.functional.one_hot(self.grouped(nearest), len(self.prior.means)).to(x).mean(1)


@dataclass(frozen=True)
class ExactPosterior(PosteriorMean):
    """The solver with nothing approximated: the sampler steps with ``E[x_0 | x_t, y]``."""

    problems: Problems

    def estimate(self, step: Step) -> Tensor:
        """``E[x_0 | x_t, y]``, shape (B, d)."""
        problems, prior, x_t = self.problems, self.problems.prior, step.x_t.detach()
        alpha_t, sigma_t = prior.schedule(step.t)
        gain = prior.gain(step.t)
        x = problems.grouped(x_t)
        of_state = torch.einsum("pcd,kd,pmd->pckm", x, gain, problems.matrices)
        of_means = torch.einsum("kd,pmd->pkm", prior.means * (1 - alpha_t * gain), problems.matrices)
        likelihood, solved = problems.update(gain * sigma_t**2 / alpha_t, of_state + of_means[:, None])
        logits = problems.grouped(prior.responsibilities(x_t, step.t)) + likelihood
        r = torch.softmax(logits, -1)
        mean = prior.mean_of(r.flatten(0, 1), x_t, step.t)
        weighted = r[..., None] * solved
        if len(gain) == 1:
            weighted = weighted.sum(2, keepdim=True)
        pull = torch.einsum("kd,pmd,pckm->pcd", gain, problems.matrices, weighted)
        return mean + sigma_t**2 / alpha_t * pull.flatten(0, 1)


def make_prior(family: Family, d: int, generator: torch.Generator) -> DiagonalMixture:
    """A prior with coordinates of unit variance.

    ``gaussian``: variances between 0.1 and 1.9. ``mixture-25``: means on the tiled grid ``(8i, 8j, 8i, 8j, ...)``,
    ``i, j`` in -2..2, unit variances, random weights, divided by the standard deviation of each coordinate.
    ``two-modes``: two means far apart (9 standard deviations of a component along every coordinate) with weights 0.7
    and 0.3. ``heavy-tails``: six components with a common mean and variances from 0.05 to 12, as Student's t.
    """
    f64 = torch.float64
    one = torch.ones(1, dtype=f64)
    schedule = DDPM.linear()
    match family:
        case "gaussian":
            variances = 0.1 + 1.8 * torch.rand(1, d, generator=generator, dtype=f64)
            return DiagonalMixture(one, 0 * variances, variances, schedule)
        case "mixture-25":
            grid = torch.tensor([(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)], dtype=f64)
            means, variances = grid.repeat(1, -(-d // 2))[:, :d], torch.ones(1, d, dtype=f64)
            weights = torch.rand(25, generator=generator, dtype=f64) + 0.02
        case "two-modes":
            signs = torch.where(torch.rand(d, generator=generator, dtype=f64) < 0.5, -1.0, 1.0).to(f64)
            means, variances = torch.stack([4.5 * signs, -4.5 * signs]), torch.ones(1, d, dtype=f64)
            weights = torch.tensor([0.7, 0.3], dtype=f64)
        case "heavy-tails":
            scales = torch.tensor([0.05, 0.15, 0.5, 1.5, 4.0, 12.0], dtype=f64)
            means, variances = torch.zeros(6, d, dtype=f64), scales[:, None].expand(-1, d).clone()
            weights = torch.tensor([0.15, 0.25, 0.25, 0.2, 0.1, 0.05], dtype=f64)
    weights = weights / weights.sum()
    mean = weights @ means
    variance = weights @ (variances + (means - mean) ** 2)
    return DiagonalMixture(weights, (means - mean) / variance.sqrt(), variances / variance, schedule)


def make_problems(
    family: Family, d: int, m: int, count: int, generator: torch.Generator, noise_std: float = NOISE_STD
) -> Problems:
    """Random problems on a prior of ``family``: ``A`` with random singular vectors and singular values uniform in (0,
    1], ``x_0`` from the prior. With ``two-modes``, ``A`` hardly measures the direction between the modes (`BLIND`), so
    that both stay possible."""
    prior = make_prior(family, d, generator)

    inner, outer = (torch.randn(count, n, m, generator=generator, dtype=torch.float64) for n in (m, d))
    if family == "two-modes":
        apart = (prior.means[0] - prior.means[1])[:, None]
        outer = outer - BLIND * apart @ (apart.mT @ outer) / apart.square().sum()
    singular = 1 - torch.rand(count, m, generator=generator, dtype=torch.float64)
    matrices = (torch.linalg.qr(inner)[0] * singular[:, None]) @ torch.linalg.qr(outer)[0].mT
    x = prior.sample(count, generator)
    n = noise_std * torch.randn(count, m, generator=generator, dtype=torch.float64)
    return Problems(prior, matrices, torch.einsum("pmd,pd->pm", matrices, x) + n, noise_std)


def sliced_wasserstein(a: Tensor, b: Tensor, *, slices: int, generator: torch.Generator) -> Tensor:
    """Sliced 2-Wasserstein distance of two clouds of as many points, per problem: ``(P, C, d)`` twice to (P,).

    Over unit directions its square is that of the average coordinate, so that dimensions can be compared.

    Source: Bonneel, Rabin, Peyré, Pfister, "Sliced and Radon Wasserstein Barycenters of Measures", 2015.
    """
    directions = torch.randn(a.shape[-1], slices, generator=generator, dtype=torch.float64).to(a)
    directions = directions / torch.linalg.vector_norm(directions, dim=0)
    gap = (a @ directions).sort(1).values - (b @ directions).sort(1).values
    return gap.square().mean((1, 2)).sqrt()
