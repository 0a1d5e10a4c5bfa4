"""``Sigma = r^2 I`` with the ``r^2`` that is optimal on average: the mean squared error of the denoiser.

    r^2(sigma / alpha) = E |x_0 - x_hat(x_t)|^2 / d

over images and noise. It is the isotropic covariance of the greatest likelihood, and depends on the prior and the noise
level alone. It is measured once, on images or on samples of the prior itself, at a few noise levels, and interpolated
in the logarithms.

Sources: Peng, Zheng, Dai, Xiao, Li, Zou, Xiong, "Improving Diffusion Models for Inverse Problems Using Optimal
Posterior Covariance", 2024, https://arxiv.org/abs/2402.02149 ("Analytic"); Bao, Li, Zhu, Zhang, "Analytic-DPM", 2022,
https://arxiv.org/abs/2201.06503.
"""

from __future__ import annotations

import logging
import math
import weakref
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from cmidiff.covariance.base import Covariance
from cmidiff.covariance.isotropic import BoundIsotropic
from cmidiff.covariance.moments import draw, drawable
from cmidiff.prior.base import Denoiser
from cmidiff.step import Step

LEVELS, LOWEST, HIGHEST = 12, 0.02, 20.0  # noise levels sigma / alpha, in standard deviations of the prior
IMAGES = 8
_measured: weakref.WeakKeyDictionary[Denoiser, dict[tuple[int, ...], Analytic]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Analytic(Covariance):
    """The mean squared error of the denoiser.

    Args:
        table: pairs ``(sigma_t / alpha_t, r^2)``, noise levels ascending; None: measured on samples of the prior
            when it is first used (`Analytic.measure`).

    Raises:
        ValueError: a table that is not ascending and positive.
    """

    table: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self) -> None:
        if self.table is not None:
            table = np.asarray(self.table, dtype=float)
            if table.ndim != 2 or table.shape[1:] != (2,) or not (table > 0).all() or (np.diff(table[:, 0]) <= 0).any():
                raise ValueError(
                    "Analytic: table must be pairs (noise level, variance), positive, noise levels ascending, received "
                    f"{self.table!r}"
                )
            object.__setattr__(self, "table", tuple((float(r), float(v)) for r, v in table))

    def at(self, step: Step) -> BoundIsotropic:
        table = self.table or _of_prior(step.prior, step.measurement.shape).table
        ratios, variances = np.asarray(table).T
        inside = float(np.exp(np.interp(math.log(step.ratio), np.log(ratios), np.log(variances))))
        lowest = min(step.ratio / ratios[0], 1.0) ** 2  # below the table the error is that of the noise
        return BoundIsotropic(step, min(inside * lowest, step.ratio**2))

    @classmethod
    @torch.no_grad()
    def measure(cls, prior: Denoiser, images: Tensor) -> Self:
        """Measure the table.

        Args:
            prior: the denoiser.
            images: clean signals in the prior's units, shape (N, ...).
        """
        unit, table = math.sqrt(prior.variance), []
        z = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(images)
        for ratio in np.geomspace(LOWEST, HIGHEST, LEVELS) * unit:
            t = prior.schedule.time(float(np.clip(ratio, prior.min_ratio, prior.max_ratio)))
            alpha, sigma = prior.schedule(t)
            error = float((prior(alpha * images + sigma * z, t).mean - images).square().mean())
            if not table or sigma / alpha > table[-1][0] * (1 + 1e-6):
                table.append((sigma / alpha, error))
        return cls(tuple(table))


def _of_prior(prior: Denoiser, shape: tuple[int, ...]) -> Analytic:
    prior, drawn = drawable(prior, shape)
    known = _measured.setdefault(prior, {})
    if drawn not in known:
        log = logging.getLogger("cmidiff")
        log.info("measuring the error of the prior %s on %d samples of it", prior.name, IMAGES)
        known[drawn] = Analytic.measure(prior, draw(prior, drawn, IMAGES))
    return known[drawn]
