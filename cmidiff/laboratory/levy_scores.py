"""Scores of samples of a posterior against a reference, for each signal.

    gap            10 log10(1 + |mean of the samples - E[x_0 | y]|^2 / tr Cov(x_0 | y)), in dB: what an estimate by the
                   mean of infinitely many samples loses to the best one. The variance of the mean of S samples is
                   subtracted, so that S does not enter.
    coverage       the posterior probability of the interval between two order statistics of the samples of a number:
                   of S = 19 exact samples the 5th to the 15th cover 50%, the 1st to the 19th 90%.
    distance       the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of the marginals, without bias, summed over
                   the numbers of a signal and divided by the sum of E|Y - Y'|: 0 for exact samples, negative by chance.

Sources: Székely, Rizzo, "Energy statistics", 2013, https://doi.org/10.1016/j.jspi.2013.03.018; Zach et al., 2025,
https://arxiv.org/abs/2509.12821 (the gap, and coverage; there of the highest-density region).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLES = 19  # of a signal: those whose order statistics cover 50% and 90%


@dataclass(frozen=True)
class Scores:
    """Of P signals, shapes (P,); coverage is NaN for a single sample."""

    distance: Tensor
    excess: Tensor
    coverage_50: Tensor
    coverage_90: Tensor


def score(x: Tensor, reference: Tensor) -> Scores:
    """Compare samples (P, S, d) with reference samples (P, N, d)."""
    count = x.shape[1]
    own = within(x) if count > 1 else torch.zeros_like(x[:, 0])
    spread = within(reference)
    across = torch.stack([(some[:, :, None] - reference[:, None]).abs().mean((1, 2)) for some in x.split(1, 1)]).mean(0)
    distance = (2 * across - own - spread).sum(1) / spread.sum(1)
    noise = x.var(1).sum(1) / count if count > 1 else 0.0
    error = (x.mean(1) - reference.mean(1)).square().sum(1) - noise - reference.var(1).sum(1) / reference.shape[1]
    excess = error / reference.var(1).sum(1)
    return Scores(distance, excess, coverage(x, reference, 0.5), coverage(x, reference, 0.9))


def within(x: Tensor) -> Tensor:
    """``E|X - X'|`` of different samples (P, N, d), for each number, shape (P, d)."""
    n = x.shape[1]
    rank = 2 * torch.arange(1, n + 1, dtype=x.dtype) - n - 1
    return 2 / (n * (n - 1)) * torch.einsum("n,pnd->pd", rank, x.sort(1).values)


def coverage(x: Tensor, reference: Tensor, level: float) -> Tensor:
    """Share of the reference between the order statistics of ``x`` that cover ``level`` of exact samples, shape (P,).

    A reference that is equal to an end of the interval (an atom) counts half.
    """
    count = x.shape[1]
    k = round((count + 1) * (1 - level) / 2)
    if k < 1 or 2 * k > count:
        return torch.full((len(x),), torch.nan, dtype=x.dtype)
    ordered = x.sort(1).values
    low, high = ordered[:, k - 1 : k], ordered[:, count - k : count - k + 1]
    above = (reference > low).to(x.dtype) + 0.5 * (reference == low)
    below = (reference < high).to(x.dtype) + 0.5 * (reference == high)
    return (above + below - 1).clamp_min(0.0).mean((1, 2))
