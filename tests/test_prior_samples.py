"""Benchmark of the samples of a prior: the search for copies of training images."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch


def test_a_copy_and_a_mirrored_copy_are_found(load_benchmark: Callable[[str], ModuleType]) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(20, 3, 8, 8, generator=generator)
    x = torch.stack([train[7], train[11].flip(-1) + 0.01])
    distance, number = load_benchmark("prior_samples").find_nearest(x, train)
    assert number[:, 0].tolist() == [7, 11]
    assert distance[0, 0] < 1e-3
    torch.testing.assert_close(distance[1, 0], torch.tensor(0.01), rtol=1e-2, atol=0)
    brute = (x[0] - train).square().mean((1, 2, 3)).sqrt()
    mirrored = (x[0] - train.flip(-1)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(distance[0, 1:], torch.minimum(brute, mirrored).sort().values[1:3])
