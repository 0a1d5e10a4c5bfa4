"""Covariance-aware diffusion posterior sampling: the likelihood of ``p(x_0 | x_t) ~ N(x_hat, Sigma_t)``.

    grad log p(y | x_t) ~ J^T A^T (sigma_y^2 I + A Sigma_t A^T)^-1 (y - A x_hat),    Sigma_t = (sigma_t^2 / alpha_t) J

and ``x_hat' = x_hat + (sigma_t^2 / alpha_t) grad log p(y | x_t)``, as in PiGDM, with no step size to tune. ``Sigma_t``
is the diagonal of a finite difference of the denoiser (the paper), the exact Jacobian, or ``r_t^2 I``; the linear
system is solved by conjugate gradients. Below a noise level a network's Jacobian pays, above it it is worse than none:
``switch``.

``Sigma_t`` depends on ``x_t`` too, which the paper leaves out. With it (``complete``) the guidance is the gradient of
the Gaussian likelihood as a whole; ``w = A^T S^-1 (y - A x_hat)``, and ``C`` contracts the derivative of the Jacobian
(`cmidiff.information`):

    grad log N(y; A x_hat, S) = J^T w + (sigma_t^2 / 2 alpha_t) C(w, w) - grad I(x_0; y | x_t)

Its last term, the derivative of the log-determinant, is the CMI gradient with strength -1.

Hamidi, Yang, "Enhancing Diffusion Models for Inverse Problems with Covariance-Aware Posterior Sampling", 2024,
https://arxiv.org/abs/2412.20045
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from cmidiff.covariance import Covariance, CovarianceName, bind, isotropic_variance
from cmidiff.guidance.base import checked_positive, checked_variance, misfit_gradient
from cmidiff.information import Contraction, contract, gradient_at
from cmidiff.krylov import capped
from cmidiff.physics import measured_count
from cmidiff.step import Step

DEVIATIONS = 3.0  # of r_t sqrt(m): bound of the move that `complete` adds
Variant = Literal["diagonal", "isotropic", "exact", "released"]


@dataclass(frozen=True)
class CADPS:
    """Covariance-aware posterior sampling, for linear physics.

    Args:
        covariance: ``diagonal`` (the paper), ``isotropic``, ``exact``; or ``released``, the update of the authors'
            script, which has no covariance:
            ``x'_s - zeta grad |y - A x_hat| (1 + eps(x_t, t) - eps(x_t, s))``.
        scale: factor on the guidance; 1 is the formula, 0 the unconditional sampler; ``zeta`` for ``released``.
        iterations: at most this many conjugate-gradient iterations (``exact``: network products) a step.
        switch: ``isotropic`` while ``sigma_t / alpha_t`` is above this.
        data_variance: of the prior's images, for ``r_t^2``: see `cmidiff.covariance.isotropic_variance`.
        complete: differentiate the covariance too: on the 25-component mixtures of `cmidiff validate` nearer to the
            posterior, at two contractions more a step. What it adds to ``x_hat`` has at most the norm
            ``3 r_t sqrt(m)``, ``m`` measured numbers.
        contraction: how ``complete`` differentiates, see `cmidiff.information.contract`.
        through_clip: for ``released``, as in `DPS`.
    """

    covariance: Variant = "diagonal"
    scale: float = 1.0
    iterations: int = 4
    switch: float = float("inf")
    data_variance: float = 1.0
    complete: bool = False
    contraction: Contraction = "second-difference"
    through_clip: bool = False

    needs_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_positive("CADPS", scale=self.scale)
        checked_variance("CADPS", self.data_variance)
        if self.covariance not in get_args(Variant):
            raise ValueError(
                f"CADPS: covariance must be one of {', '.join(get_args(Variant))}, received {self.covariance!r}"
            )
        if self.iterations < 1 or not self.switch > 0:
            raise ValueError(
                f"CADPS: need iterations >= 1 and switch > 0, received {self.iterations} and {self.switch}"
            )

    @property
    def needs_graph(self) -> bool:
        return self.scale > 0

    def estimate(self, step: Step) -> Tensor:
        """``x_hat'``."""
        name: CovarianceName = (
            "isotropic" if step.ratio > self.switch or self.covariance == "released" else self.covariance
        )
        covariance = bind(name, step, iterations=self.iterations, data_variance=self.data_variance)
        w = covariance.solve(step.measurement.residual(step.x_hat.detach()))
        move = step.covariance_gain * step.vjp(w)
        if self.complete:
            move = move + self._derivative(step, covariance, w)
        return step.x_hat.detach() + self.scale * move

    def _derivative(self, step: Step, covariance: Covariance, w: Tensor) -> Tensor:
        """The part of the move that is due to the derivative of ``Sigma_t``, bounded: the quadratic term has no bound
        where a residual is many standard deviations."""
        spread = 0.5 * step.covariance_gain * contract(step, w, w, self.contraction)
        move = step.covariance_gain * (spread - gradient_at(step, covariance, contraction=self.contraction))
        m = measured_count(step.measurement.physics, step.measurement.y).to(move)
        return capped(move, DEVIATIONS * (isotropic_variance(step, self.data_variance) * m).sqrt())

    def __call__(self, step: Step) -> Tensor:
        if self.scale == 0:
            return step.advance()
        if self.covariance == "released":
            return step.advance() - self.scale * misfit_gradient(step, through_clip=self.through_clip) * self._factor(
                step
            )
        return step.advance(self.estimate)

    @staticmethod
    def _factor(step: Step) -> Tensor:
        def eps(x_hat: Tensor, level: tuple[float, float]) -> Tensor:
            return (step.x_t.detach() - level[0] * x_hat) / level[1]

        now = 1 + eps(step.x_hat.detach(), step.level_t)
        return now if step.last else now - eps(step.denoise(step.x_t.detach(), step.s), step.level_s)
