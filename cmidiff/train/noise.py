"""The perturbation kernel at real times, and the times that a batch is trained at.

The grid is DDPM's (Ho et al. 2020, https://arxiv.org/abs/2006.11239): 1000 linear betas from 1e-4 to 0.02. Between
integers, ``log abar`` is linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1000


def log_alpha_bar() -> Tensor:
    """``log abar_t`` at t = 0, ..., 999: shape (1000,), float64."""
    return torch.log1p(-torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)).cumsum(0)


def kernel(t: Tensor) -> tuple[Tensor, Tensor]:
    """``(alpha_t, sigma_t)`` at real ``t`` in [0, 999], shape (B,); float64 of the same shape."""
    table = log_alpha_bar()
    low = t.double().floor().clamp(0, STEPS - 2).long()
    log_abar = torch.lerp(table[low], table[low + 1], t.double() - low)
    return torch.exp(log_abar / 2), torch.sqrt(-torch.expm1(log_abar))


def time_of(ratio: Tensor) -> Tensor:
    """The real ``t``, held to [0, 999], at which ``sigma_t / alpha_t`` is ``ratio``: float64 (B,) of (B,)."""
    table = -log_alpha_bar()
    wanted = torch.log1p(ratio.double() ** 2)
    low = (torch.searchsorted(table, wanted) - 1).clamp(0, STEPS - 2)
    return (low + (wanted - table[low]) / (table[low + 1] - table[low])).clamp(0, STEPS - 1)


def draw_times(batch: int, uniform_share: float, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Times of one batch, stratified: shape (batch,), float64 in [0, 999].

    A share is uniform in ``t``; for the others ``log(sigma_t/alpha_t)`` is normal, as in Karras et al. 2022 (https://arxiv.org/abs/2206.00364).
    """
    uniform = round(uniform_share * batch)
    u = torch.cat([_strata(uniform, generator), _strata(batch - uniform, generator)])
    normal = torch.special.ndtri(u[uniform:].clamp(1e-6, 1 - 1e-6))
    return torch.cat([u[:uniform] * (STEPS - 1), time_of(torch.exp(mean + std * normal))])


def _strata(count: int, generator: torch.Generator) -> Tensor:
    jitter = torch.rand(count, generator=generator, dtype=torch.float64)
    return (torch.arange(count) + jitter) / max(count, 1)
