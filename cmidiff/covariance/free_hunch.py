"""The second moments of the data, corrected along the run by what its own denoiser calls reveal.

For Gaussian data with the precision matrix ``Q`` and the mean ``mu``, at every noise level ``r = sigma_t / alpha_t``,

    g = (x_t / alpha_t - x_hat) / r^2 = Q (x_hat - mu),    Cov(x_0 | x_t) = (Q + I / r^2)^-1

Two calls of the denoiser, at any two noise levels, therefore show how ``Q`` acts along ``s = x_hat_2 - x_hat_1``: it
gives ``d = g_2 - g_1``. ``Q`` starts as ``diag(1 / lambda)`` in the DCT domain (`SecondMoments`), which needs no step
from level to level. Each pair of successive calls updates it by the rule of Broyden, Fletcher, Goldfarb and Shanno:

    Q <- Q - (Q s)(Q s)^T / <s, Q s> + d d^T / <s, d>

Where data are not log-concave ``<s, d>`` may be negative. ``d`` is then mixed with ``Q s`` so far that ``<s, d>`` is a
fixed part of ``<s, Q s>`` (Powell's damping), and ``Q`` stays positive. Products and solutions use the low-rank form of
the inverse (Woodbury). Nothing of it evaluates the network.

The paper carries the covariance and the mean from level to level before it updates them. In the variables ``x_hat`` and
``g`` the model does not depend on the level, which leaves one equation.

Sources: Rissanen, Heinonen, Solin, "Free Hunch: Denoiser Covariance Estimation for Diffusion Models Without Extra
Costs", 2024, https://arxiv.org/abs/2410.11149; Powell, "Algorithms for nonlinear constraints that use Lagrangian
functions", 1978.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, pairwise

import torch
from torch import Tensor

from cmidiff.config import Iterations, Natural, Positive
from cmidiff.covariance.base import Covariance
from cmidiff.covariance.moments import COARSE, START, TOLERANCE, BoundMoments, LowRank, known_moments, solve
from cmidiff.dct import dct, idct
from cmidiff.krylov import dot, per_sample
from cmidiff.step import Seen, Step

DAMPING = 0.2  # least <s, d> as a part of <s, Q s>


@dataclass(frozen=True)
class FreeHunch(Covariance):
    """Second moments with low-rank updates from the run's own denoiser calls.

    Args:
        rank: pairs of calls that are used, the last ones; 0 is `SecondMoments`.
        iterations: at most this many conjugate-gradient iterations; none of them runs the network.
        tolerance: of the linear system, relative.
    """

    rank: Natural = 8
    iterations: Iterations = 100
    tolerance: Positive = TOLERANCE

    @property
    def memory(self) -> int:
        return self.rank

    @property
    def start(self) -> float:
        return START

    def needs_graph(self, ratio: float) -> bool:
        return False

    def at(self, step: Step) -> BoundFreeHunch:
        shape = step.measurement.shape
        precision = 1 / known_moments(step.prior, shape, step.x_t)[1]
        calls = [_call(step, seen) for seen in (*step.past[max(len(step.past) - self.rank, 0) :], step.seen)]
        variances = 1 / (precision + 1 / step.ratio**2)
        low_rank = LowRank(variances, *updates(precision, calls))
        return BoundFreeHunch(step, self.iterations, variances, self.tolerance, low_rank)


def _call(step: Step, seen: Seen) -> tuple[Tensor, Tensor]:
    """``x_hat`` and ``g`` of a call, in the DCT domain."""
    alpha, sigma = step.prior.schedule(seen.t)
    return dct(seen.x_hat), dct(seen.x_t / alpha - seen.x_hat) * (alpha / sigma) ** 2


def updates(precision: Tensor, calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """``W`` (K, B, ...) and signs (K,) of ``Q = diag(precision) + W diag(signs) W^T``: two vectors for each pair of
    successive calls, zero where an image did not change."""
    vectors: list[Tensor] = []
    for (x_1, g_1), (x_2, g_2) in pairwise(calls):
        s, d = x_2 - x_1, g_2 - g_1
        qs = precision * s
        for sign, w in zip(cycle((-1.0, 1.0)), vectors, strict=False):
            qs = qs + sign * per_sample(dot(w, s), w) * w
        along, needed = dot(s, d), dot(s, qs)
        short = along < DAMPING * needed
        part = torch.where(short, (1 - DAMPING) * needed / torch.where(short, needed - along, 1.0), 1.0)
        d = per_sample(part, d) * d + per_sample(1 - part, d) * qs
        for w, size in ((qs, needed), (d, dot(s, d))):
            usable = (size > torch.finfo(size.dtype).tiny) & (needed > torch.finfo(size.dtype).tiny)
            vectors.append(per_sample(torch.where(usable, size.where(usable, 1.0).rsqrt(), 0.0), w) * w)
    none = precision.new_zeros(0, *calls[0][0].shape)
    signs = precision.new_ones(len(vectors))
    signs[::2] = -1.0
    return torch.stack(vectors) if vectors else none, signs


@dataclass(frozen=True)
class BoundFreeHunch(BoundMoments):
    """``Sigma = Q^T (diag(1 / variances) + W diag(signs) W^T)^-1 Q``."""

    low_rank: LowRank

    def product(self, v: Tensor) -> Tensor:
        return idct(self.low_rank.sigma(dct(v)))

    def inverse(self, v: Tensor) -> Tensor:
        u = dct(v)
        return idct(u / self.variances + self.low_rank.extra(u))

    def solve(self, e: Tensor) -> Tensor:
        step, options = self.step, (self.iterations, self.tolerance)
        return solve(
            step.measurement, self.variances, e, COARSE * step.ratio, *options, step.record.residuals, self.low_rank
        )

    def scatter(self, scale: float) -> None:
        return None
