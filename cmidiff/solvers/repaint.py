"""RePaint: the measured part of every state is replaced by the noisy measurement, and the run travels back in time.

    x_s = Pi( x'_s ),    Pi as in `cmidiff.solvers.mcg.project`

For a mask without noise ``Pi`` puts ``alpha_s y + sigma_s z`` on the known pixels: the rule of the paper. Other linear
physics and measurement noise are covered by the same projection. After every ``length`` steps the state goes back by as
many steps with new noise, ``repeat`` times in all. The filled part then comes to agree with the known part.

The official code replaces known pixels before a step and not after the last one, so that its result keeps noise on
them.

Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models",
2022, https://arxiv.org/abs/2201.09865
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cmidiff.config import Count
from cmidiff.solvers.base import Solver, travel
from cmidiff.solvers.mcg import project
from cmidiff.step import Carry, Problem, Step


@dataclass(frozen=True)
class RePaint(Solver):
    """RePaint, for linear physics.

    Args:
        length: steps of a jump back.
        repeat: how often each stretch of ``length`` steps is made. A run takes about ``2 repeat - 1`` times its number
            of steps, of which ``repeat`` in ``2 repeat - 1`` evaluate the denoiser.
    """

    length: Count = 10
    repeat: Count = 10

    needs_linear: ClassVar[bool] = True
    default_steps: ClassVar[int] = 250

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        return travel(super().times(problem, steps), self.length, self.repeat)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        return step.through(lambda x: project(step, x), x_s), carry
