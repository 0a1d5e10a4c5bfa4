"""The exact denoiser of a Lévy process: a signal whose increments are independent and of one distribution.

    x_i = u_1 + ... + u_i,    v = x_t / alpha_t = x_0 + rho z,    rho = sigma_t / alpha_t

Given ``x_t`` the signal is a Markov chain with Gaussian evidence, so that sums over paths are products of matrices,
one for each site. They are taken on a grid of spacing ``h`` around each ``v_i``, ``reach`` noise levels either way,

    F_i = E_i (k * F_{i-1}),    B_i = k * (E_{i+1} B_{i+1}),    E_i(x) = exp(-(x - v_i)^2 / (2 rho^2))

and give the mean of ``p(x_0 | x_t)`` and, with ``x_j`` carried along in ``B``, its covariance: the Jacobian of the
denoiser is ``alpha_t / sigma_t^2`` times it.

What makes the sums exact. ``E`` is smooth, so that sums over a grid converge as fast as those of a Gaussian. The
density of an increment is not (a kink, or mass at zero). Its kernel ``k`` on the grid is therefore the one whose
Fourier transform is the characteristic function at all frequencies that a message has. This is the sampled density far
from zero, corrected near it by a table. All grids are aligned, so that one table serves all sites.

With the default ``resolution`` the error of the mean is below 1e-5 rho at every noise level. For the Bernoulli-Laplace
process, whose signals may be constant over many sites, it is below 3e-4 rho. A window that does not hold the mass is
doubled, for those rows alone; a number may be eight noise levels off.

Sources: Kamilov, Pad, Amini, Unser, "MMSE Estimation of Sparse Lévy Processes", 2013,
https://doi.org/10.1109/TSP.2012.2222394 (message passing); Zach, Bohra, Unser et al., "A Statistical Benchmark for
Diffusion Posterior Sampling Algorithms", 2025, https://arxiv.org/abs/2509.12821 (the use as a denoiser).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from cmidiff.dct import dct
from cmidiff.laboratory.increments import Gaussian, Increments
from cmidiff.moments import SecondMoments
from cmidiff.prior.base import Prediction, Prior, digest, levels
from cmidiff.schedule import DDPM, Schedule

REACH = 6.0  # half of a window, in noise levels
WIDENED = 3  # how often a window is doubled at most
EDGE = 1e-6  # share of the mass in an outermost cell above which it is
NEAR, TABLE = 128, 2**18  # cells in which the sampled density is corrected, and the length of the transform
LONGEST = 12  # sites over which a signal may be constant and still be resolved in full
FLAT = 0.85  # of the largest frequency: where the transform of the kernel turns into a constant, lest the kernel rings
CELLS = 3_000_000  # entries of the transition matrices that are held at once
PATHS = 4096  # of a process without variance, to measure its size on


@dataclass(frozen=True)
class Grid:
    """The grid of one noise level.

    Attributes:
        increments: the distribution.
        rho: noise level ``sigma_t / alpha_t``.
        spacing: ``h``.
        limit: what no ``|x_i|`` of the process exceeds.
        correction: of the kernel in the cells ``-NEAR`` to ``NEAR``, then a zero, shape (2 NEAR + 2,).
    """

    increments: Increments
    rho: float
    spacing: float
    limit: float
    correction: Tensor

    @classmethod
    def of(cls, increments: Increments, rho: float, d: int, resolution: float) -> Grid:
        """The grid of a noise level, fine enough for the width that the other sites leave to a message."""
        q = increments.quiet
        width = max(
            rho * (q / (q + 4 * rho**2)) ** 0.25, rho / math.sqrt(d if increments.atom == 0 else min(d, LONGEST))
        )
        limit = increments.tail + 7 * math.sqrt(d * increments.variance)
        h = min(width, limit / 20) / resolution
        omega = 2 * math.pi / (TABLE * h) * np.arange(TABLE // 2 + 1)
        transform = increments.characteristic(omega)
        rise = np.clip((omega / omega[-1] - FLAT) / (1 - FLAT), 0.0, 1.0)
        rise = rise**3 * (10 + rise * (6 * rise - 15))  # a step with two derivatives
        transform = transform + rise * (transform[-1] - transform)
        near = torch.arange(-NEAR, NEAR + 1)
        exact = torch.from_numpy(np.fft.irfft(transform, TABLE))[near]
        sampled = h * increments.log_density(near.double() * h).exp()
        return cls(increments, rho, h, limit, torch.cat([exact - sampled, torch.zeros(1, dtype=torch.float64)]))

    def half(self, reach: float) -> int:
        """Cells on either side of the centre of a window."""
        return math.ceil(min(reach * self.rho, reach / REACH * self.limit) / self.spacing)

    def centres(self, v: Tensor, reach: float) -> Tensor:
        """The middle cell of the window at each ``v_i``, shape of ``v``, int64."""
        most = min(max(reach / REACH * self.limit / self.spacing - self.half(reach), 0.0), 2.0**52)
        return (v.detach() / self.spacing).clamp(-most, most).round().long()

    def kernel(self, cells: Tensor) -> Tensor:
        """``k`` at differences in cells (..., n), each row over its largest density."""
        logs = self.increments.log_density(cells.double() * self.spacing) + math.log(self.spacing)
        top = logs.amax(-1, keepdim=True)
        near = torch.where(cells.abs() <= NEAR, cells + NEAR, 2 * NEAR + 1)
        return (logs - top).exp() + self.correction[near] * (-top).clamp_max(600.0).exp()


grid_of = lru_cache(maxsize=1024)(Grid.of)


@dataclass(frozen=True)
class Messages:
    """``F`` and ``B`` of rows (N) at all sites (d) on windows of K cells, each up to a factor of its row and site.

    Attributes:
        offsets: ``x - v_i`` of the cells, shape (d, N, K).
        evidence: ``E``, likewise.
        steps: ``H[r, c] = k(r + c - K + 1)`` from each site to the next, shape (d - 1, N, K, K). ``k * m`` is ``H`` on
            the reversed message. From a site to the one before it, it is ``H m``, reversed.
        forward, backward: ``F`` and ``B``, shape (d, N, K).
    """

    offsets: Tensor
    evidence: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor

    @classmethod
    def of(cls, grid: Grid, v: Tensor, reach: float) -> Messages:
        """Pass the messages for ``v`` of shape (N, d); differentiable in ``v``."""
        (count, d), half = v.shape, grid.half(reach)
        cells = torch.arange(-half, half + 1)
        centres = grid.centres(v, reach).mT  # (d, N)
        offsets = (centres[..., None] + cells).double() * grid.spacing - v.mT[..., None]
        evidence = (-0.5 * (offsets / grid.rho) ** 2).exp()
        lags = torch.arange(-2 * half, 2 * half + 1)
        kernels = grid.kernel((centres[1:] - centres[:-1])[..., None] + lags)
        steps = kernels.unfold(-1, 2 * half + 1, 1).contiguous()
        forward = [_scaled(grid.kernel(centres[0][:, None] + cells) * evidence[0])]
        for i in range(d - 1):
            forward.append(_scaled(evidence[i + 1] * _apply(steps[i], forward[-1].flip(-1))))
        backward = [torch.ones(count, 2 * half + 1, dtype=v.dtype)]
        for i in reversed(range(d - 1)):
            backward.append(_scaled(_apply(steps[i], evidence[i + 1] * backward[-1]).flip(-1)))
        return cls(offsets, evidence, steps, torch.stack(forward), torch.stack(backward[::-1]))

    @property
    def marginals(self) -> Tensor:
        """``p(x_i = cell | x_t)``, shape (d, N, K)."""
        product = self.forward * self.backward
        return product / product.sum(-1, keepdim=True)

    def mean(self) -> Tensor:
        """``E[x_i - v_i | x_t]``, shape (N, d)."""
        return (self.marginals * self.offsets).sum(-1).mT

    def covariance(self) -> Tensor:
        """``Cov(x_i, x_j | x_t)``, shape (N, d, d)."""
        d, mean = len(self.offsets), self.mean()
        second = mean.new_zeros(*mean.shape, d)
        carried = self.backward[-1][..., None]  # B, and then B with x_j carried along for the sites j > i
        for i in reversed(range(d)):
            own = self.offsets[i][..., None] * carried[..., :1]
            carried = torch.cat([carried, own], -1)  # last site first
            pair = torch.stack([self.forward[i], self.forward[i] * self.offsets[i]], 1) @ carried
            second[:, i, i:] = pair[:, 1, 1:].flip(1) / pair[:, :1, 0]
            if i > 0:
                carried = (self.steps[i - 1] @ (self.evidence[i][..., None] * carried)).flip(1)
                carried = carried / carried[..., :1].abs().amax(1, keepdim=True)
        return second.triu() + second.triu(1).mT - mean[..., None] * mean[:, None]


def _apply(matrix: Tensor, message: Tensor) -> Tensor:
    return (matrix @ message[..., None])[..., 0]


def _scaled(message: Tensor) -> Tensor:
    return message / message.detach().abs().amax(-1, keepdim=True)


class _Denoise(torch.autograd.Function):
    """``x_hat`` of rows (N, d), with its Jacobian where it is differentiated."""

    @staticmethod
    def forward(ctx, x: Tensor, chain: Chain) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return chain.mean(x)
        x_hat, jacobian = chain.mean_and_jacobian(x)
        ctx.save_for_backward(x, jacobian)
        ctx.chain = chain
        return x_hat

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, jacobian = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of the Jacobian is wanted, too: differentiate the sums themselves
            return torch.autograd.grad(ctx.chain.mean(x), x, grad, create_graph=True)[0], None
        return _apply(jacobian, grad), None


@dataclass(frozen=True)
class Chain:
    """The denoiser at one noise level, for rows (N, d) in float64."""

    grid: Grid
    alpha: float

    def mean(self, x: Tensor) -> Tensor:
        """``x_hat``, differentiable in ``x`` as often as one likes."""
        v = x / self.alpha
        return v + self._collect(v, lambda messages: (messages.mean(),))[0]

    def mean_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x_hat`` and ``d x_hat / d x``, shape (N, d, d), symmetric."""
        v = x / self.alpha
        mean, covariance = self._collect(v, lambda messages: (messages.mean(), messages.covariance()))
        return v + mean, covariance / (self.alpha * self.grid.rho**2)

    def _collect(self, v: Tensor, quantities: Callable[[Messages], tuple[Tensor, ...]]) -> list[Tensor]:
        """Quantities of all rows, in parts that fit the memory, each row on a window that holds its mass."""
        rows, order, parts = torch.arange(len(v)), [], []
        for widened in range(WIDENED + 1):
            reach, outside = REACH * 2**widened, []
            for some in rows.split(max(1, CELLS // (v.shape[1] * (2 * self.grid.half(reach) + 1) ** 2))):
                found = Messages.of(self.grid, v[some], reach)
                outer = found.marginals.detach()[..., [0, -1]].abs().amax((0, 2))
                inside = (outer <= EDGE) | (widened == WIDENED)
                order.append(some[inside])
                parts.append([quantity[inside] for quantity in quantities(found)])
                outside.append(some[~inside])
            rows = torch.cat(outside)
            if len(rows) == 0:
                break
        back = torch.cat(order).argsort()
        return [torch.cat(values)[back] for values in zip(*parts, strict=True)]


@dataclass(frozen=True)
class LevyPrior(Prior):
    """Signals of ``d`` numbers, shape (B, 1, d), whose increments are independent.

    Args:
        increments: their distribution; the first number is an increment from zero.
        d: length of a signal.
        schedule: perturbation kernel.
        resolution: cells of the grid in the width of a message.
    """

    increments: Increments
    d: int = 64
    schedule: Schedule = field(default_factory=DDPM.linear)
    resolution: float = 1.4

    @property
    def name(self) -> str:
        return f"Lévy process of {self.increments}"

    @property
    def fingerprint(self) -> str:
        return digest(type(self).__name__, levels(self.schedule), self.increments, self.d, self.resolution)

    @cached_property
    def _variance(self) -> float:
        """Mean variance of a number; for a process without variance the median of the signals' mean squares."""
        if math.isfinite(self.increments.variance):
            return self.increments.variance * (self.d + 1) / 2
        return float(self.sample(PATHS, torch.Generator().manual_seed(0)).square().mean(1).median())

    @property
    def variance(self) -> float:
        return self._variance

    @cached_property
    def covariance(self) -> Tensor:
        """``Cov(x_i, x_j) = min(i, j)`` times the variance of an increment, shape (d, d)."""
        i = torch.arange(1, self.d + 1, dtype=torch.float64)
        return torch.minimum(i[:, None], i) * (self.variance * 2 / (self.d + 1))

    @cached_property
    def _moments(self) -> SecondMoments:
        eye = torch.eye(self.d, dtype=torch.float64)
        variances = (dct(eye).mT @ self.covariance @ dct(eye)).diagonal()[None]
        return SecondMoments(torch.zeros_like(variances), variances)

    @property
    def second_moments(self) -> SecondMoments:
        return self._moments

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of ``x_0``, shape (count, d), float64."""
        return self.increments.draw((count, self.d), generator).cumsum(1)

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        alpha_t, sigma_t = self.schedule(t)
        x = x_t.double().flatten(1)
        if isinstance(self.increments, Gaussian):
            eye = torch.eye(self.d, dtype=torch.float64)
            system = alpha_t**2 * self.covariance + sigma_t**2 * eye
            x_hat = x @ torch.linalg.solve(system, alpha_t * self.covariance)
        else:
            grid = grid_of(self.increments, sigma_t / alpha_t, self.d, self.resolution)
            x_hat = _Denoise.apply(x, Chain(grid, alpha_t))
        return Prediction(x_hat.reshape(x_t.shape).to(x_t.dtype))
