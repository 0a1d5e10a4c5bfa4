"""A step size that changes along the run: a number, or a function of the noise level ``sigma_t / alpha_t``.

The step sizes of DPS and MCG are stated for a run of 1000 steps, as in the papers. A run of ``N`` steps takes ``1000 /
N`` times the official step (`scale_at`), so that 25 and 1000 steps move the state by the same total.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cmidiff.config import Checked, NotNegative
from cmidiff.step import Step

Scale = NotNegative | Callable[[float], float]
OFFICIAL_STEPS = 1000


@dataclass(frozen=True)
class Ramp(Checked):
    r"""From ``start`` at pure noise to ``end`` at the clean image, geometrically in the angle of the noise:

    $$ \zeta_t = \mathtt{start}^u \, \mathtt{end}^{1 - u}, \qquad
    u = \tfrac{2}{\pi} \arctan(\sigma_t / \alpha_t) \in [0, 1]. $$

    The angle moves evenly with the time of the cosine schedule, and means the same for every prior. ``start == end`` is
    the constant.

    Args:
        start, end: positive, in the units of what is scaled.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (0 < self.start < math.inf and 0 < self.end < math.inf):
            raise ValueError(f"Ramp: start and end must be numbers > 0, received {self.start!r} and {self.end!r}")

    def __call__(self, ratio: float) -> float:
        u = 2 / math.pi * math.atan(ratio)
        return self.start**u * self.end ** (1 - u)


def scale_at(scale: Scale, step: Step) -> float:
    """The step size of this step: the scale for 1000 steps, times ``1000 / steps``."""
    value = scale(step.ratio) if callable(scale) else scale
    return value * (OFFICIAL_STEPS / step.steps)


def is_active(scale: Scale) -> bool:
    """Whether a scale is more than zero anywhere."""
    return callable(scale) or scale > 0
