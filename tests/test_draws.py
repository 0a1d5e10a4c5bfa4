"""Random numbers: the published words of Philox, their distribution, and all that they must not depend on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmidiff.covariance import Isotropic
from cmidiff.draws import SeededDraws, philox
from cmidiff.information import gradient_at
from tests.cases import F64, measured, mixture, randn, rows, step_at

ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected) -> None:
    """The known answers of Random123, with the counter's last words as tensors and as integers."""
    words: Any = tuple(torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    assert [int(word) for word in philox(words, (k0, k1))] == list(expected)
    assert [int(word) for word in philox((words[0], *counter[1:]), (k0, k1))] == list(expected)


def test_draws_are_normal_and_depend_on_their_names() -> None:
    like = torch.zeros(2, 500, dtype=F64)
    draws = rows(2, seed=3)
    first = draws.normal("kernel", 4, like)
    draws.normal("cmi", 4, like)
    assert torch.equal(draws.normal("kernel", 4, like), first)
    others = [
        draws.normal("cmi", 4, like),
        draws.normal("kernel", 5, like),
        draws.normal("kernel", 4, like, inner=1),
        rows(2, seed=4).normal("kernel", 4, like),
    ]
    flat = torch.stack([*first, *(row for other in others for row in other)])
    correlation = np.corrcoef(flat.numpy())
    assert np.abs(correlation - np.eye(len(flat))).max() < 4.5 / 500**0.5
    many = SeededDraws([("8", 1)]).normal("start", 0, torch.zeros(1, 400_001)).flatten().double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((many**power).mean()) - moment) < 4.5 * (variance / len(many)) ** 0.5
    exceeding = float((many.abs() > 3.5).double().mean()) / 4.6526e-4
    assert exceeding == pytest.approx(1.0, abs=4.5 / (4.6526e-4 * len(many)) ** 0.5)


def test_a_row_depends_on_its_seed_and_sample_alone() -> None:
    named = [("3", 0), (3, 1), ("4+1", 0), ("17", 5)]
    for shape in ((3,), (2, 5), (3, 8, 8), (3, 200, 200)):
        like = torch.zeros(4, *shape)
        together = SeededDraws(named).normal("cmi", 7, like, inner=2)
        for k, row in enumerate(named):
            assert torch.equal(SeededDraws([row]).normal("cmi", 7, like[:1], inner=2)[0], together[k])
        turned = SeededDraws(named[::-1]).normal("cmi", 7, like, inner=2)
        assert torch.equal(turned.flip(0), together)
    assert torch.equal(SeededDraws([("3", 0)]).normal("a", 0, like[:1]), SeededDraws([(3, 0)]).normal("a", 0, like[:1]))


def test_numbers_do_not_depend_on_types_nor_on_the_defaults_of_torch() -> None:
    draws, like = SeededDraws([(0, 0), (0, 1)]), torch.zeros(2, 7)
    expected = draws.normal("start", 0, like)
    assert expected.dtype == torch.float32
    for dtype in (F64, torch.complex64, torch.bfloat16):
        assert torch.equal(draws.normal("start", 0, like.to(dtype)), expected.to(dtype))
    torch.set_default_dtype(F64)
    try:
        torch.manual_seed(1)
        assert torch.equal(SeededDraws([(0, 0), (0, 1)]).normal("start", 0, like), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("estimator", "expected"), [("measurement-symmetric", 2), ("measurement", 2), ("shared-probe", 2), ("two-term", 4)]
)
def test_probes_that_are_not_used_are_not_drawn(estimator, expected) -> None:
    class Counting(SeededDraws):
        count = 0

        def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
            Counting.count += 1
            return super().normal(stream, index, like, inner)

    measurement = measured(randn(2, 6), randn(3, 2), 0.2)
    draws = Counting([(0, k) for k in range(3)])
    step = step_at(mixture(6, 3), measurement, randn(3, 6), 300.0, 200.0, draws=draws)
    how = "second-difference" if estimator == "measurement-symmetric" else "finite-difference"
    gradient_at(step, Isotropic().at(step), estimator=estimator, contraction=how, probes=2)
    assert Counting.count == expected
