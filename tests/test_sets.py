"""Distances of sets of images: the formulas, what a weight means, and that a difference is paired."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from cmidiff.evaluate.sets import DISTANCES, Products, compare, frechet, kernel_distance, measure
from cmidiff.statistics import compare_sets

RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(12, 5))
RESTORED = TRUE @ RNG.normal(size=(5, 5)) + 0.3
ONES = np.ones(12)


class Given(torch.nn.Module):
    """Features that are the first pixels of an image."""

    num_features = 5

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5].float() / 50


def test_fid_is_its_formula() -> None:
    x, y = RESTORED, TRUE
    covariances = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * root
    assert measure(frechet, x, y) == pytest.approx(expected)
    assert measure(frechet, x, x) == pytest.approx(0, abs=1e-10)


def test_a_weight_of_fid_is_a_repetition() -> None:
    w = np.array([2, 0, 1, 3, 1, 1, 0, 0, 1, 1, 1, 1.0])
    rows = np.repeat(np.arange(12), w.astype(int))
    assert frechet(Products.of(RESTORED, TRUE), w, w) == pytest.approx(measure(frechet, RESTORED[rows], TRUE[rows]))


def test_kid_is_that_of_torchmetrics() -> None:
    images = torch.randint(0, 256, (2, 9, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    metric = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=9)
    metric.update(images[0], real=False)
    metric.update(images[1], real=True)
    x, y = (Given()(part).numpy() for part in images)
    assert measure(kernel_distance, x, y) == pytest.approx(float(metric.compute()[0]), rel=1e-4)


def test_kid_leaves_out_pairs_of_an_image_with_itself() -> None:
    w = np.array([2, 0, 1, 3, 1, 1, 0, 0, 1, 1, 1, 1.0])
    kernel = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        pairs = [(w[i] * w[j], kernel(a[i], b[j])) for i in range(12) for j in range(12) if not (same and i == j)]
        return sum(v * k for v, k in pairs) / sum(v for v, _ in pairs)

    expected = mean(RESTORED, RESTORED, True) + mean(TRUE, TRUE, True) - 2 * mean(RESTORED, TRUE, False)
    assert kernel_distance(Products.of(RESTORED, TRUE), w, w) == pytest.approx(expected)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_difference_is_paired(name: str) -> None:
    distance, images = DISTANCES[name], range(12)
    assert compare(distance, RESTORED, RESTORED, TRUE, images) == (0.0, 0.0)
    near = RESTORED + 1e-3
    difference, error = compare(distance, near, RESTORED, TRUE, images)
    assert difference == pytest.approx(measure(distance, near, TRUE) - measure(distance, RESTORED, TRUE))
    shuffled = RESTORED[RNG.permutation(12)] + 1e-3
    assert error < 0.2 * compare(distance, shuffled, RESTORED, TRUE, images)[1]


@pytest.mark.parametrize("name", DISTANCES)
def test_the_bootstrap_finds_the_error_over_new_images(name: str) -> None:
    distance, rng, found = DISTANCES[name], np.random.default_rng(1), []
    for _ in range(25):
        true = rng.normal(size=(30, 3))
        base = true + 0.5 * rng.normal(size=(30, 3))
        found.append(compare(distance, base * 1.3 + 0.2, base, true, range(30)))
    differences, errors = np.array(found).T
    assert np.median(errors) == pytest.approx(differences.std(ddof=1), rel=0.5)


def test_seeds_of_an_image_are_drawn_together() -> None:
    twice = np.repeat(np.arange(12), 2)
    one = compare(frechet, RESTORED * 1.1, RESTORED, TRUE, range(12))
    two = compare(frechet, RESTORED[twice] * 1.1, RESTORED[twice], TRUE, twice.tolist())
    assert two[1] == pytest.approx(one[1], rel=0.15)


def test_a_difference_of_sets_has_direction_and_test() -> None:
    better = compare_sets(-1.0, 0.4, 20, higher_is_better=False)
    assert better.ranks == 1
    assert better.p == pytest.approx(0.01242, rel=1e-3)
    assert better.difference.half == pytest.approx(0.784, rel=1e-3)
    assert compare_sets(0.0, 0.0, 20, higher_is_better=False).p == 1.0
