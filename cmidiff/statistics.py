r"""What a sample of images says about all images: means with intervals, paired differences, tests, their correction.

One value ``v_i`` per image ``i = 1..n``; several seeds of one image are averaged first, because they are no independent
images. With the mean ``v``, the standard deviation ``s`` (n - 1 in the denominator) and the quantile ``q`` of Student's
t with ``n - 1`` degrees of freedom,

    interval     v - q s / sqrt(n)  to  v + q s / sqrt(n)
    difference   the same of d_i = (with CMI)_i - (base)_i, image by image
    p            Wilcoxon signed-rank test of "the d_i are symmetric about 0", two-sided
    corrected p  Holm: of the m values p_(1) <= ... <= p_(m), the k-th becomes max over j <= k of (m + 1 - j) p_(j)

The t interval is of the mean, exact for normal values; the test is on ranks, so that no single outlier decides.

Sources: Student, "The Probable Error of a Mean", 1908, https://doi.org/10.1093/biomet/6.1.1; Wilcoxon, "Individual
Comparisons by Ranking Methods", 1945, https://doi.org/10.2307/3001968; Holm, "A Simple Sequentially Rejective Multiple
Test Procedure", 1979, https://www.jstor.org/stable/4615733
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # a corrected p below it is called significant


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` images and half the width of its interval, which is None for one image."""

    n: int
    mean: float
    half: float | None = None

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


@dataclass(frozen=True)
class Paired:
    """With CMI minus base, image by image.

    Attributes:
        difference: mean of the differences, in units of the values.
        better: images where CMI is better; 0, as the next two, for a figure of a set of images.
        worse: images where the base is better.
        same: images without a difference.
        p: two-sided p of the signed-rank test, not corrected; None for fewer than two images. Of a figure of a set of
            images that of the bootstrap (`compare_sets`).
        ranks: sign of the rank sum in the direction of better, 1, 0 or -1.
    """

    difference: Estimate
    better: int
    worse: int
    same: int
    p: float | None
    ranks: int


def estimate(values: Sequence[float], base: Sequence[float] | None = None, *, level: float = LEVEL) -> Estimate:
    """Mean and t interval of one value per image.

    Args:
        values: ``(n,)``, finite, at least one.
        base: if given, what is estimated is the mean of ``values - base``.
        level: probability of the interval, in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}. The usual one is 0.95.")
    sample = _check(values) - (0.0 if base is None else _check(base))
    n, mean = len(sample), float(sample.mean())
    return Estimate(n, mean, float(stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(sample)) if n > 1 else None)


def compare_pairs(differences: Sequence[float], *, higher_is_better: bool) -> Paired:
    """Estimate, wins and signed-rank test of one difference per image.

    The null distribution is exact for up to 50 images without ties; beyond, the normal approximation. Differences of
    exactly 0 count as ``same`` and do not enter the test; if nothing else is left, p is 1.

    Args:
        differences: ``(n,)``, with CMI minus base, finite, at least one.
        higher_is_better: whether a positive difference is a gain.
    """
    sample = _check(differences)
    gains = sample if higher_is_better else -sample
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    moved = gains[gains != 0]
    p = None if len(sample) < 2 else _test_ranks(moved) if len(moved) else 1.0
    ranks = int(np.sign((np.sign(moved) * stats.rankdata(abs(moved))).sum())) if len(moved) else 0
    return Paired(estimate(differences), better, worse, len(sample) - better - worse, p, ranks)


def compare_sets(difference: float, error: float, n: int, *, higher_is_better: bool) -> Paired:
    """Estimate and test of a difference between figures of two sets of ``n`` images.

    Args:
        difference: with CMI minus base.
        error: its standard error, by a bootstrap over the images; the difference is taken as normal.
        n: images.
        higher_is_better: whether a positive difference is a gain.
    """
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error > 0 else float(difference == 0)
    return Paired(Estimate(n, difference, half), 0, 0, 0, p, int(np.sign(difference)) * (1 if higher_is_better else -1))


def _test_ranks(differences: np.ndarray) -> float:
    found: Any = stats.wilcoxon(differences)
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given: all below alpha together err with probability alpha at most."""
    if not all(0 <= one <= 1 for one in p):
        raise ValueError(f"p-values must lie in [0, 1]; got {list(p)}. Leave out the cells without a test.")
    order = np.argsort(p)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p, dtype=float)[order])
    return corrected.clip(max=1.0).tolist()


def least_p(n: int) -> float:
    """The smallest p that the signed-rank test can give on ``n`` images: all differences of one sign."""
    return 2.0 ** (1 - n) if n > 0 else 1.0


def _check(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"Statistics need one finite value per image, and at least one; got {list(values)}.")
    return sample
