"""Pseudoinverse-guided diffusion: the likelihood of ``p(x_0 | x_t) ~ N(x_hat, r_t^2 I)``.

    grad log p(y | x_t) = J^T A^T (sigma_y^2 I + r_t^2 A A^T)^-1 (y - A x_hat)

It enters as a correction of the denoised image, ``x_hat' = x_hat + w J^T A^T S^-1 (y - A x_hat)``, which the sampler
then clips and steps with. With ``w = sigma_t^2 / alpha_t`` this is the posterior mean of Tweedie's formula, the same as
adding the gradient to the score.

Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
https://openreview.net/forum?id=9_gsMA8MRKQ
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from cmidiff.config import NotNegative, Positive
from cmidiff.covariance import Covariance, Isotropic, isotropic_variance, make_covariance
from cmidiff.solvers.base import fitted
from cmidiff.solvers.grid import EvenLevels, Grid
from cmidiff.step import Carry, Step

Weight = Literal["likelihood", "adaptive", "flow", "additive"]


@dataclass(frozen=True)
class PiGDM(EvenLevels):
    """Pseudoinverse-guided sampling, for every linear physics and every ``sigma_y >= 0``.

    Args:
        scale: factor on the guidance; 1 is the formula, 0 the unconditional sampler.
        weight: ``w`` above. ``likelihood``: ``sigma_t^2 / alpha_t``, no approximation beyond the covariance.
            ``adaptive``: times ``r_t^2``, the paper's adaptive weight as in k-diffusion codes. ``flow``: ``alpha_t
            r_t^2`` (RED-diff's code without its adaptive weight). ``additive``: ``x_s + alpha_t alpha_s r_t^2 J^T A^T
            S^-1 (y - A x_hat)`` (RED-diff's default).
        data_variance: ``v`` in ``r_t^2 = sigma_t^2 v / (sigma_t^2 + alpha_t^2 v)``; None: that of the prior; the paper
            takes 1.
        covariance: in place of ``r_t^2 I``, by name or as an object of `cmidiff.covariance`, e.g. ``"hybrid"``; with
            ``weight="likelihood"`` only. The method is then that of `CADPS`.
        guard: with ``weight="likelihood"``, shorten a move that overshoots, as in `CADPS`; the paper has no guard.
        through_clip: evaluate and differentiate the clipped ``x_hat``, as in k-diffusion codes.
        grid: as in `CADPS`; ``schedule`` is the paper's, and that of the literal weights and of ``through_clip``.

    Raises:
        ValueError: an option that has no meaning.
    """

    scale: NotNegative = 1.0
    weight: Weight = "likelihood"
    data_variance: Positive | None = None
    covariance: Covariance | str | None = None
    guard: bool = True
    through_clip: bool = False
    grid: Grid = "even"

    kind: ClassVar[str] = "posterior mean"
    needs_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.covariance is not None:
            if self.weight != "likelihood" or self.through_clip or self.data_variance is not None:
                raise ValueError(
                    "PiGDM: covariance replaces r_t^2 I and goes with weight='likelihood' alone, without data_variance "
                    f"and through_clip, received weight={self.weight!r}"
                )
            object.__setattr__(self, "covariance", make_covariance(self.covariance, "PiGDM"))

    @property
    def uses_moments(self) -> bool:
        return math.isfinite(self.sigma.start)

    @property
    def memory(self) -> int:
        return self.sigma.memory

    @property
    def needs_graph(self) -> bool:
        return self.scale > 0

    @property
    def sigma(self) -> Covariance:
        """The covariance in use."""
        return self.covariance if isinstance(self.covariance, Covariance) else Isotropic(self.data_variance)

    @property
    def even(self) -> bool:
        return super().even and self.weight == "likelihood" and not self.through_clip

    def needs_graph_at(self, ratio: float) -> bool:
        return self.needs_graph and self.sigma.needs_graph(ratio)

    def pull(self, step: Step) -> Tensor:
        """``J^T A^T S^-1 (y - A x_hat)``, shape of ``x_t``."""
        x_hat = step.clipped(step.x_hat) if self.through_clip else step.x_hat
        measurement, r2 = step.measurement, isotropic_variance(step, self.data_variance)
        solved = measurement.solve(measurement.residual(x_hat.detach()), r2, step.record.residuals)
        return step.vjp(solved, of=x_hat, last=True)

    def estimate(self, step: Step) -> Tensor:
        """``x_hat'``."""
        if self.weight == "likelihood" and not self.through_clip:
            residual = step.measurement.residual(step.x_hat.detach())
            bound = self.sigma.at(step)
            w = bound.solve(residual)
            move = bound.move(w)
            return step.x_hat.detach() + self.scale * (fitted(step, move, w, residual) if self.guard else move)
        w, r2 = step.covariance_gain, isotropic_variance(step, self.data_variance)
        if self.weight != "likelihood":
            w = w * r2 if self.weight == "adaptive" else step.level_t[0] * r2
        x_hat = step.clipped(step.x_hat) if self.through_clip else step.x_hat
        return x_hat.detach() + self.scale * w * self.pull(step)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        if self.scale == 0:
            return step.advance(carry)
        if self.weight != "additive":
            return step.advance(carry, self.estimate)
        w = step.level_t[0] * step.level_s[0] * isotropic_variance(step, self.data_variance)
        x_s, carry = step.advance(carry)
        return x_s + self.scale * w * self.pull(step), carry
