"""``Sigma = diag(variance)`` from a learned-variance head: the reverse variance of the network, converted.

A network with a learned range predicts the variance ``v`` of ``p(x_s | x_t)`` for neighbouring training levels, between
``beta~`` and ``beta_t``. The optimal one is ``v = beta~ + b^2 Var(x_0 | x_t)``, where ``beta~`` is the variance of
``p(x_s | x_t, x_0)`` and ``b`` the weight of ``x_0`` in its mean. Solved for the variance of ``x_0``:

    Var(x_0 | x_t) = (v - beta~) / b^2,    between 0 (v = beta~) and that of a white prior of unit variance (v = beta_t)

Sources: Peng, Zheng, Dai, Xiao, Li, Zou, Xiong, "Improving Diffusion Models for Inverse Problems Using Optimal
Posterior Covariance", 2024, https://arxiv.org/abs/2402.02149 ("Convert"); Nichol, Dhariwal, 2021,
https://arxiv.org/abs/2102.09672 (the head).
"""

from __future__ import annotations

from dataclasses import dataclass

from cmidiff.config import Share
from cmidiff.covariance.base import Covariance
from cmidiff.covariance.diagonal import ITERATIONS, BoundDiagonal
from cmidiff.covariance.isotropic import isotropic_variance
from cmidiff.schedule import DDPM, Limited, Schedule
from cmidiff.step import Step


@dataclass(frozen=True)
class Convert(Covariance):
    """The variances of a learned-variance head, for priors on a discrete grid of levels.

    The paper takes them below ``sigma_t / alpha_t = 0.2`` and the isotropic covariance above:
    ``Hybrid(Isotropic(), Convert(), 0.2)``.

    Args:
        floor: lower bound of the variance as a multiple of ``r_t^2`` (see `isotropic_variance`).

    Raises:
        ValueError: in the first step, a prior without such a head.
    """

    floor: Share = 0.1

    def at(self, step: Step) -> BoundDiagonal:
        fraction, schedule = step.variance_fraction, _grid(step.prior.schedule)
        if fraction is None or schedule is None:
            raise ValueError(
                f"Convert needs a prior with a learned-variance head on a discrete grid, received {step.prior.name}: "
                "use covariance='diagonal', 'wavelet' or 'hybrid'"
            )
        small, large, b = neighbours(schedule, step.t)
        variance = (small * ((large / small) ** fraction - 1)) / b**2
        bounds = self.floor * isotropic_variance(step), step.ratio**2
        return BoundDiagonal(step, ITERATIONS, variance.clamp(*bounds))


def neighbours(schedule: DDPM, t: float) -> tuple[float, float, float]:
    """``beta~``, ``beta_t`` and ``b`` of the training level at ``t`` and the one below. The lowest level has none, and
    takes those of the next, as the networks do."""
    t = max(t, 1.0)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(t - 1)
    large = 1 - (alpha_t / alpha_s) ** 2
    return large * sigma_s**2 / sigma_t**2, large, alpha_s * large / sigma_t**2


def _grid(schedule: Schedule) -> DDPM | None:
    inner = schedule.inner if isinstance(schedule, Limited) else schedule
    return inner if isinstance(inner, DDPM) else None
