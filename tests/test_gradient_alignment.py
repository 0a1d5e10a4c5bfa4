"""Cosines of CMI gradients, where they are known: all estimates of an exact prior tend to one gradient."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from cmidiff import GaussianMixture
from cmidiff.information import exact
from cmidiff.physics import super_resolution


def test_estimates_align_with_the_exact_gradient(load_benchmark: Callable[[str], ModuleType]) -> None:
    tool = load_benchmark("gradient_alignment")
    means = 0.2 * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = GaussianMixture(torch.ones(3, dtype=torch.float64), means, torch.full_like(means, 0.01))
    physics = super_resolution((1, 4, 4), factor=2, dtype=torch.float64)
    found = tool.compare(prior, physics, means[:1], 0.5, 256, 0.1)
    assert found["two draws"] > 0.9
    assert found["contraction"] > 0.99
    assert found["one probe, measurement-symmetric"] < found["two draws"]
    x, (own, other) = torch.randn(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2]
    assert tool.cosine(x, 2 * x) == pytest.approx(1)
    assert tool.cosine(own[None], other[None]) == 0
    t = prior.schedule.time(0.5)
    assert float(exact(prior, physics, means[:1], t, noise_std=0.1)[1].norm()) > 0
