"""CA-DPS as its authors released it: an update without a covariance.

    x_s = x'_s - zeta grad |y - A x_hat| (1 + eps(x_t, t) - eps(x_t, s))

It is not the likelihood of the paper (`CADPS`), and serves to compare with the published script.

Source: the script of August 2024 that goes with arXiv 2412.20045.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cmidiff.solvers.base import Solver, misfit_gradient
from cmidiff.solvers.scale import Scale, is_active, scale_at
from cmidiff.step import Carry, Step


@dataclass(frozen=True)
class CADPSReleased(Solver):
    """The update of the authors' script; any differentiable physics.

    Args:
        scale: zeta, as in `DPS`.
        through_clip: as in `DPS`.
    """

    kind: ClassVar[str] = "posterior mean"

    scale: Scale = 0.3
    through_clip: bool = False

    @property
    def needs_graph(self) -> bool:
        return is_active(self.scale)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        if not self.needs_graph:
            return x_s, carry
        pull = misfit_gradient(step, through_clip=self.through_clip)
        return x_s - scale_at(self.scale, step) * pull * _factor(step), carry


def _factor(step: Step) -> Tensor:
    def eps(x_hat: Tensor, level: tuple[float, float]) -> Tensor:
        return (step.x_t.detach() - level[0] * x_hat) / level[1]

    now = 1 + eps(step.x_hat.detach(), step.level_t)
    return now if step.last else now - eps(step.denoise(step.x_t.detach(), step.s), step.level_s)
