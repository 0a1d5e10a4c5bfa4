"""Means over problems, their intervals, and what a paired difference says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95% interval, for two values or more."""
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)


def verdict(mean: float, half: float) -> str:
    """Of a paired difference of distances, CMI minus base."""
    return "no difference" if not abs(mean) > half else ("better" if mean < 0 else "worse")
