"""Manifold-constrained gradients: the DPS step, then a projection onto the measurement at the noise level of ``s``.

    x_s = Pi( x'_s - zeta grad |y - A x_hat| ),    target  y_s = alpha_s y + sigma_s A n

A measurement with noise is not a subspace, so the projection weighs it against the state's own noise, ``sigma_s^2``:

    Pi(x) = x + A^T (A A^T + (alpha_s sigma_y / sigma_s)^2 I)^-1 (y_s - A x)

which is the orthogonal projection ``x + A^+ (y_s - A x)`` when ``sigma_y = 0``, also on the last step, and leaves the
last step alone otherwise.

Chung, Sim, Ryu, Ye, "Improving Diffusion Models for Inverse Problems using Manifold Constraints", 2022,
https://arxiv.org/abs/2206.00941

The official codes project at the level of ``t`` instead of ``s`` (known pixels keep noise of standard deviation 0.01).
They use an up-sampling in place of the pseudoinverse, and for masks in the DPS repository discard the measurement.
Another projection is passed as ``project``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from cmidiff.krylov import per_sample
from cmidiff.solvers.base import descend, length_to_noise
from cmidiff.solvers.grid import EvenLevels, Grid
from cmidiff.solvers.scale import Scale, is_active, scale_at
from cmidiff.step import Carry, Step

Projection = Callable[[Step, Tensor], Tensor]


def project(step: Step, x: Tensor) -> Tensor:
    """``Pi(x)`` above, shape of ``x``."""
    return _projected(step, x, 1.0)


def project_fresh(step: Step, x: Tensor) -> Tensor:
    """``Pi(x)`` with the part of ``sigma_s^2`` that this step has renewed.

    The rest of the noise has met ``y`` in earlier projections. With all of it, ``y`` counts once in every step, and
    more steps leave more of its noise in the result.
    """
    return _projected(step, x, fresh(step))


def fresh(step: Step) -> float:
    """``1 - (sigma_s alpha_t / (sigma_t alpha_s))^2``: the part of the noise of ``x_s`` that is not that of ``x_t``."""
    return 1 - (step.level_s[1] / step.level_s[0] / step.ratio) ** 2


def _projected(step: Step, x: Tensor, part: float) -> Tensor:
    measurement = step.measurement
    alpha_s, sigma_s = step.level_s
    if step.last:
        return x + measurement.solve(measurement.residual(x), 1.0) if measurement.noise_std == 0 else x
    n = step.draws.normal("guidance", step.index, x)
    r2 = part * (sigma_s / alpha_s) ** 2
    return x + r2 * measurement.solve(alpha_s * measurement.y + measurement.A(sigma_s * n - x), r2)


def share(step: Step) -> Tensor:
    """The part of the projection after which ``y - A x_hat`` is as large as the noise, at most 1, broadcastable over
    ``x_t``."""
    measurement, r2 = step.measurement, fresh(step) * (step.level_s[1] / step.level_s[0]) ** 2
    residual = measurement.residual(step.x_hat.detach())
    projected = r2 * measurement.A(measurement.solve(residual, r2))
    return per_sample(length_to_noise(measurement, projected, residual).clamp(0.0, 1.0), step.x_t)


@dataclass(frozen=True)
class MCG(EvenLevels):
    """Manifold-constrained gradients, for linear physics.

    Args:
        scale: zeta >= 0 of the gradient step for a run of 1000 steps, as in `DPS` (the official inpainting code takes
            1). With 0 only the projection is left.
        project: the projection; None: `project_fresh`, or with ``guard=False`` the literal `project`.
        guard: shorten a step that would overshoot (see `cmidiff.solvers.base.descend`), and take no more of the
            projection than leads to the noise (see `share`). The official codes do neither.
        through_clip: as in `DPS`.
        grid: as in `CADPS`; ``schedule`` is the paper's.
    """

    scale: Scale = 0.3
    project: Projection | None = field(default=None, metadata={"option": False})  # no file holds a function
    guard: bool = True
    through_clip: bool = False
    grid: Grid = "even"

    needs_linear: ClassVar[bool] = True

    @property
    def needs_graph(self) -> bool:
        return is_active(self.scale)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        if self.needs_graph:
            x_s = x_s - descend(step, scale_at(self.scale, step), guard=self.guard, through_clip=self.through_clip)
        chosen = self.project or (project_fresh if self.guard else project)
        if not self.guard or not self.needs_graph or step.last:
            return step.through(lambda x: chosen(step, x), x_s), carry
        part = share(step)
        return step.through(lambda x: x + part * (chosen(step, x) - x), x_s), carry
