"""Intervals, tests and their correction, against closed forms, enumeration and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmidiff.statistics import compare_pairs, estimate, holm, least_p


def exact_p(differences: list[float]) -> float:
    """The signed-rank test by counting: all 2^n signs of the ranks are equally likely."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    total = ranks.sum() / 2
    seen = abs(ranks[np.array(differences) > 0].sum() - total)
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(ranks))
    ]
    return float(np.mean([abs(s - total) >= seen for s in sums]))


def test_interval_of_a_known_sample() -> None:
    """Mean 3, s^2 = 2.5, t(0.975; 4) = 2.776445: half the width is 2.776445 sqrt(2.5 / 5)."""
    found = estimate([1, 2, 3, 4, 5])
    assert (found.n, found.mean) == (5, 3.0)
    assert found.half == pytest.approx(2.776445 * 0.5**0.5, abs=1e-6)
    assert found.low == pytest.approx(3 - 1.963243, abs=1e-6)


def test_interval_of_two_by_the_cauchy_quantile() -> None:
    """One degree of freedom is the Cauchy distribution: its quantile is tan(pi (p - 1/2))."""
    found = estimate([0.0, 2.0], level=0.8)
    assert found.half == pytest.approx(np.tan(np.pi * 0.4) * 2**0.5 / 2**0.5)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    """4000 samples of 6 normal values: 95% within four standard errors of the count."""
    draws = np.random.default_rng(0).normal(7.0, 3.0, (4000, 6))
    found = [estimate(row) for row in draws]
    covered = np.mean([e.low <= 7.0 <= e.high for e in found if e.low is not None and e.high is not None])
    assert covered == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 4000) ** 0.5)


def test_one_image_has_no_interval_and_no_test() -> None:
    assert (estimate([4.0]).mean, estimate([4.0]).low, estimate([4.0]).half) == (4.0, None, None)
    assert compare_pairs([0.3], higher_is_better=True).p is None


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one finite value per image"):
        estimate(values)
    with pytest.raises(ValueError, match="one finite value per image"):
        compare_pairs(values, higher_is_better=True)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_level_is_a_probability(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        estimate([1.0, 2.0], level=level)


@given(st.lists(st.integers(-1000, 1000).filter(bool), min_size=2, max_size=9, unique_by=abs))
def test_signed_rank_test_is_the_enumeration(differences: list[int]) -> None:
    values = [float(d) for d in differences]
    assert compare_pairs(values, higher_is_better=True).p == pytest.approx(exact_p(values))


def test_signed_rank_test_by_hand() -> None:
    """Ranks 1, 2, 3, 4 with a minus at 2: 6 of 16 sign patterns are as far out (sums 0, 1, 2, 8, 9, 10)."""
    found = compare_pairs([0.1, -0.2, 0.3, 0.4], higher_is_better=True)
    assert found.p == pytest.approx(6 / 16)
    assert (found.better, found.worse, found.same, found.ranks) == (3, 1, 0, 1)


def test_direction_turns_wins_and_ranks_and_nothing_else() -> None:
    up, down = (compare_pairs([0.1, -0.2, 0.3, 0.4], higher_is_better=flag) for flag in (True, False))
    assert (down.better, down.worse, down.ranks) == (up.worse, up.better, -up.ranks)
    assert (down.p, down.difference) == (up.p, up.difference)


def test_equal_images_are_no_evidence() -> None:
    found = compare_pairs([0.0, 0.0, 0.0], higher_is_better=True)
    assert (found.p, found.same, found.ranks, found.difference.mean) == (1.0, 3, 0, 0.0)


def test_false_alarms_are_as_rare_as_said() -> None:
    """Without an effect, p < 0.05 in at most 5% of 2000 runs of 10 images (discrete, hence a little below)."""
    draws = np.random.default_rng(1).standard_t(3, (2000, 10))
    rate = np.mean([(compare_pairs(row, higher_is_better=True).p or 0.0) < 0.05 for row in draws])
    assert 0.03 < rate < 0.05 + 4 * (0.05 * 0.95 / 2000) ** 0.5


def test_least_p_is_reached_by_differences_of_one_sign() -> None:
    for n in (2, 5, 8):
        assert compare_pairs([float(i + 1) for i in range(n)], higher_is_better=True).p == pytest.approx(least_p(n))


def test_holm_by_hand() -> None:
    """0.01 * 4 = 0.04; 0.02 * 3 = 0.06; 0.022 * 2 = 0.044, raised to 0.06; 0.5 * 1."""
    assert holm([0.02, 0.5, 0.01, 0.022]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match="must lie in"):
        holm([0.5, float("nan")])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    corrected = holm(p)
    for one, mended in zip(p, corrected, strict=True):
        assert one <= mended <= min(1.0, len(p) * one)
    assert [corrected[i] for i in np.argsort(p)] == sorted(corrected)


def test_holm_errs_in_one_family_of_twenty() -> None:
    """20 cells without an effect: some cell is called significant in at most 5% of the families."""
    p = np.random.default_rng(2).uniform(size=(2000, 20))
    wrong = np.mean([min(holm(list(row))) < 0.05 for row in p])
    assert wrong <= 0.05 + 4 * (0.05 * 0.95 / 2000) ** 0.5
    assert wrong > 0.03
