"""Covariance-aware diffusion posterior sampling: the likelihood of ``p(x_0 | x_t) ~ N(x_hat, Sigma_t)``.

    grad log p(y | x_t) ~ J^T A^T S^-1 (y - A x_hat),    S = sigma_y^2 I + A Sigma_t A^T

with ``Sigma_t = (sigma_t^2 / alpha_t) J``,

and ``x_hat' = x_hat + (sigma_t^2 / alpha_t) grad log p(y | x_t)``, as in PiGDM, with no step size to tune. The
covariances of `cmidiff.covariance` differ in ``Sigma_t``: the paper takes the diagonal of a finite difference.

The length of the move. With ``r = y - A x_hat``, ``m`` the move and ``w = A^T S^-1 r``, the quadratic ``|r - l A m|^2 /
sigma_y^2 + l^2 <m, w>`` (the exact negative log-posterior along ``m`` where ``m = Sigma w``) is least at

    l = <A m, r> / (|A m|^2 + sigma_y^2 <m, w>)

which is 1 for a covariance that is the same inside ``S`` and outside. Where ``S`` is too small, as with the diagonal of
a covariance that is far from diagonal, the move overshoots, and ``l`` shortens it (``guard``). It costs one product
with ``A``, and no step raises ``|y - A x_hat'|``.

``Sigma_t`` depends on ``x_t`` too, which the paper leaves out. With it (``complete``) the guidance is the gradient of
the Gaussian likelihood as a whole, and ``C`` contracts the derivative of the Jacobian (`cmidiff.information`):

    grad log N(y; A x_hat, S) = J^T w + (sigma_t^2 / 2 alpha_t) C(w, w) - grad I(x_0; y | x_t)

Its last term, the derivative of the log-determinant, is the CMI gradient with strength -1.

Hamidi, Yang, "Enhancing Diffusion Models for Inverse Problems with Covariance-Aware Posterior Sampling", 2024,
https://arxiv.org/abs/2412.20045
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cmidiff.config import NotNegative
from cmidiff.covariance import Bound, Covariance, Diagonal, Exact, Hybrid, isotropic_variance, make_covariance
from cmidiff.information import Contraction, contract, default_contraction, gradient_at
from cmidiff.krylov import capped
from cmidiff.physics import measured_count
from cmidiff.solvers.base import PosteriorMean, fitted
from cmidiff.solvers.grid import EvenLevels, Grid
from cmidiff.step import Step

DEVIATIONS = 3.0  # of r_t sqrt(m): bound of the move that `complete` adds


@dataclass(frozen=True)
class CADPS(EvenLevels, PosteriorMean):
    """Covariance-aware posterior sampling, for linear physics.

    Args:
        covariance: ``Sigma_t``, by name or as an object of `cmidiff.covariance`. ``hybrid`` (second moments of the data
            at high noise, the network's Jacobian at low noise), ``diagonal``, ``row-sum``, ``isotropic``, ``exact``,
            ``moments``. ``diagonal-paper`` is the paper's literal rule.
        scale: factor on the guidance; 1 is the formula, 0 the unconditional sampler.
        guard: shorten a move that overshoots, see above. The paper has no guard.
        spread: factor ``c >= 0`` on the variance of a draw that is added to ``x_hat'``, of ``p(x_0 | x_t, y)`` around
            its mean (`cmidiff.covariance.Bound.scatter`), where the sampler has noise. With 1 and second moments,
            samples of Gaussian data are exact with any number of steps. On photographs 2 is nearest to calibrated.
        complete: differentiate the covariance too: on the 25-component mixtures of `cmidiff validate` nearer to the
            posterior, at two contractions more a step. What it adds to ``x_hat`` has at most the norm
            ``3 r_t sqrt(m)``, ``m`` measured numbers.
        contraction: how ``complete`` differentiates, see `cmidiff.information.contract`; None for its default.
        grid: ``even``, noise levels even in the logarithm, or ``schedule``, the grid of the prior (see
            `cmidiff.solvers.grid`).

    Raises:
        ValueError, TypeError: an option that has no meaning.
    """

    covariance: Covariance | str = "hybrid"
    scale: NotNegative = 1.0
    guard: bool = True
    spread: NotNegative = 0.0
    complete: bool = False
    contraction: Contraction | None = None
    grid: Grid = "even"

    needs_linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "covariance", make_covariance(self.covariance, "CADPS"))

    @property
    def memory(self) -> int:
        return self._sigma.memory

    @property
    def needs_graph(self) -> bool:
        return self.scale > 0

    def needs_graph_at(self, ratio: float) -> bool:
        return self.needs_graph and (self.complete or self._sigma.needs_graph(ratio))

    @property
    def uses_moments(self) -> bool:
        return math.isfinite(self._sigma.start)

    @property
    def contractions(self) -> tuple[Contraction, ...]:
        return (self.contraction,) if self.contraction and self.complete and self.scale > 0 else ()

    @property
    def _sigma(self) -> Covariance:
        assert isinstance(self.covariance, Covariance)
        return self.covariance

    def estimate(self, step: Step) -> Tensor:
        """``x_hat'``."""
        x_hat = step.x_hat.detach()
        if self.scale == 0:
            return x_hat
        bound, residual = self._sigma.at(step), step.measurement.residual(x_hat)
        w = bound.solve(residual)
        move = bound.move(w, last=not self.complete)
        if self.guard:
            move = fitted(step, move, w, residual)
        if self.complete:
            move = move + self._derivative(step, bound, w)
        x_hat = x_hat + self.scale * move
        if self.spread == 0 or step.sampler.silent or step.last:
            return x_hat
        drawn = bound.scatter(self.spread)
        return x_hat if drawn is None else x_hat + drawn

    def _derivative(self, step: Step, bound: Bound, w: Tensor) -> Tensor:
        """The part of the move that is due to the derivative of ``Sigma_t``, bounded. The quadratic term has no bound
        where a residual is many standard deviations."""
        how = self.contraction or default_contraction("measurement-symmetric", step.prior)
        spread = 0.5 * step.covariance_gain * contract(step, w, w, how)
        move = step.covariance_gain * (spread - gradient_at(step, bound, contraction=how))
        m = measured_count(step.measurement.physics, step.measurement.y).to(move)
        return capped(move, DEVIATIONS * (isotropic_variance(step) * m).sqrt())


def diagonal() -> CADPS:
    """The diagonal of the Jacobian below `cmidiff.covariance.Hybrid.switch`, second moments above."""
    return CADPS(Hybrid(low=Diagonal()))


def isotropic() -> CADPS:
    """``r_t^2 I``: PiGDM with the guard."""
    return CADPS("isotropic")


def exact() -> CADPS:
    """The default with twice as many iterations."""
    return CADPS(Hybrid(low=Exact(8)))


def free_hunch() -> CADPS:
    """Free Hunch: second moments of the data at every noise level, updated by the run's own denoiser calls."""
    return CADPS("free-hunch")


def paper() -> CADPS:
    """The paper's literal rule: its diagonal, no guard, the grid of the prior."""
    return CADPS("diagonal-paper", guard=False, grid="schedule")
