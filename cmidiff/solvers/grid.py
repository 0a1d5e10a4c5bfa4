"""Noise levels of a run: even in the logarithm, where few steps meet all scales of an image.

The grid of a DDPM prior is even in its time. Of ten steps it makes one between ``sigma / alpha = 0.4`` and 0.01, where
the details of an image are decided, and four above 4, where nothing is. `EvenLevels` is the base of the solvers that
take even levels by default, and the grid of the prior on request, as their papers do.

The second moments of the prior say what a Gaussian with the same moments would look like given ``y``. Down to ``sigma /
alpha = 4``, for images in [-1, 1], the noise hides what an image has beyond that. A run may begin there with a draw of
this Gaussian posterior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from cmidiff.covariance import gaussian_draw
from cmidiff.physics import known_entries
from cmidiff.schedule import checked_steps
from cmidiff.solvers.base import Solver
from cmidiff.step import Carry, Problem

Grid = Literal["even", "schedule"]
NOISE = 160.0  # noise levels sigma / alpha, for images in [-1, 1]: nothing of the image is left
HIGHEST, LOWEST = 4.0, 0.02  # steps beyond gain nothing
END = 0.1  # last level of solvers whose samples have its noise
HIDDEN = 4.0  # times the highest level where pixels are hidden: the mean colour of a hole averages over many of them


def levels(problem: Problem, steps: int, high: float, low: float) -> list[float]:
    """Times whose noise levels ``sigma_t / alpha_t`` are even in the logarithm, from ``high`` down to ``low``."""
    ratios = [high * (low / high) ** (k / max(steps - 1, 1)) for k in range(checked_steps(steps))]
    return [problem.prior.schedule.time(ratio) for ratio in ratios]


def even_levels(problem: Problem, steps: int, high: float = HIGHEST) -> list[float]:
    """`levels` from ``high`` to `LOWEST`, in proportion to the prior's standard deviation, within its schedule."""
    unit = problem.unit
    return levels(problem, steps, min(min(high, NOISE) * unit, problem.noisiest), LOWEST * unit)


def last_level(problem: Problem, given: float | None, lowest: float) -> float:
    """The noise level at which a solver ends whose samples have that noise.

    Args:
        problem: the noise of the measurement and the variance of the prior.
        given: for images in [-1, 1]. None: `END`, or ``sigma_y`` where that is less, because more noise than in the
            measurement is seen in it.
        lowest: for images in [-1, 1]; the least level that None gives.
    """
    if given is not None:
        return given * problem.unit
    return min(END * problem.unit, max(problem.measurement.noise_std, lowest * problem.unit))


class EvenLevels(Solver):
    """A solver with the option ``grid``: ``even``, or ``schedule`` for the grid of the prior from pure noise.

    Where it makes no use of ``y`` (zero strength) it takes the grid of the prior.
    """

    grid: Grid

    @property
    def uses_moments(self) -> bool:
        """Whether it takes the second moments of the prior in any case, so that they are measured if need be."""
        return False

    @property
    def even(self) -> bool:
        """Whether the run takes even levels."""
        return self.grid == "even" and self.needs_graph

    def highest(self, problem: Problem) -> float:
        """The noise level of the first step, for images in [-1, 1]; infinity: pure noise."""
        m, known = problem.measurement, self.uses_moments or problem.prior.second_moments is not None
        if not (m.linear or self.needs_linear) or not known:
            return math.inf
        return HIGHEST * (1.0 if known_entries(m.physics, m.y) is None else HIDDEN)

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        return even_levels(problem, steps, self.highest(problem)) if self.even else super().times(problem, steps)

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        alpha_t, sigma_t = problem.prior.schedule(t)
        high = self.highest(problem) * problem.unit
        if not self.even or math.isinf(high) or sigma_t / alpha_t > 1.01 * high:
            return super().start(problem, t)
        return alpha_t * gaussian_draw(problem) + sigma_t * problem.draws.normal("start", 0, problem.like()), None
