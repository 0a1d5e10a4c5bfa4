"""``Sigma = r_t^2 I``: the covariance of PiGDM.

Source: Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
https://openreview.net/forum?id=9_gsMA8MRKQ
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from cmidiff.covariance.base import Bound, Covariance
from cmidiff.covariance.base import isotropic_variance as isotropic_variance
from cmidiff.step import Step


def checked_variance(owner: str, data_variance: float | None) -> None:
    """Raise ``ValueError`` for a prior variance that is not positive and finite."""
    if data_variance is not None and not 0 < data_variance < math.inf:
        raise ValueError(
            f"{owner}: data_variance must be a number > 0 or None for that of the prior, received {data_variance!r}"
        )


@dataclass(frozen=True)
class Isotropic(Covariance):
    """``Sigma = r_t^2 I``.

    Args:
        data_variance: ``v`` in ``r_t^2 = sigma_t^2 v / (sigma_t^2 + alpha_t^2 v)``; None: that of the prior. The paper
            takes 1.
    """

    data_variance: float | None = None

    def __post_init__(self) -> None:
        checked_variance("Isotropic", self.data_variance)

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
