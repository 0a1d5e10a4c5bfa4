"""No guidance: samples of the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cmidiff.solvers.base import Solver
from cmidiff.step import Carry, Step


@dataclass(frozen=True)
class Unconditional(Solver):
    """The sampler alone; the measurement is ignored."""

    kind: ClassVar[str] = "prior alone"
    uses_measurement: ClassVar[bool] = False

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        return step.advance(carry)
