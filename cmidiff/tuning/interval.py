"""A mean over images, and how sure it is: Student's 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """``mean ± half`` over ``n`` images, in the units of the values; ``half`` is infinite for a single one."""

    mean: float
    half: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half


def interval(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Of the differences ``values - base``, image by image."""
    gaps = np.asarray(values, dtype=float) - np.asarray(base, dtype=float)
    n = len(gaps)
    half = float(stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return Interval(float(gaps.mean()), half, n)
