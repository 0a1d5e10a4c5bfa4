"""Pseudoinverse-guided diffusion: the likelihood of ``p(x_0 | x_t) ~ N(x_hat, r_t^2 I)``.

    grad log p(y | x_t) = J^T A^T (sigma_y^2 I + r_t^2 A A^T)^-1 (y - A x_hat)

It enters as a correction of the denoised image, ``x_hat' = x_hat + w J^T A^T S^-1 (y - A x_hat)``, which the kernel
then clips and steps with; with ``w = sigma_t^2 / alpha_t`` this is the posterior mean of Tweedie's formula, the same as
adding the gradient to the score.

Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
https://openreview.net/forum?id=9_gsMA8MRKQ
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from cmidiff.covariance import isotropic_variance
from cmidiff.guidance.base import checked_positive, checked_variance
from cmidiff.step import Step

PiGDMWeight = Literal["likelihood", "adaptive", "flow", "additive"]


@dataclass(frozen=True)
class PiGDM:
    """Pseudoinverse-guided sampling, for every linear physics and every ``sigma_y >= 0``.

    Args:
        scale: factor on the guidance; 1 is the formula, 0 the unconditional sampler.
        weight: ``w`` above. ``likelihood``: ``sigma_t^2 / alpha_t``, no approximation beyond the covariance.
            ``adaptive``: times ``r_t^2``, the paper's adaptive weight as
            in k-diffusion codes. ``flow``: ``alpha_t r_t^2`` (RED-diff's code without its adaptive weight).
            ``additive``: ``x_s + alpha_t alpha_s r_t^2 J^T A^T S^-1 (y - A x_hat)``
            (RED-diff's default).
        data_variance: ``v`` in ``r_t^2 = sigma_t^2 v / (sigma_t^2 + alpha_t^2 v)``; the paper takes 1.
        through_clip: evaluate and differentiate the clipped ``x_hat``, as in k-diffusion codes.
    """

    scale: float = 1.0
    weight: PiGDMWeight = "likelihood"
    data_variance: float = 1.0
    through_clip: bool = False

    needs_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_positive("PiGDM", scale=self.scale)
        checked_variance("PiGDM", self.data_variance)
        if self.weight not in get_args(PiGDMWeight):
            raise ValueError(
                f"PiGDM: weight must be one of {', '.join(get_args(PiGDMWeight))}, received {self.weight!r}"
            )

    @property
    def needs_graph(self) -> bool:
        return self.scale > 0

    def pull(self, step: Step) -> Tensor:
        """``J^T A^T S^-1 (y - A x_hat)``, shape of ``x_t``."""
        x_hat = step.clipped(step.x_hat) if self.through_clip else step.x_hat
        measurement = step.measurement
        return step.vjp(measurement.solve(measurement.residual(x_hat.detach()), self._r2(step)), of=x_hat)

    def _r2(self, step: Step) -> float:
        return isotropic_variance(step, self.data_variance)

    def estimate(self, step: Step) -> Tensor:
        """``x_hat'``."""
        match self.weight:
            case "adaptive":
                w = step.covariance_gain * self._r2(step)
            case "flow":
                w = step.level_t[0] * self._r2(step)
            case _:
                w = step.covariance_gain
        x_hat = step.clipped(step.x_hat) if self.through_clip else step.x_hat
        return x_hat.detach() + self.scale * w * self.pull(step)

    def __call__(self, step: Step) -> Tensor:
        if self.scale == 0:
            return step.advance()
        if self.weight == "additive":
            w = step.level_t[0] * step.level_s[0] * self._r2(step)
            return step.advance() + self.scale * w * self.pull(step)
        return step.advance(self.estimate)
