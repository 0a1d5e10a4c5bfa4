"""No guidance: samples of the prior."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cmidiff.step import Step


@dataclass(frozen=True)
class Unconditional:
    """The sampler alone; the measurement is ignored."""

    needs_graph: bool = False

    def __call__(self, step: Step) -> Tensor:
        return step.advance()
