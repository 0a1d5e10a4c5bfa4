"""``Sigma = r_t^2 I``: the covariance of PiGDM.

Source: Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
https://openreview.net/forum?id=9_gsMA8MRKQ
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from cmidiff.config import Positive
from cmidiff.covariance.base import Bound, Covariance
from cmidiff.covariance.base import isotropic_variance as isotropic_variance
from cmidiff.step import Step


@dataclass(frozen=True)
class Isotropic(Covariance):
    """``Sigma = r_t^2 I``.

    Args:
        data_variance: ``v`` in ``r_t^2 = sigma_t^2 v / (sigma_t^2 + alpha_t^2 v)``; None: that of the prior. The paper
            takes 1.
    """

    data_variance: Positive | None = None

    def at(self, step: Step) -> BoundIsotropic:
        return BoundIsotropic(step, isotropic_variance(step, self.data_variance))


@dataclass(frozen=True)
class BoundIsotropic(Bound):
    """``Sigma = r2 I``."""

    step: Step
    r2: float

    def product(self, v: Tensor) -> Tensor:
        return self.r2 * v

    def inverse(self, v: Tensor) -> Tensor:
        return v / self.r2

    def scatter(self, scale: float) -> Tensor:
        scaled = replace(self, r2=scale * self.r2)
        return scaled.given(math.sqrt(scaled.r2) * self.step.normal("posterior"))

    def solve(self, e: Tensor) -> Tensor:
        return self.step.measurement.solve(e, self.r2, self.step.record.residuals)

    def whiten(self, z: Tensor) -> Tensor:
        return self.step.measurement.whiten(z, self.r2)
